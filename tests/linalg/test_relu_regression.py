from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

from onnx_lowrank.linalg.phase_covariance import PhaseCovariance
from onnx_lowrank.linalg.relu_regression import ReluProblem, nearest_before_relu, rectified
from tests.support import Array, quick, relative, rng


@dataclass(frozen=True)
class Example:
    """A map behind a ReLU, and the linear solution of a problem in fewer columns."""

    rows: Array
    target: Array
    given: Array
    weight: Array
    bias: Array
    ceiling: float

    @property
    def sigma(self) -> Array:
        covariance: Array = np.cov(self.rows.T, bias=True)
        return covariance

    def problem(self, ridge: float = 0.0) -> ReluProblem:
        return ReluProblem(
            self.rows, self.target, self.weight, self.bias, given=self.given, sigma=self.sigma,
            ridge=ridge, ceiling=self.ceiling,
        )  # fmt: skip

    def loss(self, weight: Array, bias: Array) -> float:
        """Behind the ReLU, written out."""
        made = np.minimum(np.maximum(self.rows @ weight.T + bias + self.given, 0), self.ceiling)
        return 0.5 * float(np.mean(np.sum((self.target - made) ** 2, axis=1)))

    def half(self, second: bool) -> Example:
        part = slice(len(self.rows) // 2, None) if second else slice(len(self.rows) // 2)
        return Example(
            self.rows[part], self.target[part], self.given[part], self.weight, self.bias,
            self.ceiling,
        )  # fmt: skip


def example(seed: int, ceiling: float = math.inf, n: int = 600, hidden: int = 6) -> Example:
    """``hidden`` columns of the true map are not seen."""
    random = rng(seed)
    d, outputs = 5, 4
    rows = random.normal(size=(n, d + hidden)) + 0.5
    response = rows @ random.normal(size=(outputs, d + hidden)).T
    response -= response.mean(axis=0) + 0.5 * response.std(axis=0)
    given = random.normal(size=response.shape)
    seen = np.column_stack([rows[:, :d], np.ones(n)])
    solution = np.linalg.lstsq(seen, response, rcond=None)[0].T
    target = np.clip(response + given, 0, ceiling)
    return Example(rows[:, :d], target, given, solution[:, :-1], solution[:, -1], ceiling)


@quick(50)
@given(
    st.floats(0, 3),
    st.floats(-3, 5),
    st.sampled_from([0.01, 0.3, 1.0, 30.0]),
    st.sampled_from([3.0, 3.5, math.inf]),
)
def test_the_best_branch_is_the_best_of_a_grid(
    target: float, point: float, tau: float, ceiling: float
) -> None:
    def cost(z: Array) -> Array:
        return (target - np.clip(z, 0, ceiling)) ** 2 + tau * (z - point) ** 2

    grid = np.linspace(-4, 6, 10001)
    found = nearest_before_relu(np.array([target]), np.array([point]), tau, ceiling)
    assert float(cost(found)[0]) <= float(cost(grid).min()) + 1e-12
    # and where a point is that good already, it stays
    here = rectified(np.array([point]), ceiling)
    fixed = nearest_before_relu(here, np.array([point]), tau, ceiling)
    np.testing.assert_allclose(fixed, [point], atol=1e-12)


@pytest.mark.parametrize("ceiling", [math.inf, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_losses_are_what_they_say(seed: int, ceiling: float) -> None:
    e = example(seed, ceiling)
    found = e.problem(ridge=0.1).solve()
    assert abs(found.linear - e.loss(e.weight, e.bias)) < 1e-10 * found.linear
    assert abs(found.loss - e.loss(found.weight, found.bias)) < 1e-10 * found.linear
    assert found.loss < 0.99 * found.linear
    assert found.best > 0


@pytest.mark.parametrize("seed", range(6))
def test_most_of_what_a_general_method_gains_from_there_is_gained(seed: int) -> None:
    e = example(seed)
    found = e.problem().solve()
    shape = e.weight.shape

    def loss(flat: Array) -> tuple[float, Array]:
        weight, bias = flat[: e.weight.size].reshape(shape), flat[e.weight.size :]
        made = e.rows @ weight.T + bias + e.given
        left = (np.maximum(made, 0) - e.target) * (made > 0) / len(e.rows)
        return e.loss(weight, bias), np.concatenate([(left.T @ e.rows).ravel(), left.sum(axis=0)])

    start = np.concatenate([found.weight.ravel(), found.bias])
    better = optimize.minimize(loss, start, jac=True, method="L-BFGS-B")
    assert better.fun <= found.loss
    assert found.linear - found.loss > 0.8 * (found.linear - better.fun)


def test_without_negative_sums_it_is_least_squares() -> None:
    e = example(0)
    far = Example(e.rows, e.target + 100, e.given + 100, 0 * e.weight, e.bias, math.inf)
    found = far.problem().solve((1e-6, 1e-6))
    seen = np.column_stack([e.rows, np.ones(len(e.rows))])
    wanted = np.linalg.lstsq(seen, e.target - e.given, rcond=None)[0].T
    assert relative(found.weight, wanted[:, :-1]) < 1e-4
    assert relative(found.bias, wanted[:, -1]) < 1e-4


def test_it_is_better_on_other_rows_too() -> None:
    gains = []
    for seed in range(8):
        e = example(seed, n=8000)
        found = e.half(second=False).problem(ridge=0.1).solve()
        other = e.half(second=True)
        gains.append(other.loss(found.weight, found.bias) / other.loss(e.weight, e.bias))
    assert max(gains) < 1
    assert np.mean(gains) < 0.95


def test_a_heavy_ridge_leaves_the_linear_solution() -> None:
    e = example(3)
    found = e.problem(ridge=1e9).solve()
    assert relative(found.weight, e.weight) < 1e-6


def test_nothing_is_changed_where_all_fits() -> None:
    e = example(5, hidden=0)
    found = e.problem().solve()
    assert found.linear < 1e-20
    assert found.loss <= found.linear
    assert relative(found.weight, e.weight) < 1e-9


def test_single_precision_rows_give_the_same() -> None:
    e = example(2)
    wanted = e.problem(ridge=0.1).solve()
    single = Example(
        *(a.astype(np.float32) for a in (e.rows, e.target, e.given)), e.weight, e.bias, math.inf
    ).problem(ridge=0.1).solve()  # fmt: skip
    assert relative(single.weight, wanted.weight) < 1e-4
    assert abs(single.loss - wanted.loss) < 1e-4 * wanted.loss


def test_shapes_are_checked() -> None:
    e = example(0)
    with pytest.raises(ValueError, match="do not fit"):
        ReluProblem(e.rows[:-1], e.target, e.weight, e.bias, given=e.given, sigma=e.sigma)
    with pytest.raises(ValueError, match="do not fit"):
        ReluProblem(e.rows[:, 1:], e.target, e.weight, e.bias, given=e.given, sigma=e.sigma)


@pytest.mark.parametrize("kind", [np.float64, np.float32])
@pytest.mark.parametrize("dead", [False, True])
def test_phases_are_solved_as_the_whole_is(kind: type, dead: bool) -> None:
    """Rows of transposed convolutions are zero outside the columns of their phase."""
    random, columns = rng(5), (np.array([0, 2, 4]), np.array([1, 3]), np.array([5, 6, 7]))
    rows = np.zeros((900, 8), kind)
    for phase, at in enumerate(columns):
        rows[phase::3, at] = 1 + random.normal(size=(300, len(at)))
    if dead:
        rows[:, [2, 5]] = 0
    mean, n = rows.mean(axis=0), len(rows)
    blocks = tuple(rows[:, at].T.astype(float) @ rows[:, at] / n for at in columns)
    sigma = PhaseCovariance(blocks, columns, mean.astype(float))
    weight, bias = random.normal(size=(4, 8)), random.normal(size=4)
    target = rectified(rows @ random.normal(size=(8, 4)).astype(kind))
    given = np.zeros_like(target)
    one, two = (
        ReluProblem(rows, target, weight, bias, given=given, sigma=s, ridge=0.3).solve()
        for s in (sigma, np.asarray(sigma))
    )
    assert one.loss < one.linear
    assert one.best == two.best
    alive = [0, 1, 3, 4, 6, 7] if dead else list(range(8))
    tolerance = 1e-9 if kind is np.float64 else 1e-4
    assert relative(one.weight[:, alive], two.weight[:, alive]) < tolerance
    assert one.loss == pytest.approx(two.loss, rel=tolerance)
