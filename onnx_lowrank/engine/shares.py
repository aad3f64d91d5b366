"""How much of the saving pruning makes: plans at several shares are drafted and judged.

    best_share(analysis, target, begun, judge, effort) -> the best plan, and a draft of its model

Predictions compare pruning with factorization badly: on some models pruning alone gives up half of
what both together do, on others it ruins the outputs, and what is foreseen is nearly the
same. Held-out samples can tell. So the plan without pruning, the one that pruning alone makes, and
the one of least foreseen loss between them are built as drafts, which are solved with less work;
then the share is moved towards the second best as long as the judge finds less loss there.

Where the first draft loses little enough, nothing else is looked at, unless it saves MACs but next
to no time (:mod:`onnx_lowrank.engine.foreseen_time`). Where channels go in the best,
and their losses were guessed, these are measured, and plans by them are drafted too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from onnx_lowrank.engine.alternatives import (
    PRUNING,
    Alternatives,
    alternatives,
    new_plans,
    others,
)
from onnx_lowrank.engine.analyse import Analysis, leaving
from onnx_lowrank.engine.blame import suspects
from onnx_lowrank.engine.build import Built, draft, draft_samples
from onnx_lowrank.engine.choose import Planned
from onnx_lowrank.engine.effort import MANY, Effort
from onnx_lowrank.engine.foreseen_time import foreseen_work, pays
from onnx_lowrank.engine.timed_plan import plan_for
from onnx_lowrank.errors import BudgetError
from onnx_lowrank.judge.judge import Judge
from onnx_lowrank.planning.notes import (
    GroupsWeighed,
    HeadsWhole,
    NearEnough,
    Note,
    Quickest,
    SharesTried,
)
from onnx_lowrank.planning.targets import Target
from onnx_lowrank.pruning.shared_budget import SHARES
from onnx_lowrank.samples.dataset import Dataset

__all__ = [
    "Tried",
    "best_share",
    "heads_of",
    "judge_between",
    "judge_of_drafts",
    "score_of",
]

#: nothing between the best share and one that loses more than this times as much is drafted
HOPELESS = 4.0

#: pruning alone is not drafted where no pruning loses less than the first number, and some loses
#: more than the second times as much: it lost 4 to 8 times as much in five such plans of four nets,
#: while it was best in nets that lose a tenth without it
SMALL, RISING = 0.05, 1.25

#: drafts whose losses differ by less than this factor count as equal, as drafts foretell no better
#: what is built of them: the one that changes fewer answers is taken, by more than the last number
#: of samples, or else that with more pruning, as it has fewer nodes for its MACs
ALIKE, CHANCE = 1.05, 2

#: shares that plans are drafted at
_GRID = (0.0, *SHARES)


@dataclass(frozen=True)
class Tried:
    """A plan, what it was made from, and a draft of its model.

    Attributes:
        analysis: of the original model.
        planned: the plan.
        draft: its model.
        loss: the judge's loss of the draft.
        changed: part of the answers that the draft changes.
    """

    analysis: Analysis
    planned: Planned
    draft: Built
    loss: float
    changed: float = 0.0

    @property
    def share(self) -> float:
        """Part of the saving that taking channels out makes."""
        return self.planned.proposed.share

    def noting(self, *notes: Note) -> Tried:
        """The same with more to say in the report."""
        return replace(self, planned=self.planned.noting(*notes))


def best_share(
    analysis: Analysis,
    target: Target,
    begun: Alternatives,
    judge: Judge,
    effort: Effort,
    keep: bool = False,
) -> Tried:
    """Draft plans, and move the share to where the judge finds less loss; the best of the plans.

    Where the first loses little enough, the others are not made. Where it loses less with its
    class scores whole, so it is at every share: which share is best depends on it.

    Args:
        analysis: of the original model.
        target: what is asked for.
        begun: of :func:`alternatives`.
        judge: between them.
        effort: how often the share is moved at the most, and what loss is small enough.
        keep: keep what is needed to weigh the layers of the plan.
    """
    best, enough = score_of(analysis, judge, keep)(begun.first), effort.enough_on(judge.samples)
    if best.loss < enough:
        best = best.noting(NearEnough(best.loss, judge.samples))
        slow = best.share == 0 and _by_macs(target) and not pays(best.planned)
        return _quickest(target, begun, best, judge, enough, keep) if slow else best
    best, notes = _with_heads_whole(target, best, judge, keep)
    if best.analysis is not analysis and begun.several:
        analysis, begun = best.analysis, alternatives(best.analysis, target)
    more = others(analysis, target, begun, best.planned)
    score, tried = score_of(analysis, judge, keep), [best.planned, *more]
    losses = {best.share: best.loss}

    def consider(planned: Planned) -> bool:
        nonlocal best
        other = score(planned)
        losses[other.share] = other.loss
        better = _better(other, best, CHANCE / judge.samples)
        best = other if better else best
        return better

    for planned in sorted(more, key=lambda planned: planned.proposed.share):
        if not _rising(planned.proposed.share, losses):
            consider(planned)
    for _ in range(effort.steps):
        moved = next(new_plans(analysis, target, _beside(best.share, losses), tried), None)
        if moved is None or not consider(moved):
            break
    if more:
        notes = (*notes, SharesTried(best.share, tuple(sorted(losses.items())), judge.samples))
    best = best.noting(*notes)
    return _with_groups_weighed(target, best, judge, keep) if effort.steps else best


def _by_macs(target: Target) -> bool:
    """Whether MACs alone are asked for, as those who want time do."""
    return target.rule is None and [metric for metric, _ in target.budgets] == ["macs"]


def _quickest(
    target: Target, begun: Alternatives, best: Tried, judge: Judge, enough: float, keep: bool
) -> Tried:
    """The same, or the plan that is foreseen to take least time of those that lose little enough.

    Args:
        target: what is asked for.
        begun: of :func:`alternatives`.
        best: a plan without pruning, that saves next to no time.
        judge: between plans.
        enough: loss that is little enough.
        keep: as in :func:`best_share`.
    """
    score, found = score_of(best.analysis, judge, keep), [best]
    whole, slowest = foreseen_work(best.planned)
    times = {best.share: slowest / whole}
    for planned in new_plans(best.analysis, target, begun.shares, [best.planned]):
        _, work = foreseen_work(planned)
        if work < slowest:
            found.append(score(planned))
            times[found[-1].share] = work / whole
    if len(found) == 1:
        return best
    quickest = min((t for t in found if t.loss < enough), key=lambda t: times[t.share])
    return quickest.noting(Quickest(quickest.share, tuple(sorted(times.items())), enough))


def _with_groups_weighed(target: Target, best: Tried, judge: Judge, keep: bool) -> Tried:
    """The same, or a plan whose channels were chosen by measured losses if it is better.

    To measure them costs a run of some samples for each group, so it is for nets that lose least
    where channels go.
    """
    if best.share == 0 or best.analysis.pruner(target.metric).weighs:
        return best
    weighed = replace(best.analysis, weighed=True)
    score, tried, first = score_of(weighed, judge, keep), [best.planned], best
    losses = []
    for planned in new_plans(weighed, target, PRUNING, tried):
        other = score(planned)
        losses.append((other.share, other.loss))
        best = other if _better(other, best, CHANCE / judge.samples) else best
    if not losses:
        return best
    note = GroupsWeighed(tuple(losses), best is not first, judge.samples)
    return best.noting(*(first.planned.notes if best is not first else ()), note)


def _with_heads_whole(
    target: Target, best: Tried, judge: Judge, keep: bool
) -> tuple[Tried, tuple[Note, ...]]:
    """The same, or the plan that leaves the layers that make class scores alone if it is better.

    What rare classes lose by a head of low rank shows in answers more than in any squared error,
    also under the metric of the head's outputs.
    """
    heads = heads_of(best.planned)
    if not heads:
        return best, ()
    rest = leaving(best.analysis, heads, "class scores stay nearer to the original's so")
    try:
        whole = plan_for(rest, target, pruning=best.share)
    except BudgetError:
        return best, ()
    other = score_of(rest, judge, keep)(whole)
    note = HeadsWhole(tuple(heads), best.loss, other.loss, judge.samples)
    return other if other.loss < best.loss else best, (note,)


def heads_of(planned: Planned) -> list[str]:
    """Names of layers that make class scores, and that a plan takes apart."""
    moments = planned.proposed.cut.work.moments
    return [name for name in planned.errors if name in moments.outputs]


def score_of(analysis: Analysis, judge: Judge, keep: bool = False) -> Callable[[Planned], Tried]:
    """A function that makes a draft of a plan's model and judges it.

    Args:
        analysis: what the plans were made from.
        judge: of the models.
        keep: keep what is needed to weigh all layers of a plan, not just the worst.
    """

    def score(planned: Planned) -> Tried:
        weighable = planned.errors if keep else suspects(analysis, planned)
        made = draft(analysis, planned.plan, weighable=weighable)
        with analysis.job.tools.stopwatch("judge"):
            loss, changed = judge.loss_and_changed(made.model)
            return Tried(analysis, planned, made, loss, changed)

    return score


def judge_between(analysis: Analysis, more: Dataset | None = None) -> Judge:
    """The judge between models, on half of the samples that did not calibrate, and on others."""
    held = analysis.job.samples.validation
    with analysis.job.tools.stopwatch("judge"):
        return analysis.judge_on(held.subset(range(0, len(held), 2)), more)


def judge_of_drafts(analysis: Analysis) -> Judge:
    """The judge between drafts, on some of the calibration samples too where others are few.

    Drafts are solved on a part of these, and are judged on as many of the rest at the most.
    """
    samples = analysis.job.samples
    held, data, spare = samples.validation, samples.calibration, None
    if data is not None and data.batchable == held.batchable:
        solved, rest = draft_samples(analysis, data)
        if (wanted := min(MANY - (len(held) + 1) // 2, len(solved), len(rest))) > 0:
            spare = rest.subset(np.linspace(0, len(rest) - 1, wanted).astype(int))
    return judge_between(analysis, spare)


def _better(other: Tried, best: Tried, chance: float) -> bool:
    """Whether a draft is to be taken, by its loss, its answers, and its share of pruning.

    Args:
        other: the draft.
        best: that it would take the place of.
        chance: part of the answers that is no difference.
    """
    low, high = sorted((other.loss, best.loss))
    if high >= ALIKE * low:
        return other.loss < best.loss
    if abs(other.changed - best.changed) > chance:
        return other.changed < best.changed
    return other.share > best.share


def _rising(share: float, losses: dict[float, float]) -> bool:
    """Whether losses of smaller shares say that pruning alone loses more."""
    none, some = losses.get(0.0, np.inf), [loss for at, loss in losses.items() if 0 < at < 1]
    return share == 1 and none < SMALL and bool(some) and min(some) > RISING * none


def _beside(best: float, losses: dict[float, float]) -> list[float]:
    """Shares next to the best that were not tried, that on the side of less loss first.

    A share between the best and one that loses many times as much is not worth a draft.
    """
    sides = []
    for way, shares in ((-1, _GRID[::-1]), (1, _GRID)):
        beyond = [loss for share, loss in losses.items() if (share - best) * way > 0]
        near = next((share for share in shares if (share - best) * way > 1e-9), None)
        known = beyond and min(beyond) <= HOPELESS * losses[best]
        if near is not None and near not in losses and known:
            sides.append((min(beyond), near))
    return [share for _, share in sorted(sides)]
