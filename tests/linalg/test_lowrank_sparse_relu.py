from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_lowrank.linalg.lowrank_sparse import LowRankSparse, group_norms
from onnx_lowrank.linalg.lowrank_sparse_relu import (
    ReluSample,
    Steps,
    lowrank_sparse_relu,
    refit_relu,
    relu_loss,
)
from onnx_lowrank.linalg.lowrank_sparse_sizes import parts_of
from tests.support import Array, quick, relative, rng

#: outputs, channels, columns of a channel
SHAPES = [(6, 8, 1), (5, 4, 3), (9, 3, 2)]


@dataclass(frozen=True)
class Example:
    """A layer, its sampled rows and responses, and penalties that leave some of each part."""

    rows: Array
    target: Array
    weight: Array
    bias: Array
    width: int

    @property
    def sample(self) -> ReluSample:
        return ReluSample(self.rows, self.target, self.weight, self.bias)

    @property
    def sigma(self) -> Array:
        centred = self.rows - self.rows.mean(axis=0)
        covariance: Array = centred.T @ centred / len(self.rows)
        return covariance

    @property
    def penalties(self) -> tuple[float, float]:
        l1, l2 = LowRankSparse(self.weight, self.sigma, self.width).largest
        return 0.1 * l1, 0.1 * l2


def example(shape: tuple[int, int, int], seed: int, shift: float = -1.0, n: int = 300) -> Example:
    outputs, channels, width = shape
    d, random = channels * width, rng(seed)
    rows = random.normal(size=(n, d)) @ random.normal(size=(d, d)) / d + random.normal(size=d)
    weight = random.normal(size=(outputs, d))
    response = rows @ weight.T
    bias = shift * response.std(axis=0) - response.mean(axis=0)
    return Example(rows, np.maximum(response + bias, 0), weight, bias, width)


def objective(e: Example, sparse: Array, low_rank: Array, bias: Array) -> float:
    """Of the problem behind the ReLU, written out."""
    l1, l2 = e.penalties
    left = e.target - np.maximum(e.rows @ (sparse + low_rank).T + bias, 0)
    columns = [
        np.linalg.norm(sparse[:, j : j + e.width]) for j in range(0, sparse.shape[1], e.width)
    ]
    nuclear = np.linalg.svd(low_rank, compute_uv=False).sum()
    return float(0.5 * np.mean(np.sum(left**2, axis=1)) + l1 * np.sum(columns) + l2 * nuclear)


@quick(15)
@given(st.sampled_from(SHAPES), st.sampled_from([-1.0, 0.0, 3.0]), st.integers(0, 99))
def test_never_worse_than_the_linear_solution(
    shape: tuple[int, int, int], shift: float, seed: int
) -> None:
    e = example(shape, seed, shift)
    found = lowrank_sparse_relu(e.sample, *e.penalties, width=e.width, steps=Steps(limit=30))
    linear = LowRankSparse(e.weight, e.sigma, e.width).solve(*e.penalties)
    level = e.bias + (e.weight - linear.sparse - linear.low_rank) @ e.rows.mean(axis=0)
    start = objective(e, linear.sparse, linear.low_rank, level)
    assert abs(found.linear - start) < 1e-9 * start
    assert found.objective <= found.linear
    result = objective(e, found.sparse, found.low_rank, found.bias)
    assert abs(found.objective - result) < 1e-9 * start
    norms = group_norms(found.sparse, e.width)
    np.testing.assert_array_equal(found.support, np.flatnonzero(norms))
    values = np.linalg.svd(found.low_rank, compute_uv=False)
    assert int((values > 1e-9 * max(float(values[0]), 1e-9)).sum()) == found.rank


@pytest.mark.parametrize("shape", SHAPES)
def test_far_better_where_most_responses_are_cut_off(shape: tuple[int, int, int]) -> None:
    e = example(shape, 1)
    found = lowrank_sparse_relu(e.sample, *e.penalties, width=e.width, steps=Steps(limit=100))
    assert found.objective < 0.8 * found.linear
    assert found.best > 0


def test_without_negative_responses_it_is_the_linear_problem() -> None:
    e = example((5, 4, 3), 2, shift=30.0)
    found = lowrank_sparse_relu(
        e.sample,
        *e.penalties,
        width=3,
        steps=Steps(relative=1e-6, limit=2000),
    )
    linear = LowRankSparse(e.weight, e.sigma, 3).solve(*e.penalties, absolute=1e-9, relative=1e-9)
    assert found.converged
    assert abs(found.objective - linear.objective) < 1e-4 * linear.objective
    assert found.rank == linear.rank
    np.testing.assert_array_equal(found.support, linear.support)
    assert relative(linear.sparse + linear.low_rank, found.sparse + found.low_rank) < 1e-2


def test_convergence_is_reported_not_assumed() -> None:
    e = example((6, 8, 1), 3)
    short, long = (
        lowrank_sparse_relu(e.sample, *e.penalties, steps=Steps(limit=limit)) for limit in (3, 3000)
    )
    assert (short.converged, short.iterations) == (False, 3)
    assert max(short.primal, short.dual) > 5e-3
    assert long.converged
    assert max(long.primal, long.dual) <= 5e-3
    assert long.objective <= short.objective


def test_more_steps_are_never_worse_even_where_they_go_round() -> None:
    e = example((6, 8, 1), 0)
    runs = [
        lowrank_sparse_relu(e.sample, *e.penalties, steps=Steps(0.3, limit=limit))
        for limit in range(0, 60, 5)
    ]
    objectives = [r.objective for r in runs]
    assert all(b <= a for a, b in itertools.pairwise(objectives))
    assert objectives[0] == runs[0].linear
    assert any(r.best < r.iterations for r in runs)


def test_at_rest_no_small_change_is_better() -> None:
    e = example((6, 8, 1), 4)
    found = lowrank_sparse_relu(e.sample, *e.penalties, steps=Steps(relative=1e-5, limit=4000))
    assert found.converged
    at, random = found.objective, rng(5)
    for step in (1e-2, 1e-3):
        for _ in range(50):
            sparse, low_rank, bias = (
                m + step * random.normal(size=m.shape) * np.abs(m).mean()
                for m in (found.sparse, found.low_rank, found.bias)
            )
            assert objective(e, sparse, low_rank, bias) > at - 1e-6 * found.linear
    # nor all of it smaller or larger
    for factor in (0.99, 1.01):
        moved = objective(e, factor * found.sparse, factor * found.low_rank, found.bias)
        assert moved > at - 1e-6 * found.linear


@quick(15)
@given(st.sampled_from(SHAPES), st.integers(0, 3), st.integers(0, 3), st.integers(0, 99))
def test_a_refit_is_never_worse_than_its_start(
    shape: tuple[int, int, int], keep: int, rank: int, seed: int
) -> None:
    e = example(shape, seed)
    support = np.sort(rng(seed).permutation(shape[1])[:keep])
    found = refit_relu(e.sample, support, rank, width=e.width, sigma=e.sigma)
    start = parts_of(e.weight, e.sigma, e.width, support, rank)
    bias = e.bias + (e.weight - start.matrix) @ e.rows.mean(axis=0)
    wanted = relu_loss(e.rows, e.target, start.matrix, bias)
    scale = relu_loss(e.rows, e.target, np.zeros_like(e.weight), np.zeros_like(e.bias))
    assert abs(found.linear - wanted) < 1e-9 * scale
    assert found.loss <= found.linear
    left = e.target - np.maximum(e.rows @ found.parts.matrix.T + found.bias, 0)
    assert abs(found.loss - 0.5 * float(np.mean(np.sum(left**2, axis=1)))) < 1e-9 * scale
    np.testing.assert_array_equal(found.parts.support, support)
    assert found.parts.basis.shape == (rank, e.weight.shape[1])
    assert (found.best > 0) == (found.loss < found.linear)


def test_a_refit_is_better_on_other_rows_too() -> None:
    gains = []
    for seed in range(8):
        e = example((6, 8, 1), seed, n=8000)
        rows, target = e.rows[:4000], e.target[:4000]
        sample, support = ReluSample(rows, target, e.weight, e.bias), np.array([0, 3])
        linear, fitted = (
            refit_relu(sample, support, 1, sigma=e.sigma, schedule=s)
            for s in ((), (0.01, 0.1, 1.0) * 3)
        )
        before, after = (
            relu_loss(e.rows[4000:], e.target[4000:], f.parts.matrix, f.bias)
            for f in (linear, fitted)
        )
        assert after < before
        gains.append(after / before)
    assert np.mean(gains) < 0.97


def test_a_heavy_ridge_leaves_the_linear_solution() -> None:
    e = example((5, 4, 3), 6)
    support = np.array([1, 2])
    light, heavy = (
        refit_relu(e.sample, support, 1, width=3, sigma=e.sigma, ridge=ridge)
        for ridge in (0.1, 1e9)
    )
    linear = parts_of(e.weight, e.sigma, 3, support, 1)
    assert relative(linear.matrix, heavy.parts.matrix) < 1e-6
    assert relative(linear.matrix, light.parts.matrix) > 1e-2


def test_fewer_rows_than_columns_are_no_trouble() -> None:
    e = example((5, 4, 3), 7, n=6)
    found = refit_relu(e.sample, np.array([0]), 2, width=3)
    assert np.isfinite(found.parts.matrix).all()
    assert found.loss <= found.linear


@pytest.mark.parametrize("wrong", [0.0, np.inf])
def test_penalties_that_make_no_sense(wrong: float) -> None:
    e = example((6, 8, 1), 1)
    for pair in ((wrong, 1.0), (1.0, wrong)):
        with pytest.raises(ValueError, match="positive and finite"):
            lowrank_sparse_relu(e.sample, *pair)


def test_shapes_that_do_not_fit() -> None:
    e = example((6, 8, 1), 1)
    with pytest.raises(ValueError, match="do not fit"):
        ReluSample(e.rows, e.target[1:], e.weight, e.bias)
