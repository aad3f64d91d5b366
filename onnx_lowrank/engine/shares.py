"""How much of the saving pruning makes: plans at several shares are drafted and judged.

    alternatives(analysis, target) -> the plan to begin with, and at which shares others are made
    best_share(analysis, target, begun, judge, effort) -> the best plan, and a draft of its model

Predictions compare pruning with factorization badly: on some models pruning alone gives up half of
what both together do, on others it ruins the outputs, and what is foreseen is nearly the
same. Held-out samples can tell. So the plan without pruning, the one that pruning alone makes, and
the one of least foreseen loss between them are built as drafts, which are solved with less work;
then the share is moved towards the second best as long as the judge finds less loss there.

Where the first draft loses little enough, nothing else is looked at. Losses of pruning are measured
in nets with attention: these begin with the plan that foresees the least. In others they are
guessed, and of twelve convolutional nets whose plan without pruning lost little enough at 0.7 of
their MACs, one alone lost noticeably less at another share. So these begin without pruning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from onnx_lowrank.engine.analyse import Analysis, leaving
from onnx_lowrank.engine.blame import suspects
from onnx_lowrank.engine.build import Built, draft
from onnx_lowrank.engine.choose import Planned
from onnx_lowrank.engine.effort import Effort
from onnx_lowrank.engine.plan_once import foreseen_loss
from onnx_lowrank.engine.propose import PruningShare, may_prune
from onnx_lowrank.engine.timed_plan import plan_for
from onnx_lowrank.errors import BudgetError
from onnx_lowrank.judge.judge import Judge
from onnx_lowrank.planning.notes import HeadsWhole, NearEnough, Note, SharesTried
from onnx_lowrank.planning.targets import Target
from onnx_lowrank.pruning.shared_budget import SHARES

__all__ = [
    "Alternatives",
    "Tried",
    "alternatives",
    "best_share",
    "heads_of",
    "judge_between",
    "score_of",
]

#: predictions err by less than this factor between plans of different shares: those that foresee
#: more than this times the least loss are not drafted
CERTAIN = 4.0

#: nothing between the best share and one that loses more than this times as much is drafted
HOPELESS = 4.0

#: drafts whose losses differ by less than this factor count as equal, as drafts foretell no better
#: what is built of them: the one that changes fewer answers is taken, by more than the last number
#: of samples, or else that with more pruning, as it has fewer nodes for its MACs
ALIKE, CHANCE = 1.05, 2

#: how much pruning does in plans besides that without it
PRUNING: tuple[PruningShare, ...] = ("some", 1.0)

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


@dataclass(frozen=True)
class Alternatives:
    """Plans at several shares of pruning, of which one is made so far.

    Attributes:
        first: the plan to begin with.
        others: shares that plans may be made at besides.
    """

    first: Planned
    others: tuple[PruningShare, ...] = ()


def alternatives(analysis: Analysis, target: Target) -> Alternatives:
    """The plan to begin with, and at which shares there may be others.

    Args:
        analysis: of the original model.
        target: what is asked for.

    Raises:
        BudgetError: the target is out of reach.
    """
    passes = analysis.job.passes
    if passes.cutting is None or not passes.factorizations or passes.cutting.keep:
        return Alternatives(plan_for(analysis, target))
    if not may_prune(analysis, target):
        return Alternatives(plan_for(analysis, target, pruning=0.0))
    if not analysis.pruner(target.metric).weighs:
        with suppress(BudgetError):
            return Alternatives(plan_for(analysis, target, pruning=0.0), PRUNING)
    found: list[Planned] = []
    shares: dict[int, PruningShare] = {}
    refused: BudgetError | None = None
    for share in (0.0, *PRUNING):
        try:
            planned = plan_for(analysis, target, pruning=share)
        except BudgetError as error:
            refused = refused or error
            continue
        if not _known(planned, found):
            shares[len(found)] = share
            found.append(planned)
    if not found:
        assert refused is not None
        raise refused
    first, *others = _likely(analysis, found)
    return Alternatives(found[first], tuple(shares[number] for number in others))


def _likely(analysis: Analysis, found: Sequence[Planned]) -> list[int]:
    """Numbers of the plans that do not foresee much more loss than the best, that one first."""
    losses = [foreseen_loss(analysis, planned) for planned in found]
    ranked = sorted(zip(losses, range(len(found)), strict=True))
    return [number for loss, number in ranked if loss <= CERTAIN * min(losses)]


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
    best = score_of(analysis, judge, keep)(begun.first)
    if best.loss < effort.enough:
        return best.noting(NearEnough(best.loss, judge.samples))
    best, notes = _with_heads_whole(target, best, judge, keep)
    if best.analysis is not analysis and begun.others:
        analysis, begun = best.analysis, alternatives(best.analysis, target)
    others = _others(analysis, target, begun, best.planned)
    if not others:
        return best.noting(*notes)
    score, known = score_of(analysis, judge, keep), [best.planned, *others]
    losses = {best.share: best.loss}

    def consider(planned: Planned) -> bool:
        nonlocal best
        other = score(planned)
        losses[other.share] = other.loss
        better = _better(other, best, CHANCE / judge.samples)
        best = other if better else best
        return better

    for planned in others:
        consider(planned)
    for _ in range(effort.steps):
        moved = False
        for share in _beside(best.share, losses):
            try:
                planned = plan_for(analysis, target, pruning=share)
            except BudgetError:
                continue
            if _known(planned, known):
                continue
            known.append(planned)
            moved = consider(planned)
            break
        if not moved:
            break
    tried = tuple(sorted(losses.items()))
    return best.noting(*notes, SharesTried(best.share, tried, judge.samples))


def _others(
    analysis: Analysis, target: Target, begun: Alternatives, drafted: Planned
) -> list[Planned]:
    """The plans that were not drafted, but for those that foresee much more loss than another."""
    found = [drafted]
    if not _known(begun.first, found):
        found.append(begun.first)
    for share in begun.others:
        try:
            planned = plan_for(analysis, target, pruning=share)
        except BudgetError:
            continue
        if not _known(planned, found):
            found.append(planned)
    return [found[number] for number in _likely(analysis, found) if number > 0]


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


def judge_between(analysis: Analysis) -> Judge:
    """The judge between plans, on half of the samples that did not calibrate."""
    held = analysis.job.samples.validation
    with analysis.job.tools.stopwatch("judge"):
        return analysis.judge_on(held.subset(range(0, len(held), 2)))


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


def _known(planned: Planned, others: Sequence[Planned]) -> bool:
    """Whether a plan takes out the same channels as another."""
    return any(planned.plan.groups == other.plan.groups for other in others) or (
        not any(g.shrinks for g in planned.plan.groups)
        and any(not any(g.shrinks for g in other.plan.groups) for other in others)
    )
