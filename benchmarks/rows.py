"""Rows of measured figures: one JSON form for all benchmarks, described in README.md.

A :class:`Cell` is what is to be measured, a :class:`Row` what came out, :class:`Results` the file
that holds the rows of one benchmark, so that what was measured once is known the next time.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.figures import UNITS

__all__ = ["MEASURED", "SCHEMA", "STATUSES", "Cell", "FormError", "Results", "Row"]

#: number of the JSON form; a file of another number is not read
SCHEMA = 1

MEASURED = "measured"

#: what may have become of a cell: figures, the product's refusal, no end within the time that was
#: given, or a fault of the product
STATUSES = (MEASURED, "refused", "unfinished", "broken")

_PACKAGES = ("onnx-lowrank", "onnxruntime", "onnx", "numpy", "scipy")


def _machine() -> dict[str, Any]:
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
    }


@cache
def _processor() -> str:
    """The processor's name, as the system tells it."""
    told = Path("/proc/cpuinfo")
    if told.is_file():
        for line in told.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


@dataclass(frozen=True)
class Cell:
    """One thing to measure.

    Attributes:
        command: name of the benchmark.
        model: name of the model.
        options: all else that tells it from other cells, as plain JSON values.
    """

    command: str
    model: str
    options: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Text that is equal for equal cells."""
        return json.dumps([self.command, self.model, self.options], sort_keys=True)

    def measured(
        self, samples: Mapping[str, int], figures: Mapping[str, float], **details: Any
    ) -> Row:
        """A row of figures.

        Args:
            samples: how many were used, by what for: ``calibration``, ``test``.
            figures: by name, of :data:`~benchmarks.figures.UNITS`; infinite ones become
                None, and those that are not a number are left out.
            details: what else is known, as plain JSON values.
        """
        return self._row(MEASURED, "", samples, figures, details)

    def ended(
        self, status: str, message: str, figures: Mapping[str, float] | None = None, **details: Any
    ) -> Row:
        """A row that says why there are no figures, or only some.

        Args:
            status: one of :data:`STATUSES`.
            message: why, as a user would read it.
            figures: those that are known.
            details: what else is known.
        """
        return self._row(status, message, {}, figures or {}, details)

    def _row(
        self,
        status: str,
        message: str,
        samples: Mapping[str, int],
        figures: Mapping[str, float],
        details: Mapping[str, Any],
    ) -> Row:
        finite = {
            k: v if math.isfinite(v) else None for k, v in figures.items() if not math.isnan(v)
        }
        return Row(
            self.command, self.model, dict(self.options), status, message, dict(samples), finite,
            dict(details),
        )  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What became of one cell.

    Attributes:
        command: name of the benchmark.
        model: name of the model.
        options: all else that was asked.
        status: one of :data:`STATUSES`.
        message: why there are no figures; empty where there are.
        samples: how many were used, by what for.
        figures: by name; None for a ratio without bound, as the SNR of equal outputs.
        details: what the benchmark tells besides.
        machine: processor, number of cores, and operating system.
        versions: of Python and the packages that count.

    Raises:
        ValueError: there is no such status, or a figure has no unit.
    """

    command: str
    model: str
    options: dict[str, Any]
    status: str
    message: str
    samples: dict[str, int]
    figures: dict[str, float | None]
    details: dict[str, Any]
    machine: dict[str, Any] = field(default_factory=_machine)
    versions: dict[str, str] = field(default_factory=_versions)

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status {self.status!r} is not one of {', '.join(STATUSES)}")
        if unknown := self.figures.keys() - UNITS.keys():
            raise ValueError(f"no unit is known of {sorted(unknown)}; name it in figures.py")

    @property
    def key(self) -> str:
        """The key of its cell."""
        return Cell(self.command, self.model, self.options).key

    def to_dict(self) -> dict[str, Any]:
        """Plain data, each figure with its unit."""
        figures = {k: {"value": v, "unit": UNITS[k]} for k, v in self.figures.items()}
        return {**asdict(self), "figures": figures}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Row:
        """The row that :meth:`to_dict` gave."""
        figures = {k: v["value"] for k, v in data["figures"].items()}
        return cls(**{**data, "figures": figures})


class FormError(Exception):
    """A file does not hold rows of this form."""


class Results:
    """Rows of a JSON file by key; each row that is added is on disk at once.

    Args:
        path: of the file, which need not be there.

    Raises:
        FormError: the file has another form.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, Row] = {}
        if path.is_file():
            data = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(data, dict) or data.get("schema") != SCHEMA:
                raise FormError(
                    f"{path} does not hold rows of schema {SCHEMA}; move it away, or name another "
                    "file with --out"
                )
            self.rows = {row.key: row for row in map(Row.from_dict, data["rows"])}

    def add(self, row: Row) -> None:
        """Keep a row in the place of the one with its key, and write the file in one step."""
        self.rows[row.key] = row
        data = {"schema": SCHEMA, "rows": [r.to_dict() for r in self.rows.values()]}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_name(self.path.name + ".part")
        unfinished.write_text(json.dumps(data, indent=1, allow_nan=False), encoding="utf-8")
        unfinished.replace(self.path)
