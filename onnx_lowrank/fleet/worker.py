"""The process that compresses one model of a fleet, and the order that it is given.

The process reads two lines from its standard input: where to import from, and its order. It writes
the result, its receipts and ``outcome.json`` into a folder of its own, which others then put in
place. It ends itself once its standard input does, which is when the one who started it has ended.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from onnx_lowrank.analysis.cost import Cost
from onnx_lowrank.engine.api import Result
from onnx_lowrank.engine.inspection import inspect
from onnx_lowrank.engine.optimize import Unchanged, compress_or_leave
from onnx_lowrank.errors import LowRankError
from onnx_lowrank.fleet.outcome import INTERNAL, REFUSED, Outcome, over_memory
from onnx_lowrank.fleet.tasks import as_keywords
from onnx_lowrank.latency.timer import Timer
from onnx_lowrank.modelfile.atomic_files import atomic_write
from onnx_lowrank.modelfile.saving import save
from onnx_lowrank.report.check import as_text
from onnx_lowrank.report.page import page
from onnx_lowrank.runtime.allocator import keep_freed_memory

__all__ = ["MADE", "OUTCOME", "Order", "carried_out", "main"]

#: name of the file with the outcome, and of the folder with what is to be put in place
OUTCOME, MADE = "outcome.json", "made"
#: exit code of a worker whose parent has ended
_ORPHAN = 3


@dataclass(frozen=True)
class Order:
    """What a process is to do.

    Attributes:
        model: path of the model.
        name: file name of the result.
        calibration: data; None without.
        options: JSON values by option.
        folder: for what it writes.
        threads: of ONNX Runtime, where the options do not say.
        command: that the receipt names.
    """

    model: str
    name: str
    calibration: str | None
    options: Mapping[str, Any]
    folder: str
    threads: int
    command: str

    def to_json(self) -> str:
        """The order in one line."""
        return json.dumps(asdict(self))


def main() -> None:
    """Carry out the order on the standard input, and write what became of it."""
    keep_freed_memory()
    order = Order(**json.loads(sys.stdin.buffer.readline()))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    outcome = carried_out(order)
    with atomic_write(Path(order.folder, OUTCOME)) as file:
        file.write(json.dumps(outcome.to_dict(), allow_nan=False).encode())


def carried_out(order: Order, timer: Timer | None = None) -> Outcome:
    """Compress the model of an order, and write the result and its receipts.

    Args:
        order: what is to be done.
        timer: takes all times; None for one that runs models in ONNX Runtime.

    Returns:
        The outcome; nothing is raised for what may be wrong with a model.
    """
    begun = time.monotonic()
    try:
        outcome = _compressed(order, timer)
    except LowRankError as error:
        outcome = Outcome(
            "failed", REFUSED, type(error).__name__, error.exit_code, reason=str(error)
        )
    except MemoryError:
        outcome = over_memory(None)
    except Exception as error:  # a defect of ours or of a library must not stop the rest
        traceback.print_exc()
        said = (str(error).strip().splitlines() or [""])[0]
        outcome = Outcome(
            "failed",
            INTERNAL,
            type(error).__name__,
            LowRankError.exit_code,
            reason=f"unexpected {type(error).__name__}: {said}; the log has the place, please "
            "report it",
        )
    return replace(outcome, seconds=time.monotonic() - begun)


def _compressed(order: Order, timer: Timer | None) -> Outcome:
    keywords = as_keywords(order.options)
    if not keywords.get("threads"):
        keywords["threads"] = order.threads
    made = compress_or_leave(order.model, calib=order.calibration, timer=timer, **keywords)
    folder = Path(order.folder, MADE)
    folder.mkdir()
    if isinstance(made, Unchanged):
        save(made.model, folder / order.name, source=made.model)
        cost = inspect(order.model).cost
        figures = {"before": _cost(cost), "after": _cost(cost)}
        return Outcome(
            "unchanged", reason=made.reason, figures=figures, files=_files(folder, order.name)
        )
    made.save(folder / order.name)
    data = made.report.to_dict(order.command)
    for ending, text in (("json", as_text(data)), ("html", page(data))):
        (folder / f"{order.name}.report.{ending}").write_bytes(
            text.encode("utf-8", "replace") + b"\n"
        )
    return Outcome("done", figures=_figures(made), files=_files(folder, order.name))


def _files(folder: Path, name: str) -> tuple[str, ...]:
    """What was written, the model last: it refers to the others."""
    return (*sorted({p.name for p in folder.iterdir()} - {name}), name)


def _figures(made: Result) -> dict[str, Any]:
    report = made.report
    pair = report.latency[0] if report.latency else None
    verdict, accuracy = report.validation.verdict, report.validation.accuracy
    return {
        "before": _cost(report.before),
        "after": _cost(report.after),
        "latency": None
        if pair is None
        else {"batch": pair.batch, "before_ms": pair.reference_ms, "after_ms": pair.new_ms},
        "kept": None if verdict is None else verdict.kept.to_list(),
        "loss": None if verdict is None else verdict.loss.to_list(),
        "accuracy": None
        if accuracy is None
        else {"before": accuracy.reference, "after": accuracy.new},
    }


def _cost(cost: Cost) -> dict[str, int]:
    return {"macs": cost.macs, "params": cost.parameters, "bytes": cost.bytes}


def _end_with_parent() -> None:
    # unbuffered: a thread that held the lock of the buffer would abort the interpreter's end
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(_ORPHAN)
