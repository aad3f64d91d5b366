"""Candidates to decisions under a budget.

    minimise  sum_l s_l eps_l(candidate)   subject to   sum_l cost_l(candidate) <= budget

by Lagrangian relaxation; what it leaves of the budget is spent greedily on the best remaining
steps. The multiplier weighs a candidate's *effort* rather than its cost: of two that save the same
MACs, the one whose channels fill the runtime's blocks is the faster.

Reference:
    Everett 1963, Generalized Lagrange multiplier method; Shoham & Gersho 1988, Efficient bit
    allocation for an arbitrary set of quantizers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from onnx_lowrank.errors import BudgetError
from onnx_lowrank.planning.candidates import Candidate, Choice, cheapest, least_cost, loss_of

__all__ = ["allocate", "allocate_blocked", "bearable"]

#: budgets and weights of the effort against the MACs that are looked at
_SCALES, _BLOCKED = tuple(k / 20 for k in range(20, 11, -1)), (0.0, 0.5, 0.8, 1.0)

#: so much of the speed-up that the MACs promise is enough
_PROMISED = 0.9

#: so many times the MACs in effort, and time is spent elsewhere
_ELSEWHERE = 3

#: how much more loss than that of MACs alone is borne: by a factor, or by so much a layer
_BEARABLE, _NEGLIGIBLE = 1.25, 0.005


def allocate(choices: Sequence[Choice], budget: int, blocked: float = 0.0) -> list[Candidate]:
    """The candidate of each layer under a budget on the sum of costs.

    Args:
        choices: the layers.
        budget: on the sum of costs.
        blocked: part of the effort in what the multiplier weighs; the rest is the cost.

    Raises:
        BudgetError: even the cheapest candidates cost more.
    """
    least = least_cost(choices)
    if least > budget:
        raise BudgetError(f"{least} is the least that these passes reach; {budget} was asked")
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
    """:func:`allocate` for MACs, which keeps the budget in effort too where that is worth it.

    A plan may halve the MACs and leave the time nearly as it was, if its channels fill no blocks,
    or its nodes wait for memory. So plans of several weights on the effort, and of smaller budgets,
    are looked at. Of those that nearly keep the budget in effort the one of least loss is taken;
    where none does, the one of least effort; and none whose loss is far above that of the plan by
    MACs alone. Where MACs take little of the time, as in small dense layers, the plan is that by
    MACs.

    Args:
        choices: the layers.
        budget: on the sum of their MACs.
        fixed: MACs of all else.

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
    if time > _ELSEWHERE * whole:
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
    """The loss that may be taken for a plan in blocks, that of a finer one being ``loss``."""
    return max(_BEARABLE * loss, loss + _NEGLIGIBLE * layers)


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
    """Spend what is left on the steps that lower the loss most for their effort.

    Each step gives one layer a candidate of less error, so no candidate is taken twice and there
    are fewer steps than candidates.
    """
    for _ in range(sum(len(c.candidates) for c in choices)):
        left = budget - _cost(chosen)
        best: tuple[float, int, Candidate] | None = None
        for i, (choice, now) in enumerate(zip(choices, chosen, strict=True)):
            for c in choice.candidates:
                gain = choice.weight * (now.error - c.error)
                if c.cost - now.cost > left or gain <= 0:
                    continue
                rate = gain / max(_effort(c, blocked) - _effort(now, blocked), 1.0)
                if best is None or rate > best[0]:
                    best = (rate, i, c)
        if best is None:
            break
        chosen[best[1]] = best[2]
    return chosen
