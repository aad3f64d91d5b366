from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_lowrank.linalg.group_elimination import obs_elimination
from onnx_lowrank.linalg.group_swaps import swap_groups
from onnx_lowrank.linalg.groups import Consumer
from tests.linalg.test_group_elimination import least_error, several
from tests.support import quick, rng


def total(consumers: Sequence[Consumer], support: Sequence[int]) -> float:
    return sum(c.weight * least_error(c.R, c.B, list(c.widths), support) for c in consumers)


@given(
    st.integers(2, 9),
    st.lists(st.tuples(st.integers(1, 8), st.lists(st.integers(1, 3), min_size=1, max_size=3))),
    st.integers(0, 99),
    st.data(),
)
@quick(25)
def test_no_exchange_is_left_that_wins(
    count: int, shapes: list[tuple[int, list[int]]], seed: int, data: st.DataObject
) -> None:
    # oracle: least squares again for every exchange of one for one
    consumers = several(count, seed, (3, [1]), *shapes[:2])
    keep = data.draw(st.integers(1, count - 1))
    start = np.sort(rng(seed).permutation(count)[:keep])
    found = swap_groups(consumers, start, 0.0, max_passes=50)
    assert len(found) == keep
    assert list(found) == sorted(set(found.tolist()))
    here = total(consumers, found.tolist())
    energy = -total(consumers, range(count))
    assert here <= total(consumers, start.tolist()) + 1e-9 * energy
    for i in found:
        rest = [int(g) for g in found if g != i]
        cost = (total(consumers, rest) if rest else 0.0) - here
        others = [total(consumers, [*rest, j]) for j in range(count) if j not in found]
        # an exchange wins a thousandth of the cost at most
        assert here - min(others) < 1.01e-3 * cost + 1e-9 * energy


def test_a_planted_support_is_reached_from_afar() -> None:
    random, planted = rng(1), [1, 4, 5, 9, 14]
    consumers = []
    for width in (1, 3):
        x = random.normal(size=(3000, 20 * width))
        W = random.normal(size=(6, 20, width))
        W[:, np.setdiff1d(np.arange(20), planted)] = 0
        R = x.T @ x / 3000
        consumers.append(Consumer(R, W.reshape(6, -1) @ R, [width] * 20))
    assert list(swap_groups(consumers, np.array([0, 2, 3, 6, 7]), 1e-9)) == planted
    assert list(swap_groups(consumers, np.array([0, 2, 3, 6, 7]), 1e-9, 0)) == [0, 2, 3, 6, 7]


def test_what_elimination_missed_is_found() -> None:
    # the sum of the others, and some noise, goes first; alone it serves best
    random = rng(2)
    x = random.normal(size=(4000, 4))
    x = np.column_stack([x, x.sum(axis=1) + 0.7 * random.normal(size=4000)])
    W = np.array([[1.0, 1.0, 1.0, 1.0, 0.0]])
    R = x.T @ x / 4000
    consumers = [Consumer(R, W @ R, [1] * 5)]
    support = obs_elimination(consumers, 1e-9).support(1)
    assert support[0] != 4
    assert list(swap_groups(consumers, support, 1e-9)) == [4]


def test_twins_are_not_exchanged() -> None:
    random = rng(3)
    x = random.normal(size=(500, 6))
    x[:, 4] = -2 * x[:, 1]
    R = x.T @ x / 500
    consumers = [Consumer(R, random.normal(size=(3, 6)) @ R, [1] * 6)]
    for start in ([0, 1, 2, 3, 5], [0, 2, 3, 4, 5]):
        assert list(swap_groups(consumers, np.array(start), 1e-9)) == start


def test_everything_kept_stays() -> None:
    consumers = several(6, 4, (3, [2]))
    assert list(swap_groups(consumers, np.arange(6), 1e-9)) == list(range(6))


@pytest.mark.parametrize("support", [[], [0, 0], [-1, 2], [6]])
def test_supports_that_are_none_are_refused(support: list[int]) -> None:
    with pytest.raises(ValueError, match="support"):
        swap_groups(several(6, 5, (3, [2])), np.array(support, dtype=np.intp), 1e-9)
