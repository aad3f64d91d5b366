"""Selection of samples by self-representation: certificates, oracles and planted samples."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import cvxpy as cp
import numpy as np
import numpy.typing as npt
import pytest
from scipy.optimize import nnls

from onnx_lowrank.linalg.row_selection import Representation, by_norm, decorrelated, represent

Array = npt.NDArray[np.float64]
Pick = Callable[[Representation, int], npt.NDArray[np.int64]]


def gaussian(n: int, d: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((n, d))


def planted(extra: int, seed: int = 3) -> tuple[Array, set[int]]:
    """Three long samples in different directions, and mixtures of them; which are the three."""
    rng = np.random.default_rng(seed)
    corners = 3 * np.linalg.qr(rng.standard_normal((5, 3)))[0].T
    mixed = rng.dirichlet(np.ones(3), extra) @ corners
    order = rng.permutation(extra + 3)
    return np.concatenate([corners, mixed])[order], set(np.flatnonzero(order < 3).tolist())


def beyond_mixtures(x: Array, chosen: tuple[int, ...]) -> float:
    """Sum of the distances of all samples from the cone of those chosen."""
    return sum(nnls(x[list(chosen)].T, sample)[1] for sample in x)


@pytest.mark.parametrize("share", [0.02, 0.2, 0.6])
def test_the_objective_is_that_of_a_convex_solver(share: float) -> None:
    x = gaussian(12, 4)
    found = represent(x, share, steps=2000, settled=1e-9)
    a = cp.Variable((12, 12))
    fit = cp.sum(cp.norm(x.T - x.T @ a, axis=0))
    problem = cp.Problem(cp.Minimize(fit + found.gamma * cp.sum(cp.norm(a, axis=1))))
    problem.solve(solver=cp.CLARABEL)
    assert found.objective[-1] == pytest.approx(problem.value, rel=1e-4)
    assert found.norms == pytest.approx(np.linalg.norm(a.value, axis=1), abs=0.02)


def test_rows_have_the_products_of_the_matrix_that_is_never_made() -> None:
    x = gaussian(9, 9, seed=1)
    found = represent(x, 0.1, steps=1)
    # the first step by its definition: residuals are the samples, and rows have norm 1
    largest = np.linalg.norm(x, axis=1).max()
    y = x.T / largest
    a = np.empty((9, 9))
    for i in range(9):
        weight = 2 * found.gamma / largest * np.linalg.norm(y[:, i])
        a[:, i] = np.linalg.solve(y.T @ y + weight * np.eye(9) / 2, y.T @ y[:, i])
    assert found.rows @ found.rows.T == pytest.approx(a @ a.T, abs=1e-6)


def test_the_objective_never_rises() -> None:
    steps = np.array(represent(gaussian(40, 6), 0.1).objective)
    assert len(steps) > 3
    assert (np.diff(steps) <= 1e-9 * steps[0]).all()


def test_no_row_pays_from_the_stated_gamma_on() -> None:
    x = gaussian(15, 4)
    assert represent(x, 1.2, steps=3000, settled=1e-9).norms.max() < 1e-3
    assert represent(x, 0.8, steps=3000, settled=1e-9).norms.max() > 1e-2


@pytest.mark.parametrize("pick", [by_norm, decorrelated])
def test_planted_samples_are_found_and_are_the_exhaustive_optimum(pick: Pick) -> None:
    x, corners = planted(12)
    best = min(combinations(range(len(x)), 3), key=lambda chosen: beyond_mixtures(x, chosen))
    assert set(best) == corners
    assert set(pick(represent(x), 3).tolist()) == corners


@pytest.mark.parametrize("pick", [by_norm, decorrelated])
def test_copies_are_picked_once(pick: Pick) -> None:
    x, corners = planted(12)
    copied = np.concatenate([x, x[sorted(corners)], x[sorted(corners)]])
    chosen = pick(represent(copied), 3).tolist()
    assert set(chosen) == corners


def test_copies_leave_the_objective_as_it_is_without_merging() -> None:
    x = gaussian(6, 3, seed=5)
    twice = np.concatenate([x, x[:2]])
    found = represent(twice, 0.1, steps=2000, settled=1e-9)
    a = cp.Variable((8, 8))
    fit = cp.sum(cp.norm(twice.T - twice.T @ a, axis=0))
    problem = cp.Problem(cp.Minimize(fit + found.gamma * cp.sum(cp.norm(a, axis=1))))
    problem.solve(solver=cp.CLARABEL)
    assert found.objective[-1] == pytest.approx(problem.value, rel=1e-4)
    assert found.copies.tolist() == [2, 2, 1, 1, 1, 1]


def test_decorrelated_leaves_near_copies_out_where_norms_do_not() -> None:
    x, corners = planted(12)
    near = x[sorted(corners)] * (1 - 1e-3)
    many = np.concatenate([x, near])
    chosen = decorrelated(represent(many), 3).tolist()
    directions = x[sorted(corners)] / 3
    assert {int(np.argmax(directions @ many[i])) for i in chosen} == {0, 1, 2}


def test_samples_that_are_all_alike_or_zero() -> None:
    assert by_norm(represent(np.ones((5, 2))), 3).tolist() == [0]
    assert decorrelated(represent(np.zeros((4, 2))), 2).tolist() == [0]
    x = np.concatenate([np.zeros((1, 3)), gaussian(4, 3)])
    assert len(by_norm(represent(x), 5)) == 5


def test_more_samples_than_a_square_matrix_of_them_would_fit() -> None:
    found = represent(gaussian(30_000, 4), 0.1, steps=5)
    assert found.rows.shape[1] <= 4
    assert np.isfinite(found.rows).all()
