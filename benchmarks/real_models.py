"""``python -m benchmarks.real_models``: files as others made them, through inspect and compress.

Each file gets one budget, the default passes, a few samples, a process of its own and a limit of
time. What comes out is *compressed* and then looked at again without the engine, *refused* with
the message that a user would read, *unfinished* in its time, or *broken*: a traceback, or a
contract not kept.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import onnxruntime

import onnx_lowrank
from benchmarks.models import ROOT, SHARED, Samples
from benchmarks.real_data import REAL, Real
from benchmarks.rows import head, known_rows, write_rows
from onnx_lowrank.errors import LowRankError

__all__ = ["HEADER", "examine", "line", "parser", "watched"]

Row = dict[str, Any]

HEADER = ("model", "layers", "taken", "left alone, and why", "MACs left", "bytes left",
          "held-out samples", "same answer", "SNR", "speed-up", "seconds")  # fmt: skip

#: what is told of a layer that some pass looked into; the JSON has all reasons
_NOTHING_SAVED = "no rank saves anything"


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.real_models", description=__doc__)
    made.add_argument("--models", nargs="+", metavar="NAME", help="names without .onnx")
    made.add_argument("--target", default="macs=0.7")
    made.add_argument("--limit", type=float, default=240.0, help="seconds for each model")
    made.add_argument("--again", action="store_true", help="measure what has been measured")
    made.add_argument("--out", type=Path, default=Path("benchmarks/results/real_models.json"))
    return made


def main() -> None:
    """Measure what the arguments name."""
    arguments = parser().parse_args()
    files = {p.stem: p for folder in (ROOT, SHARED) for p in sorted(folder.glob("models/*.onnx"))}
    rows: dict[str, Row] = known_rows(arguments.out)
    print(head(HEADER))
    for name in arguments.models or files:
        if name not in files:
            print(f"| {name} | not at hand |")
            continue
        if arguments.again or name not in rows:
            rows[name] = watched(files[name], arguments.target, arguments.limit)
            write_rows(arguments.out, rows)
        print(line(name, rows[name]), flush=True)
    found = Counter(row["verdict"] for row in rows.values())
    print("\n" + ", ".join(f"{number} {verdict}" for verdict, number in found.most_common()))


def watched(path: Path, target: str, limit: float) -> Row:
    """:func:`examine` in a process of its own, which is ended after ``limit`` seconds."""
    with TemporaryDirectory() as folder:
        answer = Path(folder) / "row.json"
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=_answer, args=(path, target, answer))
        process.start()
        process.join(limit)
        if process.is_alive():
            process.kill()
            process.join()
            return {"verdict": "unfinished", "why": f"not done after {limit:.0f} s"}
        if not answer.is_file():
            return {"verdict": "broken", "why": f"ended by exit code {process.exitcode}"}
        row: Row = json.loads(answer.read_text())
        return row


def examine(path: Path, target: str, real: Real) -> Row:
    """Inspect, compress, save, and look at what was saved.

    Args:
        path: of the model.
        target: ``macs=R``.
        real: its data.

    Returns:
        ``verdict``, with ``why`` where it is not ``compressed``, and what is known by then.
    """
    row: Row = {}
    start = time.perf_counter()
    try:
        seen = onnx_lowrank.inspect(path, input_shapes=real.shapes)
        row["layers"] = len(seen.layers)
        row["eligible"] = sum(layer.eligible for layer in seen.layers)
        row["refusals"] = _counted([la.reason for la in seen.layers if not la.eligible])
        data = None if real.read is None else real.read()
        start = time.perf_counter()
        result = onnx_lowrank.compress(
            path, calib=data, target=target, threads=1, seed=0,
            samples=_samples(data, real.samples), input_shapes=real.shapes,
        )  # fmt: skip
        row |= _figures(result) | {"seconds": round(time.perf_counter() - start, 1)}
        with TemporaryDirectory() as folder:
            output = Path(folder) / "out.onnx"
            result.save(output)
            row |= {"bytes": output.stat().st_size / path.stat().st_size}
            problems = _problems(path, output, row["macs"], float(target.partition("=")[2]))
    except LowRankError as error:
        seconds = round(time.perf_counter() - start, 1)
        kind = type(error).__name__
        return {**row, "verdict": "refused", "why": f"{kind}: {error}", "seconds": seconds}
    except Exception:
        return {**row, "verdict": "broken", "why": traceback.format_exc()}
    if problems:
        return {**row, "verdict": "broken", "why": "; ".join(problems)}
    return {**row, "verdict": "compressed"}


def line(name: str, row: Mapping[str, Any]) -> str:
    """One row of the table."""
    if "decisions" not in row:
        why = row["why"].strip().splitlines()[-1]
        layers, able = (str(row.get(k, "?")) for k in ("layers", "eligible"))
        cells = [name, layers, f"of {able}", f"{row['verdict']}: {why}", *[""] * 6]
        return f"| {' | '.join([*cells, _number(row.get('seconds'), '.0f')])} |"
    reasons: Counter[str] = Counter()
    for reason, count in row["left"].items():
        reasons[_short(reason)] += count
    left = [f"{count}: {reason}" for reason, count in reasons.most_common()]
    cells = [
        name,
        str(row["layers"]),
        str(row["decisions"].get("factorize", 0)),
        "; ".join([row["why"]] if row["verdict"] == "broken" else left),
        f"{row['macs']:.3f}",
        f"{row['bytes']:.3f}",
        str(row["samples"]) if row["data"] else f"{row['samples']} random",
        _number(row["agreement"], ".1%"),
        "exact" if row["snr_db"] is None else f"{row['snr_db']:.1f} dB",
        f"{row['speedup']:.2f}x",
        f"{row['seconds']:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _answer(path: Path, target: str, answer: Path) -> None:
    row = examine(path, target, REAL.get(path.stem, Real()))
    answer.write_text(json.dumps(row))


def _samples(data: Samples | list[Samples] | None, wanted: int) -> int | None:
    """So many, or all where there are fewer."""
    if data is None:
        return None
    columns = (
        [] if isinstance(data, list) else [v for k, v in data.items() if not k.startswith("test.")]
    )
    return min([wanted, *(len(v) for v in columns)])


def _figures(result: onnx_lowrank.Result) -> Row:
    report = result.report
    first = report.validation.to_dict()["outputs"][0]
    accuracy = report.validation.accuracy
    return {
        "decisions": Counter(d.decision for d in report.decisions),
        "methods": _counted([d.method for d in report.decisions if d.method]),
        "left": _counted([d.reason for d in report.decisions if d.decision != "factorize"]),
        "macs": report.macs_ratio,
        "params": report.after.parameters / max(report.before.parameters, 1),
        "data": bool(result.plan.data),
        "samples": report.validation.samples,
        "agreement": first["top1_agreement"],
        "snr_db": first["snr_db"],
        "accuracy": None if accuracy is None else [accuracy.reference, accuracy.new],
        "speedup": round(report.latency[0].speedup, 3),
        "spread": round(report.latency[0].spread, 3),
        "notes": list(report.notes),
    }


def _problems(old: Path, new: Path, macs: float, ratio: float) -> list[str]:
    """What is wrong with a file that was written."""
    before, after = onnx.load(old), onnx.load(new)
    found = []
    if not _valid(after) and _valid(before):
        found.append("onnx.checker refuses it")
    if _fed(before.graph) != _fed(after.graph):
        found.append("its inputs are others")
    if list(before.graph.output) != list(after.graph.output):
        found.append("its outputs are others")
    if list(before.opset_import) != list(after.opset_import):
        found.append("its opsets are others")
    if before.ir_version != after.ir_version:
        found.append("its IR version is another")
    if macs > ratio:
        found.append(f"{macs:.4f} of the MACs are left, not {ratio}")
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 4  # of weights that are listed as inputs
    onnxruntime.InferenceSession(str(new), quiet, providers=["CPUExecutionProvider"])
    return found


def _fed(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Inputs that are no weights: before IR version 4 weights had to be listed as inputs."""
    weights = {t.name for t in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


def _valid(proto: onnx.ModelProto) -> bool:
    try:
        onnx.checker.check_model(proto)
    except (onnx.checker.ValidationError, ValueError):
        return False
    return True


def _short(reason: str) -> str:
    """What most passes say, of a reason that quotes all of them."""
    if _NOTHING_SAVED in reason:
        return _NOTHING_SAVED
    if "outputs are left" in reason:
        return "fewer channels"
    clauses = Counter(clause.partition(": ")[2] or clause for clause in reason.split("; "))
    return clauses.most_common(1)[0][0]


def _counted(reasons: Sequence[str]) -> dict[str, int]:
    return dict(Counter(reasons).most_common())


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


if __name__ == "__main__":
    main()
