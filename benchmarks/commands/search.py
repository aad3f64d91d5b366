"""Least models within a drop of accuracy, two targets at once, and half the time.

Labels are used to judge, never to calibrate.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import onnx_lowrank
from benchmarks.command import Command, Measure
from benchmarks.figures import speedup_name
from benchmarks.measuring import samples_used, validation_figures
from benchmarks.nets import NETS
from benchmarks.rows import Cell, Row
from benchmarks.tables import Column, accuracy, asked, figure, model, seconds, speedup
from onnx_lowrank.planning.notes import LatencyOfPlan, LatencyOfPruning, SearchResult
from onnx_lowrank.report.wording import worded

__all__ = ["COMMAND", "NEEDS", "Need", "begin", "cells"]


class Need(NamedTuple):
    """What is asked of a model.

    Attributes:
        model: its name.
        name: the same options as one writes them on the command line.
        options: of :func:`onnx_lowrank.compress`.
    """

    model: str
    name: str
    options: dict[str, Any]


NEEDS = (
    Need("cifar10_vgg_s", "--max-drop 1%", {"max_drop": 0.01}),
    Need("cifar10_vgg_s", "--max-drop 1% --target params=0.25 --target macs",
         {"max_drop": 0.01, "target": ["params=0.25", "macs"]}),
    Need("cifar10_vgg16_bn", "--max-drop 0.4% --target params=0.16 --target macs",
         {"max_drop": 0.004, "target": ["params=0.16", "macs"]}),
    Need("cifar10_vgg16_bn", "--target macs=0.33 --target params=0.16",
         {"target": ["macs=0.33", "params=0.16"]}),
    Need("cifar10_vgg16_bn", "--target macs=0.25 --target params=0.1",
         {"target": ["macs=0.25", "params=0.1"]}),
    Need("cifar10_resnet56", "--target latency=0.5", {"target": "latency=0.5"}),
)  # fmt: skip

#: notes of a report that the table shows
_TOLD = (LatencyOfPlan, LatencyOfPruning, SearchResult)

_MODELS = sorted({need.model for need in NEEDS})
_NAMES = list(dict.fromkeys(need.name for need in NEEDS))


def cells(arguments: argparse.Namespace) -> list[Cell]:
    """What is asked of the models, as far as the arguments name it."""
    return [
        Cell("search", name, {"asked": need.name, "samples": arguments.samples})
        for name in arguments.models
        for need in NEEDS
        if need.model == name and need.name in arguments.needs
    ]


def begin(name: str, folder: Path, arguments: argparse.Namespace) -> Measure:
    """Measures cells of one model on one thread."""
    net, asked_for = NETS[name], {n.name: n.options for n in NEEDS if n.model == name}
    archive = net.write(folder)

    def measure(cell: Cell) -> Row:
        start = time.perf_counter()
        result = onnx_lowrank.compress(
            net.path, calib=archive, samples=cell.options["samples"], threads=1,
            cache=arguments.cache, force=True, **asked_for[cell.options["asked"]],
        )  # fmt: skip
        spent = time.perf_counter() - start
        report = result.report
        figures = {
            "macs": report.macs_ratio,
            "params": report.after.parameters / report.before.parameters,
            **validation_figures(report.validation),
            **{speedup_name(1, p.batch): round(p.speedup, 3) for p in report.latency},
            "seconds": round(spent, 1),
        }
        told = [worded(note) for note in report.notes if isinstance(note, _TOLD)]
        return cell.measured(
            samples_used(result, archive), figures, found=result.plan.target, notes=told
        )

    return measure


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--needs", nargs="+", default=_NAMES, choices=_NAMES, metavar="OPTIONS",
        help="what is asked, each as one argument; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--samples", type=int, default=1000, help="calibration samples; default: %(default)s"
    )
    parser.add_argument(
        "--cache", default="", metavar="FOLDER", help="folder of measured times; none by default"
    )


COMMAND = Command(
    name="search",
    summary="Search the least model within a drop of accuracy, keep two targets, halve the time.",
    models=_MODELS,
    choices=_MODELS,
    columns=(
        model(),
        asked("asked", "asked", "`{}`"),
        Column("found", lambda row: row.details.get("found", "")),
        accuracy(),
        figure("MACs left", "macs"),
        figure("parameters left", "params"),
        speedup("batch 1", 1, 1),
        speedup("batch 16", 1, 16),
        seconds(),
        Column("what was said", lambda row: "; ".join(row.details.get("notes", []))),
    ),
    cells=cells,
    begin=begin,
    add_arguments=_add_arguments,
)
