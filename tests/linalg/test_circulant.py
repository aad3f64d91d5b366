from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import linalg

from onnx_lowrank.linalg.circulant import CirculantProjection
from onnx_lowrank.linalg.patch_projection import Factors, PatchProjection
from tests.support import Array, relative, rng

SHAPES = [(6, 5, 3, 3), (9, 4, 2), (3, 8, 2, 2), (7, 6)]
SHAPE = pytest.mark.parametrize("shape", SHAPES)
SIDE = pytest.mark.parametrize("side", ["outputs", "inputs"])
DATA = pytest.mark.parametrize("data", [False, True])


def example(shape: tuple[int, ...], seed: int, data: bool = True) -> tuple[Array, Array | None]:
    """Kernel and covariance."""
    random, d = rng(seed), math.prod(shape[1:])
    q, _ = np.linalg.qr(random.normal(size=(d, d)))
    sigma = (q * np.geomspace(1, 1e-3, d)) @ q.T
    return random.normal(size=shape), sigma if data else None


def distance(difference: Array, sigma: Array | None) -> float:
    """``tr(D Sigma D^T)``."""
    flat = difference.reshape(len(difference), -1)
    return float(np.sum((flat if sigma is None else flat @ sigma) * flat))


def composed(factors: Factors, side: str) -> Array:
    equation = "nk,kc...->nc..." if side == "outputs" else "nk...,kc->nc..."
    kernel: Array = np.einsum(equation, factors.last, factors.basis)
    return kernel


@SHAPE
@SIDE
@DATA
def test_errors_are_those_of_the_factors_and_fall_to_zero(
    shape: tuple[int, ...], side: str, data: bool
) -> None:
    kernel, sigma = example(shape, 0, data)
    projection = CirculantProjection(kernel, sigma, side)
    energy = distance(kernel, sigma)
    assert abs(projection.energy - energy) < 1e-12 * energy
    assert projection.max_rank == shape[0 if side == "outputs" else 1]
    last = energy
    for rank in range(1, projection.max_rank + 1):
        factors = projection.factors(rank)
        assert abs(factors.error - distance(kernel - composed(factors, side), sigma)) < (
            1e-10 * energy
        )
        assert factors.error == projection.error(rank) <= last * (1 + 1e-12)
        last = factors.error
    assert relative(kernel, composed(projection.factors(projection.max_rank), side)) < 1e-9


@SHAPE
@DATA
def test_inputs_are_regressed_exactly(shape: tuple[int, ...], data: bool) -> None:
    # oracle: ordinary least squares on a root of the covariance
    kernel, sigma = example(shape, 1, data)
    projection = CirculantProjection(kernel, sigma, "inputs")
    root = np.eye(math.prod(shape[1:])) if sigma is None else np.linalg.cholesky(sigma)
    flat, taps = kernel.reshape(len(kernel), -1), math.prod(shape[2:])
    for rank in range(1, shape[1] + 1):
        kept = projection.basis.columns[:, :rank].T
        features = np.kron(kept, np.eye(taps)) @ root
        fitted = np.linalg.lstsq(features.T, (flat @ root).T, rcond=None)[0].T @ features
        wanted = float(np.sum((flat @ root - fitted) ** 2))
        assert abs(projection.error(rank) - wanted) < 1e-10 * projection.energy


@SHAPE
@DATA
def test_outputs_are_never_better_than_principal_components(
    shape: tuple[int, ...], data: bool
) -> None:
    for seed in range(5):
        kernel, sigma = example(shape, seed, data)
        best = PatchProjection(kernel, sigma, range(len(shape) - 1))
        projection = CirculantProjection(kernel, sigma)
        for rank in range(shape[0] + 1):
            assert projection.error(rank) >= best.error(rank) - 1e-10 * best.energy


def test_outputs_of_circulant_covariance_reach_principal_components() -> None:
    # responses W x with W W^T circulant, of seven frequencies' energies
    spectrum = np.geomspace(1, 1e-2, 7)[np.minimum(np.arange(12), 12 - np.arange(12))]
    root = linalg.circulant(np.fft.ifft(np.sqrt(spectrum)).real)
    q, _ = np.linalg.qr(rng(3).normal(size=(20, 12)))
    kernel = (root @ q.T).reshape(12, 5, 2, 2)
    best = PatchProjection(kernel, None, (0, 1, 2))
    projection = CirculantProjection(kernel, None)
    for rank in range(13):
        assert abs(projection.error(rank) - best.error(rank)) < 1e-12 * best.energy


def test_response_metric_wins_in_its_own_norm_on_the_mean_over_ranks() -> None:
    for seed in range(5):
        kernel, sigma = example((8, 6, 3), seed)
        for side, seriate in [("outputs", False), ("inputs", False)]:
            own = CirculantProjection(kernel, sigma, side, seriate)
            plain = CirculantProjection(kernel, None, side, seriate)
            ranks = range(1, own.max_rank + 1)
            others = [distance(kernel - composed(plain.factors(r), side), sigma) for r in ranks]
            assert sum(own.error(r) for r in ranks) < sum(others)


@SIDE
@DATA
def test_a_kernel_of_zeros_stays_zero(side: str, data: bool) -> None:
    kernel, sigma = example((4, 3, 2), 2, data)
    projection = CirculantProjection(0 * kernel, sigma, side)
    assert projection.error(1) == 0.0
    assert not composed(projection.factors(2), side).any()


def test_misuse() -> None:
    with pytest.raises(ValueError, match="side is outputs or inputs"):
        CirculantProjection(np.ones((2, 2)), None, "both")
