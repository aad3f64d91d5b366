"""A model at many budgets: what it costs and what it still gets right, as a table or JSON."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnx_lowrank._version import __version__
from onnx_lowrank.errors import OptionError
from onnx_lowrank.report.plots import Mark, check_picture, draw_sweep
from onnx_lowrank.report.report import Report

__all__ = ["SWEEP_SCHEMA", "Point", "Sweep", "fronts", "point_of", "with_front"]

#: number of the form of sweeps, as in ``sweep.schema.json``
SWEEP_SCHEMA = 2


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

    def to_dict(self, command: str = "") -> dict[str, Any]:
        """Plain data, as ``sweep.schema.json`` describes it.

        Args:
            command: as it was given; empty where there was none.
        """
        head = {"schema": SWEEP_SCHEMA, "kind": "sweep", "version": __version__}
        missed = [{"target": target, "reason": reason} for target, reason in self.missed]
        quality = {"quality": self.axis[0]}
        return {**head, "command": command, **quality, **asdict(self), "missed": missed}

    @property
    def axis(self) -> tuple[str, bool]:
        """What :attr:`quality` is, and whether it is a fraction."""
        if self.accuracy is not None:
            return "top-1 accuracy", True
        if any(p.agreement is None for p in self.points):
            return "SNR, dB", False
        return "same first class", True

    @property
    def quality(self) -> float:
        """What :attr:`Point.quality` is of the original."""
        if self.accuracy is not None:
            return self.accuracy
        return 1.0 if any(p.agreement is not None for p in self.points) else math.inf

    def panels(self) -> list[tuple[str, list[Mark]]]:
        """Quality against time, MACs and bytes, of the models that can be drawn."""
        known = [p for p in self.points if p.quality < math.inf]
        found = []
        for name, field in {"time": "latency", "MACs": "macs", "bytes": "bytes"}.items():
            places = [(float(getattr(p, field)), p.quality) for p in known]
            labels = [p.target for p in known]
            if self.quality < math.inf:
                places, labels = [*places, (1.0, self.quality)], [*labels, "original"]
            marks = [
                Mark(label, *place, front, original=label == "original")
                for label, place, front in zip(labels, places, fronts(places), strict=True)
            ]
            found.append((f"{name} left", marks))
        return found

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw quality against time, MACs and size, PNG or SVG by the suffix.

        Raises:
            OptionError: another suffix, nothing to draw, or matplotlib is missing.
            ModelError: the file cannot be written.
        """
        check_picture(path)
        if all(p.quality == math.inf for p in self.points):
            raise OptionError("no model lost anything, or none met its budget: nothing to draw")
        up, fraction = self.axis
        draw_sweep(path, self.panels(), f"{up} ({self.samples} samples)", percent=fraction)

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


def with_front(found: Sweep) -> Sweep:
    """The same with the points marked that neither another nor the original betters."""
    places = [(p.latency, p.quality) for p in found.points]
    front = fronts([*places, (1.0, found.quality)])[:-1]
    marked = (replace(p, front=f) for p, f in zip(found.points, front, strict=True))
    return replace(found, points=tuple(marked))


def point_of(target: str, report: Report, batch: int) -> Point:
    """One budget of a sweep.

    Args:
        target: the budget.
        report: of its model.
        batch: whose latency is told; the next smaller one that was measured.
    """
    checks, right = report.validation.outputs, report.validation.accuracy
    first = next((o for o in checks if o.places and not math.isnan(o.snr_db)), None)
    timed = [p for p in report.latency if p.batch <= batch] or report.latency[:1]
    return Point(
        target=target,
        macs=report.macs_ratio,
        params=report.after.parameters / max(report.before.parameters, 1),
        bytes=report.after.bytes / max(report.before.bytes, 1),
        latency=1 / timed[-1].speedup,
        accuracy=None if right is None else right.new,
        agreement=None if first is None else first.top1_agreement,
        snr_db=None if first is None or math.isinf(first.snr_db) else first.snr_db,
        front=False,
        compared=first is not None,
    )


def fronts(places: Sequence[tuple[float, float]]) -> list[bool]:
    """For each ``(cost, quality)`` whether none is as cheap and as good, and better in one."""
    return [
        not any(c <= cost and q >= quality and (c, q) != (cost, quality) for c, q in places)
        for cost, quality in places
    ]


def _decibel(point: Point) -> str:
    if not point.compared:
        return "not compared"
    return "exact" if point.snr_db is None else f"{point.snr_db:.1f} dB"
