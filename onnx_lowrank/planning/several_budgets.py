"""Choosing one candidate for each layer under several budgets at once.

Reference:
    Arora, Hazan & Kale 2012, The multiplicative weights update method.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from onnx_lowrank.errors import BudgetError
from onnx_lowrank.planning.candidates import Candidate, Choice, Constraint, least_cost, loss_of
from onnx_lowrank.planning.greedy_steps import best_step
from onnx_lowrank.planning.lagrangian import allocate

__all__ = ["allocate_all"]

#: number of rounds
_ROUNDS = 30

#: whole number that stands for the weighted sum of all budgets
_SCALE = 10**9

#: bound on the steps that repair a plan, for each candidate; plans take far fewer
_STEPS_PER_CANDIDATE = 10


def allocate_all(constraints: Sequence[Constraint]) -> list[Candidate]:
    """Choose one candidate for each layer under several budgets at once.

    Each constraint has the same layers and candidates with costs of its own kind. Every round
    makes a plan under one budget on a weighted sum of the costs; the weights of the budgets that
    it breaks grow (multiplicative weights). Each plan is repaired by single steps until it keeps
    all budgets and no step within them lowers the loss; the plan of least loss is taken.

    Args:
        constraints: two budgets or more, on the same layers and candidates.

    Raises:
        BudgetError: no plan that was found keeps all budgets.
    """
    if len(constraints) == 1:
        return allocate(constraints[0].choices, constraints[0].budget)
    weights = [1.0 / len(constraints)] * len(constraints)
    layers = list(zip(*(c.choices for c in constraints), strict=True))
    table = _table(constraints)
    best: tuple[float, list[Candidate]] | None = None
    for round_ in range(_ROUNDS):
        joined = [_joined(layer, constraints, weights) for layer in layers]
        plan = allocate(joined, max(_SCALE, least_cost(joined)))
        places = [c.candidates.index(p) for c, p in zip(joined, plan, strict=True)]
        used = [
            sum(c.candidates[i].cost for c, i in zip(kind.choices, places, strict=True))
            / max(kind.budget, 1)
            for kind in constraints
        ]
        kept = _within_budgets(table, places)
        if kept is not None:
            chosen = [c.candidates[i] for c, i in zip(constraints[0].choices, kept, strict=True)]
            loss = loss_of(constraints[0].choices, chosen)
            if best is None or loss < best[0]:
                best = loss, chosen
        rate = 2.0 / (1 + round_) ** 0.5
        grown = [w * math.exp(rate * (u - max(used))) for w, u in zip(weights, used, strict=True)]
        weights = [g / sum(grown) for g in grown]
    if best is None:
        raise BudgetError("no plan keeps all targets at once; ask for a larger part in one of them")
    return best[1]


class _Table(NamedTuple):
    """All candidates of all layers as arrays, layer after layer.

    Attributes:
        costs: costs divided by the budgets, ``(budgets, candidates)``.
        losses: errors times the weights of the layers, ``(candidates,)``.
        layers: number of each candidate's layer, ``(candidates,)``.
        starts: number of each layer's first candidate, ``(layers,)``.
    """

    costs: npt.NDArray[np.float64]
    losses: npt.NDArray[np.float64]
    layers: npt.NDArray[np.intp]
    starts: npt.NDArray[np.intp]


def _table(constraints: Sequence[Constraint]) -> _Table:
    first = constraints[0].choices
    sizes = [len(c.candidates) for c in first]
    costs = [
        [k.cost / max(kind.budget, 1) for c in kind.choices for k in c.candidates]
        for kind in constraints
    ]
    losses = [c.weight * k.error for c in first for k in c.candidates]
    layers = np.repeat(np.arange(len(first)), sizes)
    return _Table(np.array(costs), np.array(losses), layers, np.cumsum([0, *sizes[:-1]]))


def _within_budgets(table: _Table, places: Sequence[int]) -> list[int] | None:
    """Repair a plan by single steps until it keeps all budgets, at little loss; None if none can.

    A step lowers what is over the budgets, or the loss within them, so no plan comes back; the
    number of steps is bounded besides.

    Args:
        table: all candidates.
        places: position of the chosen candidate within each layer.
    """
    costs, losses, layers, starts = table
    now = starts + np.array(places, np.intp)
    for _ in range(_STEPS_PER_CANDIDATE * len(losses)):
        used = costs[:, now].sum(axis=1)
        after = used[:, None] + costs - costs[:, now[layers]]
        lost = losses - losses[now[layers]]
        over = np.maximum(used - 1, 0).sum()
        if over > 0:
            won = over - np.maximum(after - 1, 0).sum(axis=0)
            step = best_step(-np.maximum(lost, 1e-12), won, won > 1e-12)
        else:
            more = np.maximum(after - used[:, None], 0).sum(axis=0)
            allowed = (lost < -1e-12) & (after <= 1).all(axis=0)
            step = best_step(-lost, np.maximum(more, 1e-12), allowed)
        if step is None:
            return None if over > 0 else [int(p) for p in now - starts]
        now[layers[step]] = step
    return None


def _joined(
    layer: Sequence[Choice],
    constraints: Sequence[Constraint],
    weights: Sequence[float],
) -> Choice:
    """The choice of one layer, at the weighted sum of its costs divided by their budgets."""
    candidates = []
    for kinds in zip(*(c.candidates for c in layer), strict=True):
        parts = (
            w * k.cost / max(kind.budget, 1)
            for k, w, kind in zip(kinds, weights, constraints, strict=True)
        )
        cost = round(_SCALE * sum(parts))
        candidates.append(replace(kinds[0], cost=cost, workload=cost))
    return replace(layer[0], candidates=tuple(candidates))
