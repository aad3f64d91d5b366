"""The summary of a batch: a row for each model, as JSON and as a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnx_lowrank._version import __version__
from onnx_lowrank.fleet.journal import Entry
from onnx_lowrank.fleet.options import FleetOptions
from onnx_lowrank.fleet.tasks import Task
from onnx_lowrank.modelfile.atomic_files import atomic_write
from onnx_lowrank.report.batch_page import BATCH_SCHEMA, batch_page
from onnx_lowrank.report.check import as_text

__all__ = ["SUMMARY", "summary_of", "write_summary"]

#: name of both files, without the ending
SUMMARY = "summary"

_STATUSES = ("done", "unchanged", "failed", "pending")
_FIGURES = ("before", "after", "latency", "kept", "loss", "accuracy")


def summary_of(
    tasks: Sequence[Task],
    settled: Mapping[str, Entry],
    fleet: FleetOptions,
    options: Mapping[str, Any],
    command: str,
) -> dict[str, Any]:
    """The summary as plain data, in the form of ``batch.schema.json``, without the time it took.

    Args:
        tasks: all tasks, in their order.
        settled: entries by the name of the result; the others are pending.
        fleet: how the batch was run.
        options: common to all models.
        command: as it was given; empty where there was none.
    """
    rows = [_row(task, settled.get(task.output)) for task in tasks]
    counted = Counter(row["status"] for row in rows)
    have = [row for row in rows if row["after"] is not None]
    limits = fleet.limits()
    return {
        "schema": BATCH_SCHEMA,
        "kind": "batch",
        "version": __version__,
        "command": command,
        "options": dict(options),
        "run": {
            "workers": fleet.workers,
            "scheduler": fleet.scheduler,
            "limits": {"seconds": limits.seconds, "bytes": limits.bytes},
        },
        "counts": {"total": len(rows)} | {status: counted[status] for status in _STATUSES},
        "totals": {
            side: {key: sum(row[side][key] for row in have) for key in ("macs", "params", "bytes")}
            for side in ("before", "after")
        },
        "models": rows,
    }


def write_summary(folder: Path, data: Mapping[str, Any]) -> None:
    """Write both files, each whole or not at all.

    Raises:
        ModelError: the folder cannot be written.
    """
    for ending, text in (("json", as_text(data)), ("html", batch_page(data))):
        with atomic_write(folder / f"{SUMMARY}.{ending}") as file:
            # names of files may be no text
            file.write(text.encode("utf-8", "replace") + b"\n")


def _row(task: Task, entry: Entry | None) -> dict[str, Any]:
    row: dict[str, Any] = {"model": task.name, "output": task.output}
    if entry is None:
        row |= dict.fromkeys(
            ("exit_code", "seconds", "peak_bytes", "digests", "report", "finished")
        )
        row |= dict.fromkeys(_FIGURES)
        return row | {
            "status": "pending", "cause": "", "error": "", "reason": "", "log": None, "attempts": 0,
        }  # fmt: skip
    outcome = entry.outcome
    has_report = outcome.status == "done"
    folder = task.output.rpartition("/")[0]
    return row | {
        "status": outcome.status,
        "cause": outcome.cause,
        "error": outcome.error,
        "exit_code": outcome.exit_code,
        "reason": outcome.reason,
        **{name: outcome.figures.get(name) for name in _FIGURES},
        "seconds": outcome.seconds,
        "peak_bytes": outcome.peak_bytes,
        "attempts": entry.attempts,
        "digests": entry.digests,
        "finished": entry.finished,
        "report": {e: f"{task.output}.report.{e}" for e in ("json", "html")}
        if has_report
        else None,
        "log": (f"{folder}/{entry.log}" if folder else entry.log) if entry.log else None,
    }
