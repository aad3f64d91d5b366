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

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from onnx_lowrank.chain import Rank
from onnx_lowrank.errors import BudgetError
from onnx_lowrank.linalg.rank_rules import RankRule

__all__ = [
    "Candidate",
    "Choice",
    "allocate",
    "allocate_all",
    "allocate_blocked",
    "bearable",
    "by_rule",
    "least_cost",
    "recosted",
    "reweighed",
]


#: rounds for several budgets, and what a weighted sum of them is counted in
_ROUNDS, _SCALE = 30, 10**9

#: budgets and weights of the effort against the MACs that are looked at
_SCALES, _BLOCKED = tuple(k / 20 for k in range(20, 11, -1)), (0.0, 0.5, 0.8, 1.0)

#: so much of the speed-up that the MACs promise is enough
_PROMISED = 0.9

#: so many times the MACs in effort, and time is spent elsewhere
_ELSEWHERE = 3

#: how much more loss than that of MACs alone is borne: by a factor, or by so much a layer
_BEARABLE, _NEGLIGIBLE = 1.25, 0.005


@dataclass(frozen=True)
class Candidate:
    """One way to write one layer.

    Attributes:
        method: spec of the pass; empty for the layer as it is.
        variant: which form of the method.
        rank: channels a group between the stages, one number or one for each place; 0 for the
            layer as it is.
        error: relative response error.
        cost: in the unit of the budget (MACs, parameters or bytes).
        effort: MACs that could be done in its time; the cost for other budgets.
        macs: multiply-accumulates.
        parameters: elements of weights and biases.
        bytes: of these and of the nodes, in the file.
    """

    method: str
    variant: str
    rank: Rank
    error: float
    cost: int
    effort: int
    macs: int
    parameters: int
    bytes: int = 0


@dataclass(frozen=True)
class Choice:
    """One layer and all ways to write it; the first is to keep it."""

    layer: str
    candidates: tuple[Candidate, ...]
    weight: float = 1.0

    @property
    def keep(self) -> Candidate:
        """The layer as it is."""
        return self.candidates[0]


def least_cost(choices: Sequence[Choice]) -> int:
    """Cost of the cheapest candidates of all layers together."""
    return sum(min(c.cost for c in choice.candidates) for choice in choices)


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
                chosen = [min(c.candidates, key=_cheapest) for c in choices]
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
        return _loss(choices, plan)

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


def allocate_all(constraints: Sequence[tuple[Sequence[Choice], int]]) -> list[Candidate]:
    """:func:`allocate` under several budgets at once.

    Each constraint has the same layers and candidates at costs of its own kind. A plan under one
    budget on a weighted sum of them is made, and the weights of the budgets that it breaks grow
    (multiplicative weights). Each plan is mended by single steps until it keeps all budgets and
    no step within them lowers the loss; the one of least loss is taken.

    Args:
        constraints: choices and the budget on their costs.

    Raises:
        BudgetError: no plan that was found keeps all of them.

    Reference:
        Arora, Hazan & Kale 2012, The multiplicative weights update method.
    """
    if len(constraints) == 1:
        return allocate(*constraints[0])
    weights = [1.0 / len(constraints)] * len(constraints)
    layers = list(zip(*(choices for choices, _ in constraints), strict=True))
    table = _table(constraints)
    best: tuple[float, list[Candidate]] | None = None
    for round_ in range(_ROUNDS):
        joined = [_joined(layer, constraints, weights) for layer in layers]
        plan = allocate(joined, max(_SCALE, least_cost(joined)))
        places = [c.candidates.index(p) for c, p in zip(joined, plan, strict=True)]
        used = [
            sum(c.candidates[i].cost for c, i in zip(choices, places, strict=True)) / max(budget, 1)
            for choices, budget in constraints
        ]
        kept = _mended(table, places)
        if kept is not None:
            chosen = [c.candidates[i] for c, i in zip(constraints[0][0], kept, strict=True)]
            loss = _loss(constraints[0][0], chosen)
            if best is None or loss < best[0]:
                best = loss, chosen
        rate = 2.0 / (1 + round_) ** 0.5
        grown = [w * math.exp(rate * (u - max(used))) for w, u in zip(weights, used, strict=True)]
        weights = [g / sum(grown) for g in grown]
    if best is None:
        raise BudgetError("no plan keeps all the targets at once; ask for more of one of them")
    return best[1]


class _Table(NamedTuple):
    """All candidates of all layers, one after the other.

    Attributes:
        costs: as parts of the budgets, ``(budgets, candidates)``.
        losses: ``(candidates,)``.
        layers: number of the layer of each, ``(candidates,)``.
        starts: of each layer the number of its first, ``(layers,)``.
    """

    costs: npt.NDArray[np.float64]
    losses: npt.NDArray[np.float64]
    layers: npt.NDArray[np.intp]
    starts: npt.NDArray[np.intp]


def _table(constraints: Sequence[tuple[Sequence[Choice], int]]) -> _Table:
    first = constraints[0][0]
    sizes = [len(c.candidates) for c in first]
    costs = [
        [k.cost / max(budget, 1) for c in choices for k in c.candidates]
        for choices, budget in constraints
    ]
    losses = [c.weight * k.error for c in first for k in c.candidates]
    layers = np.repeat(np.arange(len(first)), sizes)
    return _Table(np.array(costs), np.array(losses), layers, np.cumsum([0, *sizes[:-1]]))


def _mended(table: _Table, places: Sequence[int]) -> list[int] | None:
    """Steps from a plan to one that keeps all budgets, at little loss; None where they end."""
    costs, losses, layers, starts = table
    now = starts + np.array(places, np.intp)
    while True:
        used = costs[:, now].sum(axis=1)
        after = used[:, None] + costs - costs[:, now[layers]]
        lost = losses - losses[now[layers]]
        over = np.maximum(used - 1, 0).sum()
        if over > 0:
            won = over - np.maximum(after - 1, 0).sum(axis=0)
            steps = np.flatnonzero(won > 1e-12)
            rates = np.maximum(lost[steps], 1e-12) / won[steps]
        else:
            steps = np.flatnonzero((lost < -1e-12) & (after <= 1).all(axis=0))
            more = np.maximum(after - used[:, None], 0).sum(axis=0)
            rates = lost[steps] / np.maximum(more[steps], 1e-12)
        if not len(steps):
            return None if over > 0 else [int(p) for p in now - starts]
        step = steps[np.argmin(rates)]
        now[layers[step]] = step


def _joined(
    layer: Sequence[Choice],
    constraints: Sequence[tuple[Sequence[Choice], int]],
    weights: Sequence[float],
) -> Choice:
    """One layer at the weighted sum of its costs, each as a part of its budget."""
    candidates = []
    for kinds in zip(*(c.candidates for c in layer), strict=True):
        parts = (
            w * k.cost / max(budget, 1)
            for k, w, (_, budget) in zip(kinds, weights, constraints, strict=True)
        )
        cost = round(_SCALE * sum(parts))
        candidates.append(replace(kinds[0], cost=cost, effort=cost))
    return replace(layer[0], candidates=tuple(candidates))


def recosted(choices: Sequence[Choice], metric: str) -> list[Choice]:
    """The same choices with costs in another unit: ``macs``, ``params`` or ``size``."""

    def cost(c: Candidate) -> Candidate:
        value = {"macs": c.macs, "params": c.parameters, "size": c.bytes}[metric]
        return replace(c, cost=value, effort=value)

    return [replace(c, candidates=tuple(map(cost, c.candidates))) for c in choices]


def reweighed(choices: Sequence[Choice], factors: Mapping[str, float]) -> list[Choice]:
    """The same choices with the weights of layers, by name, multiplied by factors."""
    return [replace(c, weight=c.weight * factors.get(c.layer, 1.0)) for c in choices]


def by_rule(choices: Sequence[Choice], rule: RankRule) -> list[Candidate]:
    """Every layer by one rule, whatever becomes of the whole; what it finds nothing for is kept.

    ``ratio`` takes the least error at that part of a layer's cost, at most; ``error`` and
    ``energy`` (of the response, 1 less the error) the least cost at that error, at most; for
    ``fixed`` and ``evbmf`` the ranks are given, and the form of least error is taken.
    """
    return [_by_rule(choice, rule) for choice in choices]


def _by_rule(choice: Choice, rule: RankRule) -> Candidate:
    found = choice.candidates[1:]
    if rule.kind == "ratio":
        found = tuple(c for c in found if c.cost <= rule.value * choice.keep.cost)
    elif rule.kind in ("error", "energy"):
        bound = rule.value if rule.kind == "error" else 1 - rule.value
        # what float64 cannot tell from exact counts as exact
        found = tuple(c for c in found if c.error <= bound + 1e-12)
        return min(found, key=_cheapest, default=choice.keep)
    return min(found, key=lambda c: (c.error, c.cost), default=choice.keep)


def _loss(choices: Sequence[Choice], plan: Sequence[Candidate]) -> float:
    return sum(c.weight * p.error for c, p in zip(choices, plan, strict=True))


def _cheapest(candidate: Candidate) -> tuple[int, float]:
    return candidate.cost, candidate.error


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
    """Spend what is left on the steps that lower the loss most for their effort."""
    while True:
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
            return chosen
        chosen[best[1]] = best[2]
