"""Every model by every way to compress it: the figures of the README."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.command import Command, Measure
from benchmarks.measuring import compress_and_measure, in_own_process
from benchmarks.nets import NETS, with_ratios
from benchmarks.rows import Cell, Row
from benchmarks.tables import accuracy, asked, figure, model, seconds, speedup
from benchmarks.ways import WAYS, options_of
from onnx_lowrank.errors import BudgetError

__all__ = ["COMMAND", "begin", "cells"]


def cells(arguments: argparse.Namespace) -> list[Cell]:
    """Every model at each of its targets by each way."""
    return [
        Cell("models", name, {"target": ratio, "method": way})
        for name in arguments.models
        for ratio in NETS[name].ratios
        for way in arguments.methods
    ]


def begin(name: str, folder: Path, arguments: argparse.Namespace) -> Measure:
    """Measures cells of one model, each in a process of its own."""
    net = NETS[name]
    archive = net.write(folder)

    def measure(cell: Cell) -> Row:
        ratio, way = cell.options["target"], WAYS[cell.options["method"]]
        options: dict[str, Any] = options_of(way, ratio, net.path)
        options["samples"] = net.calibration
        try:
            found = in_own_process(
                compress_and_measure, net.path, archive, options, arguments.seconds
            )
        except BudgetError as error:
            return cell.ended("refused", str(error))
        return cell.measured(found.samples, found.figures, errors=found.errors)

    return measure


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--methods", nargs="+", default=list(WAYS), choices=WAYS, metavar="METHOD",
        help="ways to compress; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="seconds for each timing; default: %(default)s"
    )


COMMAND = Command(
    name="models",
    summary="Measure every model by every way to compress it: the table of the README.",
    models=with_ratios(),
    choices=with_ratios(),
    columns=(
        model(),
        asked("MACs asked", "target"),
        asked("method", "method"),
        figure("MACs left", "macs"),
        figure("parameters left", "params"),
        accuracy(),
        figure("same answer", "agreement", "{:.1%}"),
        figure("SNR", "snr", "{:.1f} dB", unbounded="exact"),
        *(speedup(f"{'1 thread' if t == 1 else f'{t} threads'}, batch {b}", t, b)
          for t in (1, 2) for b in (1, 16)),
        seconds(),
        figure("peak bytes", "peak_bytes", "{:.2g}"),
    ),
    cells=cells,
    begin=begin,
    add_arguments=_add_arguments,
)  # fmt: skip
