from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import linalg

from onnx_lowrank.linalg import group_elimination
from onnx_lowrank.linalg.group_elimination import _State, obs_elimination
from onnx_lowrank.linalg.groups import Consumer, Groups
from tests.linalg.least_squares import debias, reconstruction_error
from tests.linalg.test_group_lasso import example
from tests.support import Array, quick, rng


def least_error(R: Array, B: Array, widths: Sequence[int], support: Sequence[int]) -> float:
    """``E||Y - M_S X||^2 - E||Y||^2`` of the best ``M_S``."""
    columns = Groups.of(widths).columns(np.array(sorted(support), dtype=np.intp))
    solved = np.linalg.solve(R[np.ix_(columns, columns)], B[:, columns].T)
    return -float(np.sum(solved.T * B[:, columns]))


@given(st.integers(1, 9), st.lists(st.integers(1, 4), min_size=1, max_size=9), st.integers(0, 99))
@quick(30)
def test_each_removal_is_the_cheapest(outputs: int, widths: list[int], seed: int) -> None:
    # oracle: least squares again without each group in turn
    R, B = example(outputs, widths, seed)
    found = obs_elimination([Consumer(R, B, widths)], 0.0)
    left = set(range(len(widths)))
    energy = -least_error(R, B, widths, sorted(left))
    assert sorted(found.order) == sorted(left)
    for j, increase in list(zip(found.order, found.increases, strict=True))[:-1]:
        before = least_error(R, B, widths, sorted(left))
        rises = [least_error(R, B, widths, sorted(left - {i})) - before for i in left]
        assert abs(increase - min(rises)) < 1e-9 * energy
        left -= {int(j)}
        assert abs(least_error(R, B, widths, sorted(left)) - before - increase) < 1e-9 * energy
        assert list(found.support(len(left))) == sorted(left)
    assert abs(found.increases.sum() - energy) < 1e-9 * energy


@pytest.mark.parametrize("together", [1, 5, 7, 1000])
def test_how_many_are_removed_at_once_does_not_matter(
    together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths = [3, 1, 2] * 7
    R, B = example(50, widths, 1)
    expected = obs_elimination([Consumer(R, B, widths)], 1e-3)
    monkeypatch.setattr(group_elimination, "_TOGETHER", together)
    found = obs_elimination([Consumer(R, B, widths)], 1e-3)
    assert list(found.order) == list(expected.order)
    np.testing.assert_allclose(found.increases, expected.increases, rtol=1e-8, atol=0)


@pytest.mark.parametrize("pattern", [[1], [4], [3, 1, 2]])
def test_a_pool_loses_next_to_nothing(pattern: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    # oracle: a pool of all groups, which is the elimination one by one
    widths = np.resize(pattern, 300).tolist()
    random = rng(6)
    mixing = random.normal(size=(sum(widths), sum(widths))) / np.sqrt(sum(widths))
    x = np.maximum(random.normal(size=(4000, sum(widths))) @ mixing, 0)
    R, W = x.T @ x / 4000, random.normal(size=(40, sum(widths)))
    consumer = Consumer(R, W @ R, widths)
    found = obs_elimination([consumer], 1e-6)
    for name in ("_LEAST", "_MOST"):
        monkeypatch.setattr(group_elimination, name, 300)
    exact = obs_elimination([consumer], 1e-6)
    assert sorted(found.order) == sorted(exact.order)
    energy = -least_error(R, W @ R, widths, range(300))
    for keep in (30, 75, 150, 250):
        errors = [
            1 + least_error(R, W @ R, widths, list(e.support(keep))) / energy
            for e in (found, exact)
        ]
        assert errors[0] < 1.01 * errors[1]


def test_an_elimination_may_stop_early() -> None:
    widths = [2] * 12
    R, B = example(6, widths, 2)
    whole, part = (obs_elimination([Consumer(R, B, widths)], 1e-6, keep) for keep in (1, 5))
    assert list(part.order[:7]) == list(whole.order[:7])
    assert sorted(part.order) == list(range(12))
    assert list(part.support(5)) == list(whole.support(5))
    assert list(obs_elimination([Consumer(R, B, widths)], 1e-6, 12).support(12)) == list(range(12))


def test_of_two_equal_inputs_one_goes_for_nothing() -> None:
    random = rng(3)
    x = random.normal(size=(500, 6))
    x[:, 4] = x[:, 1]
    R = x.T @ x / 500
    W = random.normal(size=(3, 6)) + 1
    energy = float(np.sum((W @ R) * W))
    with pytest.raises(np.linalg.LinAlgError):
        obs_elimination([Consumer(R * (1 - 1e-3 * np.eye(6)), W @ R, [1] * 6)], 0.0)
    found = obs_elimination([Consumer(R, W @ R, [1] * 6)], 1e-9)
    assert found.order[0] in {1, 4}
    assert found.increases[0] < 1e-6 * energy
    assert found.increases[1] > 1e-3 * energy


def test_misuse_is_refused() -> None:
    R, B = example(3, [2, 2], 8)
    with pytest.raises(ValueError, match="ridge"):
        obs_elimination([Consumer(R, B, [2, 2])], -1.0)
    with pytest.raises(ValueError, match="keep"):
        obs_elimination([Consumer(R, B, [2, 2])], 0.0, 0)
    with pytest.raises(ValueError, match="columns"):
        obs_elimination([Consumer(R, B, [2, 3])], 0.0)


def several(count: int, seed: int, *shapes: tuple[int, Sequence[int]]) -> list[Consumer]:
    """Consumers of ``count`` groups: outputs, and widths to repeat."""
    made = []
    for i, (outputs, pattern) in enumerate(shapes):
        widths = np.resize(pattern, count)
        R, B = example(outputs, widths.tolist(), seed + 100 * i)
        made.append(Consumer(R, B, widths, 10.0 ** (1 - i)))
    return made


def assembled(consumers: Sequence[Consumer]) -> Consumer:
    """The same as one dense consumer, the columns of a group side by side."""
    R = linalg.block_diag(*(c.R for c in consumers))
    B = linalg.block_diag(*(np.sqrt(c.weight) * c.B for c in consumers))
    groups = Groups.of(*(c.widths for c in consumers))
    order = np.concatenate([groups.columns(np.array([j])) for j in range(groups.count)])
    return Consumer(R[np.ix_(order, order)], B[:, order], groups.widths.sum(axis=0))


@given(
    st.integers(1, 7),
    st.lists(st.tuples(st.integers(1, 8), st.lists(st.integers(1, 4), min_size=1, max_size=3))),
    st.integers(0, 99),
)
@quick(25)
def test_of_several_consumers_the_sum_is_what_counts(
    count: int, shapes: list[tuple[int, list[int]]], seed: int
) -> None:
    consumers = several(count, seed, (3, [2]), *shapes[:3])

    def total(support: set[int]) -> float:
        return sum(
            c.weight * least_error(c.R, c.B, list(c.widths), sorted(support)) for c in consumers
        )

    found = obs_elimination(consumers, 0.0)
    left = set(range(count))
    energy = -total(left)
    for j, increase in list(zip(found.order, found.increases, strict=True))[:-1]:
        before = total(left)
        rises = [total(left - {i}) - before for i in left]
        left -= {int(j)}
        assert abs(increase - min(rises)) < 1e-9 * energy
        assert abs(total(left) - before - increase) < 1e-9 * energy
    assert abs(found.increases.sum() - energy) < 1e-9 * energy


def test_several_consumers_are_one_block_diagonal_one() -> None:
    consumers = several(20, 4, (5, [3]), (40, [1]), (7, [2, 4]))
    found = obs_elimination(consumers, 0.0)
    dense = obs_elimination([assembled(consumers)], 0.0)
    assert list(found.order) == list(dense.order)
    np.testing.assert_allclose(found.increases, dense.increases, rtol=1e-9, atol=0)


def test_a_weight_is_that_of_the_error() -> None:
    first, second = several(16, 5, (6, [3]), (6, [2]))
    alone = [list(obs_elimination([c], 1e-6).order) for c in (first, second)]
    assert alone[0] != alone[1]
    for factor, expected in ((1e9, alone[0]), (1e-9, alone[1])):
        heavy = replace(first, weight=factor)
        assert list(obs_elimination([heavy, second], 1e-6).order) == expected


@pytest.mark.parametrize(("width", "ridge"), [(1, 1e-6), (1, 1e-11), (3, 1e-11)])
def test_thousands_of_downdates_do_not_drift(width: int, ridge: float) -> None:
    # nearly singular moments; oracle: least squares again before and after some removals
    widths = [width] * (900 // width)
    R, B = example(20, widths, 9, condition=1e12)
    found = obs_elimination([Consumer(R, B, widths)], ridge)
    regular = R + ridge * np.trace(R) / 900 * np.eye(900)
    energy = -least_error(regular, B, widths, range(len(widths)))
    for left in (2, len(widths) // 8, len(widths) // 2, len(widths) - 9):
        support = found.order[len(widths) - left :]
        before, after = (least_error(regular, B, widths, list(s)) for s in (support, support[1:]))
        error = abs(found.increases[len(widths) - left] - (after - before))
        # what the oracle itself loses, taking the difference, is in the second term
        assert error < 1e-8 * (after - before) + 1e-13 * energy
    assert abs(found.increases.sum() - energy) < 1e-8 * energy


def test_a_worn_out_inverse_is_computed_afresh() -> None:
    R, B = example(4, [2] * 9, 10)
    state, expected = (_State(R, B.T, Groups.of([2] * 9)) for _ in range(2))
    for each in (state, expected):
        each.remove(np.array([3]))
    state._inverse[6:8, 6:8] *= -1  # of group 4, since 3 is gone
    for each in (state, expected):
        each.remove(np.array([4]))
    np.testing.assert_allclose(state.scores(), expected.scores(), rtol=1e-9, atol=0)


def test_duplicates_are_merged_whatever_their_size() -> None:
    # channels 8..11 are 0..3, times a number; each consumer sees its own patches of them
    random, twins = rng(11), {8: 0, 9: 1, 10: 2, 11: 3}
    factors = {8: 3.0, 9: -0.2, 10: 1.0, 11: 20.0}
    consumers, maps, energies = [], [], []
    for width, outputs in ((9, 7), (1, 30), (4, 5)):
        x = random.normal(size=(600, 12, width)) + random.normal(size=(600, 1, width))
        for late, early in twins.items():
            x[:, late] = factors[late] * x[:, early]
        R = x.reshape(600, -1).T @ x.reshape(600, -1) / 600
        # every neuron counts, but what the larger of two twins weighs is small
        W = random.normal(size=(outputs, 12, width))
        W[:, 11] *= 1e-3
        B = W.reshape(outputs, -1) @ R
        energies.append(float(np.sum(B * W.reshape(outputs, -1))))
        consumers.append(Consumer(R, B, [width] * 12, 1 / energies[-1]))
        maps.append(W)
    found = obs_elimination(consumers, 1e-10)
    # one of each pair, and then it begins to cost
    assert sorted(twins.get(int(j), int(j)) for j in found.order[:4]) == [0, 1, 2, 3]
    assert found.increases[:4].max() < 1e-7
    assert found.increases[4] > 1e-3
    support = found.support(8)
    for consumer, W, energy in zip(consumers, maps, energies, strict=True):
        columns = consumer.columns(support)
        solved = debias(consumer.R, consumer.B, columns, 1e-10)
        error = reconstruction_error(consumer.R, consumer.B, solved, columns, energy)
        assert error < 1e-8 * energy
        blocks = solved.reshape(len(solved), len(support), -1)
        for late, early in twins.items():
            merged = W[:, early] + factors[late] * W[:, late]
            if early in support:
                left = blocks[:, list(support).index(early)]
            else:
                left = factors[late] * blocks[:, list(support).index(late)]
            np.testing.assert_allclose(left, merged, rtol=0, atol=1e-4 * np.abs(merged).max())


def test_consumers_that_do_not_belong_together_are_refused() -> None:
    R, B = example(3, [2, 2], 8)
    with pytest.raises(ValueError, match="no consumer"):
        obs_elimination([], 0.0)
    with pytest.raises(ValueError, match="same groups"):
        obs_elimination([Consumer(R, B, [2, 2]), Consumer(R, B, [4])], 0.0)
    for weight in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="weight"):
            obs_elimination([Consumer(R, B, [2, 2], weight)], 0.0)
