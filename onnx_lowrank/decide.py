"""From proposals under a budget to a decision and a reason for every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx_lowrank.candidates import Proposals
from onnx_lowrank.cost import Cost
from onnx_lowrank.errors import BudgetError
from onnx_lowrank.layers import Ineligible, Layer
from onnx_lowrank.planner import Candidate, Decision, allocate, allocate_blocked, least_cost

__all__ = ["budget_of", "choose", "decide"]


def budget_of(
    proposals: Proposals, before: Cost, canonical: Cost, metric: str, ratio: float
) -> tuple[int, int]:
    """Cost that the layers may have, and cost that they have now."""
    whole = {"macs": before.macs, "params": before.parameters, "size": before.bytes}[metric]
    now = {"macs": canonical.macs, "params": canonical.parameters, "size": canonical.bytes}[metric]
    movable = sum(c.keep.cost for c in proposals.choices)
    return int(ratio * whole) - (now - movable), movable


def choose(
    proposals: Proposals, budget: int, movable: int, before: Cost, metric: str
) -> list[Candidate]:
    """One candidate a layer within ``budget``.

    Raises:
        BudgetError: the cheapest of all cost more; it names what can be reached.
    """
    choices = proposals.choices
    whole = {"macs": before.macs, "params": before.parameters, "size": before.bytes}[metric]
    least = least_cost(choices)
    if least > budget:
        reachable = (least + whole - movable) / max(whole, 1)
        raise BudgetError(
            f"{metric}: these passes reach {reachable:.3f} of the original at the least, with all "
            f"accuracy lost; ask for more, or give more passes or layers"
        )
    if metric == "macs":
        return allocate_blocked(choices, budget, whole - movable)
    return allocate(choices, budget)


def decide(
    layers: Sequence[Layer],
    chosen: Sequence[Candidate],
    errors: Mapping[str, float],
    proposals: Proposals,
    left_out: Sequence[Ineligible],
) -> list[Decision]:
    """A decision and a reason for every layer, those left out last."""
    decisions = []
    for layer, candidate, choice in zip(layers, chosen, proposals.choices, strict=True):
        keep = choice.keep
        if candidate.method:
            reason = (
                f"{candidate.macs / max(keep.macs, 1):.2f} of its MACs, "
                f"{candidate.parameters / max(keep.parameters, 1):.2f} of its parameters"
            )
        elif len(choice.candidates) > 1:
            reason = "the budget is met with less error elsewhere"
        else:
            reason = "; ".join(proposals.skips[layer.name])
        decisions.append(
            Decision(
                layer.name,
                layer.op,
                "factorize" if candidate.method else "keep",
                candidate.method,
                candidate.variant,
                candidate.rank,
                errors.get(layer.name, 0.0),
                keep.macs,
                candidate.macs,
                keep.parameters,
                candidate.parameters,
                reason,
            )
        )
    decisions += [
        Decision(o.name, o.op, "skip", "", "", 0, 0.0, 0, 0, 0, 0, o.reason) for o in left_out
    ]
    return decisions
