from __future__ import annotations

import itertools
import math
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_lowrank.linalg.lowrank_sparse import (
    LowRankSparse,
    LowRankSparseResult,
    group_norms,
    shrunk_groups,
    shrunk_values,
)
from tests.support import Array, quick, relative, rng

with warnings.catch_warnings():
    # says at import which of its optional parts are missing
    warnings.simplefilter("ignore")
    import cvxpy as cp

#: outputs, channels, columns of a channel
SHAPES = [(6, 8, 1), (5, 4, 3), (9, 3, 2), (1, 6, 1), (4, 1, 5)]

#: l2 over the largest, and where l1 lies in the band where both parts live
PENALTIES = list(itertools.product((0.3, 0.1), (0.35, 0.5, 0.65)))

TIGHT: dict[str, Any] = {"absolute": 1e-10, "relative": 1e-10, "max_iterations": 20_000}


def example(shape: tuple[int, int, int], seed: int, condition: float = 100.0) -> LowRankSparse:
    outputs, channels, width = shape
    d = channels * width
    random = rng(seed)
    q, _ = np.linalg.qr(random.normal(size=(d, d)))
    sigma = (q * np.geomspace(1, 1 / condition, d)) @ q.T
    return LowRankSparse(random.normal(size=(outputs, d)), sigma, width)


def penalties(problem: LowRankSparse, part: float, at: float) -> tuple[float, float]:
    outputs, d = problem.weight.shape
    l2 = part * problem.largest[1]
    low = l2 / math.sqrt(d // problem.width)
    high = l2 * math.sqrt(min(problem.width, outputs))
    return low ** (1 - at) * high**at, l2


def by_cvxpy(problem: LowRankSparse, l1: float, l2: float) -> tuple[Array, Array]:
    """The same problem, its covariance as a Cholesky factor, by an interior-point method."""
    outputs, d = problem.weight.shape
    sparse, low_rank = cp.Variable((outputs, d)), cp.Variable((outputs, d))
    root = np.linalg.cholesky(problem.sigma)
    terms = [0.5 * cp.sum_squares((problem.weight - sparse - low_rank) @ root)]
    for j in range(0, d, problem.width):
        terms.append(l1 * cp.norm(sparse[:, j : j + problem.width], "fro"))
    terms.append(l2 * cp.normNuc(low_rank))
    with warnings.catch_warnings():
        # deprecations inside cvxpy and its solvers are not ours to mend
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        cp.Problem(cp.Minimize(sum(terms))).solve(solver="CLARABEL")
    return np.asarray(sparse.value), np.asarray(low_rank.value)


@pytest.mark.parametrize("shape", SHAPES)
def test_as_good_as_an_interior_point_method(shape: tuple[int, int, int]) -> None:
    problem = example(shape, 1)
    zero = np.zeros_like(problem.weight)
    for part, at in PENALTIES:
        l1, l2 = penalties(problem, part, at)
        found = problem.solve(l1, l2, **TIGHT)
        sparse, low_rank = by_cvxpy(problem, l1, l2)
        wanted = problem.objective(sparse, low_rank, l1, l2)
        scale = problem.objective(zero, zero, l1, l2)
        assert found.converged
        assert abs(found.objective - wanted) < 1e-6 * scale
        # the sum is unique, and so is the gradient; the parts need not be
        assert relative(sparse + low_rank, found.sparse + found.low_rank) < 1e-3


@quick(25)
@given(st.sampled_from(SHAPES), st.sampled_from(PENALTIES), st.integers(0, 99))
def test_optimality_certificate(
    shape: tuple[int, int, int], penalty: tuple[float, float], seed: int
) -> None:
    problem = example(shape, seed)
    l1, l2 = penalties(problem, *penalty)
    found = problem.solve(l1, l2, **TIGHT)
    gradient = (problem.weight - found.sparse - found.low_rank) @ problem.sigma
    norms, pulls = (group_norms(m, problem.width) for m in (found.sparse, gradient))
    nuclear = float(np.linalg.svd(found.low_rank, compute_uv=False).sum())
    scale = float(np.sum((problem.weight @ problem.sigma) * problem.weight))
    assert pulls.max() <= l1 * (1 + 1e-6)
    assert np.linalg.norm(gradient, 2) <= l2 * (1 + 1e-6)
    assert abs(float(np.sum(gradient * found.sparse)) - l1 * norms.sum()) < 1e-6 * scale
    assert abs(float(np.sum(gradient * found.low_rank)) - l2 * nuclear) < 1e-6 * scale


@quick(25)
@given(st.sampled_from(SHAPES), st.sampled_from(PENALTIES), st.integers(0, 99))
def test_a_result_is_what_it_says(
    shape: tuple[int, int, int], penalty: tuple[float, float], seed: int
) -> None:
    problem = example(shape, seed)
    l1, l2 = penalties(problem, *penalty)
    found = problem.solve(l1, l2)
    norms = group_norms(found.sparse, problem.width)
    np.testing.assert_array_equal(found.support, np.flatnonzero(norms))
    np.testing.assert_array_equal(np.sort(found.order), np.arange(shape[1]))
    assert set(found.order[: len(found.support)]) == set(found.support)
    assert (np.diff(norms[found.order]) <= 0).all()
    values = np.linalg.svd(found.low_rank, compute_uv=False)
    assert int((values > 1e-9 * max(float(values[0]), 1e-9)).sum()) == found.rank
    left = problem.weight - found.sparse - found.low_rank
    wanted = 0.5 * np.trace(left @ problem.sigma @ left.T) + l1 * norms.sum() + l2 * values.sum()
    assert abs(found.objective - wanted) < 1e-10 * wanted


def test_infinite_l2_leaves_a_group_lasso() -> None:
    problem = example((5, 4, 3), 2)
    l1 = 0.8 * problem.largest[0]
    found = problem.solve(l1, math.inf, **TIGHT)
    assert found.rank == 0
    assert not found.low_rank.any()
    assert 0 < len(found.support) < 4
    # proximal gradient, another method for the same optimum
    step, point = 1 / float(np.linalg.eigvalsh(problem.sigma)[-1]), np.zeros_like(problem.weight)
    for _ in range(20_000):
        gradient = (problem.weight - point) @ problem.sigma
        point = shrunk_groups(point + step * gradient, step * l1, problem.width)
    assert relative(point, found.sparse) < 1e-7


def test_infinite_l1_leaves_singular_value_thresholding() -> None:
    outputs, d = 6, 8
    weight = rng(3).normal(size=(outputs, d))
    problem = LowRankSparse(weight, np.eye(d))
    l2 = 0.5 * problem.largest[1]
    u, values, vt = np.linalg.svd(weight, full_matrices=False)
    wanted = (u * np.maximum(values - l2, 0)) @ vt
    found = problem.solve(math.inf, l2, **TIGHT)
    assert not found.sparse.any()
    assert found.rank == int((values > l2).sum())
    assert relative(wanted, found.low_rank) < 1e-8


def test_two_infinite_penalties_leave_nothing() -> None:
    problem = example((5, 4, 3), 2)
    found = problem.solve(math.inf, math.inf)
    assert not found.sparse.any()
    assert not found.low_rank.any()
    assert found.converged
    assert found.objective == problem.loss(np.zeros_like(problem.weight))


@pytest.mark.parametrize("shape", SHAPES)
def test_penalties_at_which_a_part_disappears(shape: tuple[int, int, int]) -> None:
    problem = example(shape, 4)
    outputs, channels, width = shape
    l1, l2 = problem.largest
    over = 1 + 1e-6
    assert problem.objective(*_parts(problem.solve(l1 * over, l2 * over)), 0, 0) == (
        problem.loss(np.zeros_like(problem.weight))
    )
    assert problem.solve(0.5 * l1, math.inf).support.size > 0
    assert problem.solve(math.inf, 0.5 * l2).rank > 0
    wide = problem.solve(0.2 * l2 * math.sqrt(min(width, outputs)) * over, 0.2 * l2, **TIGHT)
    assert not wide.sparse.any()
    assert wide.rank > 0
    tall = problem.solve(0.2 * l1, 0.2 * l1 * math.sqrt(channels) * over, **TIGHT)
    assert not tall.low_rank.any()
    assert tall.support.size > 0


@pytest.mark.parametrize("condition", [1.0, 1e4])
def test_any_rho_reaches_the_same_optimum(condition: float) -> None:
    problem = example((5, 4, 3), 5, condition)
    l1, l2 = penalties(problem, 0.1, 0.5)
    found = [problem.solve(l1, l2, rho=rho, **TIGHT) for rho in (1e-3, 0.1, 10.0)]
    assert all(f.converged for f in found)
    for other in found[1:]:
        assert abs(other.objective - found[0].objective) < 1e-8 * found[0].objective
        np.testing.assert_array_equal(other.support, found[0].support)
        assert other.rank == found[0].rank


@pytest.mark.parametrize("rho", [1e-4, 1e4])
def test_a_poor_rho_is_mended_on_the_way(rho: float) -> None:
    problem = example((6, 8, 1), 5)
    l1, l2 = penalties(problem, 0.1, 0.5)
    good = problem.solve(l1, l2)
    found = problem.solve(l1, l2, rho=rho)
    assert found.converged
    assert found.iterations < good.iterations + 40  # a factor of two at each step
    assert abs(found.objective - good.objective) < 1e-3 * good.objective


def test_a_warm_start_reaches_the_same_optimum_sooner() -> None:
    problem = example((6, 8, 1), 6)
    l1, l2 = penalties(problem, 0.1, 0.5)
    near = problem.solve(1.05 * l1, l2, **TIGHT)
    cold = problem.solve(l1, l2, absolute=1e-7, relative=1e-7)
    warm = problem.solve(l1, l2, start=near, absolute=1e-7, relative=1e-7)
    assert warm.iterations < cold.iterations
    assert abs(warm.objective - cold.objective) < 1e-6 * cold.objective
    again = problem.solve(1.05 * l1, l2, start=near)
    assert again.iterations <= 2


def test_planted_columns_and_rank_are_recovered() -> None:
    outputs, channels, width = 20, 16, 3
    d, random = channels * width, rng(7)
    sparse = np.zeros((outputs, d))
    planted = [2, 7, 11]
    for j in planted:
        sparse[:, j * width : (j + 1) * width] = random.normal(size=(outputs, width))
    low_rank = random.normal(size=(outputs, 2)) @ random.normal(size=(2, d))
    samples = random.normal(size=(40 * d, d))
    sigma = samples.T @ samples / len(samples)
    problem = LowRankSparse(sparse + low_rank, sigma, width)
    found = problem.solve(*penalties(problem, 0.02, 0.5), relative=1e-6)
    assert found.support.tolist() == planted
    assert found.rank == 2
    assert relative(sparse + low_rank, found.sparse + found.low_rank) < 0.05
    # which of the two has what on the planted columns, nothing tells
    others = np.delete(np.arange(d), [j * width + i for j in planted for i in range(width)])
    assert relative(low_rank[:, others], found.low_rank[:, others]) < 0.05


def test_moments_of_a_response_serve_as_well_as_a_map() -> None:
    random = rng(8)
    rows = random.normal(size=(200, 12)) @ random.normal(size=(12, 12))
    response = np.maximum(rows @ random.normal(size=(12, 5)), 0)  # no linear map
    sigma, cross = rows.T @ rows / 200, response.T @ rows / 200
    problem = LowRankSparse.from_moments(cross, float(np.sum(response**2)) / 200, sigma, 3)
    other = random.normal(size=(5, 12))
    wanted = float(np.sum((response - rows @ other.T) ** 2)) / 400
    assert abs(problem.loss(other) - wanted) < 1e-10 * wanted
    l1, l2 = penalties(problem, 0.1, 0.5)
    found = problem.solve(l1, l2, **TIGHT)
    direct = LowRankSparse(np.linalg.solve(sigma, cross.T).T, sigma, 3).solve(l1, l2, **TIGHT)
    assert relative(direct.sparse + direct.low_rank, found.sparse + found.low_rank) < 1e-7
    assert problem.rest > 0


def test_a_singular_covariance_is_no_trouble() -> None:
    random = rng(9)
    rows = random.normal(size=(5, 12))
    sigma, weight = rows.T @ rows / 5, random.normal(size=(4, 12))
    problem = LowRankSparse(weight, sigma, 3)
    l1, l2 = penalties(problem, 0.1, 0.5)
    found = problem.solve(l1, l2, **TIGHT)
    moments = LowRankSparse.from_moments(weight @ sigma, 2 * problem.loss(0 * weight), sigma, 3)
    other = moments.solve(l1, l2, **TIGHT)
    assert found.converged
    assert abs(found.objective - other.objective) < 1e-7 * found.objective


@quick(25)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 3), st.integers(0, 99))
def test_proximal_maps_by_moreau(outputs: int, channels: int, width: int, seed: int) -> None:
    matrix = rng(seed).normal(size=(outputs, channels * width))
    for threshold in (0.3, 1.0, 3.0):
        # the rest is the projection on the ball of the dual norm, and meets it where it must
        point = shrunk_groups(matrix, threshold, width)
        rest = matrix - point
        norms = group_norms(rest, width)
        assert norms.max() <= threshold * (1 + 1e-12)
        gap = float(np.sum(rest * point)) - threshold * float(group_norms(point, width).sum())
        assert abs(gap) < 1e-10
        point, rank = shrunk_values(matrix, threshold)
        rest = matrix - point
        values = np.linalg.svd(point, compute_uv=False)
        assert np.linalg.norm(rest, 2) <= threshold * (1 + 1e-9)
        assert abs(float(np.sum(rest * point)) - threshold * float(values.sum())) < 1e-9
        assert rank == int((np.linalg.svd(matrix, compute_uv=False) > threshold).sum())


def test_too_few_steps_are_said_to_be() -> None:
    problem = example((6, 8, 1), 1)
    found = problem.solve(*penalties(problem, 0.1, 0.5), **TIGHT | {"max_iterations": 3})
    assert not found.converged
    assert found.iterations == 3
    assert found.primal > 1e-10


def test_nothing_to_explain() -> None:
    problem = LowRankSparse(np.zeros((3, 4)), np.eye(4), 2)
    found = problem.solve(1.0, 1.0)
    assert (found.rank, found.support.size, found.objective, found.converged) == (0, 0, 0.0, True)


@pytest.mark.parametrize(
    ("shape", "width", "message"),
    [((4, 4), 3, "channels"), ((5, 5), 1, "sigma"), ((4, 4), 0, "no")],
)
def test_misuse(shape: tuple[int, int], width: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LowRankSparse(np.ones((2, 4)), np.ones(shape), width)


@pytest.mark.parametrize(
    ("l1", "l2", "rho"), [(0.0, 1.0, None), (1.0, -1.0, None), (1.0, 1.0, 0.0)]
)
def test_penalties_that_make_no_sense(l1: float, l2: float, rho: float | None) -> None:
    with pytest.raises(ValueError, match="positive"):
        example((6, 8, 1), 1).solve(l1, l2, rho=rho)


def _parts(found: LowRankSparseResult) -> tuple[Array, Array]:
    return found.sparse, found.low_rank
