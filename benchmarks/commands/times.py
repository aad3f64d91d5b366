"""What compressing costs in time and memory, step by step, and what speed it brings.

Each model is compressed by the command line in a process of its own, with default passes. The unit
that other machines have too is a pass: one run of the original over the calibration samples, by
ONNX Runtime alone. With ``--against`` a second table sets the rows beside those of an earlier file.
"""

from __future__ import annotations

import argparse
import pstats
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.answers import snr_db
from benchmarks.command import Command, Measure
from benchmarks.command_line import compress, failure, parts_left, write_samples
from benchmarks.commands.kept import ALL
from benchmarks.figures import promise_name, speedup_name
from benchmarks.measuring import speedups
from benchmarks.nets import Samples
from benchmarks.rows import MEASURED, Cell, Results, Row
from benchmarks.tables import Column, asked, figure, markdown, model, seconds, speedup
from benchmarks.user_measures import batches, first_output, open_session

__all__ = ["ASKS", "COMMAND", "Ask", "begin", "cells", "hot_spots", "pass_seconds", "ratios"]

#: functions that a profile names
_HOT = 25
#: held-out samples whose answers are compared
_COMPARED = 100


class Ask(NamedTuple):
    """What is asked of a model, and what it may cost on two idle cores.

    Attributes:
        model: its name.
        samples: number of calibration samples.
        seconds: longest wall time.
        gigabytes: largest memory; None where it is small anyhow.
        target: as on the command line.
    """

    model: str
    samples: int
    seconds: float
    gigabytes: float | None = None
    target: str = "macs=0.7"


ASKS = (
    Ask("digits_vgg", 1000, 6, target="macs=0.5"),
    Ask("all_minilm_l6_v2", 500, 35, 1),
    Ask("ppocrv5_rec", 150, 45, 1),
    Ask("yolov8n_320", 100, 90, 1),
    Ask("open_nsfw", 200, 100, 1),
    Ask("vit_s_focus", 200, 240, 2),
    Ask("cifar10_resnet20", 500, 12),
    Ask("cifar10_resnet56", 500, 35),
    Ask("cifar10_vgg16_bn", 1000, 150, 2),
)

_BY_MODEL = {ask.model: ask for ask in ASKS}


def cells(arguments: argparse.Namespace) -> list[Cell]:
    """Each model that the arguments name, once."""
    return [
        Cell("time", name, {
            "target": _BY_MODEL[name].target,
            "samples": arguments.samples or _BY_MODEL[name].samples,
            "profile": arguments.profile,
        })
        for name in arguments.models
    ]  # fmt: skip


def begin(name: str, folder: Path, arguments: argparse.Namespace) -> Measure:
    """Measures the cells of one model."""
    net = ALL[name]
    samples = net.read()
    archive, output, profile = (folder / f"{k}" for k in ("samples.npz", "out.onnx", "profile"))
    there = write_samples(archive, samples, tested=True)
    tested = {
        k.removeprefix("test."): v[:_COMPARED] for k, v in samples.items() if k.startswith("test.")
    }

    def measure(cell: Cell) -> Row:
        count = min(cell.options["samples"], there)
        options = ["--calib", str(archive), "--samples", str(count), "--seed", "0", "--force"]
        options += ["--target", cell.options["target"]]
        one = pass_seconds(net.path, {k: v[:count] for k, v in samples.items()})
        profiled = cell.options["profile"]
        ended = compress(net.path, output, options, profile=profile if profiled else None)
        if ended.code:
            return failure(cell, ended)
        left = parts_left(ended)
        faster = speedups(net.path, output, archive, arguments.seconds)
        figures = {
            "seconds": round(ended.seconds, 1),
            "cpu_seconds": round(ended.cpu_seconds, 1),
            "pass_seconds": one,
            "passes": ended.seconds / one,
            "peak_bytes": ended.peak_bytes,
            **left,
            **faster,
            **{promise_name(b): faster[speedup_name(1, b)] * left["macs"]
               for b in (1, 16) if faster},
            "snr": snr_db(*(first_output(path, tested) for path in (net.path, output))),
        }  # fmt: skip
        used = {"calibration": count, "test": len(next(iter(tested.values())))}
        details: dict[str, Any] = {"steps": ended.report["seconds"]}
        if profiled:
            details["hot_spots"] = hot_spots(profile)
        return cell.measured(used, figures, **details)

    return measure


def pass_seconds(path: Path, inputs: Samples) -> float:
    """Wall time of one run of a model over all samples, in batches, with a session that is warm."""
    session = open_session(path)
    session.run(None, next(batches(session, inputs)))
    start = time.perf_counter()
    for feed in batches(session, inputs):
        session.run(None, feed)
    return time.perf_counter() - start


def hot_spots(profile: Path, most: int = _HOT) -> list[list[Any]]:
    """Own seconds, calls and name of the functions that took the most time themselves."""
    every: dict[tuple[str, int, str], tuple[int, int, float, float, Any]]
    every = vars(pstats.Stats(str(profile)))["stats"]
    first = sorted(every.items(), key=lambda item: -item[1][2])[:most]
    return [
        [round(own, 3), calls, f"{_from_package(file)}:{line} {function}"]
        for (file, line, function), (_, calls, own, _, _) in first
    ]


def ratios(before: Row, now: Row) -> list[str]:
    """Cells that set a row beside an earlier one of the same cell, with the ratio of both."""
    old, new = before.details["steps"], now.details["steps"]
    return [
        now.model,
        *(_change(before.figures.get(k), now.figures.get(k), form, scale)
          for _, k, form, scale in _COMPARISONS),
        ", ".join(f"{k} {old.get(k, 0):.1f} -> {new.get(k, 0):.1f}" for k in {**old, **new}),
    ]  # fmt: skip


#: heading, figure, form and scale of what is compared
_COMPARISONS = (
    ("seconds", "seconds", "{:.1f}", 1.0),
    ("CPU seconds", "cpu_seconds", "{:.1f}", 1.0),
    ("passes", "passes", "{:.1f}", 1.0),
    ("peak GB", "peak_bytes", "{:.2f}", 1e-9),
    ("MACs left", "macs", "{:.3f}", 1.0),
    ("batch 1", speedup_name(1, 1), "{:.2f}x", 1.0),
    ("batch 16", speedup_name(1, 16), "{:.2f}x", 1.0),
    ("SNR", "snr", "{:.1f} dB", 1.0),
)


def _change(before: float | None, now: float | None, form: str, scale: float) -> str:
    if before is None or now is None:
        return ""
    ratio = f" ({now / before:.2f})" if before else ""
    return f"{form.format(scale * before)} -> {form.format(scale * now)}{ratio}"


def _from_package(file: str) -> str:
    """A path without the folders that differ from machine to machine."""
    return re.sub(r"^.*/(?=(onnx_lowrank|passes)/)|^.*/(?:site-packages|python3\.\d+)/", "", file)


def _close(rows: Sequence[Row], arguments: argparse.Namespace) -> None:
    """Print the profiles, and the rows beside earlier ones."""
    for row in rows:
        if spots := row.details.get("hot_spots"):
            lines = [[f"{own:.2f}", str(calls), name] for own, calls, name in spots]
            print(f"\n{row.model}\n\n{markdown(['own seconds', 'calls', 'function'], lines)}")
    if arguments.against is None:
        return
    known = Results(arguments.against).rows
    pairs = [
        (known[row.key], row)
        for row in rows
        if row.key in known and row.status == known[row.key].status == MEASURED
    ]
    headings = ["model", *(heading for heading, *_ in _COMPARISONS), "steps"]
    print(f"\n{markdown(headings, [ratios(*pair) for pair in pairs])}")


def _file(text: str) -> Path:
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"{text} is not there; name a file of rows")
    return Path(text)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--samples", type=int, metavar="N",
        help="calibration samples to draw; by default as many as the table says",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="seconds for each timing; default: %(default)s"
    )
    parser.add_argument(
        "--profile", action="store_true",
        help=f"run under cProfile, which slows it down, and print the {_HOT} functions of the main "
        "thread that take the most time themselves",
    )  # fmt: skip
    parser.add_argument(
        "--against", type=_file, metavar="FILE", help="rows of an earlier run to compare with"
    )


def _steps(row: Row) -> str:
    """Seconds of each step, the longest first."""
    steps = sorted(row.details.get("steps", {}).items(), key=lambda item: -item[1])
    return ", ".join(f"{step} {spent:.1f}" for step, spent in steps)


def _bound(value: Callable[[Ask], float | None]) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        bound = value(_BY_MODEL[row.model])
        return "" if bound is None else f"<= {bound:g}"

    return text


def _peak(row: Row) -> str:
    peak = row.figures.get("peak_bytes")
    return "" if peak is None else f"{peak / 1e9:.2f}"


COMMAND = Command(
    name="time",
    summary="Measure what compressing costs in time and memory, and what speed it brings.",
    models=list(_BY_MODEL),
    choices=list(_BY_MODEL),
    columns=(
        model(),
        asked("asked", "target"),
        asked("samples", "samples"),
        seconds(),
        Column("wanted", _bound(lambda ask: ask.seconds), of_question=True),
        figure("CPU seconds", "cpu_seconds", "{:.0f}"),
        figure("passes", "passes", "{:.1f}"),
        Column("peak GB", _peak),
        Column("wanted", _bound(lambda ask: ask.gigabytes), of_question=True),
        Column("seconds of each step", _steps),
        figure("MACs left", "macs"),
        speedup("batch 1", 1, 1),
        figure("of what MACs promise", promise_name(1)),
        speedup("batch 16", 1, 16),
        figure("of what MACs promise", promise_name(16)),
        figure("SNR", "snr", "{:.1f} dB", unbounded="exact"),
    ),
    cells=cells,
    begin=begin,
    add_arguments=_add_arguments,
    close=_close,
    path_of=lambda name: ALL[name].path,
)
