from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_lowrank.linalg.patch_projection import Factors, PatchProjection
from tests.support import Array, quick, relative, rng

#: (N, patch, axes of the basis): b empty, one axis, two axes, the channels alone; wide and tall
CASES = [
    (4, (3, 2, 2), (0, 1, 2)),
    (9, (4,), (0,)),
    (5, (2, 3, 2), (0, 1)),
    (2, (5, 3, 2), (0, 1)),
    (5, (2, 3, 2), (0, 2)),
    (3, (6, 2, 2), (0,)),
    (8, (2, 2, 3, 2), (0, 3)),
]
CASE = pytest.mark.parametrize(("outputs", "patch", "first"), CASES)


def example(
    outputs: int, patch: Sequence[int], seed: int, condition: float = 1e3
) -> tuple[Array, Array]:
    """Kernel and covariance."""
    random, d = rng(seed), math.prod(patch)
    q, _ = np.linalg.qr(random.normal(size=(d, d)))
    return random.normal(size=(outputs, *patch)), (q * np.geomspace(1, 1 / condition, d)) @ q.T


def composed(factors: Factors, patch: Sequence[int], first: Sequence[int]) -> Array:
    """``What[n, a, b] = sum_k H[n, k, b] V[k, a]``, patch axes in their own order."""
    order = [*first, *(i for i in range(len(patch)) if i not in first)]
    product = np.tensordot(factors.last, factors.basis, (1, 0))  # (N, *b, *a)
    rest = len(patch) - len(first)
    product = np.moveaxis(product, range(1, 1 + rest), range(-rest, 0)) if rest else product
    back: Array = product.transpose(0, *(1 + np.argsort(order)))
    return back


def distance(kernel: Array, other: Array, sigma: Array | None) -> float:
    """``tr(D Sigma D^T)``."""
    d = (kernel - other).reshape(len(kernel), -1)
    return float(np.sum((d if sigma is None else d @ sigma) * d))


def brute_force(kernel: Array, sigma: Array, basis: Array, first: Sequence[int]) -> Array:
    """The best kernel over a basis, by least squares on the root of the covariance."""
    patch = kernel.shape[1:]
    rest = [i for i in range(len(patch)) if i not in first]
    order = [*first, *rest]
    b = math.prod(patch[i] for i in rest)
    atoms = np.kron(basis.reshape(len(basis), -1), np.eye(b))  # rows: features over (a, b)
    shape = [patch[i] for i in order]
    atoms = atoms.reshape(-1, *shape).transpose(0, *(1 + np.argsort(order)))
    root = np.linalg.cholesky(sigma)
    features = atoms.reshape(len(atoms), -1)
    solution, *_ = np.linalg.lstsq(
        (features @ root).T, (kernel.reshape(len(kernel), -1) @ root).T, rcond=None
    )
    fitted: Array = (solution.T @ features).reshape(kernel.shape)
    return fitted


@CASE
def test_weight_space_is_the_truncated_svd(
    outputs: int, patch: tuple[int, ...], first: tuple[int, ...]
) -> None:
    kernel, _ = example(outputs, patch, 0)
    order = [*first, *(i for i in range(len(patch)) if i not in first)]
    a = math.prod(patch[i] for i in first)
    matrix = kernel.transpose(0, *(1 + i for i in order)).reshape(outputs, a, -1)
    values = np.linalg.svd(matrix.transpose(1, 0, 2).reshape(a, -1), compute_uv=False)
    projection = PatchProjection(kernel, None, first)
    assert projection.max_rank == len(values)
    assert abs(projection.energy - float(np.sum(kernel**2))) < 1e-12 * projection.energy
    for rank in range(1, len(values) + 1):
        tail = float(np.sum(values[rank:] ** 2))
        assert abs(projection.error(rank) - tail) < 1e-12 * projection.energy
        found = composed(projection.factors(rank), patch, first)
        assert abs(distance(kernel, found, None) - tail) < 1e-12 * projection.energy


@pytest.mark.parametrize(("outputs", "width"), [(4, 9), (9, 4), (6, 6)])
def test_without_a_rest_it_is_reduced_rank_regression(outputs: int, width: int) -> None:
    kernel, sigma = example(outputs, (width,), 1)
    values = np.linalg.svd(kernel @ np.linalg.cholesky(sigma), compute_uv=False)
    projection = PatchProjection(kernel, sigma, (0,))
    for rank in range(1, len(values) + 1):
        optimum = float(np.sum(values[rank:] ** 2))
        found = composed(projection.factors(rank), (width,), (0,))
        assert abs(distance(kernel, found, sigma) - optimum) < 1e-11 * projection.energy


@CASE
def test_every_rank_is_brute_force_least_squares(
    outputs: int, patch: tuple[int, ...], first: tuple[int, ...]
) -> None:
    kernel, sigma = example(outputs, patch, 2)
    projection = PatchProjection(kernel, sigma, first)
    for rank in range(1, projection.max_rank + 1):
        factors = projection.factors(rank)
        wanted = brute_force(kernel, sigma, factors.basis, first)
        oracle = distance(kernel, wanted, sigma)
        assert abs(projection.error(rank) - oracle) < 1e-10 * projection.energy
        assert factors.error == projection.error(rank)
        assert distance(wanted, composed(factors, patch, first), sigma) < 1e-10 * projection.energy


@CASE
def test_the_last_map_has_no_gradient(
    outputs: int, patch: tuple[int, ...], first: tuple[int, ...]
) -> None:
    kernel, sigma = example(outputs, patch, 3)
    projection = PatchProjection(kernel, sigma, first)
    for rank, refined in ((1, False), (2, True), (2, False)):
        factors = projection.refined(rank, rounds=3) if refined else projection.factors(rank)
        residual = kernel - composed(factors, patch, first)
        response = (residual.reshape(outputs, -1) @ sigma).reshape(kernel.shape)
        # d error / d H[n, k, b] = -2 sum_a (D Sigma)[n, a, b] V[k, a]
        axes = [1 + i for i in first]
        gradient = np.tensordot(response, factors.basis, (axes, range(1, 1 + len(first))))
        full = (kernel.reshape(outputs, -1) @ sigma).reshape(kernel.shape)
        scale = np.tensordot(full, factors.basis, (axes, range(1, 1 + len(first))))
        assert np.linalg.norm(gradient) < 1e-9 * np.linalg.norm(scale)


@quick(25)
@given(st.sampled_from(CASES), st.integers(0, 99), st.sampled_from([10.0, 1e4, 1e8]))
def test_refined_never_increases_the_error_and_says_it_truly(
    case: tuple[int, tuple[int, ...], tuple[int, ...]], seed: int, condition: float
) -> None:
    outputs, patch, first = case
    kernel, sigma = example(outputs, patch, seed, condition)
    projection = PatchProjection(kernel, sigma, first)
    for rank in range(1, projection.max_rank + 1):
        previous = projection.error(rank)
        for rounds in (0, 1, 4):
            factors = projection.refined(rank, rounds)
            assert factors.error <= previous
            previous = factors.error
            found = distance(kernel, composed(factors, patch, first), sigma)
            assert abs(found - factors.error) < 1e-9 * projection.energy


def test_refinement_finds_something() -> None:
    kernel, sigma = example(6, (4, 3, 3), 5, 1e4)
    projection = PatchProjection(kernel, sigma, (0, 1))
    assert projection.refined(3, rounds=4).error < 0.95 * projection.error(3)


@CASE
def test_errors_fall_to_zero(outputs: int, patch: tuple[int, ...], first: tuple[int, ...]) -> None:
    kernel, sigma = example(outputs, patch, 6)
    for metric in (None, sigma):
        projection = PatchProjection(kernel, metric, first)
        errors = [projection.error(r) for r in range(projection.max_rank + 1)]
        assert errors[0] == projection.energy
        assert all(b <= a for a, b in itertools.pairwise(errors))
        assert errors[-1] < 1e-10 * projection.energy
        full = composed(projection.factors(projection.max_rank), patch, first)
        assert relative(kernel, full) < 1e-6


@pytest.mark.parametrize("whitened", [False, True])
@pytest.mark.parametrize("outputs", [3, 12])
def test_planted_rank_is_found_and_exact(outputs: int, whitened: bool) -> None:
    random = rng(7)
    last, basis = random.normal(size=(outputs, 2, 3)), random.normal(size=(2, 4, 2))
    kernel = np.einsum("nkj,kci->ncij", last, basis)
    sigma = example(outputs, (4, 2, 3), 8)[1] if whitened else None
    projection = PatchProjection(kernel, sigma, (0, 1))
    assert projection.max_rank == 2
    assert projection.error(2) < 1e-12 * projection.energy
    assert relative(kernel, composed(projection.factors(2), (4, 2, 3), (0, 1))) < 1e-7


def test_max_rank_stops_early_and_changes_nothing_else() -> None:
    kernel, sigma = example(5, (4, 3), 9)
    whole, part = (PatchProjection(kernel, sigma, (0,), m) for m in (None, 2))
    assert part.max_rank == 2
    for rank in (1, 2):
        np.testing.assert_allclose(
            part.factors(rank).last, whole.factors(rank).last, rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("metric", [False, True])
def test_a_kernel_of_zeros_stays_zero(metric: bool) -> None:
    kernel = np.zeros((3, 4, 2))
    sigma = example(3, (4, 2), 10)[1] if metric else None
    projection = PatchProjection(kernel, sigma, (0,))
    assert projection.max_rank == 1
    assert projection.error(1) == 0.0
    assert not composed(projection.refined(1, rounds=2), (4, 2), (0,)).any()


@CASE
def test_a_covariance_without_full_rank(
    outputs: int, patch: tuple[int, ...], first: tuple[int, ...]
) -> None:
    # rows fewer than columns, no shrinkage: the directions never seen may come out as they like
    kernel, _ = example(outputs, patch, 11)
    rows = rng(12).normal(size=(3, math.prod(patch)))
    sigma = rows.T @ rows / 3
    projection = PatchProjection(kernel, sigma, first)
    for rank in range(1, projection.max_rank + 1):
        factors = projection.refined(rank, rounds=2)
        assert np.isfinite(factors.last).all()
        found = distance(kernel, composed(factors, patch, first), sigma)
        assert abs(found - factors.error) < 1e-6 * projection.energy
    assert projection.error(projection.max_rank) < 1e-6 * projection.energy


@quick(15)
@given(st.integers(2, 8), st.integers(2, 8), st.integers(0, 99))
def test_response_metric_wins_in_its_own_norm(outputs: int, width: int, seed: int) -> None:
    kernel, sigma = example(outputs, (width,), seed)
    plain, best = PatchProjection(kernel, None, (0,)), PatchProjection(kernel, sigma, (0,))
    for rank in range(1, best.max_rank + 1):
        other = distance(kernel, composed(plain.factors(rank), (width,), (0,)), sigma)
        assert best.error(rank) <= other + 1e-11 * best.energy
