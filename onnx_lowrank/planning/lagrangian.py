"""Choosing one candidate for each layer under one budget.

    minimise  sum_l s_l eps_l(candidate)   subject to   sum_l cost_l(candidate) <= budget

by Lagrangian relaxation; what it leaves of the budget is spent greedily on the best remaining
steps. For MACs the multiplier may weigh a candidate's *effort* besides its cost: of two candidates
that save the same MACs, the one whose channels fill the runtime's blocks is faster.

Reference:
    Everett 1963, Generalized Lagrange multiplier method; Shoham & Gersho 1988, Efficient bit
    allocation for an arbitrary set of quantizers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.errors import BudgetError
from onnx_lowrank.planning.candidates import Candidate, Choice, cheapest, least_cost, loss_of
from onnx_lowrank.planning.greedy_steps import best_step

__all__ = ["allocate", "allocate_blocked", "bearable"]

Array = npt.NDArray[np.floating[Any]]

#: parts of the budget, and weights of the effort against the MACs, that are tried
_SCALES, _BLOCKED = tuple(k / 20 for k in range(20, 11, -1)), (0.0, 0.5, 0.8, 1.0)

#: a plan is fast enough with this part of the speed-up that its MACs promise
_PROMISED = 0.9

#: effort is ignored where the model has more than this many times its MACs in effort: its time
#: is spent on other things than MACs
_MOST_EFFORT_PER_MAC = 3

#: loss that may be taken for speed: this factor on the loss of the plan by MACs alone, or this
#: much more for each layer
_LOSS_FACTOR, _LOSS_PER_LAYER = 1.25, 0.005


def allocate(choices: Sequence[Choice], budget: int, blocked: float = 0.0) -> list[Candidate]:
    """Choose one candidate for each layer under a budget on the sum of costs.

    Args:
        choices: the layers with their candidates.
        budget: largest sum of costs allowed.
        blocked: weight of the effort in what the multiplier weighs, between 0 and 1; the cost has
            the remaining weight.

    Raises:
        BudgetError: even the cheapest candidates cost more.
    """
    least = least_cost(choices)
    if least > budget:
        raise BudgetError(
            f"these passes cannot cost less than {least}, and the budget is {budget}; ask for a "
            "larger part, or allow more passes or layers"
        )
    low, high = 0.0, 1.0 / max([1, *(c.keep.effort for c in choices)])
    chosen = _at(choices, low, blocked)
    if _cost(chosen) > budget:
        while _cost(_at(choices, high, blocked)) > budget:
            low, high = high, high * 2
            if high > 1e6:  # what is cheapest by effort is not what is cheapest by cost
                chosen = [cheapest(c) for c in choices]
                return _fill(choices, chosen, budget, blocked)
        for _ in range(40):
            middle = (low + high) / 2
            over = _cost(_at(choices, middle, blocked)) > budget
            low, high = (middle, high) if over else (low, middle)
        chosen = _at(choices, high, blocked)
    return _fill(choices, chosen, budget, blocked)


def allocate_blocked(choices: Sequence[Choice], budget: int, fixed: int) -> list[Candidate]:
    """Choose one candidate for each layer under a budget on MACs, with an eye on their time.

    A plan may halve the MACs and leave the time nearly as it was, if its channels fill no blocks
    or its nodes wait for memory. So plans with several weights on the effort, and with smaller
    budgets, are tried. Plans that lose far more than the plan by MACs alone are put aside. Of the
    others that nearly keep the budget in effort too, the one of least loss is taken; where there
    is none, the one of least effort. Where MACs take little of the time, as in small dense
    layers, the plan by MACs alone is taken.

    Args:
        choices: the layers with their candidates.
        budget: largest sum of the layers' MACs allowed.
        fixed: MACs of all other nodes.

    Raises:
        BudgetError: even the cheapest candidates cost more.
    """

    def loss(plan: Sequence[Candidate]) -> float:
        return loss_of(choices, plan)

    def effort(plan: Sequence[Candidate]) -> int:
        return sum(p.effort for p in plan) + fixed

    free = allocate(choices, budget)
    most = bearable(loss(free), len(choices))
    whole = max(sum(c.keep.cost for c in choices) + fixed, 1)
    time = sum(c.keep.effort for c in choices) + fixed
    if time > _MOST_EFFORT_PER_MAC * whole:
        return free
    wanted = (budget + fixed) / whole * time / _PROMISED
    least = least_cost(choices)
    plans = [free]
    for scale, blocked in product(_SCALES, _BLOCKED):
        if scale * budget >= least:
            plan = allocate(choices, int(scale * budget), blocked)
            if loss(plan) <= most:
                plans.append(plan)
    fast = [plan for plan in plans if effort(plan) <= wanted]
    return min(fast, key=loss) if fast else min(plans, key=effort)


def bearable(loss: float, layers: int) -> float:
    """Largest loss that a faster plan may have, where the plan by MACs alone has ``loss``."""
    return max(_LOSS_FACTOR * loss, loss + _LOSS_PER_LAYER * layers)


def _effort(candidate: Candidate, blocked: float) -> float:
    return (1 - blocked) * candidate.cost + blocked * candidate.effort


def _at(choices: Sequence[Choice], multiplier: float, blocked: float) -> list[Candidate]:
    return [
        min(
            choice.candidates,
            key=lambda c: (choice.weight * c.error + multiplier * _effort(c, blocked), c.cost),
        )
        for choice in choices
    ]


def _cost(chosen: Sequence[Candidate]) -> int:
    return sum(c.cost for c in chosen)


def _fill(
    choices: Sequence[Choice], chosen: list[Candidate], budget: int, blocked: float
) -> list[Candidate]:
    """Spend what is left of the budget on the steps that lower the loss most for their effort.

    Each step gives one layer a candidate of less error, so no candidate is taken twice and there
    are fewer steps than candidates.
    """
    candidates = [c for choice in choices for c in choice.candidates]
    layers = np.repeat(np.arange(len(choices)), [len(c.candidates) for c in choices])
    weights = np.array([c.weight for c in choices])
    errors, costs, efforts = _columns(candidates, blocked)
    for _ in candidates:
        error, cost, effort = _columns(chosen, blocked)
        gains = weights[layers] * (error[layers] - errors)
        allowed = (costs - cost[layers] <= budget - _cost(chosen)) & (gains > 0)
        step = best_step(gains, np.maximum(efforts - effort[layers], 1.0), allowed)
        if step is None:
            break
        chosen[layers[step]] = candidates[step]
    return chosen


def _columns(candidates: Sequence[Candidate], blocked: float) -> tuple[Array, Array, Array]:
    """Errors, costs and efforts of candidates, each ``(candidates,)``."""
    errors, costs = [c.error for c in candidates], [c.cost for c in candidates]
    efforts = [_effort(c, blocked) for c in candidates]
    return np.array(errors), np.array(costs, float), np.array(efforts)
