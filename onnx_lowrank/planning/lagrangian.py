"""Choosing one candidate for each layer under one budget.

    minimise  sum_l s_l eps_l(candidate)   subject to   sum_l cost_l(candidate) <= budget

by Lagrangian relaxation; what it leaves of the budget is spent greedily on the best remaining
steps. For MACs the multiplier may weigh a candidate's *workload* besides its cost: of two
candidates that save the same MACs, the one whose channels fill the runtime's blocks is faster. How
much that counts is decided by what time costs otherwise, under a smaller budget.

Reference:
    Everett 1963, Generalized Lagrange multiplier method; Shoham & Gersho 1988, Efficient bit
    allocation for an arbitrary set of quantizers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.errors import BudgetError
from onnx_lowrank.planning.candidates import Candidate, Choice, cheapest, least_cost, loss_of
from onnx_lowrank.planning.greedy_steps import best_step

__all__ = ["allocate", "allocate_in_time", "least_budget"]

Array = npt.NDArray[np.floating[Any]]
Places = npt.NDArray[np.intp]

#: parts of the budget whose plans say what time costs
_SCALES = tuple(k / 20 for k in range(19, 11, -1))

#: weights of the workload against the MACs that are tried
_BLOCKED = (0.25, 0.5, 0.75, 1.0)

#: time is ignored where the layers take more than this many times their MACs: small dense layers,
#: whose time is that of calls
_MOST_WORKLOAD_PER_MAC = 3

#: least loss that has a logarithm
_NOTHING = 1e-12


def allocate(choices: Sequence[Choice], budget: int, blocked: float = 0.0) -> list[Candidate]:
    """Choose one candidate for each layer under a budget on the sum of costs.

    Args:
        choices: the layers with their candidates.
        budget: largest sum of costs allowed.
        blocked: weight of the workload in what the multiplier weighs, between 0 and 1; the cost has
            the remaining weight.

    Raises:
        BudgetError: even the cheapest candidates cost more.
    """
    return _Table(choices).allocated(budget, blocked)


def least_budget(choices: Sequence[Choice], loss: float) -> int:
    """The smallest budget whose plan loses no more than that, to a thousandth of all costs.

    Args:
        choices: the layers with their candidates.
        loss: largest predicted loss allowed, 0 or more.
    """
    table, low = _Table(choices), least_cost(choices)
    high = sum(choice.keep.cost for choice in choices)
    grain = high // 1000 + 1
    if loss_of(choices, table.allocated(low, 0.0)) <= loss:
        return low
    while high - low > grain:
        middle = (low + high) // 2
        if loss_of(choices, table.allocated(middle, 0.0)) <= loss:
            high = middle
        else:
            low = middle
    return high


def allocate_in_time(choices: Sequence[Choice], budget: int) -> list[Candidate]:
    """Choose one candidate for each layer under a budget on MACs, with an eye on their time.

    A plan may halve the MACs and leave the time nearly as it was, if its channels fill no blocks
    or its nodes wait for memory. So plans with several weights on the workload are made under the
    same budget. Plans by MACs alone under smaller budgets say what loss their time would cost
    otherwise: of those that cost less, the plan is taken that costs less by the greatest factor.
    Where MACs take little of the time, as in small dense layers, the plan by MACs alone is taken.

    Args:
        choices: the layers with their candidates.
        budget: largest sum of the layers' MACs allowed.

    Raises:
        BudgetError: even the cheapest candidates cost more.
    """
    table, least = _Table(choices), least_cost(choices)
    best = table.allocated(budget, 0.0)
    kept = [choice.keep for choice in choices]
    if _workload(kept) > _MOST_WORKLOAD_PER_MAC * sum(c.cost for c in kept):
        return best
    smaller = [part for part in (int(scale * budget) for scale in _SCALES) if part >= least]
    by_macs = [best, *(table.allocated(part, 0.0) for part in smaller)]
    otherwise = _LossForTime([(_workload(plan), loss_of(choices, plan)) for plan in by_macs])

    def price(plan: Sequence[Candidate]) -> float:  # rounded, for equal plans to be equal
        return round(loss_of(choices, plan) / otherwise.at(_workload(plan)), 9)

    timely = [table.allocated(budget, blocked) for blocked in _BLOCKED]
    return min([best, *timely], key=price)


class _LossForTime:
    """The least loss at which plans take no more than a time.

    Args:
        plans: workload and loss of each, one or more.
    """

    def __init__(self, plans: Sequence[tuple[int, float]]) -> None:
        rising = sorted(plans)
        self._times = np.array([time for time, _ in rising], np.float64)
        losses = np.maximum([loss for _, loss in rising], _NOTHING)
        self._losses = np.log(np.minimum.accumulate(losses))

    def at(self, time: float) -> float:
        """The loss, whose logarithm is linear in between; beyond the fastest plan that of it."""
        return math.exp(float(np.interp(time, self._times, self._losses)))


def _workload(plan: Sequence[Candidate]) -> int:
    return sum(candidate.workload for candidate in plan)


class _Table:
    """All candidates of all layers as arrays, layer after layer in the order of the choices.

    Args:
        choices: the layers with their candidates.
    """

    def __init__(self, choices: Sequence[Choice]) -> None:
        self._choices = choices
        self._candidates = [c for choice in choices for c in choice.candidates]
        sizes = np.array([len(choice.candidates) for choice in choices], np.intp)
        self._layers = np.repeat(np.arange(len(sizes)), sizes)
        self._starts = np.cumsum(sizes) - sizes
        self._errors = np.array([c.error for c in self._candidates], np.float64)
        self._costs = np.array([c.cost for c in self._candidates], np.int64)
        self._workloads = np.array([c.workload for c in self._candidates], np.float64)
        self._weights = np.array([choice.weight for choice in choices], np.float64)
        # (layers, most): numbers of the candidates of each layer, the least cost first; where it
        # has fewer, the number behind the last candidate
        most = int(sizes.max(initial=1))
        self._rising = np.full((len(sizes), most), len(self._candidates), np.intp)
        order = np.lexsort((self._costs, self._layers))
        self._rising[self._layers, np.arange(len(order)) - self._starts[self._layers]] = order

    def allocated(self, budget: int, blocked: float) -> list[Candidate]:
        """One candidate for each layer; see :func:`allocate`."""
        least = least_cost(self._choices)
        if least > budget:
            raise BudgetError(
                f"these passes cannot cost less than {least}, and the budget is {budget}; ask for "
                "a larger part, or allow more passes or layers"
            )
        workloads = (1 - blocked) * self._costs + blocked * self._workloads
        places = self._filled(self._relaxed(budget, workloads), budget, workloads)
        return [self._candidates[place] for place in places]

    def _relaxed(self, budget: int, workloads: Array) -> Places:
        """Choose at the smallest multiplier with which the budget is kept."""
        low, high = 0.0, 1.0 / max([1, *(c.keep.workload for c in self._choices)])
        chosen = self._at(low, workloads)
        if self._cost(chosen) <= budget:
            return chosen
        while self._cost(self._at(high, workloads)) > budget:
            low, high = high, high * 2
            if high > 1e6:  # what is cheapest by workload is not what is cheapest by cost
                inside = [c.candidates.index(cheapest(c)) for c in self._choices]
                return self._starts + np.array(inside, np.intp)
        for _ in range(40):
            middle = (low + high) / 2
            over = self._cost(self._at(middle, workloads)) > budget
            low, high = (middle, high) if over else (low, middle)
        return self._at(high, workloads)

    def _at(self, multiplier: float, workloads: Array) -> Places:
        """The best candidate of each layer at a multiplier, and of equals the one of least cost."""
        losses = self._weights[self._layers] * self._errors + multiplier * workloads
        rows = np.append(losses, np.inf)[self._rising]
        best: Places = self._rising[np.arange(len(rows)), np.argmin(rows, axis=1)]
        return best

    def _cost(self, places: Places) -> int:
        return int(self._costs[places].sum())

    def _filled(self, places: Places, budget: int, workloads: Array) -> Places:
        """Spend what is left of the budget on the steps of least loss for their workload.

        Each step gives one layer a candidate of less error, so no candidate is taken twice and
        there are fewer steps than candidates. Steps that take time and spend nothing were refused
        by the multiplier already.
        """
        layers, places = self._layers, places.copy()
        for _ in self._candidates:
            now = places[layers]
            gains = self._weights[layers] * (self._errors[now] - self._errors)
            left = budget - self._cost(places)
            spent, taken = self._costs - self._costs[now], workloads - workloads[now]
            allowed = (spent <= left) & (gains > 0) & ((spent > 0) | (taken <= 0))
            step = best_step(gains, np.maximum(taken, 1.0), allowed)
            if step is None:
                break
            places[layers[step]] = step
        return places
