from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_lowrank.linalg.tensor_train import TensorTrains, apply_cores, tensor_train
from onnx_lowrank.linalg.tensor_train_shapes import contraction, core_shapes
from tests.support import Array, quick, relative, rng

Modes = tuple[tuple[int, ...], tuple[int, ...]]

#: (N, C), row modes, column modes: exact and padded, orders 2 to 4, wide and tall unfoldings
CASES: list[tuple[tuple[int, int], Modes]] = [
    ((12, 8), ((3, 4), (2, 4))),
    ((6, 20), ((2, 3), (5, 4))),
    ((11, 7), ((3, 4), (4, 2))),
    ((12, 18), ((2, 3, 2), (3, 2, 3))),
    ((23, 17), ((2, 3, 4), (3, 3, 2))),
    ((16, 24), ((2, 2, 2, 2), (2, 3, 2, 2))),
    ((5, 9), ((5, 1), (3, 3))),
]
CASE = pytest.mark.parametrize(("shape", "modes"), CASES)


def example(shape: tuple[int, int], seed: int, condition: float = 1e3) -> tuple[Array, Array]:
    """Matrix and covariance."""
    random, (n, c) = rng(seed), shape
    q, _ = np.linalg.qr(random.normal(size=(c, c)))
    return random.normal(size=(n, c)), (q * np.geomspace(1, 1 / condition, c)) @ q.T


def distance(weight: Array, other: Array, sigma: Array | None) -> float:
    """``tr(D Sigma D^T)``."""
    d = weight - other
    return float(np.sum((d if sigma is None else d @ sigma) * d))


def rearranged(weight: Array, modes: Modes) -> Array:
    """``(n_1 c_1, n_2 c_2)``: row (a, b) is block (a, b) of the matrix (Van Loan & Pitsianis)."""
    (n1, n2), (c1, c2) = modes
    blocks = [
        weight[a * n2 : (a + 1) * n2, b * c2 : (b + 1) * c2].ravel()
        for a in range(n1)
        for b in range(c1)
    ]
    return np.array(blocks)


@CASE
@pytest.mark.parametrize("metric", [False, True])
def test_full_ranks_are_the_matrix(shape: tuple[int, int], modes: Modes, metric: bool) -> None:
    weight, sigma = example(shape, 0)
    for rounds in (0, 1):
        train = tensor_train(weight, *modes, 10**6, sigma if metric else None, rounds)
        assert relative(weight, train.to_matrix()) < 1e-12
        assert train.error < 1e-20


@pytest.mark.parametrize("modes", [((3, 4), (2, 4)), ((4, 3), (4, 2)), ((2, 6), (8, 1))])
def test_two_cores_are_the_nearest_sum_of_kronecker_products(modes: Modes) -> None:
    weight, _ = example((12, 8), 1)
    u, s, vt = np.linalg.svd(rearranged(weight, modes), full_matrices=False)
    (n1, n2), (c1, c2) = modes
    trains, wanted = TensorTrains(weight, *modes), np.zeros_like(weight)
    for rank in range(1, len(s) + 1):
        k = rank - 1
        wanted += s[k] * np.kron(u[:, k].reshape(n1, c1), vt[k].reshape(n2, c2))
        train = trains.cut(rank, rounds=2)
        assert relative(wanted, train.to_matrix()) < 1e-10
        assert abs(train.error - float(np.sum(s[rank:] ** 2))) < 1e-12 * trains.energy
        assert train.converged


def test_a_kronecker_covariance_has_its_optimum_in_closed_form() -> None:
    modes: Modes = ((3, 4), (2, 4))
    weight, one, two = example((12, 8), 2)[0], example((1, 2), 3)[1], example((1, 4), 4)[1]
    root = np.kron(np.linalg.cholesky(one), np.linalg.cholesky(two))
    s = np.linalg.svd(rearranged(weight @ root, modes), compute_uv=False)
    trains = TensorTrains(weight, *modes, np.kron(one, two))
    for rank in range(1, len(s)):
        optimum = float(np.sum(s[rank:] ** 2))
        assert abs(trains.error(rank) - optimum) < 1e-5 * optimum
        assert abs(trains.cut(rank, rounds=60, tolerance=0).error - optimum) < 1e-9 * trains.energy


@CASE
@pytest.mark.parametrize("metric", [False, True])
def test_the_error_is_that_of_the_reconstruction(
    shape: tuple[int, int], modes: Modes, metric: bool
) -> None:
    weight, sigma = example(shape, 5)
    own = sigma if metric else None
    trains = TensorTrains(weight, *modes, own)
    assert trains.energy == distance(weight, np.zeros_like(weight), own)
    for rank in (1, 2, 3):
        for train in (trains.cut(rank), trains.cut(rank, rounds=3)):
            assert train.to_matrix().shape == shape
            found = distance(weight, train.to_matrix(), own)
            assert abs(found - train.error) < 1e-12 * trains.energy
        assert trains.error(rank) == trains.cut(rank).error


@quick(30)
@given(
    st.sampled_from(CASES),
    st.integers(1, 5),
    st.integers(0, 99),
    st.sampled_from([10.0, 1e4, 1e9]),
)
def test_the_response_metric_is_never_worse_and_rounds_never_raise_the_error(
    case: tuple[tuple[int, int], Modes], rank: int, seed: int, condition: float
) -> None:
    shape, modes = case
    weight, sigma = example(shape, seed, condition)
    by_weights = tensor_train(weight, *modes, rank, rounds=3)
    trains = TensorTrains(weight, *modes, sigma)
    previous = distance(weight, tensor_train(weight, *modes, rank).to_matrix(), sigma)
    for rounds in (0, 1, 2, 8):
        train = trains.cut(rank, rounds, tolerance=0)
        assert train.iterations <= rounds
        assert train.error <= previous * (1 + 1e-12)
        previous = train.error
    plain = tensor_train(weight, *modes, rank)
    assert by_weights.error <= plain.error


def test_the_response_metric_finds_much() -> None:
    weight, sigma = example((24, 24), 6, 1e4)
    modes: Modes = ((4, 6), (6, 4))
    plain = distance(weight, tensor_train(weight, *modes, 6).to_matrix(), sigma)
    assert tensor_train(weight, *modes, 6, sigma, rounds=4).error < 0.5 * plain


@CASE
def test_planted_cores_are_found(shape: tuple[int, int], modes: Modes) -> None:
    random = rng(7)
    cores = [random.normal(size=s) for s in core_shapes(*modes, 2)]
    weight = apply_cores(cores, np.eye(math.prod(modes[1]))).T
    sigma = example((len(weight), weight.shape[1]), 8)[1]
    for own in (None, sigma):
        trains = TensorTrains(weight, *modes, own)
        assert trains.ranks_within(1e-6) == tuple(len(g) for g in cores[1:])
        assert relative(weight, trains.cut(2, rounds=1).to_matrix()) < 1e-9


@quick(40)
@given(st.sampled_from(CASES), st.floats(0, 1), st.integers(0, 99))
def test_ranks_keep_the_bound(
    case: tuple[tuple[int, int], Modes], epsilon: float, seed: int
) -> None:
    shape, modes = case
    weight, _ = example(shape, seed)
    trains = TensorTrains(weight, *modes)
    ranks = trains.ranks_within(epsilon)
    assert trains.error(ranks) <= (epsilon**2 + 1e-12) * trains.energy
    if len(ranks) == 1 and ranks[0] > 1 and shape == (12, 8):
        assert trains.error(ranks[0] - 1) > epsilon**2 * trains.energy


@CASE
@pytest.mark.parametrize("from_left", [True, False])
def test_cores_are_applied_one_after_another(
    shape: tuple[int, int], modes: Modes, from_left: bool
) -> None:
    weight, _ = example(shape, 9)
    train = tensor_train(weight, *modes, 3)
    rows, columns = math.prod(modes[0]), math.prod(modes[1])
    x = np.zeros((6, columns))
    x[:, : shape[1]] = rng(10).normal(size=(6, shape[1]))
    y = apply_cores(train.cores, x, from_left)
    assert y.shape == (6, rows)
    wanted = x[:, : shape[1]] @ train.to_matrix().T
    assert relative(wanted, y[:, : shape[0]]) < 1e-12


def test_counts() -> None:
    weight, _ = example((12, 18), 11)
    modes: Modes = ((2, 3, 2), (3, 2, 3))
    train = tensor_train(weight, *modes, (2, 3))
    assert train.ranks == (2, 3)
    assert train.parameters == 2 * 3 * 2 + 2 * 3 * 2 * 3 + 3 * 2 * 3
    assert train.contraction == contraction(core_shapes(*modes, (2, 3)))


@CASE
def test_a_covariance_without_full_rank(shape: tuple[int, int], modes: Modes) -> None:
    weight, _ = example(shape, 12)
    rows = rng(13).normal(size=(2, shape[1]))
    rows[:, 0] = 0.0  # a column never seen
    sigma = rows.T @ rows / 2
    plain = distance(weight, tensor_train(weight, *modes, 2).to_matrix(), sigma)
    train = tensor_train(weight, *modes, 2, sigma, rounds=3)
    assert all(np.isfinite(g).all() for g in train.cores)
    assert train.error <= plain
    found = distance(weight, train.to_matrix(), sigma)
    assert abs(found - train.error) < 1e-12 * distance(weight, 0 * weight, sigma)


def test_nothing_to_fit() -> None:
    weight, sigma = example((12, 8), 14)
    modes: Modes = ((3, 4), (2, 4))
    for w, s in ((0 * weight, sigma), (weight, 0 * sigma), (0 * weight, None)):
        train = tensor_train(w, *modes, 2, s, rounds=2)
        assert train.error == 0.0
        assert train.converged
        assert all(np.isfinite(g).all() for g in train.cores)


def test_refusals() -> None:
    weight, _ = example((12, 8), 15)
    with pytest.raises(ValueError, match="must be as many for rows as for columns"):
        TensorTrains(weight, (3, 4), (2, 2, 2))
    with pytest.raises(ValueError, match="two or more"):
        TensorTrains(weight, (12,), (8,))
    with pytest.raises(ValueError, match="too small for a matrix"):
        TensorTrains(weight, (3, 4), (2, 3))
    with pytest.raises(ValueError, match="must not be negative"):
        TensorTrains(weight, (3, 4), (2, 4)).ranks_within(-0.1)
    with pytest.raises(ValueError, match="must be 1 numbers of 1 or more"):
        tensor_train(weight, (3, 4), (2, 4), (1, 2))
