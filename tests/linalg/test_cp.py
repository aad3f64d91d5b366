from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from onnx_lowrank.linalg.cp import CpResult, CpTensor, cp_compose
from tests.support import Array, quick, relative, rng

#: shape, planted rank: below, at and above the extents; matrices and five modes too
PLANTED = [
    ((6, 5, 9), 3),
    ((8, 6, 3, 3), 4),
    ((10, 12, 9), 11),
    ((4, 3, 5), 4),
    ((7, 2, 6), 1),
    ((3, 4, 3, 2, 3), 3),
]


def planted(shape: Sequence[int], rank: int, seed: int) -> tuple[list[Array], Array, Array]:
    """Unit factors, weights between 1 and 2, and the tensor."""
    random = rng(seed)
    drawn = [random.normal(size=(n, rank)) for n in shape]
    factors: list[Array] = [f / np.linalg.norm(f, axis=0) for f in drawn]
    weights = random.uniform(1, 2, size=rank)
    return factors, weights, cp_compose(factors, weights)


def match(result: CpResult, factors: Sequence[Array], weights: Array) -> float:
    """Factor match score after the best permutation: 1 where all terms are found."""
    cosine: Array = np.ones((len(weights), len(weights)))
    for ours, theirs in zip(result.factors, factors, strict=True):
        cosine = cosine * (ours.T @ theirs)
    ratio = result.weights[:, None] / weights[None]
    score = cosine * np.minimum(ratio, 1 / ratio)  # signs cancel over the modes of a term
    return float(score[linear_sum_assignment(-score)].min())


def border() -> Array:
    """Rank 3, yet a limit of tensors of rank 2."""
    a, b = np.eye(2)
    terms = [(a, a, b), (a, b, a), (b, a, a)]
    total: Array = sum((np.einsum("i,j,k->ijk", *t) for t in terms), np.zeros((2, 2, 2)))
    return total


@pytest.mark.parametrize(("shape", "rank"), PLANTED)
@pytest.mark.parametrize("seed", range(3))
def test_planted_terms_are_found(shape: tuple[int, ...], rank: int, seed: int) -> None:
    factors, weights, tensor = planted(shape, rank, seed)
    result = CpTensor(tensor).fitted(rank, starts=5, max_iterations=3000, tolerance=1e-9)
    assert result.converged
    assert result.error < 1e-4
    assert match(result, factors, weights) > 1 - 1e-3


@quick(25)
@given(st.lists(st.integers(1, 5), min_size=2, max_size=5), st.integers(1, 6), st.integers(0, 99))
def test_a_result_is_what_it_says(shape: list[int], rank: int, seed: int) -> None:
    tensor = rng(seed).normal(size=shape) * 10.0 ** rng(seed, 1).integers(-6, 6)
    result = CpTensor(tensor).fitted(rank, max_iterations=50, seed=seed)
    assert [f.shape for f in result.factors] == [(n, rank) for n in shape]
    for factor in result.factors:
        norms = np.linalg.norm(factor, axis=0)
        assert np.all((np.abs(norms - 1) < 1e-9) | (norms == 0))
    assert result.weights.shape == (rank,)
    assert result.weights.min() >= 0
    assert abs(relative(tensor, cp_compose(result.factors, result.weights)) - result.error) < 1e-12
    assert abs(result.largest - result.weights.max() / np.linalg.norm(tensor)) < 1e-9
    assert result.iterations == len(result.history) <= 50


@quick(25)
@given(
    st.lists(st.integers(2, 6), min_size=3, max_size=4),
    st.integers(1, 8),
    st.sampled_from([1e-8, 1e-4, 1e-1]),
    st.integers(0, 99),
)
def test_the_objective_never_rises(shape: list[int], rank: int, ridge: float, seed: int) -> None:
    tensor = rng(seed).normal(size=shape)
    result = CpTensor(tensor).fitted(rank, ridge=ridge, seed=seed, max_iterations=60, tolerance=0.0)
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(result.history))
    # and it is the one that the docstring names
    square = float(np.sum(result.weights**2) / np.sum(tensor**2))
    assert abs(result.history[-1] - result.error**2 - ridge * square) < 1e-10


@quick(10)
@given(st.lists(st.integers(2, 12), min_size=3, max_size=4), st.integers(1, 8), st.integers(0, 99))
def test_single_precision_ends_where_double_does(shape: list[int], rank: int, seed: int) -> None:
    tensor = rng(seed).normal(size=shape)
    double, single = (
        CpTensor(tensor.astype(kind)).fitted(rank, starts=1, seed=seed, tolerance=1e-4)
        for kind in (np.float64, np.float32)
    )
    assert abs(double.error - single.error) < 0.01
    told = cp_compose(single.factors, single.weights)
    assert abs(relative(tensor, told) - single.error) < 1e-6


@pytest.mark.parametrize("shape", [(4, 3, 9), (3, 3, 3), (4, 3, 2, 3), (5, 7)])
def test_enough_terms_are_exact(shape: tuple[int, ...]) -> None:
    tensor = rng(3).normal(size=shape)
    full = int(np.prod(shape)) // max(shape)
    assert CpTensor(tensor).fitted(full).error < 1e-5


@quick(10)
@given(st.integers(2, 6), st.integers(2, 6), st.integers(0, 99))
def test_of_a_matrix_it_is_the_truncated_svd(rows: int, columns: int, seed: int) -> None:
    matrix = rng(seed).normal(size=(rows, columns))
    s = np.linalg.svd(matrix, compute_uv=False)
    for rank in range(1, len(s) + 1):
        wanted = np.sqrt(np.sum(s[rank:] ** 2) / np.sum(s**2))
        assert abs(CpTensor(matrix).fitted(rank, ridge=1e-10, starts=1).error - wanted) < 1e-8


def test_one_term_of_a_symmetric_positive_tensor_is_known() -> None:
    # sum_i s_i e_i (x) e_i (x) e_i: the best term is the largest
    tensor = np.zeros((3, 3, 3))
    for i, s in enumerate((3.0, 2.0, 1.0)):
        tensor[i, i, i] = s
    result = CpTensor(tensor).fitted(1, ridge=1e-10)
    assert abs(result.error - np.sqrt(5 / 14)) < 1e-8
    assert abs(result.weights[0] - 3) < 1e-6


@pytest.mark.parametrize("ridge", [1e-2, 1e-3, 1e-4, 1e-5])
def test_the_penalty_bounds_terms_that_cancel(ridge: float) -> None:
    result = CpTensor(border()).fitted(
        2, ridge=ridge, starts=3, max_iterations=20_000, tolerance=1e-9
    )
    # the optimum of e^2 + 2 ridge / (c e)^2 grows no faster than ridge^(-1/4)
    assert result.largest < 0.5 * ridge**-0.25
    assert result.error < 2 * ridge**0.25


def test_without_a_penalty_the_terms_diverge() -> None:
    free, bound = (
        CpTensor(border()).fitted(2, ridge=r, starts=3, max_iterations=2000, tolerance=0.0)
        for r in (0.0, 1e-3)
    )
    assert free.largest > 10
    assert bound.largest < 2


def test_the_same_seed_gives_the_same_terms() -> None:
    tensor = rng(0).normal(size=(5, 4, 6))
    one, two = (CpTensor(tensor).fitted(7, starts=3, seed=4) for _ in range(2))
    assert one.start == two.start
    for a, b in zip((*one.factors, one.weights), (*two.factors, two.weights), strict=True):
        np.testing.assert_array_equal(a, b)


def test_more_starts_are_never_worse() -> None:
    for seed in range(5):
        tensor = rng(seed).normal(size=(4, 4, 4))
        errors = [CpTensor(tensor).fitted(4, starts=n, seed=seed).history[-1] for n in (1, 2, 6)]
        assert errors == sorted(errors, reverse=True)


def test_a_limit_reached_is_not_called_convergence() -> None:
    tensor = rng(0).normal(size=(6, 6, 6))
    result = CpTensor(tensor).fitted(8, starts=1, max_iterations=3, tolerance=1e-12)
    assert (result.converged, result.iterations) == (False, 3)


def test_nothing_gives_nothing() -> None:
    result = CpTensor(np.zeros((3, 4, 2))).fitted(2)
    assert (result.error, result.converged, result.largest) == (0.0, True, 0.0)
    assert not cp_compose(result.factors, result.weights).any()


def test_the_tensor_is_left_alone() -> None:
    tensor = rng(0).normal(size=(3, 4, 2)).astype(np.float32)
    before = tensor.copy()
    CpTensor(tensor).fitted(2)
    np.testing.assert_array_equal(tensor, before)


@pytest.mark.parametrize(
    ("shape", "rank", "starts", "message"),
    [((4,), 1, 1, "needs 2"), ((4, 4), 0, 1, "1 or more"), ((4, 4), 1, 0, "1 or more")],
)
def test_misuse(shape: tuple[int, ...], rank: int, starts: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CpTensor(np.ones(shape)).fitted(rank, starts=starts)


def test_terms_that_are_known_are_the_start() -> None:
    """From planted terms, in any order and length, one sweep is exact; so it is from half of them
    where triples of the rest fill up."""
    random = rng(7)
    planted = [random.normal(size=(n, 4)) for n in (7, 6, 3)]
    tensor = cp_compose(planted, np.ones(4))
    found = CpTensor(tensor).fitted(4, ridge=1e-12, max_iterations=1, near=planted)
    assert found.error < 1e-6
    assert found.start == 0
    half = [factor[:, ::2] for factor in planted]
    grown = CpTensor(tensor).fitted(4, ridge=1e-12, near=half)
    anew = CpTensor(tensor).fitted(4, ridge=1e-12, starts=1)
    assert grown.error < max(1e-3, 1.01 * anew.error)


def test_the_strongest_of_the_known_terms_are_taken() -> None:
    basis = [np.linalg.qr(rng(n).normal(size=(5, 5)))[0][:, :3] for n in range(3)]
    lengths = np.array([0.1, 3.0, 2.0])
    tensor = cp_compose(basis, lengths)
    near = [basis[0] * lengths, *basis[1:]]
    found = CpTensor(tensor).fitted(2, ridge=1e-12, max_iterations=1, near=near)
    assert found.error == pytest.approx(0.1 / np.linalg.norm(lengths), rel=1e-6)
