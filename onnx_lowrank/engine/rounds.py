"""Plans that are built and judged: with channels taken out and without, then weighed anew.

What predictions cannot compare, held-out samples can. So the plan that factorizes alone and the one
that takes channels out first are both built and repaired, and the judge says which is nearer to the
original. Each round then measures sensitivities around the best plan so far
(:mod:`onnx_lowrank.refit.sensitivity`) and plans by them. The new plan is built where it promises
less loss, and takes the place of the old where the judge finds it better; the first that is not
ends the rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from onnx_lowrank.analysis.preparation import MEMORY
from onnx_lowrank.engine.analyse import Analysis, leaving
from onnx_lowrank.engine.build import Built, build
from onnx_lowrank.engine.choose import Planned
from onnx_lowrank.engine.originals import in_parts
from onnx_lowrank.engine.plan_once import foreseen_loss
from onnx_lowrank.engine.propose import PruningMode
from onnx_lowrank.engine.timed_plan import plan_for
from onnx_lowrank.errors import BudgetError, OptionError
from onnx_lowrank.judge.judge import Judge
from onnx_lowrank.option_values import check_count
from onnx_lowrank.planning.notes import HeadsWhole, Note, Round, WithAndWithout
from onnx_lowrank.planning.refit_modes import SOLVES_LAYERS
from onnx_lowrank.planning.targets import Target
from onnx_lowrank.refit.sensitivity import Measured, measured_factors, samples_to_weigh
from onnx_lowrank.samples.dataset import Dataset

__all__ = ["alternatives", "best_of", "judge_between", "plan_in_rounds"]

#: parameters of a model whose layers are weighed unasked: their solved weights are kept meanwhile
LARGEST = MEMORY // 8

#: a plan made again is built where it foresees less of the weighted loss than this part
WORTH = 0.95

#: predictions err by less than this factor between plans with channels taken out and without: of
#: two that are further apart, only the better is built
CERTAIN = 4.0


@dataclass(frozen=True)
class Chosen:
    """A plan, what it was made from, and its model where that had to be built."""

    analysis: Analysis
    planned: Planned
    built: Built | None = None


@dataclass(frozen=True)
class Tried:
    """A plan, what it was made from, its model, and the judge's loss of it."""

    analysis: Analysis
    pruning: PruningMode
    planned: Planned
    built: Built
    loss: float


def plan_in_rounds(analysis: Analysis, target: Target, rounds: int | None) -> Chosen:
    """The best plan of those with and without pruning, and of ``rounds`` with sensitivities.

    Args:
        analysis: of the original model.
        target: what is asked for.
        rounds: at the most; None for one where layers can be weighed, at little memory; 0 builds
            and judges nothing, and predictions decide.

    Raises:
        OptionError: the repair solves no whole layers, or ranks are given by a rule.
        BudgetError: the target is out of reach.
    """
    if rounds is not None:
        check_count("rounds", rounds, least=0)
    weighable = analysis.job.options.repair in SOLVES_LAYERS and target.rule is None
    if rounds and not weighable:
        raise OptionError(
            f"rounds weigh the layers of a plan as they are repaired; give --repair "
            f"{' or '.join(SOLVES_LAYERS)} and no rule for ranks"
        )
    target = in_parts(analysis, target)
    data = analysis.job.samples.calibration
    if rounds == 0 or data is None or not weighable:
        return Chosen(analysis, plan_for(analysis, target))
    plans = alternatives(analysis, target)
    small = analysis.before.parameters <= LARGEST
    most = int(small) if rounds is None else rounds
    one = len(plans) == 1
    if one and (not most or len(plans[0][1].errors) < 2):
        return Chosen(analysis, plans[0][1])
    judge = judge_between(analysis)
    if not judge.has_a_say:
        return Chosen(analysis, plans[0][1])
    best, note = best_of(analysis, plans, judge, keep=most > 0)
    if note is not None:
        best = _noting(best, note)
    best = _with_heads_whole(target, best, judge, keep=most > 0)
    if most and len(best.planned.errors) > 1:
        best = _in_rounds(target, best, most, judge, data)
    return Chosen(best.analysis, best.planned, best.built)


def alternatives(analysis: Analysis, target: Target) -> list[tuple[PruningMode, Planned]]:
    """A plan without pruning and one with it, where both are possible and neither is hopeless.

    Args:
        analysis: of the original model.
        target: what is asked for.

    Raises:
        BudgetError: the target is out of reach.
    """
    passes = analysis.job.passes
    if passes.cutting is None or not passes.factorizations or passes.cutting.keep:
        return [("foreseen", plan_for(analysis, target))]
    modes: tuple[PruningMode, ...] = ("none", "some")
    found: list[tuple[PruningMode, Planned]] = []
    refused: BudgetError | None = None
    for mode in modes:
        try:
            planned = plan_for(analysis, target, pruning=mode)
        except BudgetError as error:
            refused = error
            continue
        if found and not any(g.shrinks for g in planned.plan.groups):
            continue  # the same again
        found.append((mode, planned))
    if not found:
        assert refused is not None
        raise refused
    if len(found) == 2:
        losses = [foreseen_loss(analysis, planned) for _, planned in found]
        for number in (0, 1):
            if losses[number] * CERTAIN < losses[1 - number]:
                return [found[number]]
    return found


def judge_between(analysis: Analysis) -> Judge:
    """The judge between plans, on half of the samples that did not calibrate."""
    held = analysis.job.samples.validation
    with analysis.job.tools.stopwatch("judge"):
        return analysis.judge_on(held.subset(range(0, len(held), 2)))


def best_of(
    analysis: Analysis,
    plans: list[tuple[PruningMode, Planned]],
    judge: Judge,
    keep: bool = False,
) -> tuple[Tried, WithAndWithout | None]:
    """Build each plan and keep the one that the judge finds nearest to the original.

    Args:
        analysis: of the original model.
        plans: of :func:`alternatives`.
        judge: between them.
        keep: keep what is needed to weigh the layers of the plan.

    Returns:
        The best, and what the report says of the others; None where there are none.
    """
    score = _scored(analysis, judge, keep)
    best = score(*plans[0])
    if len(plans) == 1:
        return best, None
    other = score(*plans[1])
    note = WithAndWithout(best.loss, other.loss, judge.samples)
    return (other if other.loss < best.loss else best), note


def _with_heads_whole(target: Target, best: Tried, judge: Judge, keep: bool) -> Tried:
    """The same, or the plan that leaves the layers that make class scores alone if it is better.

    What rare classes lose by a head of low rank shows in answers more than in any squared error,
    also under the metric of the head's outputs.
    """
    moments = best.planned.proposed.cut.work.moments
    heads = [n for n in best.planned.errors if moments[n].outputs is not None]
    if not heads:
        return best
    rest = leaving(best.analysis, heads, "class scores stay nearer to the original's so")
    try:
        whole = plan_for(rest, target, pruning=best.pruning)
    except BudgetError:
        return best
    other = _scored(rest, judge, keep)(best.pruning, whole)
    other = _noting(other, *best.planned.notes)
    note = HeadsWhole(tuple(heads), best.loss, other.loss, judge.samples)
    return _noting(other if other.loss < best.loss else best, note)


def _scored(
    analysis: Analysis, judge: Judge, keep: bool
) -> Callable[[PruningMode, Planned], Tried]:
    def score(mode: PruningMode, planned: Planned) -> Tried:
        built = build(analysis, planned.plan, keep_repaired=keep)
        with analysis.job.tools.stopwatch("judge"):
            return Tried(analysis, mode, planned, built, judge.loss(built.model))

    return score


def _in_rounds(target: Target, best: Tried, rounds: int, judge: Judge, data: Dataset) -> Tried:
    """``best``, or the last of the plans made after it that was better."""
    notes: list[Note] = []
    analysis = best.analysis
    score = _scored(analysis, judge, keep=True)
    for number in range(1, rounds + 1):
        factors = _damped(best.planned, _measured(best, data))
        again = plan_for(analysis, target, factors, best.pruning)
        same = again.plan.decisions == best.planned.plan.decisions
        if same or not again.loss(factors) < WORTH * best.planned.loss(factors):
            notes.append(Round(number, "same" if same else "no better"))
            break
        other = score(best.pruning, again)
        better = other.loss < best.loss
        outcome = "kept" if better else "dropped"
        notes.append(Round(number, outcome, best.loss, other.loss, judge.samples))
        if not better:
            break
        best = _noting(other, *best.planned.notes)
    return _noting(best, *notes)


def _measured(best: Tried, data: Dataset) -> Measured:
    """What each layer of a plan costs, measured around it."""
    tools, errors = best.analysis.job.tools, best.planned.errors
    with tools.stopwatch("weigh"):
        return measured_factors(
            best.analysis.judge_on(samples_to_weigh(data, len(errors))),
            best.planned.proposed.cut.work.model, best.built.repaired, errors, tools.progress,
        )  # fmt: skip


def _damped(planned: Planned, measured: Measured) -> dict[str, float]:
    """Sensitivities for the next plan; those around a second one are taken half way."""
    before = planned.sensitivity
    return {n: (f * before.get(n, f)) ** 0.5 for n, f in measured.factors.items()}


def _noting(tried: Tried, *notes: Note) -> Tried:
    return replace(tried, planned=tried.planned.noting(*notes))
