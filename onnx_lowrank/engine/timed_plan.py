"""A plan under targets of which one may be on time.

Times are measured chain by chain, and what they add up to is not quite what the whole takes. So the
first plan is built and timed, and where it is off, another is made for a budget that is corrected
by that. Pruning alone, whose candidates are not timed, counts MACs in the place of time.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from onnx_lowrank.engine.analyse import Analysis
from onnx_lowrank.engine.build import build
from onnx_lowrank.engine.choose import EQUAL, Planned, choose
from onnx_lowrank.engine.plan_once import plan_once
from onnx_lowrank.engine.propose import PruningShare
from onnx_lowrank.engine.tell import timed_pair
from onnx_lowrank.errors import BudgetError
from onnx_lowrank.latency.pairs import LatencyPair
from onnx_lowrank.latency.table import corrected_budget
from onnx_lowrank.planning.notes import LatencyOfPlan, LatencyOfPruning
from onnx_lowrank.planning.plan import Plan
from onnx_lowrank.planning.targets import Target
from onnx_lowrank.planning.timed_candidates import Timed

__all__ = ["plan_for", "timed_plan"]

#: a measured time so near to the predicted one, as a part of it, is not worth another plan
_NEAR = 0.03


def plan_for(
    analysis: Analysis,
    target: Target,
    sensitivity: Mapping[str, float] = EQUAL,
    pruning: PruningShare = "foreseen",
) -> Planned:
    """A plan; where time is asked for, made again by what the first plan took.

    Args:
        analysis: of the original model.
        target: what is asked for.
        sensitivity: factors on the weights of layers, by name; 1 for others.
        pruning: part of the saving that taking channels out makes.

    Raises:
        BudgetError: the target is out of reach.
    """
    if target.latency is not None and not analysis.job.passes.factorizations:
        return _pruned_in_time(analysis, target, target.latency)
    planned = plan_once(analysis, target, sensitivity, pruning)
    timed = planned.proposed.timed
    if target.latency is None or timed is None:
        return planned
    whole = timed.whole
    predicted = _predicted(timed, planned.plan)
    measured = _measured(analysis, planned.plan)
    near = abs(measured - target.latency) <= _NEAR * target.latency
    note = LatencyOfPlan(
        batch=analysis.job.tools.timing.batch,
        predicted=predicted / whole,
        measured=measured,
        coverage=str(timed.coverage),
        again=not near,
    )
    if near:
        return planned.noting(note)
    wanted = target.latency * whole
    time = corrected_budget(whole, predicted, measured * whole, wanted)
    return choose(analysis, planned.proposed, sensitivity, time).noting(note)


def _pruned_in_time(analysis: Analysis, target: Target, wanted: float) -> Planned:
    """Pruning alone counts MACs in place of time; once more, by the time that they took."""
    planned = plan_once(analysis, target)
    measured = _measured(analysis, planned.plan)
    cutting = analysis.job.passes.cutting
    assert cutting is not None
    if not cutting.keep and wanted < measured < 1:
        ratio = max(1 - (1 - wanted) ** 2 / (1 - measured), 0.0)
        with suppress(BudgetError):  # else what there is
            again = plan_once(analysis, Target((("macs", ratio),)))
            planned = replace(
                again,
                plan=replace(again.plan, target=str(target)),
                proposed=replace(again.proposed, target=target),
            )
            measured = _measured(analysis, planned.plan)
    return planned.noting(LatencyOfPruning(analysis.job.tools.timing.batch, measured))


def timed_plan(analysis: Analysis, plan: Plan) -> LatencyPair:
    """The original beside the model of a plan, whose times do not depend on its weights."""
    untouched = build(analysis, replace(plan, repair="none"))
    return timed_pair(analysis.job, untouched.model)


def _measured(analysis: Analysis, plan: Plan) -> float:
    """Part of the original's time that the model of a plan takes."""
    pair = timed_plan(analysis, plan)
    return pair.new_ms / pair.reference_ms


def _predicted(timed: Timed, plan: Plan) -> float:
    """Nanoseconds that the model of a plan should take."""
    decisions = {d.layer: d for d in plan.decisions}
    total = timed.whole - timed.movable
    for choice in timed.choices:
        d = decisions[choice.layer]
        total += next(
            c.cost
            for c in choice.candidates
            if (c.method, c.variant, c.rank) == (d.method, d.variant, d.rank)
        )
    return total
