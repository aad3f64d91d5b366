"""The smallest budget at which a model still keeps what is required of it.

Budgets are bisected (their logarithms, for a step of 0.4 to 0.3 is worth one of 0.8 to 0.6), each
model judged on one part of the validation samples. What held there is confirmed on the other part:
the search has picked among many by the first, and so flatters it. Where that is refused, a few
steps more look above it for what holds on both. Expected drops need few samples, counted ones many,
so the search then has a fourth of them, else a half.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from onnx_lowrank.analysis.collect import batch_size
from onnx_lowrank.analysis.preparation import MEMORY
from onnx_lowrank.engine.run import Built, Run
from onnx_lowrank.engine.timed_plan import timed_plan
from onnx_lowrank.errors import BudgetError, DataError, NothingAppliesError
from onnx_lowrank.judge.judge import Judge
from onnx_lowrank.judge.labels import refuse_doubt
from onnx_lowrank.judge.requirement import Requirement, Score
from onnx_lowrank.planning.planned import Planned
from onnx_lowrank.planning.targets import Target
from onnx_lowrank.samples.dataset import Dataset

__all__ = ["Found", "smallest_within"]

#: models that are built and judged, and more of them where what they found is not confirmed
STEPS, MORE = 7, 4
#: where the search begins, and the smallest budget that it looks at
FIRST, LEAST = 0.5, 0.05
#: samples that each part needs
SAMPLES = 20
#: every so many samples are of the search, and every so many where drops can be expected
HALF, FOURTH = 2, 4


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        planned: the plan.
        built: its model.
        target: its budget.
        searched: its score on the samples of the search.
        confirmed: its score on the others.
        tried: budgets and scores of all models, in order.
    """

    planned: Planned
    built: Built
    target: Target
    searched: Score
    confirmed: Score
    tried: tuple[tuple[float, Score | None], ...]

    def text(self, requirement: Requirement) -> str:
        """For people."""
        tried = (
            f"{ratio:g} ({'out of reach' if score is None else score.brief(requirement)})"
            for ratio, score in sorted(self.tried, key=lambda t: t[0])
        )
        return (
            f"{self.target} is the least with {requirement}: "
            f"{self.searched.text(requirement)} of the search, "
            f"{self.confirmed.text(requirement)} held back to confirm; tried {', '.join(tried)}"
        )


def smallest_within(run: Run, target: Target, requirement: Requirement) -> Found:
    """Search the budget on ``target``'s metric.

    Args:
        run: model, passes and data.
        target: what is asked for; the ratio of what it searches is looked for.
        requirement: to be kept.

    Raises:
        BudgetError: nothing that saves anything keeps it.
        DataError: too few samples, or no labels where they are needed.
    """
    search = _Search(run, target, requirement)
    found = search.bisect("search", LEAST, FIRST, STEPS, search.searched)
    if found is not None and (best := search.confirmed(found)) is None:
        best = search.bisect("confirm", found.ratio, _between(found.ratio, 1.0), MORE, search.both)
    if found is None or best is None:
        raise BudgetError(
            f"nothing smaller keeps {requirement}; at parts of the budget {search.seen()}; ask "
            "for less, or give more calibration data or passes"
        )
    assert best.confirmed is not None
    return Found(
        best.planned,
        best.built,
        target.at(best.ratio),
        best.searched,
        best.confirmed,
        tuple(search.tried),
    )


@dataclass(frozen=True)
class _Attempt:
    """A model at a budget, and its scores on the parts that it was judged by."""

    ratio: float
    planned: Planned
    built: Built
    searched: Score
    confirmed: Score | None = None


class _Search:
    """Models of one run at budgets, judged on two parts of its samples."""

    def __init__(self, run: Run, target: Target, requirement: Requirement) -> None:
        self.run, self.target, self.requirement = run, target, requirement
        self.tried: list[tuple[float, Score | None]] = []
        self._refused = ""
        shapes = run.prepared.shapes
        size = batch_size(list(shapes), shapes, MEMORY)
        data = run.data.validation

        def judge(part: Dataset, expected: bool) -> Judge:
            return Judge(run.source, part, run.runtime, requirement, size, expected)

        # chance must not lead the search astray; the labels have the last word
        expectable = requirement.kind == "drop" and requirement.metric is None
        every = FOURTH if expectable and len(data) >= FOURTH * SAMPLES else HALF
        searching, confirming = _parts(data, every)
        self._searching = judge(searching, True)
        if every == FOURTH and not self._searching.expects:
            searching, confirming = _parts(data, HALF)
            self._searching = judge(searching, True)
        self._confirming = judge(confirming, False)
        pairs = zip(self._searching.answers, self._confirming.answers, strict=True)
        ids, first = (np.concatenate(pair) for pair in pairs)
        if len(ids):
            refuse_doubt(ids, first)
        elif requirement.kind == "agreement" and len(np.unique(first)) == 1:
            raise DataError(
                f"the original gives all {len(first)} samples class {first[0]}, so any model that "
                "always does agrees; give samples of other classes"
            )

    def bisect(
        self,
        name: str,
        low: float,
        ratio: float,
        steps: int,
        holds: Callable[[float], _Attempt | None],
    ) -> _Attempt | None:
        """The last that held, of ratios between ``low`` and 1, from ``ratio`` on."""
        high, best = 1.0, None
        with self.run.progress.task(name, steps) as advance:
            for _ in range(steps):
                made = holds(ratio)
                low, high, best = (ratio, high, best) if made is None else (low, ratio, made)
                ratio = _between(low, high)
                advance(1)
        return best

    def searched(self, ratio: float) -> _Attempt | None:
        """The model at a ratio, if it holds on the samples of the search."""
        try:
            planned = timed_plan(self.run, self.target.at(ratio))
            built = self.run.build(planned.plan)
        except NothingAppliesError:
            raise
        except BudgetError:
            self.tried.append((ratio, None))
            return None
        score = self._searching.score(built.model)
        self.tried.append((ratio, score))
        if not self.requirement.holds(score.value):
            return None
        return _Attempt(ratio, planned, built, score)

    def confirmed(self, attempt: _Attempt) -> _Attempt | None:
        """The same with its other score, if that holds."""
        score = self._confirming.score(attempt.built.model)
        if self.requirement.holds(score.value):
            return replace(attempt, confirmed=score)
        said = score.text(self.requirement)
        self._refused = f"; those held back to confirm say {said} at {attempt.ratio:g}"
        return None

    def both(self, ratio: float) -> _Attempt | None:
        """The model at a ratio, if it holds on all samples."""
        made = self.searched(ratio)
        return None if made is None else self.confirmed(made)

    def seen(self) -> str:
        """What came of the largest."""
        largest = sorted(self.tried, key=lambda t: t[0])[-3:]
        return (
            ", ".join(
                f"{r:g}: {s.text(self.requirement) if s else 'out of reach'}" for r, s in largest
            )
            + self._refused
        )


def _between(low: float, high: float) -> float:
    return round(math.sqrt(low * high), 3)


def _parts(data: Dataset, every: int) -> tuple[Dataset, Dataset]:
    """Every so many samples, and all others."""
    if len(data) < 2 * SAMPLES:
        raise DataError(
            f"{len(data)} samples to judge by; {2 * SAMPLES} at least are needed, some to search "
            "and others to confirm: give --calib held-out samples (test.<input>), or more of them "
            "(a fifth is held out)"
        )
    places = range(len(data))
    return data.subset(places[::every]), data.subset([i for i in places if i % every])
