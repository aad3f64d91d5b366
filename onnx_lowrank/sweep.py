"""A model at many budgets: what it costs and what it still gets right, as a table or JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from onnx_lowrank._version import __version__
from onnx_lowrank.errors import BudgetError
from onnx_lowrank.model import save
from onnx_lowrank.run import Run
from onnx_lowrank.targets import Target

__all__ = ["RATIOS", "Point", "Sweep", "swept"]

RATIOS = (0.9, 0.75, 0.6, 0.5, 0.4, 0.33, 0.25, 0.2)


@dataclass(frozen=True)
class Point:
    """One budget.

    Attributes:
        target: the budget.
        macs: part of the original's that is left.
        params: likewise.
        bytes: likewise.
        latency: part of the original's time, at the first batch that was timed.
        accuracy: labelled; None without labels.
        agreement: part of samples with the same first class; None without class scores.
        snr_db: of the first output; None where it is exact.
        front: whether no other point is both faster and better.
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

    @property
    def quality(self) -> float:
        """Accuracy, else agreement, else the SNR."""
        for value in (self.accuracy, self.agreement, self.snr_db):
            if value is not None:
                return value
        return float("inf")


@dataclass(frozen=True)
class Sweep:
    """All points of one model.

    Attributes:
        model: its digest.
        samples: that accuracy and agreement stand on.
        accuracy: of the original.
        points: by falling budget.
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

    def print(self, console: Console) -> None:
        """One row a point; those on the front in bold."""
        table = Table(title=f"budgets, {self.samples} samples", title_justify="left", box=None)
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
                "exact" if p.snr_db is None else f"{p.snr_db:.1f} dB",
                style="bold" if p.front else "dim",
            )  # fmt: skip
        console.print(table)
        for target, reason in self.missed:
            console.print(f"{target}: {reason}", style="yellow", highlight=False)


def swept(
    run: Run,
    targets: Sequence[Target],
    folder: str | os.PathLike[str] | None = None,
    repair: bool = True,
) -> Sweep:
    """Build and measure a model for each target.

    Args:
        run: model, passes and data.
        targets: to try.
        folder: where to write the models; None writes none.
        repair: whether chains are solved again.

    Raises:
        ModelError: a model cannot be written.
    """
    points: list[Point] = []
    missed: list[tuple[str, str]] = []
    samples, accuracy = len(run.data.validation), None
    with run.progress.task("sweep", len(targets)) as advance:
        for target in targets:
            try:
                built = run.build(run.timed_plan(target), repair=repair)
            except BudgetError as error:
                missed.append((str(target), str(error)))
                advance(1)
                continue
            report = run.report(built)
            first, right = report.validation.outputs[0], report.validation.accuracy
            if right is not None:
                accuracy = right.reference
            points.append(
                Point(
                    str(target), report.macs_ratio,
                    report.after.parameters / max(report.before.parameters, 1),
                    report.after.bytes / max(report.before.bytes, 1),
                    1 / report.latency[0].speedup,
                    None if right is None else right.new, first.top1_agreement,
                    first.snr_db if first.snr_db < float("inf") else None, False,
                )
            )  # fmt: skip
            if folder is not None:
                name = str(target).replace(" ", "_").replace("=", "-")
                Path(folder).mkdir(parents=True, exist_ok=True)
                save(built.model, Path(folder) / f"{name}.onnx", source=run.source)
            advance(1)
    return Sweep(run.source.digest, samples, accuracy, _fronted(points), tuple(missed))


def _fronted(points: Sequence[Point]) -> tuple[Point, ...]:
    def beaten(p: Point) -> bool:
        return any(
            o.latency <= p.latency and o.quality >= p.quality and
            (o.latency < p.latency or o.quality > p.quality)
            for o in points
        )  # fmt: skip

    return tuple(Point(**{**asdict(p), "front": not beaten(p)}) for p in points)
