"""Ways to write each layer: what they cost, and what they lose."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

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
    "without_chains",
]


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

    Raises:
        ValueError: the error is NaN or infinite.
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

    def __post_init__(self) -> None:
        if not math.isfinite(self.error):
            raise ValueError(f"a candidate of {self.method} has the error {self.error}")


@dataclass(frozen=True)
class Choice:
    """One layer and all ways to write it; the first is to keep it.

    Raises:
        ValueError: the weight is NaN, infinite or negative.
    """

    layer: str
    candidates: tuple[Candidate, ...]
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"layer {self.layer!r} has the weight {self.weight}")

    @property
    def keep(self) -> Candidate:
        """The layer as it is."""
        return self.candidates[0]


@dataclass(frozen=True)
class Constraint:
    """A budget on one kind of cost.

    Attributes:
        metric: what is counted: ``macs``, ``params``, ``size`` or ``latency``.
        choices: all layers, whose candidates' costs are in the unit of the metric.
        budget: the most that the candidates taken may cost together.
        whole: the cost of the original model, which messages give parts of.
        fixed: the cost of what no choice changes.
    """

    metric: str
    choices: Sequence[Choice]
    budget: int
    whole: int
    fixed: int


def least_cost(choices: Sequence[Choice]) -> int:
    """Cost of the cheapest candidates of all layers together."""
    return sum(cheapest(choice).cost for choice in choices)


def cheapest(choice: Choice) -> Candidate:
    """The candidate of least cost; of several that of least error."""
    return min(choice.candidates, key=_cost_then_error)


def loss_of(choices: Sequence[Choice], plan: Sequence[Candidate]) -> float:
    """Weighted errors of one candidate for each layer."""
    return sum(c.weight * p.error for c, p in zip(choices, plan, strict=True))


def recosted(choices: Sequence[Choice], metric: str) -> list[Choice]:
    """The same choices with costs in another unit: ``macs``, ``params`` or ``size``."""

    def cost(c: Candidate) -> Candidate:
        value = {"macs": c.macs, "params": c.parameters, "size": c.bytes}[metric]
        return replace(c, cost=value, effort=value)

    return [replace(c, candidates=tuple(map(cost, c.candidates))) for c in choices]


def reweighed(choices: Sequence[Choice], factors: Mapping[str, float]) -> list[Choice]:
    """The same choices with the weights of layers, by name, multiplied by factors."""
    return [replace(c, weight=c.weight * factors.get(c.layer, 1.0)) for c in choices]


def without_chains(choices: Sequence[Choice], layers: Collection[str]) -> list[Choice]:
    """The same choices where the layers named can only be kept as they are."""
    return [replace(c, candidates=c.candidates[:1]) if c.layer in layers else c for c in choices]


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
        return min(found, key=_cost_then_error, default=choice.keep)
    return min(found, key=lambda c: (c.error, c.cost), default=choice.keep)


def _cost_then_error(candidate: Candidate) -> tuple[int, float]:
    return candidate.cost, candidate.error
