"""Files as others made them, through inspect and compress.

Each file gets one budget, the default passes, a few samples, a process of its own and a limit of
time. What comes out is *measured* after the written file was looked at again without the engine,
*refused* with the message that a user would read, *unfinished* in its time, or *broken*: a
traceback, or a promise that was not kept.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import onnxruntime

import onnx_lowrank
from benchmarks.command import Command, Measure
from benchmarks.figures import speedup_name
from benchmarks.measuring import validation_figures
from benchmarks.nets import ROOT, SHARED, Samples
from benchmarks.real_data import REAL, Real
from benchmarks.rows import Cell, Results, Row
from benchmarks.tables import Column, figure, model, seconds, speedup
from onnx_lowrank.errors import LowRankError

__all__ = ["COMMAND", "begin", "cells", "examine", "watched"]

#: what is told of a layer that some pass looked into; the JSON has all reasons
_NOTHING_SAVED = "no rank saves anything"

FILES = {
    path.stem: path for folder in (ROOT, SHARED) for path in sorted(folder.glob("models/*.onnx"))
}


def cells(arguments: argparse.Namespace) -> list[Cell]:
    """Every file at one budget."""
    return [Cell("real_models", name, {"target": arguments.target}) for name in arguments.models]


def begin(name: str, folder: Path, arguments: argparse.Namespace) -> Measure:
    """Measures a file in a process that is ended after ``arguments.limit`` seconds."""
    return lambda cell: watched(FILES[name], cell, arguments.limit)


def watched(path: Path, cell: Cell, limit: float) -> Row:
    """:func:`examine` in a process of its own, which is ended after ``limit`` seconds."""
    with TemporaryDirectory() as folder:
        answer = Path(folder) / "row.json"
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=_answer, args=(path, cell, answer))
        process.start()
        process.join(limit)
        if process.is_alive():
            process.kill()
            process.join()
            return cell.ended("unfinished", f"not done after {limit:.0f} s")
        if not answer.is_file():
            return cell.ended("broken", f"the process ended by exit code {process.exitcode}")
        (row,) = Results(answer).rows.values()
        return row


def examine(path: Path, cell: Cell, real: Real) -> Row:
    """Inspect, compress, save, and look at what was saved.

    Args:
        path: the model.
        cell: what is asked: ``target``, ``macs=R``.
        real: data of the model.
    """
    figures: dict[str, float] = {}
    details: dict[str, Any] = {}
    target: str = cell.options["target"]
    start = time.perf_counter()
    try:
        seen = onnx_lowrank.inspect(path, input_shapes=real.shapes)
        figures["layers"] = len(seen.layers)
        figures["eligible"] = sum(layer.eligible for layer in seen.layers)
        details["refusals"] = _counted([la.reason for la in seen.layers if not la.eligible])
        data = None if real.read is None else real.read()
        samples = _samples(data, real.samples)
        start = time.perf_counter()
        result = onnx_lowrank.compress(
            path, calib=data, target=target, threads=1, seed=0, samples=samples,
            input_shapes=real.shapes,
        )  # fmt: skip
        figures |= _figures(result) | {"seconds": round(time.perf_counter() - start, 1)}
        details |= _details(result)
        with TemporaryDirectory() as folder:
            output = Path(folder) / "out.onnx"
            result.save(output)
            figures["bytes"] = output.stat().st_size / path.stat().st_size
            problems = _problems(path, output, figures["macs"], float(target.partition("=")[2]))
    except LowRankError as error:
        figures["seconds"] = round(time.perf_counter() - start, 1)
        return cell.ended("refused", f"{type(error).__name__}: {error}", figures, **details)
    except Exception:
        return cell.ended("broken", traceback.format_exc(), figures, **details)
    if problems:
        return cell.ended("broken", "; ".join(problems), figures, **details)
    used = {"calibration": samples or 0, "test": result.report.validation.samples}
    return cell.measured(used, figures, **details)


def _answer(path: Path, cell: Cell, answer: Path) -> None:
    Results(answer).add(examine(path, cell, REAL.get(path.stem, Real())))


def _samples(data: Samples | list[Samples] | None, wanted: int) -> int | None:
    """So many calibration samples, or all where there are fewer; None without data."""
    if data is None:
        return None
    columns = (
        [] if isinstance(data, list) else [v for k, v in data.items() if not k.startswith("test.")]
    )
    return min([wanted, *(len(v) for v in columns)])


def _figures(result: onnx_lowrank.Result) -> dict[str, float]:
    report = result.report
    return {
        "macs": report.macs_ratio,
        "params": report.after.parameters / max(report.before.parameters, 1),
        "factorized": sum(d.decision == "factorize" for d in report.decisions),
        **validation_figures(report.validation),
        speedup_name(1, 1): round(report.latency[0].speedup, 3),
        "speedup_low": round(report.latency[0].speedup_low, 3),
        "speedup_high": round(report.latency[0].speedup_high, 3),
    }


def _details(result: onnx_lowrank.Result) -> dict[str, Any]:
    report = result.report
    return {
        "decisions": _counted([d.decision for d in report.decisions]),
        "methods": _counted([d.method for d in report.decisions if d.method]),
        "left": _counted([d.reason for d in report.decisions if d.decision != "factorize"]),
        "notes": list(report.said),
    }


def _problems(old: Path, new: Path, macs: float, ratio: float) -> list[str]:
    """What is wrong with a file that was written, one clause each."""
    before, after = onnx.load(old), onnx.load(new)
    found = []
    if not _valid(after) and _valid(before):
        found.append("onnx.checker refuses it")
    if _fed(before.graph) != _fed(after.graph):
        found.append("its inputs have changed")
    if list(before.graph.output) != list(after.graph.output):
        found.append("its outputs have changed")
    if list(before.opset_import) != list(after.opset_import):
        found.append("its opsets have changed")
    if before.ir_version != after.ir_version:
        found.append("its IR version has changed")
    if macs > ratio:
        found.append(f"{macs:.4f} of the MACs are left, not {ratio}")
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 4  # of weights that are listed as inputs
    onnxruntime.InferenceSession(str(new), quiet, providers=["CPUExecutionProvider"])
    return found


def _fed(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Inputs that are not weights: before IR version 4 weights had to be listed as inputs."""
    weights = {t.name for t in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


def _valid(proto: onnx.ModelProto) -> bool:
    try:
        onnx.checker.check_model(proto)
    except (onnx.checker.ValidationError, ValueError):
        return False
    return True


def _short(reason: str) -> str:
    """The clause that most passes give, of a reason that quotes all of them."""
    if _NOTHING_SAVED in reason:
        return _NOTHING_SAVED
    if "outputs are left" in reason:
        return "fewer channels"
    clauses = Counter(clause.partition(": ")[2] or clause for clause in reason.split("; "))
    return clauses.most_common(1)[0][0]


def _counted(reasons: Sequence[str]) -> dict[str, int]:
    return dict(Counter(reasons).most_common())


def _left(row: Row) -> str:
    """Layers that were left alone, by the reason in a few words."""
    reasons: Counter[str] = Counter()
    for reason, count in row.details.get("left", {}).items():
        reasons[_short(reason)] += count
    return "; ".join(f"{count}: {reason}" for reason, count in reasons.most_common())


def _held_out(row: Row) -> str:
    if "test" not in row.samples:
        return ""
    return f"{row.samples['test']}{'' if row.samples['calibration'] else ' random'}"


def _close(rows: Sequence[Row], arguments: argparse.Namespace) -> None:
    found = Counter(row.status for row in rows)
    print("\n" + ", ".join(f"{number} {status}" for status, number in found.most_common()))


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", default="macs=0.7", help="budget; default: %(default)s")
    parser.add_argument(
        "--limit", type=float, default=240.0, help="seconds for each model; default: %(default)s"
    )


COMMAND = Command(
    name="real_models",
    summary="Take the files of others, as they are, through inspect and compress.",
    models=list(FILES),
    choices=list(FILES),
    columns=(
        model(),
        figure("layers", "layers", "{:.0f}"),
        figure("taken", "factorized", "{:.0f}"),
        Column("left alone, and why", _left),
        figure("MACs left", "macs", "{:.3f}"),
        figure("bytes left", "bytes", "{:.3f}"),
        Column("held-out samples", _held_out),
        figure("same answer", "agreement", "{:.1%}"),
        figure("SNR", "snr", "{:.1f} dB", unbounded="exact"),
        speedup("speed-up", 1, 1),
        seconds(),
    ),
    cells=cells,
    begin=begin,
    add_arguments=_add_arguments,
    close=_close,
    path_of=FILES.__getitem__,
)
