"""What pruning costs and brings, alone and with factorization.

- ``mnist``: parameters left against error, alone and together, and with fewer samples;
- ``chains``: in which order channels are chosen, by what, and how weights are mended;
- ``cifar``: five nets to a part of their MACs, with and without pruning, by the clock;
- ``rivals``: the same nets pruned by onnxsim, in an interpreter that has it (``--onnxsim``), and
  by its rule, the L2 norm of the filters, from our pass.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

import onnx_lowrank
from benchmarks.command import Command, Measure
from benchmarks.measuring import calibration_count, cost_figures, speedups
from benchmarks.nets import NETS
from benchmarks.onnxsim_peer import prune_with_onnxsim
from benchmarks.pruning_cells import MODELS, PARTS, TIMED
from benchmarks.pruning_picture import picture
from benchmarks.rows import Cell, Row
from benchmarks.tables import Column, asked, figure, model, seconds, speedup
from onnx_lowrank.errors import BudgetError

__all__ = ["COMMAND", "answers", "begin", "cells"]

_BATCH = 50


def cells(arguments: argparse.Namespace) -> list[Cell]:
    """Cells of the parts, ways and targets that are named, model by model."""
    found = [cell for part in arguments.parts for cell in PARTS[part]()]
    return [
        cell
        for name in arguments.models
        for cell in found
        if cell.model == name
        and (arguments.ways is None or cell.options["way"] in arguments.ways)
        and (arguments.targets is None or cell.options["target"] in arguments.targets)
    ]


def begin(name: str, folder: Path, arguments: argparse.Namespace) -> Measure:
    """Measures cells of one model."""
    net = NETS[name]
    archive, output = net.write(folder), folder / "out.onnx"
    there = calibration_count(archive)
    tested, labels = _tested(archive)
    before = answers(net.path, tested)

    def measure(cell: Cell) -> Row:
        options, details = cell.options, dict[str, Any]()
        count = min(options["samples"] or there, there)
        start = time.perf_counter()
        try:
            if options["passes"]:
                details = _compressed(cell, net.path, archive, output, count, there)
            elif arguments.onnxsim is None:
                return cell.ended("refused", "no interpreter with onnxsim is named by --onnxsim")
            else:
                ratio = float(options["target"].partition("=")[2])
                data = archive if "Wanda" in options["way"] else None
                prune_with_onnxsim(arguments.onnxsim, net.path, output, ratio, data, count)
        except BudgetError as error:
            return cell.ended("refused", str(error))
        spent = time.perf_counter() - start
        after = answers(output, tested)
        timed = arguments.seconds if options["part"] in TIMED else 0.0
        figures = {
            **cost_figures(net.path, output),
            "wrong_before": int(np.sum(before != labels)),
            "wrong": int(np.sum(after != labels)),
            "differ": int(np.sum(before != after)),
            **speedups(net.path, output, archive, timed),
            "seconds": round(spent, 1),
        }
        return cell.measured({"calibration": count, "test": len(labels)}, figures, **details)

    return measure


def answers(path: Path, inputs: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.intp]:
    """The largest class of each sample by the first output of a model, ``(samples,)``."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    count = len(next(iter(inputs.values())))
    found = []
    for at in range(0, count, _BATCH):
        (scores, *_) = session.run(None, {k: v[at : at + _BATCH] for k, v in inputs.items()})
        found.append(scores.reshape(len(scores), -1).argmax(axis=1))
    return np.concatenate(found)


def _compressed(
    cell: Cell, path: Path, archive: Path, output: Path, count: int, there: int
) -> dict[str, Any]:
    """Compress as a cell says, and return what the plan foresaw and left of each group."""
    options = cell.options
    result = onnx_lowrank.compress(
        path, calib=archive, target=options["target"], passes=options["passes"],
        samples=None if count == there else count, repair=options["repair"], threads=1,
        seed=options["seed"], force=True,
    )  # fmt: skip
    result.save(output)
    return {
        "predicted_loss": sum(g.loss for g in result.plan.groups),
        "groups": {g.name: [len(g.kept), g.size] for g in result.plan.groups if g.kept},
    }


def _tested(archive: Path) -> tuple[dict[str, npt.NDArray[Any]], npt.NDArray[Any]]:
    """Held-out inputs by name, and their labels."""
    with np.load(archive, allow_pickle=False) as samples:
        tested = {k[5:]: samples[k] for k in samples.files if k.startswith("test.")}
    return tested, tested.pop("labels")


def _percent(row: Row, name: str) -> float:
    return 100 * (row.figures.get(name) or 0.0) / row.samples["test"]


def _error(row: Row) -> str:
    if "wrong" not in row.figures:
        return ""
    return f"{_percent(row, 'wrong_before'):.2f} -> {_percent(row, 'wrong'):.2f} %"


def _change(row: Row) -> str:
    if "wrong" not in row.figures:
        return ""
    return f"{_percent(row, 'wrong') - _percent(row, 'wrong_before'):+.2f}"


def _differ(row: Row) -> str:
    return f"{_percent(row, 'differ'):.2f} %" if "differ" in row.figures else ""


def _samples(row: Row) -> str:
    """Calibration samples, and which draw of them where there are others."""
    draw = f", draw {row.options['seed']}" if row.options["seed"] else ""
    return f"{row.options['samples'] or 'all'}{draw}"


def _close(rows: Sequence[Row], arguments: argparse.Namespace) -> None:
    chains = [row for row in rows if row.options["part"] == "chains"]
    if chains:
        picture(arguments.picture, chains)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--parts", nargs="+", default=list(PARTS), choices=PARTS, metavar="PART",
        help="parts of the benchmark; default: %(default)s",
    )  # fmt: skip
    parser.add_argument("--ways", nargs="+", metavar="WAY", help="measure only these ways")
    parser.add_argument(
        "--targets", nargs="+", metavar="TARGET", help="measure only these budgets: macs=0.5"
    )
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="seconds for each timing; default: %(default)s"
    )
    parser.add_argument("--onnxsim", metavar="PYTHON", help="an interpreter that has onnxsim")
    parser.add_argument(
        "--picture", type=Path, default=Path("benchmarks/results/pruning.svg"), metavar="FILE",
        help="where to draw the part chains, .svg or .png; default: %(default)s",
    )  # fmt: skip


COMMAND = Command(
    name="pruning",
    summary="Prune alone and with factorization, beside onnxsim, and by every way to choose.",
    models=MODELS,
    choices=list(NETS),
    columns=(
        asked("part", "part"),
        model(),
        asked("target", "target"),
        asked("way", "way"),
        Column("samples", _samples, of_question=True),
        figure("MACs left", "macs", "{:.3f}"),
        figure("parameters left", "params", "{:.3f}"),
        Column("error", _error),
        Column("change", _change),
        Column("answers that differ", _differ),
        speedup("batch 1", 1, 1),
        speedup("batch 16", 1, 16),
        seconds(),
    ),
    cells=cells,
    begin=begin,
    add_arguments=_add_arguments,
    close=_close,
)
