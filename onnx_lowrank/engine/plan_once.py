"""The better of two plans for one target: a chain for each layer, or one for all of one weight.

plan_once(analysis, target, sensitivity, pruning) -> Planned
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from onnx_lowrank.engine.analyse import Analysis
from onnx_lowrank.engine.choose import EQUAL, Planned, choose
from onnx_lowrank.engine.propose import PruningShare, propose, propose_together, whole_proposals
from onnx_lowrank.errors import BudgetError, NothingAppliesError
from onnx_lowrank.planning.countable import check_countable, fixed_nodes
from onnx_lowrank.planning.sharing import ties
from onnx_lowrank.planning.targets import Target

__all__ = ["foreseen_loss", "plan_once"]

#: how many times less the foreseen loss of one chain for several layers must be than that of one
#: for each, which the refit fits to each of them
SHARING_GAIN = 2

#: any budget that needs no clock
_BY_MACS = (("macs", 1.0),)
#: reasons that a message counts
_REASONS = 4


def plan_once(
    analysis: Analysis,
    target: Target,
    sensitivity: Mapping[str, float] = EQUAL,
    pruning: PruningShare = "foreseen",
) -> Planned:
    """A decision for every layer and group of channels, by predictions alone.

    Args:
        analysis: of the original model.
        target: what is asked for.
        sensitivity: factors on the weights of layers, by name; 1 for others.
        pruning: part of the saving that taking channels out makes.

    Raises:
        BudgetError: the target is out of reach, or on what cannot be counted or timed.
    """
    check_countable(target, analysis.before, len(analysis.prepared.layers))
    try:
        return _better(analysis, target, sensitivity, pruning)
    except BudgetError as error:
        if reasons := _inapplicable(analysis, target):
            fixed = fixed_nodes(analysis.prepared, analysis.before.macs)
            named = f"; {fixed}" if fixed and "macs" in dict(target.budgets) else ""
            raise NothingAppliesError(f"{target}: {reasons}{named}") from error
        raise


def _better(
    analysis: Analysis, target: Target, sensitivity: Mapping[str, float], pruning: PruningShare
) -> Planned:
    prepared = analysis.prepared
    tied = []
    if analysis.job.passes.factorizations and _sharable(target):
        tied = ties(prepared.graph, prepared.layers)
    try:
        apart = choose(analysis, propose(analysis, target, pruning), sensitivity)
    except BudgetError:
        if not tied:
            raise
        return choose(analysis, propose_together(analysis, target, tied), sensitivity)
    if not tied:
        return apart
    try:
        together = choose(analysis, propose_together(analysis, target, tied), sensitivity)
    except BudgetError:
        return apart
    losses = [foreseen_loss(analysis, planned, sensitivity) for planned in (together, apart)]
    return together if losses[0] < losses[1] / SHARING_GAIN else apart


def _sharable(target: Target) -> bool:
    """Whether one chain for several layers may meet a target that one for each does not."""
    metrics = {metric for metric, _ in target.budgets}
    return target.rule is None and "latency" not in metrics and bool(metrics & {"params", "size"})


def foreseen_loss(
    analysis: Analysis, planned: Planned, sensitivity: Mapping[str, float] = EQUAL
) -> float:
    """The loss that a plan foresees, of its chains and of the channels that it takes out."""
    proposals = whole_proposals(analysis, planned.proposed.target).weighed(sensitivity)
    weights = {c.layer: c.weight for c in proposals.choices}
    chains = sum(weights[d.layer] * d.error for d in planned.plan.decisions if d.replaces)
    return chains + sum(g.loss for g in planned.plan.groups if g.shrinks)


def _inapplicable(analysis: Analysis, target: Target) -> str:
    """Why no pass can do anything with any layer, with counts; empty where one can."""
    clockless = tuple(b for b in target.budgets if b[0] != "latency") or _BY_MACS
    proposals = whole_proposals(analysis, replace(target, budgets=clockless))
    if any(len(choice.candidates) > 1 for choice in proposals.choices):
        return ""
    if analysis.job.passes.cutting and analysis.pruner(target.metric).prunables:
        return ""
    reasons = Counter(node.reason for node in analysis.prepared.left_out)
    reasons.update("; ".join(said) or "no pass is for it" for said in proposals.skips.values())
    said = ", ".join(f"{count} ({reason})" for reason, count in reasons.most_common(_REASONS))
    more = f" and {len(reasons) - _REASONS} more reasons" if len(reasons) > _REASONS else ""
    if not reasons:
        return "the model has no layers, so there is nothing to compress"
    return (
        f"none of the {reasons.total()} layers can be compressed by these passes: {said}{more};"
        " give other passes (onnx-lowrank passes lists them) or other layers"
    )
