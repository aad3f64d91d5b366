"""The smallest budget at which a model still keeps what is required of it.

Budgets are bisected (their logarithms, for a step of 0.4 to 0.3 is worth one of 0.8 to 0.6), each
model judged on one part of the validation samples. What held there is confirmed on the other part:
the search has picked among many by the first, and so flatters it. Where that is refused, a few
steps more look above it for what holds on both. Expected drops need few samples, counted ones many,
so the search then has a fourth of them, else a half.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnx_lowrank.engine.alternatives import alternatives
from onnx_lowrank.engine.analyse import Analysis
from onnx_lowrank.engine.blame import suspects
from onnx_lowrank.engine.build import Built, build
from onnx_lowrank.engine.choose import Planned
from onnx_lowrank.engine.effort import NORMAL, Effort
from onnx_lowrank.engine.originals import in_parts
from onnx_lowrank.engine.propose import PruningShare
from onnx_lowrank.engine.shares import best_share, judge_of_drafts
from onnx_lowrank.engine.timed_plan import plan_for
from onnx_lowrank.errors import BudgetError, DataError, NothingAppliesError
from onnx_lowrank.judge.judge import AS_FOUND, Judging
from onnx_lowrank.judge.labels import refuse_doubt
from onnx_lowrank.judge.requirement import Requirement, Score
from onnx_lowrank.judge.scorer import Scorer
from onnx_lowrank.judge.scoring import scorer_for
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.planning.countable import check_countable
from onnx_lowrank.planning.notes import SearchResult
from onnx_lowrank.planning.targets import Target
from onnx_lowrank.progress import Progress
from onnx_lowrank.runtime.runtime import Runtime
from onnx_lowrank.samples.dataset import Dataset

__all__ = ["Found", "Judges", "judges_on", "search", "smallest_within"]

#: models that are built and judged, and more of them where what they found is not confirmed
STEPS, MORE = 7, 4
#: where the search begins, and the smallest budget that it looks at
FIRST, LEAST = 0.5, 0.05
#: samples that each part needs
SAMPLES = 20
#: every so many samples are of the search, and every so many where drops can be expected
HALF, FOURTH = 2, 4


#: makes the plan and the model of a target; a :class:`BudgetError` says that it is out of reach
Make = Callable[[Target], tuple[Planned, Built]]


@dataclass(frozen=True)
class Judges:
    """Judges on the samples of the search and on those held back to confirm."""

    requirement: Requirement
    searching: Scorer
    confirming: Scorer


@dataclass(frozen=True)
class Found:
    """The smallest budget that keeps what is required.

    Attributes:
        planned: its plan.
        built: its model.
        target: the budget.
        searched: score on the samples of the search.
        confirmed: score on those held back.
        tried: all budgets, as parts of the original, with their scores on the samples of the
            search, in order; None where one is out of reach.
    """

    planned: Planned
    built: Built
    target: Target
    searched: Score
    confirmed: Score
    tried: tuple[tuple[float, Score | None], ...]

    def note(self, requirement: Requirement) -> SearchResult:
        """What the report should tell of the search."""
        return SearchResult(
            understood=requirement.understood,
            target=str(self.target),
            requirement=str(requirement),
            searched=self.searched.text(requirement),
            confirmed=self.confirmed.text(requirement),
            tried=tuple(
                (ratio, None if score is None else score.brief(requirement))
                for ratio, score in sorted(self.tried, key=lambda t: t[0])
            ),
        )


@dataclass(frozen=True)
class _Attempt:
    """A budget, and the model at it with its scores.

    Attributes:
        ratio: the budget, as a part of the original.
        model: plan and model; None where the budget is out of reach, or a smaller one holds.
        searched: score on the samples of the search.
        confirmed: score on those held back to confirm; None where it was not asked.
        holds: whether all scores that were asked for are within the bound.
    """

    ratio: float
    model: tuple[Planned, Built] | None = None
    searched: Score | None = None
    confirmed: Score | None = None
    holds: bool = False


def smallest_within(
    analysis: Analysis, target: Target, requirement: Requirement, effort: Effort = NORMAL
) -> tuple[Analysis, Found]:
    """Search the budget on what ``target`` names without a ratio.

    Args:
        analysis: of the original model.
        target: what is asked for; the ratio of what it searches is looked for.
        requirement: to be kept.
        effort: whether plans are built to find the share of pruning.

    Returns:
        The analysis that plans were made from, and what was found.

    Raises:
        BudgetError: nothing that saves anything keeps it.
        DataError: too few samples, or no labels where they are needed.
    """
    # before what is searched finds it out of reach at every ratio
    check_countable(target, analysis.before, len(analysis.prepared.layers))
    target = in_parts(analysis, target)
    job = analysis.job
    judges = judges_on(
        job.source, job.samples.validation, job.tools.runtime, requirement,
        analysis.prepared.batch_size, job.options.judging,
    )  # fmt: skip
    pruning: PruningShare = "foreseen"
    if effort.builds:
        analysis, pruning = _begun(analysis, target, effort)

    def make(at: Target) -> tuple[Planned, Built]:
        planned = plan_for(analysis, at, pruning=pruning)
        return planned, build(analysis, planned.plan, weighable=suspects(analysis, planned))

    return analysis, search(make, target, judges, job.tools.progress)


def _begun(analysis: Analysis, target: Target, effort: Effort) -> tuple[Analysis, PruningShare]:
    """The share of pruning by what the judge finds best where the search begins.

    The analysis leaves class scores alone where that is better there.
    """
    job = analysis.job
    if job.samples.calibration is None or job.passes.cutting is None:
        return analysis, "foreseen"
    try:
        begun = alternatives(analysis, target.at(FIRST))
    except NothingAppliesError:
        raise
    except BudgetError:  # smaller ones are out of reach; larger ones may not be
        return analysis, "foreseen"
    if not begun.several:
        return analysis, _at_any_budget(begun.first.proposed.share)
    judge = judge_of_drafts(analysis)
    if not judge.has_a_say:
        return analysis, "foreseen"
    best = best_share(analysis, target.at(FIRST), begun, judge, replace(effort, steps=0))
    return best.analysis, _at_any_budget(best.share)


def _at_any_budget(share: float) -> PruningShare:
    """None and all mean the same at every budget; between them, each has its best."""
    return share if share in (0.0, 1.0) else "some"


def search(make: Make, target: Target, judges: Judges, progress: Progress) -> Found:
    """Bisect the ratio of what ``target`` searches, then confirm what was found.

    Args:
        make: the plan and the model of a target.
        target: the ratio of what it searches is looked for.
        judges: of the models.
        progress: told of each model.

    Raises:
        BudgetError: nothing that saves anything keeps what is required.
    """

    def searched(ratio: float) -> _Attempt:
        return _searched(make, target.at(ratio), ratio, judges)

    def on_both(ratio: float) -> _Attempt:
        attempt = searched(ratio)
        return _confirmed(attempt, judges) if attempt.holds else attempt

    with progress.task("search", STEPS) as advance:
        tried = _bisected(LEAST, FIRST, STEPS, searched, advance)
    found = _smallest(tried)
    if found is not None:
        found = _confirmed(found, judges)
        if not found.holds:
            start = _between(found.ratio, 1.0)
            with progress.task("confirm", MORE) as advance:
                more = _bisected(found.ratio, start, MORE, on_both, advance)
            tried = [*(found if a.ratio == found.ratio else a for a in tried), *more]
            found = _smallest(more)
    if found is None or found.model is None or found.searched is None or found.confirmed is None:
        requirement = judges.requirement
        raise BudgetError(
            f"nothing smaller keeps {requirement}; at parts of the budget "
            f"{_largest(tried, requirement)}; ask for less, or give more calibration data or passes"
        )
    scores = tuple((a.ratio, a.searched) for a in tried)
    return Found(*found.model, target.at(found.ratio), found.searched, found.confirmed, scores)


def judges_on(
    source: Model,
    data: Dataset,
    runtime: Runtime,
    requirement: Requirement,
    size: int,
    judging: Judging = AS_FOUND,
) -> Judges:
    """Judges on two parts of samples that did not calibrate.

    Args:
        source: the original model.
        data: the samples.
        runtime: that models are run in.
        requirement: that is judged.
        size: samples at a time.
        judging: what outputs are judged by.

    Raises:
        DataError: too few samples, or labels that nothing can be judged by.
    """

    def judge(part: Dataset, expected: bool) -> Scorer:
        return scorer_for(requirement, source, part, runtime, size, expected, judging)

    # chance must not lead the search astray; the labels have the last word
    expectable = requirement.kind == "drop" and requirement.metric is None
    every = FOURTH if expectable and len(data) >= FOURTH * SAMPLES else HALF
    part, rest = _parts(data, every)
    searching = judge(part, True)
    if every == FOURTH and not searching.expects:
        part, rest = _parts(data, HALF)
        searching = judge(part, True)
    confirming = judge(rest, False)
    ids, first = (
        np.concatenate(pair) for pair in zip(searching.answers, confirming.answers, strict=True)
    )
    if len(ids):
        refuse_doubt(ids, first)
    elif requirement.kind in ("agreement", "kept") and len(np.unique(first)) == 1:
        raise DataError(
            f"the original gives all {len(first)} samples class {first[0]}, so any model that "
            "always does agrees; give samples of other classes"
        )
    return Judges(requirement, searching, confirming)


def _bisected(
    low: float,
    ratio: float,
    steps: int,
    attempt: Callable[[float], _Attempt],
    advance: Callable[[int], None],
) -> list[_Attempt]:
    """Attempts at ratios between ``low`` and 1, from ``ratio`` on, downwards where one holds."""
    high, tried = 1.0, list[_Attempt]()
    for _ in range(steps):
        made = attempt(ratio)
        # only the smallest that holds is of use later: models take memory
        tried = [replace(a, model=None) if made.holds else a for a in tried]
        tried.append(made if made.holds else replace(made, model=None))
        low, high = (low, ratio) if made.holds else (ratio, high)
        ratio = _between(low, high)
        advance(1)
    return tried


def _searched(make: Make, target: Target, ratio: float, judges: Judges) -> _Attempt:
    """The model at a ratio, judged on the samples of the search."""
    try:
        planned, built = make(target)
    except NothingAppliesError:
        raise
    except BudgetError:
        return _Attempt(ratio)
    score = judges.searching.score(built.model)
    holds = judges.requirement.holds(score.value)
    return _Attempt(ratio, (planned, built), score, holds=holds)


def _confirmed(attempt: _Attempt, judges: Judges) -> _Attempt:
    """The same, judged on the samples held back as well."""
    assert attempt.model is not None
    score = judges.confirming.score(attempt.model[1].model)
    return replace(attempt, confirmed=score, holds=judges.requirement.holds(score.value))


def _smallest(tried: Sequence[_Attempt]) -> _Attempt | None:
    """The last that holds: each is smaller than those before it."""
    return next((a for a in reversed(tried) if a.holds), None)


def _largest(tried: Sequence[_Attempt], requirement: Requirement) -> str:
    """What came of the largest budgets, in words."""
    largest = sorted(tried, key=lambda a: a.ratio)[-3:]
    said = ", ".join(
        f"{a.ratio:g}: {'out of reach' if a.searched is None else a.searched.text(requirement)}"
        for a in largest
    )
    refused = [a for a in tried if a.confirmed is not None and not a.holds]
    if refused and refused[-1].confirmed is not None:
        score = refused[-1].confirmed.text(requirement)
        said += f"; on the samples held back to confirm {score} at {refused[-1].ratio:g}"
    return said


def _between(low: float, high: float) -> float:
    return round(math.sqrt(low * high), 3)


def _parts(data: Dataset, every: int) -> tuple[Dataset, Dataset]:
    """Every so many samples, and all others."""
    if len(data) < 2 * SAMPLES:
        raise DataError(
            f"{len(data)} samples to judge by; {2 * SAMPLES} at least are needed, some to search "
            "and others to confirm: give --calib held-out samples (test.<input>), or more of them "
            "(a fifth is held out); or give a target, as --target macs=0.5"
        )
    places = range(len(data))
    return data.subset(places[::every]), data.subset([i for i in places if i % every])
