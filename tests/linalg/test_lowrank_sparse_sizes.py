from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_lowrank.linalg import lowrank_sparse_orders
from onnx_lowrank.linalg.lowrank_sparse_orders import convex_orders, forward_order
from onnx_lowrank.linalg.lowrank_sparse_sizes import LowRankSparseSizes, parts_of
from onnx_lowrank.linalg.patch_projection import PatchProjection
from tests.support import Array, quick, relative, rng

#: outputs, channels, columns of a channel
SHAPES = [(6, 8, 1), (5, 4, 3), (9, 3, 2), (1, 6, 1), (4, 1, 5), (20, 5, 1)]


def example(shape: tuple[int, int, int], seed: int) -> tuple[Array, Array]:
    """Weight and covariance."""
    outputs, channels, width = shape
    d, random = channels * width, rng(seed)
    q, _ = np.linalg.qr(random.normal(size=(d, d)))
    return random.normal(size=(outputs, d)), (q * np.geomspace(1, 1e-2, d)) @ q.T


def distance(difference: Array, sigma: Array) -> float:
    """``tr(D Sigma D^T)``."""
    return float(np.sum((difference @ sigma) * difference))


def in_turn(
    weight: Array, sigma: Array, columns: list[int], rank: int, start: Array, rounds: int
) -> list[float]:
    """Errors of the sparse part by least squares and the other by reduced rank, in turn."""
    low_rank, sparse, errors = start, np.zeros_like(weight), []
    for _ in range(rounds):
        rest = weight - low_rank
        part = np.linalg.solve(sigma[np.ix_(columns, columns)], sigma[columns] @ rest.T).T
        sparse = np.zeros_like(weight)
        sparse[:, columns] = part
        errors.append(distance(rest - sparse, sigma))
        rest = weight - sparse
        leading = np.linalg.eigh(rest @ sigma @ rest.T)[1][:, ::-1][:, :rank]
        low_rank = leading @ (leading.T @ rest)
        errors.append(distance(rest - low_rank, sigma))
    return errors


@quick(40)
@given(st.sampled_from(SHAPES), st.integers(0, 8), st.integers(0, 6), st.integers(0, 99))
def test_a_cut_is_what_it_says(
    shape: tuple[int, int, int], keep: int, rank: int, seed: int
) -> None:
    weight, sigma = example(shape, seed)
    outputs, channels, width = shape
    keep = min(keep, channels)
    sizes = LowRankSparseSizes(weight, sigma, width)
    parts = sizes.cut(keep, rank)
    energy = distance(weight, sigma)
    assert abs(sizes.energy - energy) < 1e-10 * energy
    assert len(parts.support) == len(set(parts.support.tolist())) == keep
    assert (np.diff(parts.support) > 0).all()
    assert parts.columns.shape == (outputs, keep * width)
    assert (parts.last.shape, parts.basis.shape) == ((outputs, rank), (rank, channels * width))
    read = (parts.support[:, None] * width + np.arange(width)).reshape(-1)
    assert not parts.basis[:, read].any()
    whole = parts.last @ parts.basis
    whole[:, read] += parts.columns
    assert relative(whole, parts.matrix) < 1e-12
    wanted = distance(weight - whole, sigma)
    assert abs(parts.error - wanted) < 1e-10 * energy
    assert abs(sizes.error(keep, rank) - wanted) < 1e-10 * energy


@quick(30)
@given(st.sampled_from(SHAPES), st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_solving_in_turn_falls_and_ends_no_lower(
    shape: tuple[int, int, int], keep: int, rank: int, seed: int
) -> None:
    weight, sigma = example(shape, seed)
    _, channels, width = shape
    support = np.sort(rng(seed).permutation(channels)[: min(keep, channels)])
    columns = [j * width + i for j in support for i in range(width)]
    parts = parts_of(weight, sigma, width, support, rank)
    energy = distance(weight, sigma)
    random = rng(seed, 1)
    guess = random.normal(size=(len(weight), rank)) @ random.normal(size=(rank, len(sigma)))
    for start in (np.zeros_like(weight), guess):
        errors = in_turn(weight, sigma, columns, rank, start, 100)
        assert all(b <= a + 1e-11 * energy for a, b in itertools.pairwise(errors))
        assert parts.error <= errors[-1] + 1e-10 * energy
    # and where it starts from the result, it stays
    stays = in_turn(weight, sigma, columns, rank, parts.last @ parts.basis, 3)
    assert max(stays) - min(stays) < 1e-10 * energy
    assert abs(stays[-1] - parts.error) < 1e-10 * energy


def test_solving_in_turn_gets_there() -> None:
    weight, sigma = example((6, 8, 1), 3)
    support = np.array([1, 4])
    parts = parts_of(weight, sigma, 1, support, 2)
    errors = in_turn(weight, sigma, support.tolist(), 2, np.zeros_like(weight), 3000)
    assert errors[0] > 1.05 * parts.error
    assert abs(errors[-1] - parts.error) < 1e-6 * parts.error


@pytest.mark.parametrize("shape", SHAPES)
def test_errors_fall_with_either_size(shape: tuple[int, int, int]) -> None:
    weight, sigma = example(shape, 4)
    outputs, channels, width = shape
    sizes = LowRankSparseSizes(weight, sigma, width)
    slack = 1e-12 * sizes.energy
    errors = np.array([[sizes.error(k, r) for r in range(8)] for k in range(channels + 1)])
    assert (np.diff(errors, axis=0) <= slack).all()
    assert (np.diff(errors, axis=1) <= slack).all()
    assert abs(errors[0, 0] - sizes.energy) < slack
    assert (errors[channels] == 0).all()
    assert relative(weight, sizes.cut(channels, 0).matrix) < 1e-12
    full = min(outputs, channels * width)
    assert sizes.error(0, full) <= slack
    assert relative(weight, sizes.cut(0, full).matrix) < 1e-10


@pytest.mark.parametrize("shape", SHAPES)
def test_no_channels_is_reduced_rank_regression(shape: tuple[int, int, int]) -> None:
    weight, sigma = example(shape, 5)
    sizes = LowRankSparseSizes(weight, sigma, shape[2])
    known = PatchProjection(weight, sigma, [0])
    for rank in range(1, known.max_rank):
        assert abs(sizes.error(0, rank) - known.error(rank)) < 1e-10 * sizes.energy
        factors = known.factors(rank)
        wanted = factors.last @ factors.basis
        assert relative(wanted, sizes.cut(0, rank).matrix) < 1e-6


def test_without_a_covariance_it_is_weight_space() -> None:
    weight, _ = example((6, 8, 1), 6)
    sizes = LowRankSparseSizes(weight, None, 1)
    parts = sizes.cut(3, 2)
    others = np.setdiff1d(np.arange(8), parts.support)
    values = np.linalg.svd(weight[:, others], compute_uv=False)
    assert abs(parts.error - float(np.sum(values[2:] ** 2))) < 1e-10 * sizes.energy
    np.testing.assert_allclose(parts.columns, weight[:, parts.support], atol=1e-12)


@pytest.mark.parametrize(("shape", "keep", "rank"), [((8, 9, 1), 3, 2), ((8, 8, 2), 3, 2)])
def test_among_the_best_of_all_sets(shape: tuple[int, int, int], keep: int, rank: int) -> None:
    # random maps are hard: no set stands out
    ratios, better = [], []
    for seed in range(6):
        weight, sigma = example(shape, 100 + seed)
        found = LowRankSparseSizes(weight, sigma, shape[2]).error(keep, rank)
        every = [
            parts_of(weight, sigma, shape[2], np.array(s), rank).error
            for s in itertools.combinations(range(shape[1]), keep)
        ]
        assert min(every) <= found * (1 + 1e-9)
        ratios.append(found / min(every))
        better.append(np.mean(np.array(every) < found * (1 - 1e-9)))
    assert np.mean(ratios) < 1.25
    assert np.mean(better) < 0.1


@pytest.mark.parametrize("seed", range(5))
def test_planted_columns_and_rank_are_recovered(seed: int) -> None:
    outputs, channels, width = 20, 16, 3
    d, random = channels * width, rng(seed, 2)
    planted = np.sort(random.permutation(channels)[:3])
    weight = random.normal(size=(outputs, 2)) @ random.normal(size=(2, d))
    for j in planted:
        weight[:, j * width : (j + 1) * width] += random.normal(size=(outputs, width))
    weight += 1e-3 * random.normal(size=weight.shape)
    samples = random.normal(size=(4 * d, d)) @ random.normal(size=(d, d))
    sigma = samples.T @ samples / len(samples)
    sizes = LowRankSparseSizes(weight, sigma, width)
    np.testing.assert_array_equal(sizes.support(3, 2), planted)
    assert sizes.error(3, 2) < 1e-5 * sizes.energy
    assert sizes.error(2, 2) > 1e-3 * sizes.energy
    assert sizes.error(3, 1) > 1e-3 * sizes.energy


def test_an_order_names_every_channel_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, sigma = example((5, 10, 2), 7)
    every = np.arange(10)
    orders = convex_orders(weight, sigma, 2)
    for rank, limit in itertools.product((0, 2, 5), (None, 0, 4)):
        orders.append(forward_order(weight, sigma, 2, rank, limit))
    monkeypatch.setattr(lowrank_sparse_orders, "_ROUNDS", 3)  # four at once
    several = forward_order(weight, sigma, 2, 0)
    for order in (*orders, several):
        np.testing.assert_array_equal(np.sort(order), every)


@pytest.mark.parametrize("rank", [0, 2])
def test_forward_selection_takes_what_lowers_the_bound_most(rank: int) -> None:
    weight, sigma = example((6, 7, 2), 8)
    order = forward_order(weight, sigma, 2, rank)
    for k in range(5):
        before, errors = order[:k], {}
        # what is left of the response off the leading directions, for each channel that could come
        whole = _left(weight, sigma, before)
        leading = np.linalg.eigh(whole @ sigma @ whole.T)[1][:, : 6 - rank]
        for j in np.setdiff1d(np.arange(7), before):
            left = leading.T @ _left(weight, sigma, np.append(before, j))
            errors[int(j)] = distance(left, sigma)
        assert min(errors, key=lambda j: errors[j]) == order[k]


def test_dead_and_repeated_channels_are_no_trouble() -> None:
    weight, sigma = example((5, 4, 2), 9)
    copied = np.zeros((12, 8))
    copied[:8] = np.eye(8)
    copied[10:] = np.eye(8)[2:4]  # channel 5 repeats channel 1, channel 4 is dead
    weight, sigma = np.hstack([weight, weight[:, :4]]), copied @ sigma @ copied.T
    sizes = LowRankSparseSizes(weight, sigma, 2)
    for keep, rank in itertools.product(range(7), range(6)):
        parts = sizes.cut(keep, rank)
        assert np.isfinite(parts.matrix).all()
        assert abs(parts.error - sizes.error(keep, rank)) < 1e-6 * sizes.energy
    assert sizes.error(4, 0) < 1e-6 * sizes.energy


def test_nothing_to_explain() -> None:
    sizes = LowRankSparseSizes(np.zeros((3, 4)), np.eye(4), 2)
    assert sizes.cut(1, 1).error == sizes.error(1, 1) == 0.0


def test_misuse() -> None:
    weight, sigma = example((5, 4, 3), 1)
    with pytest.raises(ValueError, match="channels of 5"):
        LowRankSparseSizes(weight, sigma, 5)
    with pytest.raises(ValueError, match="each of the 4"):
        LowRankSparseSizes(weight, sigma, 3, [np.array([0, 1, 1, 3])])
    sizes = LowRankSparseSizes(weight, sigma, 3)
    with pytest.raises(ValueError, match="keep is 5; it must be from 0 to 4"):
        sizes.error(5, 1)
    with pytest.raises(ValueError, match="rank is -1"):
        sizes.error(1, -1)
    with pytest.raises(ValueError, match="semi-definite"):
        parts_of(weight, -sigma, 3, np.array([0]), 1)


def _left(weight: Array, sigma: Array, channels: Array) -> Array:
    """What a regression on channels of two columns leaves of the map."""
    columns = [int(j) * 2 + i for j in channels for i in range(2)]
    left = weight.copy()
    left[:, columns] -= np.linalg.solve(
        sigma[np.ix_(columns, columns)], sigma[columns] @ weight.T
    ).T
    return left
