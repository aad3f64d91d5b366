"""Calibration samples selected by their features against samples drawn at random.

All are judged on the same test samples, which are never calibrated on. Selections are made once,
random draws with several seeds: the table shows their mean and scatter.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import onnx_lowrank
from benchmarks.bigger_nets import BIGGER
from benchmarks.command import Command, Measure
from benchmarks.command_line import write_samples
from benchmarks.measuring import samples_used, validation_figures
from benchmarks.nets import NETS, Net
from benchmarks.rows import Cell, Row
from benchmarks.tables import accuracy, asked, figure, model, seconds
from onnx_lowrank.samples.selection import SELECTIONS

__all__ = ["COMMAND", "begin", "cells", "scatter"]

#: models, and the part of their MACs that is left
TARGETS = {"cifar10_resnet20": 0.5, "all_minilm_l6_v2": 0.7, "ppocrv5_rec": 0.7}


def _net(name: str) -> Net:
    return NETS.get(name) or BIGGER[name]


def _path_of(name: str) -> Path:
    return _net(name).path


def cells(arguments: argparse.Namespace) -> list[Cell]:
    """Every selection once, and random draws with as many seeds as the arguments say."""
    return [
        Cell("selected", name, {"target": TARGETS[name], "samples": count, "by": by, "seed": seed})
        for name in arguments.models
        for count in arguments.samples
        for by in arguments.by
        for seed in range(arguments.seeds if by == "random" else 1)
    ]


def begin(name: str, folder: Path, arguments: argparse.Namespace) -> Measure:
    """Measures cells of one model."""
    del arguments
    path, archive = _path_of(name), folder / "samples.npz"
    if name in BIGGER:  # their labels are texts and likenesses, no classes
        write_samples(archive, _net(name).read(), tested=True)
    else:
        _net(name).write(folder)

    def measure(cell: Cell) -> Row:
        asked_for = cell.options
        start = time.perf_counter()
        result = onnx_lowrank.compress(
            path, calib=archive, target=f"macs={asked_for['target']}", effort="quick",
            samples=asked_for["samples"], select=asked_for["by"], seed=asked_for["seed"],
            threads=1, cache="", force=True,
        )  # fmt: skip
        spent = time.perf_counter() - start
        report = result.report
        figures = {
            "macs": report.macs_ratio,
            **validation_figures(report.validation),
            "seconds": round(spent, 1),
        }
        verdict = report.validation.verdict
        if verdict is not None:
            figures["loss"] = verdict.loss.value
        return cell.measured(samples_used(result, archive), figures)

    return measure


def scatter(rows: Sequence[Row]) -> str:
    """Mean and standard deviation over seeds, a line for each model and number of samples."""
    lines = []
    drawn = [r for r in rows if r.options["by"] == "random" and r.figures]
    for name, count in dict.fromkeys((r.model, r.options["samples"]) for r in drawn):
        some = [r for r in drawn if (r.model, r.options["samples"]) == (name, count)]
        said = []
        for key, title, form in _SPREADS:
            values = [v for r in some if (v := r.figures.get(key)) is not None]
            if values:
                said.append(f"{title} {_spread(values, form)}")
        lines.append(f"{name}, {count} at random, {len(some)} seeds: {', '.join(said)}")
    return "\n".join(lines)


def _spread(values: Sequence[float], form: Callable[[float], str]) -> str:
    if len(values) < 2:
        return form(values[0])
    return f"{form(float(np.mean(values)))} ± {form(float(np.std(values, ddof=1)))}"


_SPREADS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("accuracy", "top-1", lambda v: f"{v:.1%}"),
    ("agreement", "same answer", lambda v: f"{v:.1%}"),
    ("snr", "SNR", lambda v: f"{v:.1f} dB"),
    ("loss", "loss", lambda v: f"{v:.2%}"),
)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--samples", type=int, nargs="+", default=[32, 64, 128], metavar="N",
        help="numbers of calibration samples; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--by", nargs="+", default=list(SELECTIONS), choices=SELECTIONS, metavar="RULE",
        help="ways to choose them; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", type=int, default=10, metavar="N",
        help="seeds of random draws; default: %(default)s",
    )  # fmt: skip


def _close(rows: Sequence[Row], arguments: argparse.Namespace) -> None:
    del arguments
    print(scatter(rows))


COMMAND = Command(
    name="selected",
    summary="Calibration samples selected by their features against samples drawn at random.",
    models=list(TARGETS),
    choices=list(TARGETS),
    columns=(
        model(),
        asked("MACs asked", "target"),
        asked("samples", "samples"),
        asked("by", "by"),
        asked("seed", "seed"),
        figure("MACs left", "macs"),
        accuracy(),
        figure("same answer", "agreement", "{:.1%}"),
        figure("SNR", "snr", "{:.1f} dB", unbounded="exact"),
        figure("loss", "loss", "{:.2%}"),
        seconds(),
    ),
    cells=cells,
    begin=begin,
    add_arguments=_add_arguments,
    close=_close,
    path_of=_path_of,
)
