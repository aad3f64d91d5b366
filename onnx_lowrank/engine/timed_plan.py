"""A plan under targets of which one may be on time.

Times are measured chain by chain, and what they add up to is not quite what the whole takes. So the
first plan is built and timed, and where it is off, another is made for a budget that is corrected
by that. Pruning alone, whose candidates are not timed, counts MACs in the place of time.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from onnx_lowrank.engine.run import Run
from onnx_lowrank.errors import BudgetError
from onnx_lowrank.latency.table import corrected_budget
from onnx_lowrank.planning.plan import Plan
from onnx_lowrank.planning.planned import Planned
from onnx_lowrank.planning.targets import Target
from onnx_lowrank.planning.timed_candidates import Timed

__all__ = ["timed_plan"]

#: a measured time so near to the predicted one is not worth another plan
_NEAR = 0.03


def timed_plan(run: Run, target: Target, weights: Mapping[str, float] | None = None) -> Planned:
    """A plan; where time is asked for, made again by what the first plan took.

    Args:
        run: model, passes and data.
        target: what is asked for.
        weights: factors on the weights of layers, by name; None for equal weights.

    Raises:
        BudgetError: the target is out of reach.
    """
    weights = weights or {}
    if target.latency is not None and not run.passes.factorizations:
        return _pruned_in_time(run, target, target.latency)
    planned = run.plan(target, weights)
    timed = planned.timed
    if target.latency is None or timed is None:
        return planned
    whole = timed.whole
    predicted = _predicted(timed, planned.plan)
    measured = _measured(run, planned.plan)
    note = (
        f"latency at batch {run.timing.batch}: {predicted / whole:.3f} of the original "
        f"predicted, {measured:.3f} measured; {timed.coverage}"
    )
    if abs(measured - target.latency) <= _NEAR * target.latency:
        return planned.noting(note)
    wanted = target.latency * whole
    time = corrected_budget(whole, predicted, measured * whole, wanted)
    return run.plan(target, weights, time).noting(f"{note}; planned again by that")


def _pruned_in_time(run: Run, target: Target, wanted: float) -> Planned:
    """Pruning alone counts MACs in place of time; once more, by the time that they took."""
    planned = run.plan(target)
    measured = _measured(run, planned.plan)
    if not run.passes.prunings[0].options.keep and wanted < measured < 1:
        ratio = max(1 - (1 - wanted) ** 2 / (1 - measured), 0.0)
        with suppress(BudgetError):  # else what there is
            again = run.plan(Target((("macs", ratio),)))
            again = replace(again, plan=replace(again.plan, target=str(target)), target=target)
            planned, measured = again, _measured(run, again.plan)
    took = f"latency at batch {run.timing.batch}: {measured:.3f} of the original measured"
    return planned.noting(f"{took}; pruning alone counts MACs in place of time")


def _measured(run: Run, plan: Plan) -> float:
    """Part of the original's time that the model of a plan takes, whatever its weights are."""
    quick = replace(plan, repair="none")
    found = run.latency(run.build(quick).model, [run.timing.batch])[0]
    return found.new_ms / found.reference_ms


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
