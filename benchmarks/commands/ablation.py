"""What each step from plain SVD to the default brings: one row a step, each on top of the last.

Steps that differ in nothing but the repair share a plan, and the seconds that it took.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import onnx_lowrank
from benchmarks.command import Command, Measure
from benchmarks.measuring import samples_used, speedups, validation_figures
from benchmarks.nets import NETS
from benchmarks.rows import Cell, Row
from benchmarks.tables import accuracy, asked, figure, model, seconds, speedup
from benchmarks.ways import WAYS, options_of
from onnx_lowrank.engine.option_groups import DEFAULT_PASSES

__all__ = ["COMMAND", "STEPS", "begin", "cells"]

#: the default passes without pruning
_CHAINS = DEFAULT_PASSES.replace("prune_channels{optional=true},", "")

#: options of :func:`onnx_lowrank.compress`, in the order of the table
STEPS: dict[str, dict[str, Any]] = {
    "weight space, one ratio": WAYS["weight space, uniform"],
    "response metric, one ratio": WAYS["response metric, uniform"],
    "planned ranks": {"repair": "none", "effort": "quick", "passes": _CHAINS},
    "last stages solved again": {"repair": "last", "effort": "quick", "passes": _CHAINS},
    "whole chains solved again": {"repair": "chain", "effort": "quick", "passes": _CHAINS},
    "behind the ReLU": {"repair": "relu", "effort": "quick", "passes": _CHAINS},
    "with pruning where the judge finds it better": {"repair": "relu", "effort": "normal"},
    "layers weighed in rounds": {"repair": "relu", "effort": "thorough"},
}


def cells(arguments: argparse.Namespace) -> list[Cell]:
    """Every model at every ratio by every step."""
    every = product(arguments.models, arguments.ratios, arguments.steps)
    return [Cell("ablation", name, {"target": ratio, "step": step}) for name, ratio, step in every]


def begin(name: str, folder: Path, arguments: argparse.Namespace) -> Measure:
    """Measures cells of one model; a plan that several steps share is made once."""
    net = NETS[name]
    archive, output = net.write(folder), folder / "out.onnx"
    plans: dict[str, tuple[onnx_lowrank.Plan, float]] = {}

    def planned(options: dict[str, Any]) -> tuple[onnx_lowrank.Plan, float]:
        key = json.dumps(options, sort_keys=True)
        if key not in plans:
            start = time.perf_counter()
            plan = onnx_lowrank.plan(
                net.path, calib=archive, samples=net.calibration, threads=1, **options
            )
            plans[key] = plan, time.perf_counter() - start
        return plans[key]

    def measure(cell: Cell) -> Row:
        options = options_of(STEPS[cell.options["step"]], cell.options["target"], net.path)
        repair = options.pop("repair")
        plan, spent = planned(options)
        start = time.perf_counter()
        result = onnx_lowrank.apply(
            net.path, replace(plan, repair=repair), calib=archive, threads=1, force=True
        )
        spent += time.perf_counter() - start
        result.save(output)
        figures = {
            "macs": result.report.macs_ratio,
            **validation_figures(result.report.validation),
            **speedups(net.path, output, archive, arguments.seconds),
            "seconds": round(spent, 1),
        }
        behind = {
            r.layer: [r.behind_relu.linear, r.behind_relu.error]
            for r in result.report.refits
            if r.behind_relu is not None
        }
        return cell.measured(samples_used(result, archive), figures, behind_relu=behind)

    return measure


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ratios", nargs="+", type=float, default=[0.5, 0.33], metavar="R",
        help="parts of the MACs to leave; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--steps", nargs="+", default=list(STEPS), choices=STEPS, metavar="STEP",
        help="steps to measure; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=float, default=0.0,
        help="seconds for each timing, on one thread; 0, the default, for no timing",
    )  # fmt: skip


COMMAND = Command(
    name="ablation",
    summary="Measure what each step from plain SVD to the default brings.",
    models=("cifar10_resnet20", "cifar10_resnet56", "cifar10_vgg_s"),
    choices=list(NETS),
    columns=(
        model(),
        asked("MACs asked", "target"),
        asked("step", "step"),
        figure("MACs left", "macs"),
        accuracy(),
        figure("same answer", "agreement", "{:.1%}"),
        figure("SNR", "snr", "{:.1f} dB", unbounded="exact"),
        speedup("batch 1", 1, 1),
        speedup("batch 16", 1, 16),
        seconds(),
    ),
    cells=cells,
    begin=begin,
    add_arguments=_add_arguments,
)
