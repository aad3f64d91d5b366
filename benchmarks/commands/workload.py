"""What takes time beside MACs, in MACs: the constants of the library's time model.

Every chain that the passes propose is timed in the place of its layer, in ONNX Runtime on one
thread, and the features of :mod:`onnx_lowrank.analysis.time_model` are fitted to the times, in
relative error. The last line fits all models and batches together; that is what the constants of
the time model come from.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from benchmarks.command import Command, Measure
from benchmarks.nets import NETS, with_ratios
from benchmarks.prepared import prepared_to_time
from benchmarks.rows import Cell, Row
from benchmarks.tables import asked, figure, line, model
from onnx_lowrank.analysis.time_model import CALL, READ, RELAYOUT
from onnx_lowrank.latency.fit import Sample
from onnx_lowrank.latency.probe import place_of
from onnx_lowrank.latency.table import LatencyTable
from onnx_lowrank.latency.timer import RuntimeTimer
from onnx_lowrank.planning.asking import Question
from onnx_lowrank.planning.proposals import make_choices
from onnx_lowrank.planning.registry import parse_list
from onnx_lowrank.progress import Progress
from onnx_lowrank.runtime.runtime import Runtime

__all__ = ["COMMAND", "Rates", "begin", "cells", "fitted"]

PASSES = "svd,spatial_svd,channel_svd,cp,cp{form=three},tucker2"

#: calibration samples: times do not depend on what is fitted to them
_SAMPLES = 100


class Rates(NamedTuple):
    """What the times come from.

    Attributes:
        mac: nanoseconds of a MAC.
        moved: MACs in the time of a number that a node reads or writes.
        relayout: MACs in the time of a number that is converted out of the blocked layout and back.
        called: MACs in the time of calling a node.
        scatter: standard deviation of the logarithm of the times that these leave unexplained.
        scatter_of_plans: the same of the constants that plans count by.
    """

    mac: float
    moved: float
    relayout: float
    called: float
    scatter: float
    scatter_of_plans: float


def cells(arguments: argparse.Namespace) -> list[Cell]:
    """Every model at every batch size."""
    every = product(arguments.models, arguments.batches)
    return [Cell("workload", name, {"batch": batch}) for name, batch in every]


def begin(name: str, folder: Path, arguments: argparse.Namespace) -> Measure:
    """Measures cells of one model."""

    def measure(cell: Cell) -> Row:
        samples = _timed(name, cell.options["batch"], arguments.limit)
        return cell.measured(
            {"calibration": _SAMPLES}, _figures(samples),
            chains=[[s.form, list(s.features), s.seconds] for s in samples],
        )  # fmt: skip

    return measure


def fitted(samples: Sequence[Sample]) -> Rates:
    """Rates fitted to the times of chains."""
    seconds = np.array([s.seconds for s in samples])
    # bytes of single precision to numbers
    features = np.array([s.features for s in samples]) / (1, 4, 4, 1)
    rates, _ = nnls(features / seconds[:, None], np.ones(len(seconds)))
    mac = max(float(rates[0]), 1e-15)
    plans = features @ np.array([1, READ, RELAYOUT, CALL])

    def scatter(expected: npt.NDArray[np.float64]) -> float:
        return float(np.std(np.log(seconds / expected)))

    moved, relayout, called = (float(r) / mac for r in rates[1:])
    return Rates(1e9 * mac, moved, relayout, called, scatter(features @ rates), scatter(plans))


def _timed(name: str, batch: int, limit: float) -> list[Sample]:
    """Chains of a model with their times."""
    net = NETS[name]
    found, feed, shapes = prepared_to_time(net.path, net.read(), _SAMPLES, batch)
    proposals = make_choices(
        found.layers, Question(parse_list(PASSES).factorizations, "macs"), found.moments,
        found.shapes, {}, Progress(),
    )  # fmt: skip
    table = LatencyTable(RuntimeTimer(Runtime(threads=1)), limit=limit)
    table.measure(
        found.model, feed,
        [(place_of(found.graph, la, shapes), proposals.outlines[la.name]) for la in found.layers],
    )  # fmt: skip
    return table.samples


def _figures(samples: Sequence[Sample]) -> dict[str, float]:
    rates = fitted(samples)
    return {
        "chains": len(samples),
        "mac_time": rates.mac,
        "number_moved": rates.moved,
        "number_out_of_blocks": rates.relayout,
        "node_called": rates.called,
        "scatter": rates.scatter,
        "scatter_of_plans": rates.scatter_of_plans,
    }


def _close(rows: Sequence[Row], arguments: argparse.Namespace) -> None:
    """Print the rates that fit all rows together."""
    samples = [
        Sample(form, tuple(features), seconds)
        for row in rows
        for form, features, seconds in row.details["chains"]
    ]
    if samples:
        together = Cell("workload", "all", {"batch": "all"}).measured({}, _figures(samples))
        print(line(together, COMMAND.columns))


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batches", nargs="+", type=int, default=[1, 16], metavar="N",
        help="samples of a timed inference; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--limit", type=float, default=120.0, help="seconds for each, about; default: %(default)s"
    )


COMMAND = Command(
    name="workload",
    summary="Time chains in place, and fit what the time model counts beside MACs.",
    models=[name for name in with_ratios() if not name.startswith("digits")],
    choices=list(NETS),
    columns=(
        model(),
        asked("batch", "batch"),
        figure("chains", "chains", "{:.0f}"),
        figure("ns a MAC", "mac_time", "{:.4f}"),
        figure("a number moved", "number_moved", "{:.1f}"),
        figure("a number out of blocks", "number_out_of_blocks", "{:.0f}"),
        figure("a node", "node_called", "{:,.0f}"),
        figure("scatter", "scatter"),
        figure("scatter of what plans count by", "scatter_of_plans"),
    ),
    cells=cells,
    begin=begin,
    add_arguments=_add_arguments,
    close=_close,
)
