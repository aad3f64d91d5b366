"""Plans that are drafted and judged: at several shares of pruning, then weighed anew.

What predictions cannot compare, held-out samples can. The best share of pruning is found first
(:mod:`onnx_lowrank.engine.shares`). Rounds, of thorough effort, then measure sensitivities around
the best plan (:mod:`onnx_lowrank.refit.sensitivity`) and plan by them. The new plan is drafted
where it promises less loss, and takes the place of the old where the judge finds it better; the
first that is not ends the rounds. The plan that is taken is built anew, unless its draft loses
little enough, or a run takes long: then the plan is that of the draft.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from onnx_lowrank.analysis.cost import Cost
from onnx_lowrank.engine.alternatives import alternatives
from onnx_lowrank.engine.analyse import Analysis
from onnx_lowrank.engine.build import Built
from onnx_lowrank.engine.choose import Planned
from onnx_lowrank.engine.effort import NORMAL, Effort
from onnx_lowrank.engine.originals import in_parts
from onnx_lowrank.engine.shares import (
    Tried,
    best_share,
    heads_of,
    judge_of_drafts,
    score_of,
)
from onnx_lowrank.engine.timed_plan import plan_for
from onnx_lowrank.judge.judge import Judge
from onnx_lowrank.planning.notes import LeftOut, Note, Round
from onnx_lowrank.planning.refit_modes import DRAFTED, SOLVES_LAYERS
from onnx_lowrank.planning.targets import Target
from onnx_lowrank.refit.sensitivity import Measured, measured_factors, samples_to_weigh
from onnx_lowrank.samples.dataset import Dataset

__all__ = ["plan_in_rounds"]

#: multiply-adds of one run over the calibration samples, about ten seconds on two cores, from which
#: on fewer plans are built unasked, as each takes some runs, and the last as the others are: that
#: took 80 s off 345 of a ViT, and 0.2 dB
LONGEST = 5 * 10**11

#: a plan made again is drafted where it foresees less of the weighted loss than this part
WORTH = 0.95


@dataclass(frozen=True)
class Chosen:
    """A plan, what it was made from, and the draft that it was judged by, if one was made."""

    analysis: Analysis
    planned: Planned
    draft: Built | None = None

    @classmethod
    def of(cls, best: Tried, enough: float) -> Chosen:
        """The plan of a draft, to be built as the draft is where that loses little enough."""
        analysis, planned, draft = best.analysis, best.planned, best.draft
        if analysis.job.options.repair is None and best.loss < enough:
            return cls(analysis, replace(planned, plan=draft.plan), draft)
        return cls(analysis, planned, replace(draft, repaired={}))

    @classmethod
    def undrafted(cls, analysis: Analysis, planned: Planned, repair: str | None) -> Chosen:
        """A plan of which no draft was made, to be built by a repair if the caller names none."""
        if repair is not None and analysis.job.options.repair is None:
            planned = replace(planned, plan=replace(planned.plan, repair=repair))
        return cls(analysis, planned)


def plan_in_rounds(analysis: Analysis, target: Target, effort: Effort = NORMAL) -> Chosen:
    """The best plan of several shares of pruning, made again with measured sensitivities.

    Args:
        analysis: of the original model.
        target: what is asked for.
        effort: how much is built and judged; what it leaves out is noted.

    Raises:
        BudgetError: the target is out of reach.
    """
    target = in_parts(analysis, target)
    weighable = analysis.job.options.repair in (None, *SOLVES_LAYERS) and target.rule is None
    data = analysis.job.samples.calibration
    if data is None or not weighable:
        return Chosen(analysis, plan_for(analysis, target))
    if not effort.builds:
        return Chosen(analysis, plan_for(analysis, target).noting(LeftOut(effort.name)))
    begun = alternatives(analysis, target)
    effort, heavy = _bearable(effort, analysis.before, len(data))
    only = not begun.several and not heads_of(begun.first)
    alone = only and (not effort.rounds or len(begun.first.errors) < 2)
    judge = None if alone else judge_of_drafts(analysis)
    if judge is None or not judge.has_a_say:
        return Chosen.undrafted(analysis, begun.first.noting(*heavy), effort.repair)
    best = best_share(analysis, target, begun, judge, effort, keep=effort.rounds > 0)
    enough = effort.enough_on(judge.samples)
    if best.loss >= enough:
        best = best.noting(*heavy)
        if effort.rounds and len(best.planned.errors) > 1:
            best = _in_rounds(target, best, effort.rounds, judge, data)
    return Chosen.of(best, math.inf if effort.repair == DRAFTED else enough)


def _bearable(effort: Effort, cost: Cost, samples: int) -> tuple[Effort, tuple[Note, ...]]:
    """What of an effort is made for a model of this cost, and a note on the rest."""
    run = cost.macs * samples
    if not effort.bounded or run <= LONGEST:
        return effort, ()
    return replace(effort, steps=0, repair=DRAFTED), (LeftOut(effort.name, run),)


def _in_rounds(target: Target, best: Tried, rounds: int, judge: Judge, data: Dataset) -> Tried:
    """``best``, or the last of the plans made after it that was better."""
    notes: list[Note] = []
    analysis = best.analysis
    score = score_of(analysis, judge, keep=True)
    for number in range(1, rounds + 1):
        factors = _damped(best.planned, _measured(best, data))
        again = plan_for(analysis, target, factors, best.share)
        same = again.plan.decisions == best.planned.plan.decisions
        if same or not again.loss(factors) < WORTH * best.planned.loss(factors):
            notes.append(Round(number, "same" if same else "no better"))
            break
        other = score(again)
        better = other.loss < best.loss
        outcome = "kept" if better else "dropped"
        notes.append(Round(number, outcome, best.loss, other.loss, judge.samples))
        if not better:
            break
        best = other.noting(*best.planned.notes)
    return best.noting(*notes)


def _measured(best: Tried, data: Dataset) -> Measured:
    """What each layer of a plan costs, measured around it."""
    tools, errors = best.analysis.job.tools, best.planned.errors
    with tools.stopwatch("weigh"):
        return measured_factors(
            best.analysis.judge_on(samples_to_weigh(data, len(errors))),
            best.planned.proposed.cut.work.model, best.draft.repaired, errors, tools.progress,
        )  # fmt: skip


def _damped(planned: Planned, measured: Measured) -> dict[str, float]:
    """Sensitivities for the next plan; those around a second one are taken half way."""
    before = planned.sensitivity
    return {n: (f * before.get(n, f)) ** 0.5 for n, f in measured.factors.items()}
