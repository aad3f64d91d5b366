"""Compress a model to many budgets: a loop over plans, models and reports."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from onnx_lowrank.engine.analyse import Analysis
from onnx_lowrank.engine.build import build
from onnx_lowrank.engine.tell import tell
from onnx_lowrank.engine.timed_plan import plan_for
from onnx_lowrank.errors import BudgetError, OptionError
from onnx_lowrank.modelfile.saving import save
from onnx_lowrank.planning.targets import Target
from onnx_lowrank.report.sweep import Point, Sweep, point_of, with_front

__all__ = ["swept"]


def swept(
    analysis: Analysis, targets: Sequence[Target], folder: str | os.PathLike[str] | None = None
) -> Sweep:
    """Build and measure a model for each target.

    Args:
        analysis: of the original model.
        targets: budgets to try.
        folder: where to write the models; None writes none.

    Raises:
        OptionError: there are no targets, or the folder cannot be made.
        ModelError: a model cannot be written.
    """
    if not targets:
        raise OptionError("no budget to try; give --ratios 0.9,0.5, for one")
    if folder is not None:
        _make(Path(folder))
    job = analysis.job
    points: list[Point] = []
    missed: list[tuple[str, str]] = []
    accuracy = None
    with job.tools.progress.task("sweep", len(targets)) as advance:
        for target in targets:
            try:
                planned = plan_for(analysis, target)
                built = build(analysis, planned.plan)
            except BudgetError as error:
                missed.append((str(target), str(error)))
                advance(1)
                continue
            report = tell(analysis, built, planned.notes)
            if report.validation.accuracy is not None:
                accuracy = report.validation.accuracy.reference
            points.append(point_of(str(target), report, job.tools.timing.batch))
            if folder is not None:
                name = str(target).replace(" ", "_").replace("=", "-")
                save(built.model, Path(folder) / f"{name}.onnx", source=job.source)
            advance(1)
    samples = len(job.samples.validation)
    found = Sweep(job.source.digest, samples, accuracy, tuple(points), tuple(missed))
    return with_front(found)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"{folder}: cannot be made ({error.strerror}); name another") from error
