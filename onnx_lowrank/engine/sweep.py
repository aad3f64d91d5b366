"""A model at many budgets: what it costs and what it still gets right, as a table or JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnx_lowrank._version import __version__
from onnx_lowrank.engine.run import Run
from onnx_lowrank.engine.timed_plan import timed_plan
from onnx_lowrank.errors import BudgetError, OptionError
from onnx_lowrank.modelfile.model import save
from onnx_lowrank.planning.targets import Target
from onnx_lowrank.report.plots import Mark, check_picture, draw_sweep
from onnx_lowrank.report.report import Report

__all__ = ["RATIOS", "Point", "Sweep", "front_of", "swept"]

RATIOS = (0.9, 0.75, 0.6, 0.5, 0.4, 0.33, 0.25, 0.2)


@dataclass(frozen=True)
class Point:
    """One budget.

    Attributes:
        target: the budget.
        macs: part of the original's that is left.
        params: likewise.
        bytes: likewise.
        latency: part of the original's time, at the batch that counts.
        accuracy: labelled; None without labels.
        agreement: part of samples with the same first class; None without class scores.
        snr_db: of the first output that could be compared; None where it is exact.
        front: whether neither another point nor the original is faster and no worse.
        compared: whether an output of numbers could be compared with the original's.
    """

    target: str
    macs: float
    params: float
    bytes: float
    latency: float
    accuracy: float | None
    agreement: float | None
    snr_db: float | None
    front: bool
    compared: bool = True

    @property
    def quality(self) -> float:
        """Accuracy, else agreement, else the SNR."""
        for value in (self.accuracy, self.agreement, self.snr_db):
            if value is not None:
                return value
        return math.inf


@dataclass(frozen=True)
class Sweep:
    """All points of one model.

    Attributes:
        model: its digest.
        samples: that accuracy and agreement stand on.
        accuracy: of the original.
        points: in the order of their targets.
        missed: budgets out of reach, and why.
    """

    model: str
    samples: int
    accuracy: float | None
    points: tuple[Point, ...]
    missed: tuple[tuple[str, str], ...]

    def to_json(self) -> str:
        """The same as text."""
        data: dict[str, Any] = {"schema": 1, "version": __version__, **asdict(self)}
        return json.dumps(data, indent=1, allow_nan=False)

    @property
    def quality(self) -> float:
        """What :attr:`Point.quality` is of the original."""
        if self.accuracy is not None:
            return self.accuracy
        return 1.0 if any(p.agreement is not None for p in self.points) else math.inf

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw quality against time, MACs and size, PNG or SVG by the suffix.

        Raises:
            OptionError: another suffix, nothing to draw, or matplotlib is missing.
            ModelError: the file cannot be written.
        """
        check_picture(path)
        known = [p for p in self.points if p.quality < math.inf]
        if not known:
            raise OptionError("no model lost anything, or none met its budget: nothing to draw")
        costs = {"time": "latency", "MACs": "macs", "bytes": "bytes"}
        panels = []
        for name, field in costs.items():
            places = [(float(getattr(p, field)), p.quality) for p in known]
            labels = [p.target for p in known]
            if self.quality < math.inf:
                places, labels = [*places, (1.0, self.quality)], [*labels, "original"]
            marks = [
                Mark(label, *place, front, original=label == "original")
                for label, place, front in zip(labels, places, front_of(places), strict=True)
            ]
            panels.append((f"{name} left", marks))
        labelled = self.accuracy is not None
        decibels = any(p.agreement is None for p in self.points) and not labelled
        up = "top-1 accuracy" if labelled else "SNR, dB" if decibels else "same first class"
        draw_sweep(path, panels, f"{up} ({self.samples} samples)", percent=not decibels)

    def print(self, console: Console) -> None:
        """One row a point; those on the front in bold."""
        table = Table(
            title=f"budgets, {self.samples} samples", title_justify="left", box=None, pad_edge=False
        )
        table.add_column("target")
        for column in ("MACs", "parameters", "bytes", "time", "top-1", "same top-1", "SNR"):
            table.add_column(column, justify="right")
        if self.accuracy is not None:
            table.add_row("original", "1", "1", "1", "1", f"{self.accuracy:.2%}", "", "")
        for p in self.points:
            table.add_row(
                p.target, f"{p.macs:.3f}", f"{p.params:.3f}", f"{p.bytes:.3f}",
                f"{p.latency:.3f}", "" if p.accuracy is None else f"{p.accuracy:.2%}",
                "" if p.agreement is None else f"{p.agreement:.2%}",
                _decibel(p),
                style="bold" if p.front else "dim",
            )  # fmt: skip
        console.print(table)
        for target, reason in self.missed:
            console.print(Text(f"{target}: {reason}", "yellow"))


def swept(
    run: Run,
    targets: Sequence[Target],
    folder: str | os.PathLike[str] | None = None,
    batch: int = 1,
) -> Sweep:
    """Build and measure a model for each target.

    Args:
        run: model, passes and data.
        targets: to try.
        folder: where to write the models; None writes none.
        batch: whose latency is told; the next smaller one that the data allows.

    Raises:
        OptionError: there are no targets, or the folder cannot be made.
        ModelError: a model cannot be written.
    """
    if not targets:
        raise OptionError("no budget to try; give --ratios 0.9,0.5, for one")
    if folder is not None:
        _make(Path(folder))
    points: list[Point] = []
    missed: list[tuple[str, str]] = []
    samples, accuracy = len(run.data.validation), None
    with run.progress.task("sweep", len(targets)) as advance:
        for target in targets:
            try:
                planned = timed_plan(run, target)
                built = run.build(planned.plan)
            except BudgetError as error:
                missed.append((str(target), str(error)))
                advance(1)
                continue
            report = run.report(built, planned.notes)
            if report.validation.accuracy is not None:
                accuracy = report.validation.accuracy.reference
            points.append(_point(target, report, batch))
            if folder is not None:
                name = str(target).replace(" ", "_").replace("=", "-")
                save(built.model, Path(folder) / f"{name}.onnx", source=run.source)
            advance(1)
    found = Sweep(run.source.digest, samples, accuracy, tuple(points), tuple(missed))
    places = [(p.latency, p.quality) for p in points]
    front = front_of([*places, (1.0, found.quality)])[:-1]
    marked = (replace(p, front=f) for p, f in zip(points, front, strict=True))
    return replace(found, points=tuple(marked))


def front_of(places: Sequence[tuple[float, float]]) -> list[bool]:
    """Of each ``(cost, quality)`` whether none is as cheap and as good, and better in one."""
    return [
        not any(c <= cost and q >= quality and (c, q) != (cost, quality) for c, q in places)
        for cost, quality in places
    ]


def _point(target: Target, report: Report, batch: int) -> Point:
    checks, right = report.validation.outputs, report.validation.accuracy
    first = next((o for o in checks if o.places and not math.isnan(o.snr_db)), None)
    timed = [p for p in report.latency if p.batch <= batch] or report.latency[:1]
    return Point(
        str(target),
        report.macs_ratio,
        report.after.parameters / max(report.before.parameters, 1),
        report.after.bytes / max(report.before.bytes, 1),
        1 / timed[-1].speedup,
        None if right is None else right.new,
        None if first is None else first.top1_agreement,
        None if first is None or math.isinf(first.snr_db) else first.snr_db,
        False,
        first is not None,
    )


def _decibel(point: Point) -> str:
    if not point.compared:
        return "not compared"
    return "exact" if point.snr_db is None else f"{point.snr_db:.1f} dB"


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"{folder}: cannot be made ({error.strerror}); name another") from error
