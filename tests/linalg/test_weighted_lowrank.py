from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_lowrank.linalg.weighted_lowrank import weighted_low_rank
from tests.support import Array, quick, relative, rng

SHAPES = [(9, 14), (14, 9), (7, 7)]

#: to the end
EXACT: dict[str, Any] = {"tolerance": 1e-15, "max_iterations": 20000}


def example(shape: tuple[int, int], seed: int, rank: int = 2, noise: float = 0.3) -> Array:
    """Low rank and noise."""
    random, (n, c) = rng(seed), shape
    planted = random.normal(size=(n, rank)) @ random.normal(size=(rank, c))
    result: Array = planted + noise * random.normal(size=shape)
    return result


def weights(shape: tuple[int, int], seed: int, missing: float = 0.2) -> Array:
    random = rng(seed, 1)
    result: Array = random.uniform(0.3, 1, size=shape) * (random.random(shape) >= missing)
    return result


def by_em(weight: Array, omega: Array, rank: int, rounds: int) -> float:
    """The error after truncated SVDs, each of the matrix filled up by the one before."""
    part, fitted = (omega / omega.max()) ** 2, np.zeros_like(weight)
    for _ in range(rounds):
        u, s, vt = np.linalg.svd(part * weight + (1 - part) * fitted, full_matrices=False)
        fitted = (u[:, :rank] * s[:rank]) @ vt[:rank]
    return float(np.sum((omega * (weight - fitted)) ** 2))


@pytest.mark.parametrize("shape", SHAPES)
def test_equal_weights_are_the_truncated_svd(shape: tuple[int, int]) -> None:
    weight = example(shape, 0)
    s = np.linalg.svd(weight, compute_uv=False)
    for rank in range(1, min(shape) + 1):
        found = weighted_low_rank(weight, np.ones(shape), rank)
        assert abs(found.error - float(np.sum(s[rank:] ** 2))) < 1e-12 * float(np.sum(s**2))
        assert found.objective == found.error
        assert found.converged


@pytest.mark.parametrize("shape", SHAPES)
def test_separable_weights_are_a_scaled_svd(shape: tuple[int, int]) -> None:
    weight, random = example(shape, 1), rng(2)
    a, b = random.uniform(0.1, 9, size=shape[0]), random.uniform(0.1, 9, size=shape[1])
    a[2] = 0.0  # a row that nobody needs
    u, s, vt = np.linalg.svd(a[:, None] * weight * b, full_matrices=False)
    for rank in (1, 3, 5):
        found = weighted_low_rank(weight, np.outer(a, b), rank)
        assert abs(found.error - float(np.sum(s[rank:] ** 2))) < 1e-11 * float(np.sum(s**2))
        wanted = (u[:, :rank] * s[:rank]) @ vt[:rank]
        assert relative(wanted, a[:, None] * (found.left @ found.right) * b) < 1e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_expectation_maximisation_agrees(shape: tuple[int, int]) -> None:
    weight, omega = example(shape, 3), weights(shape, 3)
    found = weighted_low_rank(weight, omega, 2, **EXACT)
    other = by_em(weight, omega, 2, 4000)
    assert found.converged
    assert abs(found.error - other) < 1e-7 * other


@pytest.mark.parametrize("shape", SHAPES)
def test_a_ridge_thresholds_the_singular_values(shape: tuple[int, int]) -> None:
    weight = example(shape, 4, noise=1.0)
    u, s, vt = np.linalg.svd(weight, full_matrices=False)
    ridge = float(s[2] + s[3]) / 2
    for rank in (2, min(shape)):
        kept = np.maximum(s - ridge, 0.0)
        kept[rank:] = 0.0
        optimum = float(np.sum((s - kept) ** 2) + 2 * ridge * np.sum(kept))
        found = weighted_low_rank(weight, np.ones(shape), rank, ridge=ridge, **EXACT)
        assert abs(found.objective - optimum) < 1e-9 * optimum
        assert relative((u * kept) @ vt, found.left @ found.right) < 1e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_with_a_ridge_and_ranks_to_spare_it_is_the_global_optimum(shape: tuple[int, int]) -> None:
    weight, omega, ridge = example(shape, 5), weights(shape, 5), 1.0
    found = weighted_low_rank(weight, omega, min(shape), ridge=ridge, **EXACT)
    product = found.left @ found.right
    gradient = omega**2 * (weight - product)
    # the certificate of min ||.||^2 + 2 ridge ||.||_*: a subgradient of the nuclear norm
    assert np.linalg.norm(gradient, 2) < ridge * (1 + 1e-4)
    nuclear = float(np.linalg.norm(product, "nuc"))
    assert abs(float(np.sum(gradient * product)) - ridge * nuclear) < 1e-5 * ridge * nuclear
    assert abs(found.objective - found.error - 2 * ridge * nuclear) < 1e-9 * found.objective


@quick(25)
@given(
    st.sampled_from(SHAPES),
    st.integers(1, 9),
    st.sampled_from([0.0, 0.01, 1.0]),
    st.sampled_from([0.0, 0.3, 0.9]),
    st.integers(0, 99),
)
def test_the_objective_falls_and_is_what_it_says(
    shape: tuple[int, int], rank: int, ridge: float, missing: float, seed: int
) -> None:
    weight, omega = example(shape, seed), weights(shape, seed, missing)
    found = weighted_low_rank(weight, omega, rank, ridge=ridge, max_iterations=15)
    assert found.left.shape == (shape[0], min(rank, *shape))
    assert found.right.shape == (min(rank, *shape), shape[1])
    assert len(found.history) == found.iterations + 1 <= 16
    assert found.history[-1] == found.objective
    assert all(b <= a for a, b in itertools.pairwise(found.history))
    error = float(np.sum((omega * (weight - found.left @ found.right)) ** 2))
    energy = float(np.sum((omega * weight) ** 2))
    norms = float(np.sum(found.left**2) + np.sum(found.right**2))
    assert abs(found.error - error) < 1e-12 * energy
    assert abs(found.objective - error - ridge * norms) < 1e-12 * (energy + ridge * norms)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_at_rest_there_is_no_gradient(ridge: float) -> None:
    shape = (9, 14)
    weight, omega = example(shape, 6), weights(shape, 6)
    found = weighted_low_rank(weight, omega, 3, ridge=ridge, **EXACT)
    assert found.converged
    # of all factors with this product those of least norm
    np.testing.assert_allclose(
        found.left.T @ found.left, found.right @ found.right.T, rtol=1e-9, atol=1e-9
    )
    residual = omega**2 * (weight - found.left @ found.right)
    scale = np.linalg.norm(omega**2 * weight)
    assert np.linalg.norm(residual @ found.right.T - ridge * found.left) < 1e-5 * scale
    assert np.linalg.norm(found.left.T @ residual - ridge * found.right) < 1e-5 * scale


def test_planted_matrix_is_completed() -> None:
    shape = (20, 30)
    weight = example(shape, 7, rank=2, noise=0.0)
    omega = weights(shape, 7, missing=0.5)
    holes = np.where(omega > 0, weight, np.nan)
    found = weighted_low_rank(holes, omega, 2, **EXACT)
    assert relative(weight, found.left @ found.right) < 1e-6


def test_weights_pay() -> None:
    shape = (20, 30)
    weight, omega = example(shape, 8, noise=1.0), weights(shape, 8) ** 3
    u, s, vt = np.linalg.svd(weight)
    plain = float(np.sum((omega * (weight - (u[:, :3] * s[:3]) @ vt[:3])) ** 2))
    assert weighted_low_rank(weight, omega, 3).error < 0.7 * plain


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, omega = example((9, 14), 9), weights((9, 14), 9)
    whole = weighted_low_rank(weight, omega, 3, max_iterations=3)
    monkeypatch.setattr("onnx_lowrank.linalg.weighted_lowrank._ELEMENTS", 20)
    blocks = weighted_low_rank(weight, omega, 3, max_iterations=3)
    np.testing.assert_allclose(blocks.left, whole.left, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(blocks.right, whole.right, rtol=1e-9, atol=1e-12)


def test_nothing_to_fit() -> None:
    weight = example((5, 6), 10)
    for w, omega in ((weight, np.zeros((5, 6))), (0 * weight, np.ones((5, 6)))):
        found = weighted_low_rank(w, omega, 2, ridge=0.1)
        assert found.error == 0.0
        assert found.converged
        assert np.isfinite(found.left).all()
        assert np.isfinite(found.right).all()


def test_refusals() -> None:
    weight, one = np.ones((3, 4)), np.ones((3, 4))
    with pytest.raises(ValueError, match="do not fit"):
        weighted_low_rank(weight, one.T, 1)
    for omega, rank, ridge in (
        (one, 0, 0.0),
        (one, 1, -1.0),
        (-one, 1, 0.0),
        (math.nan * one, 1, 0.0),
    ):
        with pytest.raises(ValueError, match="must be 1 or more"):
            weighted_low_rank(weight, omega, rank, ridge=ridge)
