from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_lowrank.linalg.tucker import Tucker, TuckerFactors
from tests.support import Array, quick, relative, rng

#: (N, C, *kernel): wide, tall, 1-D to 3-D; more outputs than features, more inputs than responses
SHAPES = [(5, 4, 3, 3), (9, 2, 3), (3, 8, 2, 2), (4, 4, 2, 2, 2), (2, 7, 2)]
SHAPE = pytest.mark.parametrize("shape", SHAPES)


def example(shape: tuple[int, ...], seed: int, condition: float = 1e3) -> tuple[Array, Array]:
    """Kernel and covariance."""
    random, d = rng(seed), math.prod(shape[1:])
    q, _ = np.linalg.qr(random.normal(size=(d, d)))
    return random.normal(size=shape), (q * np.geomspace(1, 1 / condition, d)) @ q.T


def composed(f: TuckerFactors) -> Array:
    product: Array = np.einsum("np,pq...,qc->nc...", f.expand, f.core, f.reduce)
    return product


def distance(kernel: Array, other: Array, sigma: Array | None) -> float:
    """``tr(D Sigma D^T)``."""
    d = (kernel - other).reshape(len(kernel), -1)
    return float(np.sum((d if sigma is None else d @ sigma) * d))


def pairs(tucker: Tucker) -> itertools.product[tuple[int, int]]:
    q, p = tucker.max_ranks
    return itertools.product(range(1, q + 1), range(1, p + 1))


def unfolded(kernel: Array, axis: int) -> Array:
    return np.moveaxis(kernel, axis, 0).reshape(kernel.shape[axis], -1)


def hosvd(kernel: Array, q: int, p: int) -> float:
    """Squared error of the truncated higher-order SVD."""
    fitted = kernel
    for axis, rank in ((0, p), (1, q)):
        u = np.linalg.svd(unfolded(kernel, axis), full_matrices=False)[0][:, :rank]
        fitted = np.moveaxis(np.tensordot(u @ u.T, fitted, (1, axis)), 0, axis)
    return distance(kernel, fitted, None)


@SHAPE
@pytest.mark.parametrize("data", [False, True])
def test_errors_are_those_of_the_factors(shape: tuple[int, ...], data: bool) -> None:
    kernel, sigma = example(shape, 0)
    metric = sigma if data else None
    tucker = Tucker(kernel, metric)
    for q, p in pairs(tucker):
        claimed = tucker.pair_error(q, p)
        for rounds in (0, 1, 6):
            factors = tucker.pair(q, p, rounds)
            found = distance(kernel, composed(factors), metric)
            assert abs(found - factors.error) < 1e-10 * tucker.energy
            assert factors.error <= claimed + 1e-12 * tucker.energy
            claimed = factors.error
            assert factors.iterations <= rounds
            there = np.diag(np.arange(p) < q * math.prod(shape[2:])).astype(float)
            gram = factors.expand.T @ factors.expand
            np.testing.assert_allclose(gram, there, rtol=0, atol=1e-10)


@SHAPE
def test_output_factor_and_core_are_reduced_rank_regression(shape: tuple[int, ...]) -> None:
    # oracle: responses regressed on the features by a root of the covariance, then Eckart-Young
    kernel, sigma = example(shape, 1)
    tucker = Tucker(kernel, sigma)
    root = np.linalg.cholesky(sigma)
    flat, taps = kernel.reshape(len(kernel), -1), math.prod(shape[2:])
    for q, p in pairs(tucker):
        basis = tucker.pair(q, p).reduce
        features = np.kron(basis, np.eye(taps)) @ root
        fitted = np.linalg.lstsq(features.T, (flat @ root).T, rcond=None)[0].T @ features
        values = np.linalg.svd(fitted, compute_uv=False)
        wanted = float(np.sum((flat @ root - fitted) ** 2) + np.sum(values[p:] ** 2))
        assert abs(tucker.pair_error(q, p) - wanted) < 1e-10 * tucker.energy


@SHAPE
def test_weight_space_is_no_worse_than_the_higher_order_svd(shape: tuple[int, ...]) -> None:
    kernel, _ = example(shape, 2)
    tucker = Tucker(kernel, None)
    assert abs(tucker.energy - float(np.sum(kernel**2))) < 1e-12 * tucker.energy
    for q, p in pairs(tucker):
        assert tucker.pair_error(q, p) <= hosvd(kernel, q, p) + 1e-12 * tucker.energy


@SHAPE
def test_weight_space_ends_where_orthogonal_iteration_stands_still(shape: tuple[int, ...]) -> None:
    kernel, _ = example(shape, 3)
    tucker = Tucker(kernel, None)
    for q, p in pairs(tucker):
        factors = tucker.pair(q, p, 2000, 1e-14)
        assert factors.converged
        # another round, from its definition
        projected = np.tensordot(factors.expand, kernel, (0, 0))
        v = np.linalg.svd(unfolded(projected, 1), full_matrices=False)[0][:, :q]
        projected = np.moveaxis(np.tensordot(v, kernel, (0, 1)), 0, 1)
        values = np.linalg.svd(unfolded(projected, 0), compute_uv=False)
        again = tucker.energy - float(np.sum(values[:p] ** 2))
        assert abs(again - factors.error) < 1e-9 * tucker.energy


@SHAPE
def test_identity_covariance_is_weight_space(shape: tuple[int, ...]) -> None:
    # two solvers, conjugate gradients and singular vectors, from the same start
    kernel, _ = example(shape, 4)
    plain, measured = Tucker(kernel, None), Tucker(kernel, np.eye(math.prod(shape[1:])))
    assert plain.max_ranks == measured.max_ranks
    for q, p in pairs(plain):
        assert abs(plain.pair_error(q, p) - measured.pair_error(q, p)) < 1e-10 * plain.energy
        one, other = (t.pair(q, p, 2000, 1e-13, steps=30) for t in (plain, measured))
        assert abs(one.error - other.error) < 1e-6 * plain.energy


@SHAPE
@pytest.mark.parametrize("data", [False, True])
def test_errors_fall_in_both_ranks_to_zero(shape: tuple[int, ...], data: bool) -> None:
    kernel, sigma = example(shape, 5)
    tucker = Tucker(kernel, sigma if data else None)
    for q, p in pairs(tucker):
        for less in ((q - 1, p), (q, p - 1)):
            assert tucker.pair_error(q, p) <= tucker.pair_error(*less) + 1e-12 * tucker.energy
    full = tucker.pair(*tucker.max_ranks)
    assert full.error < 1e-12 * tucker.energy
    assert relative(kernel, composed(full)) < 1e-6


@pytest.mark.full
@quick(25)
@given(st.sampled_from(SHAPES), st.integers(0, 99), st.sampled_from([10.0, 1e4, 1e8]))
def test_rounds_never_raise_the_error(shape: tuple[int, ...], seed: int, condition: float) -> None:
    kernel, sigma = example(shape, seed, condition)
    tucker = Tucker(kernel, sigma)
    for q, p in pairs(tucker):
        errors = [tucker.pair(q, p, r, 0.0).error for r in (0, 1, 2, 5)]
        assert all(b <= a for a, b in itertools.pairwise(errors))


def test_rounds_find_something_and_converge() -> None:
    kernel, sigma = example((8, 6, 3, 3), 6, 1e4)
    tucker = Tucker(kernel, sigma)
    assert tucker.pair(3, 3, 20).error < 0.98 * tucker.pair_error(3, 3)
    short, long = tucker.pair(3, 3, 2, 1e-12), tucker.pair(3, 3, 5000, 1e-9)
    assert (short.iterations, short.converged) == (2, False)
    assert long.converged
    assert 2 < long.iterations < 5000


@pytest.mark.full
def test_response_metric_wins_in_its_own_norm() -> None:
    for seed in range(10):
        kernel, sigma = example((6, 5, 3), seed)
        plain, best = Tucker(kernel, None), Tucker(kernel, sigma)
        for q, p in pairs(best):
            other = distance(kernel, composed(plain.pair(q, p, 20)), sigma)
            assert best.pair(q, p, 20).error <= other + 1e-10 * best.energy


@pytest.mark.parametrize("data", [False, True])
@pytest.mark.parametrize("shape", [(7, 6, 3, 3), (6, 9, 2), (9, 5, 2, 2, 2)])
def test_planted_structure_is_found_and_exact(shape: tuple[int, ...], data: bool) -> None:
    random = rng(7)
    u, v = random.normal(size=(shape[0], 3)), random.normal(size=(2, shape[1]))
    kernel = np.einsum("np,pq...,qc->nc...", u, random.normal(size=(3, 2, *shape[2:])), v)
    tucker = Tucker(kernel, example(shape, 8)[1] if data else None)
    assert tucker.max_ranks == (2, 3)
    assert tucker.pair_error(2, 3) < 1e-12 * tucker.energy
    for rounds in (0, 3):
        factors = tucker.pair(2, 3, rounds)
        assert relative(kernel, composed(factors)) < 1e-7
        assert factors.converged == (rounds > 0) or factors.error < 1e-15 * tucker.energy


def test_ranks_beyond_the_largest_are_filled_with_zeros() -> None:
    kernel, sigma = example((4, 3, 2), 9)
    factors = Tucker(kernel, sigma, max_inputs=2).pair(5, 6, 1)
    assert [f.shape for f in (factors.reduce, factors.core, factors.expand)] == [
        (5, 3),
        (6, 5, 2),
        (4, 6),
    ]
    assert abs(distance(kernel, composed(factors), sigma) - factors.error) < 1e-10


@pytest.mark.parametrize("data", [False, True])
def test_a_kernel_of_zeros_stays_zero(data: bool) -> None:
    tucker = Tucker(np.zeros((3, 4, 2)), example((3, 4, 2), 10)[1] if data else None)
    assert tucker.max_ranks == (1, 1)
    factors = tucker.pair(1, 1, 3)
    assert factors.error == 0.0
    assert factors.converged
    assert not composed(factors).any()
