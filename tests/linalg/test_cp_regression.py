from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_lowrank.linalg.cp import CpTensor, cp_compose
from onnx_lowrank.linalg.cp_regression import (
    CpProblem,
    CpRegression,
    Refinement,
    Search,
    outer_rows,
)
from tests.support import Array, quick, relative, rng

SHAPES = [(4, 3, 9), (5, 4, 3, 3), (3, 6, 2), (2, 3, 2, 3, 2)]


def example(shape: tuple[int, ...], seed: int) -> tuple[Array, Array]:
    """Kernel and covariance."""
    random, d = rng(seed), math.prod(shape[1:])
    q, _ = np.linalg.qr(random.normal(size=(d, d)))
    return random.normal(size=shape), (q * np.geomspace(1, 1e-3, d)) @ q.T


def solve(kernel: Array, sigma: Array | None, rank: int, rounds: int = 0) -> CpRegression:
    return CpProblem(kernel, sigma).solve(rank, Search(1, 0, 60), Refinement(rounds))


def distance(difference: Array, sigma: Array) -> float:
    """``tr(D Sigma D^T)``."""
    flat = difference.reshape(len(difference), -1)
    return float(np.sum((flat @ sigma) * flat))


@quick(20)
@given(st.sampled_from(SHAPES), st.integers(1, 6), st.integers(0, 3), st.integers(0, 99))
def test_a_result_is_what_it_says(
    shape: tuple[int, ...], rank: int, rounds: int, seed: int
) -> None:
    kernel, sigma = example(shape, seed)
    found = solve(kernel, sigma, rank, rounds)
    assert [r.shape for r in found.rows] == [(rank, n) for n in shape[1:]]
    assert found.last.shape == (shape[0], rank)
    for rows in found.rows:
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, rtol=1e-9)
    composed = cp_compose([found.last, *(r.T for r in found.rows)], np.ones(rank))
    assert relative(composed.reshape(len(kernel), -1), found.last @ outer_rows(found.rows)) < 1e-12
    wanted = distance(kernel - composed, sigma)
    assert abs(found.error - wanted) < 1e-10 * distance(kernel, sigma)


@pytest.mark.full
@quick(20)
@given(st.sampled_from(SHAPES), st.integers(1, 6), st.integers(0, 99))
def test_never_worse_than_the_terms_it_started_from(
    shape: tuple[int, ...], rank: int, seed: int
) -> None:
    kernel, sigma = example(shape, seed)
    terms = CpTensor(kernel).fitted(rank, starts=1, seed=0, tolerance=1e-4, max_iterations=60)
    before = distance(kernel - cp_compose(terms.factors, terms.weights), sigma)
    errors = [before, *(solve(kernel, sigma, rank, rounds).error for rounds in range(4))]
    assert all(b <= a * (1 + 1e-9) for a, b in itertools.pairwise(errors))


@quick(20)
@given(st.sampled_from(SHAPES), st.integers(1, 6), st.integers(0, 99))
def test_the_last_map_leaves_nothing_that_the_features_see(
    shape: tuple[int, ...], rank: int, seed: int
) -> None:
    kernel, sigma = example(shape, seed)
    found, weight = solve(kernel, sigma, rank), kernel.reshape(len(kernel), -1)
    features = outer_rows(found.rows)
    left = (weight - found.last @ features) @ sigma @ features.T
    assert np.linalg.norm(left) < 1e-7 * np.linalg.norm(weight @ sigma @ features.T)


def test_rounds_end_where_the_gradient_vanishes() -> None:
    kernel, sigma = example((4, 3, 5), 0)
    rough, fine = (solve(kernel, sigma, 2, rounds) for rounds in (0, 400))
    steps = []
    for found in (rough, fine):
        # of the error in the channel factor, by central differences
        rows, gradient = list(found.rows), np.zeros_like(found.rows[0])
        for at in np.ndindex(gradient.shape):
            moved = []
            for h in (1e-5, -1e-5):
                changed = rows[0].copy()
                changed[at] += h
                what = found.last @ outer_rows([changed, *rows[1:]])
                moved.append(distance(kernel.reshape(4, -1) - what, sigma))
            gradient[at] = (moved[0] - moved[1]) / 2e-5
        steps.append(float(np.linalg.norm(gradient)))
    assert fine.error < rough.error
    assert steps[1] < 1e-2 * steps[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_without_a_covariance_it_is_the_weight_space_fit(shape: tuple[int, ...]) -> None:
    kernel, _ = example(shape, 1)
    found = solve(kernel, None, 2, rounds=3)
    single = kernel.astype(np.float32)
    terms = CpTensor(single).fitted(2, starts=1, seed=0, tolerance=1e-4, max_iterations=60)
    for rows, factor in zip(found.rows, terms.factors[1:], strict=True):
        np.testing.assert_allclose(rows, factor.T, atol=1e-12)
    assert found.error <= (terms.error * np.linalg.norm(kernel)) ** 2 * (1 + 1e-12)


def test_terms_that_repeat_are_no_trouble() -> None:
    # rank one, five terms asked for: the features are linearly dependent
    kernel = cp_compose([rng(i).normal(size=(n, 1)) for i, n in enumerate((4, 3, 9))], np.ones(1))
    _, sigma = example((4, 3, 9), 0)
    found = solve(kernel, sigma, 5, rounds=1)
    assert found.error < 1e-8 * distance(kernel, sigma)
