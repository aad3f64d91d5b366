"""A whole network by each method alone, and by all together.

Plan and repair are as usual; only the list of passes differs. *planned error* is what a plan
minimises, before layers are solved again:

    sum_l s_l eps_l,    s_l = variance of the response of layer l / variance of what it ends up in
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

from benchmarks.command import Command, Measure
from benchmarks.measuring import compress_and_measure, in_own_process
from benchmarks.nets import NETS, Net
from benchmarks.prepared import prepared
from benchmarks.rows import Cell, Row
from benchmarks.tables import asked, figure, model, seconds, speedup
from onnx_lowrank.engine.option_groups import DEFAULT_PASSES
from onnx_lowrank.errors import BudgetError
from onnx_lowrank.passkit.base import Factorization
from onnx_lowrank.planning.registry import available

__all__ = ["COMMAND", "begin", "cells", "layer_weights", "lists_of_passes"]

#: the pass that takes longer than all others together
_SLOWEST = "bicluster"


def lists_of_passes() -> dict[str, str]:
    """Passes by name: each factorization alone, the default, and all but the slowest."""
    every = [n for n, cls in available().items() if issubclass(cls, Factorization)]
    alone = {name: f"fold_batchnorm,{name}" for name in every}
    quick = ",".join(name for name in every if name != _SLOWEST)
    together = {f"all but {_SLOWEST}": f"fold_batchnorm,{quick}"}
    return {**alone, "default": DEFAULT_PASSES, **together}


def layer_weights(net: Net, archive: Path) -> dict[str, float]:
    """The weight ``s_l`` of each layer in the plan's sum, on the samples that a plan draws.

    Args:
        net: the model.
        archive: path of its data.
    """
    found = prepared(net.path, archive, net.calibration)
    weights = {}
    for layer in found.layers:
        total = found.moments.totals.get(layer.name, 0.0)
        energy = found.moments[layer.name].energy(layer.stage.matrices)
        weights[layer.name] = energy / total if total > 0 else 1.0
    return weights


def cells(arguments: argparse.Namespace) -> list[Cell]:
    """Every model at every ratio by every list of passes."""
    every = product(arguments.models, arguments.ratios, arguments.passes)
    return [Cell("alone", name, {"target": ratio, "passes": p}) for name, ratio, p in every]


def begin(name: str, folder: Path, arguments: argparse.Namespace) -> Measure:
    """Measures cells of one model, each in a process of its own."""
    net, passes = NETS[name], lists_of_passes()
    archive = net.write(folder)
    weights = layer_weights(net, archive)

    def measure(cell: Cell) -> Row:
        options = {
            "samples": net.calibration,
            "passes": passes[cell.options["passes"]],
            "target": f"macs={cell.options['target']}",
        }
        try:
            found = in_own_process(
                compress_and_measure, net.path, archive, options, arguments.seconds
            )
        except BudgetError as error:
            return cell.ended("refused", str(error))
        planned = sum(weights[layer] * error for layer, error in found.errors.items() if error)
        figures = {**found.figures, "planned_error": planned}
        return cell.measured(found.samples, figures, errors=found.errors)

    return measure


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    passes = lists_of_passes()
    parser.add_argument(
        "--passes", nargs="+", default=list(passes), choices=passes, metavar="PASSES",
        help="lists of passes by name; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--ratios", nargs="+", type=float, default=[0.5], metavar="R",
        help="parts of the MACs to leave; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="seconds for each timing; default: %(default)s"
    )


COMMAND = Command(
    name="alone",
    summary="Compress a whole network by each method alone, and by all together.",
    models=("cifar10_resnet20",),
    choices=list(NETS),
    columns=(
        model(),
        asked("passes", "passes", "`{}`"),
        asked("MACs asked", "target"),
        figure("MACs left", "macs"),
        figure("parameters left", "params"),
        figure("planned error", "planned_error", "{:.3f}"),
        figure("top-1", "accuracy", "{:.1%}"),
        figure("same answer", "agreement", "{:.1%}"),
        speedup("1 thread, batch 1", 1, 1),
        speedup("1 thread, batch 16", 1, 16),
        seconds(),
    ),
    cells=cells,
    begin=begin,
    add_arguments=_add_arguments,
)
