"""Candidates: the ways to write one layer, with the cost and the error of each."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from onnx_lowrank.analysis.cost import Cost
from onnx_lowrank.chains.chain import Rank
from onnx_lowrank.linalg.rank_rules import RankRule

__all__ = [
    "Candidate",
    "Choice",
    "Constraint",
    "by_rule",
    "cheapest",
    "least_cost",
    "loss_of",
    "recosted",
    "reweighed",
    "scaled",
    "without_chains",
]

#: costs of a candidate
_COSTS = ("cost", "workload", "macs", "parameters", "bytes")


@dataclass(frozen=True)
class Candidate:
    """A way to write one layer.

    Attributes:
        method: spec of the pass; empty for the layer as it is.
        variant: name of the form of the method, such as ``vh``; empty where it has one form.
        rank: channels of a group between the stages, one number or one for each place; 0 for
            the layer as it is.
        error: relative response error, between 0 and 1.
        cost: cost in the unit of the budget (MACs, parameters, bytes or nanoseconds).
        workload: MACs that the runtime could do in the time of the candidate; equal to ``cost``
            where the budget is not on MACs.
        macs: number of multiply-accumulates.
        parameters: number of elements of weights and biases.
        bytes: size in the file of the parameters and of the nodes, in bytes.

    Raises:
        ValueError: the error is NaN or infinite.
    """

    method: str
    variant: str
    rank: Rank
    error: float
    cost: int
    workload: int
    macs: int
    parameters: int
    bytes: int = 0

    @property
    def total(self) -> Cost:
        """Cost in every unit."""
        return Cost(self.macs, self.parameters, self.bytes)

    def __post_init__(self) -> None:
        if not math.isfinite(self.error):
            raise ValueError(
                f"a candidate of {self.method} has the error {self.error}; it must be finite"
            )


@dataclass(frozen=True)
class Choice:
    """A layer and all its candidates; the first keeps the layer as it is.

    Attributes:
        layer: name of the layer.
        candidates: the ways to write it.
        weight: factor on the errors of the candidates in the loss of a plan.

    Raises:
        ValueError: the weight is NaN, infinite or negative.
    """

    layer: str
    candidates: tuple[Candidate, ...]
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise ValueError(
                f"layer {self.layer!r} has the weight {self.weight}; it must be finite and not "
                "negative"
            )

    @property
    def keep(self) -> Candidate:
        """The candidate that keeps the layer as it is."""
        return self.candidates[0]


@dataclass(frozen=True)
class Constraint:
    """A budget on one kind of cost.

    Attributes:
        metric: quantity that is limited: ``macs``, ``params``, ``size`` or ``latency``.
        choices: choices of all layers, with costs in the unit of the quantity.
        budget: largest sum of the costs of the chosen candidates.
        whole: cost of the original model.
        fixed: cost of the nodes that no choice changes.
    """

    metric: str
    choices: Sequence[Choice]
    budget: int
    whole: int
    fixed: int


def least_cost(choices: Sequence[Choice]) -> int:
    """Sum of the costs of every layer's cheapest candidate."""
    return sum(cheapest(choice).cost for choice in choices)


def cheapest(choice: Choice) -> Candidate:
    """The candidate of least cost, and among equals the one of least error."""
    return min(choice.candidates, key=_cost_then_error)


def loss_of(choices: Sequence[Choice], plan: Sequence[Candidate]) -> float:
    """Loss of a plan: the sum of the errors of its candidates, each times its layer's weight."""
    return sum(c.weight * p.error for c, p in zip(choices, plan, strict=True))


def recosted(choices: Sequence[Choice], metric: str) -> list[Choice]:
    """The same choices with costs in another unit: ``macs``, ``params`` or ``size``."""

    def cost(c: Candidate) -> Candidate:
        value = c.total.of(metric)
        return replace(c, cost=value, workload=value)

    return [replace(c, candidates=tuple(map(cost, c.candidates))) for c in choices]


def scaled(choice: Choice, ratio: float) -> Choice:
    """The same choice with all costs multiplied by a ratio.

    So it is, roughly, of a layer that is left with some of its channels.
    """

    def part(c: Candidate) -> Candidate:
        costs = {name: round(getattr(c, name) * ratio) for name in _COSTS}
        return replace(c, **costs)

    return replace(choice, candidates=tuple(map(part, choice.candidates)))


def reweighed(choices: Sequence[Choice], factors: Mapping[str, float]) -> list[Choice]:
    """The same choices with the weights of layers, by name, multiplied by factors."""
    return [replace(c, weight=c.weight * factors.get(c.layer, 1.0)) for c in choices]


def without_chains(choices: Sequence[Choice], layers: Collection[str]) -> list[Choice]:
    """The same choices where the layers named can only be kept as they are."""
    return [replace(c, candidates=c.candidates[:1]) if c.layer in layers else c for c in choices]


def by_rule(choices: Sequence[Choice], rule: RankRule) -> list[Candidate]:
    """Choose for every layer by one rule, without a budget on the sum.

    ``ratio`` takes the candidate of least error among those that cost at most that part of the
    layer. ``error`` and ``energy`` (of the response: 1 minus the error) take the cheapest
    candidate within that error. ``fixed`` and ``evbmf`` give the ranks, and the form of least
    error is taken. A layer with no candidate that obeys the rule is kept as it is.
    """
    return [_by_rule(choice, rule) for choice in choices]


def _by_rule(choice: Choice, rule: RankRule) -> Candidate:
    found = choice.candidates[1:]
    if rule.kind == "ratio":
        found = tuple(c for c in found if c.cost <= rule.value * choice.keep.cost)
    elif rule.kind in ("error", "energy"):
        bound = rule.value if rule.kind == "error" else 1 - rule.value
        # errors below the rounding of float64 count as 0
        found = tuple(c for c in found if c.error <= bound + 1e-12)
        return min(found, key=_cost_then_error, default=choice.keep)
    return min(found, key=lambda c: (c.error, c.cost), default=choice.keep)


def _cost_then_error(candidate: Candidate) -> tuple[int, float]:
    return candidate.cost, candidate.error
