"""Whether a plan, edited or not, is one for this model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from onnx_lowrank.analysis.preparation import Prepared
from onnx_lowrank.errors import PlanError
from onnx_lowrank.planning.plan import GroupDecision, Plan
from onnx_lowrank.pruning.channel_cuts import KeptChannels
from onnx_lowrank.pruning.pruner import Pruner

__all__ = ["check_plan", "kept_by"]


def kept_by(plan: Plan) -> KeptChannels:
    """Channels that a plan keeps."""
    return {
        g.name: np.array(g.kept, np.intp) for g in plan.groups if g.decision in ("cut", "gather")
    }


def check_plan(
    plan: Plan, digest: str, prepared: Prepared, pruner: Callable[[], Pruner] | None
) -> None:
    """Refuse a plan that is of another model, or names what is not there.

    Args:
        plan: to be carried out.
        digest: of the model.
        prepared: the model.
        pruner: of it; None where no pass prunes.

    Raises:
        PlanError: as said.
    """
    if plan.model != digest:
        raise PlanError(
            f"the plan is of another model: its SHA-256 is {plan.model[:16]}..., that of "
            f"this one {digest[:16]}..."
        )
    there = {la.name for la in prepared.layers}
    there |= {o.name for o in prepared.left_out}
    if strange := [d.layer for d in plan.decisions if d.layer not in there]:
        raise PlanError(f"the plan decides on layer {strange[0]!r}, which is not there")
    cuts = [g for g in plan.groups if g.decision in ("cut", "gather")]
    if cuts and pruner is None:
        raise PlanError("the plan cuts channels, but there is no pruning pass in it")
    if cuts and pruner is not None:
        _check_cuts(cuts, pruner())


def _check_cuts(cuts: Sequence[GroupDecision], pruner: Pruner) -> None:
    names = {cut.name for cut in cuts}
    for cut in cuts:
        prunable = pruner.prunables.get(cut.name)
        if prunable is None:
            raise PlanError(f"the plan cuts {cut.name!r}, which is no group that may be cut")
        right = "gather" if prunable.group is None else "cut"
        if cut.decision != right or cut.size != prunable.size:
            raise PlanError(
                f"the plan has {cut.decision} for {cut.name!r} of {cut.size} channels; it should "
                f"have {right}, of {prunable.size}"
            )
        if both := names & pruner.found.excludes(prunable):
            raise PlanError(f"the plan has both {cut.name!r} and {min(both)!r}: the same channels")
