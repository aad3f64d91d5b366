"""The smallest budget at which a model still keeps what is required of it.

Budgets are bisected (their logarithms, for a step of 0.4 to 0.3 is worth one of 0.8 to 0.6), each
model judged on one half of the validation samples. What held there is confirmed on the other half,
from the smallest up: the search has picked among many by the first half, and so flatters it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnx_lowrank.calibration import Dataset
from onnx_lowrank.collect import batch_size
from onnx_lowrank.errors import BudgetError, DataError
from onnx_lowrank.judge import Judge
from onnx_lowrank.plan import Plan
from onnx_lowrank.preparation import MEMORY
from onnx_lowrank.requirement import Requirement, Score
from onnx_lowrank.run import Built, Run
from onnx_lowrank.targets import Target
from onnx_lowrank.timed_plan import timed_plan

__all__ = ["Found", "smallest_within"]

#: models that are built and judged
STEPS = 7
#: where the search begins, and the smallest budget that it looks at
FIRST, LEAST = 0.5, 0.05
#: samples that each half needs
SAMPLES = 20


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        built: the model.
        target: its budget.
        searched: its score on the samples of the search.
        confirmed: its score on the others.
        tried: budgets and scores of all models, in order.
    """

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
        target: a single budget; its ratio is what is looked for.
        requirement: to be kept.

    Raises:
        BudgetError: nothing that saves anything keeps it.
        DataError: too few samples, or no labels where they are needed.
    """
    halves = _halves(run.data.validation)
    shapes = run.prepared.shapes
    size = batch_size(list(shapes), shapes, MEMORY)
    judges = [Judge(run.source, half, run.runtime, requirement, size) for half in halves]
    tried: list[tuple[float, Score | None]] = []
    # plans are built again sooner than their models are all held in memory
    kept: list[tuple[float, Plan, Score]] = []
    smallest: Built | None = None
    low, high, ratio = LEAST, 1.0, FIRST
    with run.progress.task("search", STEPS) as advance:
        for _ in range(STEPS):
            built = _built(run, target.at(ratio))
            score = judges[0].score(built.model) if built is not None else None
            tried.append((ratio, score))
            if built is not None and score is not None and requirement.holds(score.value):
                kept.append((ratio, built.plan, score))
                high, smallest = ratio, built
            else:
                low = ratio
            ratio = round(math.sqrt(low * high), 3)
            advance(1)
    refused = ""
    for ratio, plan, score in reversed(kept):  # each is smaller than the one before
        built = smallest if smallest is not None else run.build(plan)
        smallest = None
        confirmed = judges[1].score(built.model)
        if requirement.holds(confirmed.value):
            return Found(built, target.at(ratio), score, confirmed, tuple(tried))
        refused = f"; those held back to confirm say {confirmed.text(requirement)} at {ratio:g}"
    seen = ", ".join(
        f"{r:g}: {s.text(requirement) if s else 'out of reach'}"
        for r, s in sorted(tried, key=lambda t: t[0])[-3:]
    )
    raise BudgetError(
        f"nothing smaller keeps {requirement}; at parts of the budget {seen}{refused}; ask for "
        "less, or give more calibration data or passes"
    )


def _built(run: Run, target: Target) -> Built | None:
    try:
        return run.build(timed_plan(run, target))
    except BudgetError:
        return None


def _halves(data: Dataset) -> tuple[Dataset, Dataset]:
    if len(data) < 2 * SAMPLES:
        raise DataError(
            f"{len(data)} samples to judge by; {2 * SAMPLES} at least are needed, half of them to "
            "search and half to confirm: give --calib held-out samples (test.<input>), or more of "
            "them (a fifth is held out)"
        )
    every = range(len(data))
    return data.subset(every[::2]), data.subset(every[1::2])
