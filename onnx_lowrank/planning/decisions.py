"""Decisions: one candidate for every layer under the budgets, with the reason for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from onnx_lowrank.analysis.cost import layer_cost
from onnx_lowrank.analysis.moments import Moments, relative_error
from onnx_lowrank.analysis.preparation import Prepared
from onnx_lowrank.chains.chain import Chain
from onnx_lowrank.errors import BudgetError
from onnx_lowrank.layers import PlacedLayer
from onnx_lowrank.planning.amounts import in_reach
from onnx_lowrank.planning.candidates import Candidate, Constraint, least_cost
from onnx_lowrank.planning.lagrangian import allocate, allocate_in_time, least_budget
from onnx_lowrank.planning.plan import Decision
from onnx_lowrank.planning.proposals import Proposals
from onnx_lowrank.planning.several_budgets import allocate_all

__all__ = ["Constraint", "after_cut", "as_written", "choose", "decide"]

#: nanoseconds, the unit of constraints on latency, in a millisecond
NANOSECONDS = 1e6

#: predicted loss of responses at which a model may still be of use
_USEFUL_LOSS = 0.05


def choose(constraints: Sequence[Constraint]) -> list[Candidate]:
    """Choose one candidate for each layer so that all budgets are kept at little loss.

    Args:
        constraints: one budget or more, on the same layers and candidates.

    Raises:
        BudgetError: even the cheapest candidates cost more; the message says what can be reached.
    """
    for constraint in constraints:
        least = least_cost(constraint.choices)
        if least > constraint.budget:
            metric = constraint.metric
            unit = NANOSECONDS if metric == "latency" else 1
            useful = least_budget(constraint.choices, _USEFUL_LOSS)
            reached, kept = (
                in_reach(metric, (cost + constraint.fixed) / unit, constraint.whole / unit)
                for cost in (least, useful)
            )
            raise BudgetError(
                f"{metric}: these passes cannot go below {reached}, even at the loss of all "
                f"accuracy; at a predicted loss of {_USEFUL_LOSS:.0%} they reach {kept}. Ask for "
                "that, or allow more passes or layers"
            )
    if len(constraints) > 1:
        return allocate_all(constraints)
    (only,) = constraints
    if only.metric == "macs":
        return allocate_in_time(only.choices, only.budget)
    return allocate(only.choices, only.budget)


def decide(
    original: Prepared, work: Prepared, chosen: Sequence[Candidate], proposals: Proposals
) -> list[Decision]:
    """List a decision with its reason for every layer, then for the nodes left out.

    Args:
        original: the canonical model.
        work: the model without its pruned channels; ``original`` itself where none are pruned.
        chosen: one candidate for each layer of ``work``.
        proposals: the proposals that the candidates were chosen from.
    """
    before = {layer.name: layer for layer in original.layers}
    decisions = []
    for layer, candidate, choice in zip(work.layers, chosen, proposals.choices, strict=True):
        first = before[layer.name]
        cost = layer_cost(first, original.shapes)
        if candidate.method:
            less = f"{candidate.macs / max(cost.macs, 1):.2f} of its MACs, "
            part = candidate.parameters / max(cost.parameters, 1)
            reason = f"{less if cost.macs else ''}{part:.2f} of its parameters"
        elif len(choice.candidates) > 1:
            reason = "the budget is met with less error elsewhere"
        else:
            reason = "; ".join(proposals.skips[layer.name])
        if layer.shape != first.shape:
            outputs, inputs = layer.shape[0], layer.shape[1] * layer.groups
            left = f"{inputs} of {first.shape[1] * first.groups} inputs, {outputs} of "
            reason = f"{left}{first.shape[0]} outputs are left" + (f"; {reason}" if reason else "")
        reason = reason or "all its channels are kept"
        decisions.append(
            Decision(
                layer.name,
                layer.op,
                "factorize" if candidate.method else "keep",
                candidate.method,
                candidate.variant,
                candidate.rank,
                candidate.error,
                cost.macs,
                candidate.macs,
                cost.parameters,
                candidate.parameters,
                reason,
            )
        )
    for node in work.left_out:
        macs, rest = (p.cost.counts.of(node.output, main=node.main) or 0 for p in (original, work))
        decisions.append(
            Decision(
                node.name, node.op, "skip", "", "", 0, 0.0, macs, rest, 0, 0, node.reason
            )
        )  # fmt: skip
    return decisions


def after_cut(
    layer: PlacedLayer,
    decision: Decision,
    chain: Chain,
    moments: Moments,
    shapes: Mapping[str, tuple[int, ...]],
) -> Decision:
    """The decision with the cost and the error of the chain as it was built."""
    error = relative_error(layer.stage, chain, moments)
    return as_written(layer, decision, chain, error, shapes)


def as_written(
    layer: PlacedLayer,
    decision: Decision,
    chain: Chain,
    error: float,
    shapes: Mapping[str, tuple[int, ...]],
) -> Decision:
    """The decision with the cost of a chain, and an error that is known."""
    return replace(
        decision,
        error=error,
        macs_after=chain.macs(shapes[layer.input]),
        parameters_after=chain.parameters,
    )
