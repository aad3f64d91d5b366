from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_lowrank.errors import BudgetError
from onnx_lowrank.pruning.greedy import (
    Budget,
    Ledger,
    OutOfReachError,
    Removable,
    Side,
    plan_counts,
)
from tests.support import quick, rng

Array = npt.NDArray[np.floating[Any]]

COSTS = (60.0, 200.0, 150.0, 90.0)


class Stack:
    """Layers one behind the other, ``sizes[i] -> sizes[i + 1]``; all inner channels may go."""

    def __init__(self, seed: int, sizes: Sequence[int] = (3, 6, 5, 7, 4)) -> None:
        self.sizes = sizes
        self.costs = np.asarray(COSTS) * rng(seed).uniform(0.5, 2, len(COSTS))
        random = rng(seed, 1)
        self.removables = []
        for i, size in enumerate(sizes[1:-1]):
            falling = np.sort(random.exponential(size=size) ** 2)[::-1].cumsum()[::-1]
            losses = np.concatenate([falling, [0.0]]) * random.uniform(0.2, 2)
            sides = (Side(i, True, 1), Side(i + 1, False, 1))
            self.removables.append(Removable(f"g{i}", losses, np.arange(size, 0, -1), sides))

    def ledger(self) -> Ledger:
        return Ledger(self.costs.tolist(), self.sizes[1:], self.sizes[:-1])

    def cost(self, counts: Sequence[int]) -> float:
        left = [self.sizes[0], *counts, self.sizes[-1]]
        parts = [
            c * left[i] * left[i + 1] / (self.sizes[i] * self.sizes[i + 1])
            for i, c in enumerate(self.costs)
        ]
        return float(sum(parts))

    def loss(self, counts: Sequence[int]) -> float:
        return sum(float(r.losses[c]) for r, c in zip(self.removables, counts, strict=True))

    def plan(self, budget: float) -> tuple[int, ...]:
        kept = plan_counts(self.removables, self.ledger(), Budget(budget))
        return tuple(kept[r.name] for r in self.removables)

    def best(self, budget: float) -> float:
        """Least loss of all plans."""
        plans = product(*(r.counts.tolist() for r in self.removables))
        return min(self.loss(p) for p in plans if self.cost(p) <= budget)


def test_near_the_best_of_all_plans() -> None:
    """Greedy: not the best, and seldom far from it."""
    ratios = []
    for seed in range(30):
        stack = Stack(seed)
        for part in (0.9, 0.7, 0.5, 0.3):
            budget = part * stack.ledger().total
            counts = stack.plan(budget)
            assert stack.cost(counts) <= budget + 1e-9
            ratios.append(stack.loss(counts) / stack.best(budget))
    assert min(ratios) >= 1 - 1e-9
    assert float(np.mean(ratios)) < 1.1
    assert float(np.quantile(ratios, 0.9)) < 1.2
    assert float(np.max(ratios)) < 2.5


@quick(25)
@given(seed=st.integers(0, 999))
def test_nothing_more_can_be_given_back(seed: int) -> None:
    stack = Stack(seed)
    budget = float(rng(seed, 2).uniform(0.3, 1.0)) * stack.ledger().total
    counts = stack.plan(budget)
    for i, r in enumerate(stack.removables):
        for more in range(counts[i] + 1, r.counts[0] + 1):
            other = (*counts[:i], more, *counts[i + 1 :])
            assert stack.cost(other) > budget or stack.loss(other) >= stack.loss(counts)


@pytest.mark.parametrize("seed", range(6))
def test_a_smaller_budget_loses_no_less(seed: int) -> None:
    stack = Stack(seed)
    total = stack.ledger().total
    losses = [stack.loss(stack.plan(b * total)) for b in np.linspace(1.0, 0.1, 19)]
    assert losses[0] == 0.0
    # greedy plans of near budgets may differ by what was given back
    best = [stack.best(b * total) for b in np.linspace(1.0, 0.1, 19)]
    assert all(a <= b + 1e-12 for a, b in zip(best, losses, strict=True))
    assert all(a <= b * 1.25 + 1e-12 for a, b in pairwise(losses))


def test_a_budget_that_is_met_takes_nothing() -> None:
    stack = Stack(0)
    assert stack.plan(stack.ledger().total) == (6, 5, 7)


def test_dead_channels_go_first() -> None:
    """A step that loses nothing comes before all others, at its full length."""
    losses = np.array([9.0, 8, 7, 0, 0, 0, 0])
    dear = Removable("dear", np.linspace(1e-3, 0, 9), np.arange(8, 0, -1), (Side(0, True, 1),))
    dead = Removable("dead", losses, np.arange(6, 0, -1), (Side(1, True, 1),))
    kept = plan_counts([dear, dead], Ledger([1.0, 1.0], [8, 6], [1, 1]), Budget(1.5))
    assert kept == {"dear": 8, "dead": 3}


def test_a_long_step_over_a_hump() -> None:
    """The loss of the first channels buys nothing; that of many buys all."""
    losses = np.array([5.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    hump = Removable("hump", losses, np.arange(5, 0, -1), (Side(0, True, 1),))
    even = Removable("even", np.linspace(5.0, 0, 6), np.arange(5, 0, -1), (Side(1, True, 1),))
    kept = plan_counts([hump, even], Ledger([1.0, 1.0], [5, 5], [1, 1]), Budget(1.2))
    assert kept == {"hump": 1, "even": 5}


def test_what_was_saved_too_much_is_given_back() -> None:
    """Counts on a grid overshoot; a dearer group then takes back what it can."""
    coarse = Removable("coarse", np.linspace(0.1, 0, 9), np.array([8, 1]), (Side(0, True, 1),))
    fine = Removable("fine", np.linspace(0.2, 0, 9), np.arange(8, 0, -1), (Side(1, True, 1),))
    ledger = Ledger([8.0, 1.0], [8, 8], [1, 1])
    kept = plan_counts([coarse, fine], ledger, Budget(2.0))
    assert kept == {"coarse": 1, "fine": 8}
    assert ledger.total == pytest.approx(2.0)


def rivals(gather_loss: float) -> list[Removable]:
    """A group and a Gather of one layer that reads it."""
    reads = Side(0, False, 1)
    counts = np.arange(4, 0, -1)
    cut = Removable("cut", np.linspace(1, 0, 5), counts, (reads, Side(1, True, 1)))
    losses = np.linspace(gather_loss, 0, 5)
    return [cut, Removable("gather", losses, counts, (reads,), frozenset({"cut"}))]


@pytest.mark.parametrize("gather_loss", [0.1, 3.0])
@pytest.mark.parametrize("budget", [7.5, 6.0, 5.0])
def test_only_one_of_those_that_exclude_each_other(gather_loss: float, budget: float) -> None:
    for order in (rivals(gather_loss), rivals(gather_loss)[::-1]):
        kept = plan_counts(order, Ledger([4.0, 4.0], [1, 4], [4, 1]), Budget(budget))
        changed = [name for name, count in kept.items() if count < 4]
        assert changed == ["gather" if gather_loss < 1 else "cut"]


def test_what_excludes_others_does_not_shut_the_way() -> None:
    """The Gather is cheapest, but the group alone meets the budget."""
    ledger = Ledger([4.0, 4.0], [1, 4], [4, 1])
    assert plan_counts(rivals(0.1), ledger, Budget(4.0)) == {"cut": 2, "gather": 4}
    assert ledger.total == pytest.approx(4.0)
    with pytest.raises(BudgetError, match="1: these passes cannot go below 2"):
        plan_counts(rivals(0.1), Ledger([4.0, 4.0], [1, 4], [4, 1]), Budget(1.0, "1"))


def test_a_budget_out_of_reach_names_what_is_reached() -> None:
    stack = Stack(3)
    least = stack.cost((1, 1, 1))
    asked = Budget(0.5 * least, "macs=0.01")
    with pytest.raises(OutOfReachError) as caught:
        plan_counts(stack.removables, stack.ledger(), asked)
    assert str(caught.value).startswith(f"macs=0.01: these passes cannot go below {least:.4g};")
    assert caught.value.least == pytest.approx(least)
    # as a part of the model: what is named can be asked for
    whole, fixed = 1.3 * stack.ledger().total, 0.3 * stack.ledger().total
    with pytest.raises(BudgetError, match=r"below 0\.\d{3} of the original") as caught:
        plan_counts(stack.removables, stack.ledger(), replace(asked, whole=whole, fixed=fixed))
    named = float(str(caught.value).split("below ")[1].split()[0])
    assert 0 <= named - (least + fixed) / whole <= 0.001
    assert stack.plan(named * whole - fixed) == (1, 1, 1)
    assert stack.plan(least * 1.0001) == (1, 1, 1)
    with pytest.raises(BudgetError):
        plan_counts([], stack.ledger(), Budget(1.0))


def test_an_uncounted_cost_is_weighed_but_not_counted() -> None:
    """What is no saving after its cost is left alone; the budget counts the saving alone."""
    losses = np.linspace(0.1, 0, 5)
    counts = np.arange(4, 0, -1)
    free = Removable("free", 2 * losses, counts, (Side(0, True, 1),))
    for cost, wanted in ((0.0, {"free": 4, "dear": 2}), (3.9, {"free": 2, "dear": 4})):
        charge = np.array([cost / 2, cost / 2, cost, cost, 0.0])
        dear = Removable("dear", losses, counts, (Side(1, True, 1),), uncounted_cost=charge)
        ledger = Ledger([4.0, 4.0], [4, 4], [1, 1])
        assert plan_counts([free, dear], ledger, Budget(6.0)) == wanted
        assert ledger.total == pytest.approx(6.0)
    dear = replace(dear, uncounted_cost=np.array([9.0, 9.0, 9.0, 9.0, 0.0]))
    with pytest.raises(OutOfReachError):
        plan_counts([dear], Ledger([4.0, 4.0], [4, 4], [1, 1]), Budget(7.0))


@quick(25)
@given(seed=st.integers(0, 999))
def test_the_ledger_counts_as_the_layers_do(seed: int) -> None:
    """Against products of what is left; one layer reads and makes channels of one group."""
    random = rng(seed)
    ledger = Ledger([5.0, 7.0, 2.0], [12, 8, 6], [4, 12, 6])
    # group: 6 channels, made twice each by layer 0, read by 1, layer 2 reads and makes them
    sides = (Side(0, True, 2), Side(1, False, 2), Side(2, True, 1), Side(2, False, 1))
    first = int(random.integers(0, 4))
    ledger.change(sides, first)

    def cost(left: int) -> float:
        return 5.0 * left / 6 + 7.0 * left / 6 + 2.0 * (left / 6) ** 2

    assert ledger.total == pytest.approx(cost(6 - first))
    more = np.arange(6 - first)
    wanted = [cost(6 - first) - cost(6 - first - m) for m in more]
    np.testing.assert_allclose(ledger.saved(sides, more), wanted, rtol=1e-12, atol=1e-12)
    ledger.change(sides, -first)
    assert ledger.total == pytest.approx(14.0)
