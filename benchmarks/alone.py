"""``python -m benchmarks.alone``: a whole network by each method alone, and by all together.

Plan and refit as usual, only the list of passes differs. A budget out of a method's reach is
reported with what it does reach. *planned error* is what a plan minimises, before the refit:

    sum_l s_l eps_l,    s_l = variance of the response of layer l / variance of what it ends up in
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.metrics import in_own_process
from benchmarks.models import MODELS, Benchmark
from onnx_lowrank.analysis.preparation import measured_shapes, moments_of
from onnx_lowrank.engine.api import DEFAULT_PASSES
from onnx_lowrank.errors import BudgetError
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import find_layers
from onnx_lowrank.modelfile.model import load
from onnx_lowrank.passkit.base import Factorization
from onnx_lowrank.passkit.runner import canonicalise
from onnx_lowrank.planning.registry import available, parse_list
from onnx_lowrank.progress import Progress
from onnx_lowrank.runtime.runtime import Runtime
from onnx_lowrank.samples.split import gather

__all__ = ["layer_weights", "lists_of_passes", "parser"]


#: takes longer than all others together
SLOWEST = "bicluster"


def lists_of_passes() -> dict[str, str]:
    """What is run, by name: each factorization alone, the default, and all but the slowest."""
    every = [n for n, cls in available().items() if issubclass(cls, Factorization)]
    alone = {name: f"fold_batchnorm,{name}" for name in every}
    quick = ",".join(name for name in every if name != SLOWEST)
    together = {f"all but {SLOWEST}": f"fold_batchnorm,{quick}"}
    return {**alone, "default": DEFAULT_PASSES, **together}


def layer_weights(benchmark: Benchmark, archive: Path) -> dict[str, float]:
    """The weight ``s_l`` of each layer in the plan's sum, on the samples that a run draws.

    Args:
        benchmark: the model.
        archive: its data, as a run is given it.
    """
    source, runtime = load(benchmark.path), Runtime(threads=1)
    data = gather(source, archive, benchmark.calibration, None, None, 0, runtime)
    assert data.calibration is not None
    canonical = canonicalise(source, parse_list("fold_batchnorm")[0])
    graph = Graph(canonical)
    layers, _ = find_layers(graph)
    shapes = measured_shapes(canonical, graph, layers, data.validation, runtime)
    store = moments_of(graph, layers, data.calibration, runtime, shapes, 0, Progress())
    weights = {}
    for layer in layers:
        total = store.totals.get(layer.name, 0.0)
        energy = store[layer.name].energy(layer.stage.matrices)
        weights[layer.name] = energy / total if total > 0 else 1.0
    return weights


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    passes = lists_of_passes()
    made = argparse.ArgumentParser(prog="python -m benchmarks.alone", description=__doc__)
    made.add_argument("--model", default="cifar10_resnet20", choices=MODELS)
    made.add_argument("--passes", nargs="+", default=list(passes), choices=passes)
    made.add_argument("--ratios", nargs="+", type=float, default=[0.5])
    made.add_argument("--seconds", type=float, default=2.0, help="for each timing")
    made.add_argument("--out", type=Path, default=Path("benchmarks/results/alone.json"))
    return made


def main() -> None:
    """Measure what the arguments name."""
    arguments, passes = parser().parse_args(), lists_of_passes()
    benchmark = MODELS[arguments.model]
    rows: list[dict[str, Any]] = []
    print(_header())
    with TemporaryDirectory() as folder:
        archive = Path(folder) / "samples.npz"
        np.savez(archive, **benchmark.read())  # type: ignore[arg-type]
        weights = layer_weights(benchmark, archive)
        for ratio, name in product(arguments.ratios, arguments.passes):
            options = {"samples": benchmark.calibration, "passes": passes[name]}
            job = (benchmark.path, archive, ratio, options, arguments.seconds)
            row: dict[str, Any] = {"passes": name, "target": ratio}
            try:
                row |= in_own_process(job)
                row["planned_error"] = sum(weights[la] * e for la, e in row["errors"].items() if e)
            except BudgetError as error:
                row["refused"] = str(error)
            rows.append(row)
            print(_line(row), flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"model": arguments.model, "rows": rows}, indent=1))


def _header() -> str:
    names = ["passes", "MACs asked", "MACs left", "parameters left", "planned error", "top-1",
             "same answer", "1 thread, batch 1", "1 thread, batch 16", "seconds"]  # fmt: skip
    return f"| {' | '.join(names)} |\n|{'---|' * len(names)}"


def _line(row: Mapping[str, Any]) -> str:
    start = [f"`{row['passes']}`", f"{row['target']}"]
    if "refused" in row:
        return f"| {' | '.join([*start, row['refused'].partition(',')[0], *[''] * 7])} |"
    speed = row["speedup"]
    cells = [
        *start,
        f"{row['macs']:.2f}",
        f"{row['params']:.2f}",
        f"{row['planned_error']:.3f}",
        "" if row["accuracy"] is None else f"{row['accuracy']:.1%}",
        "" if row["agreement"] is None else f"{row['agreement']:.1%}",
        f"{speed['threads 1, batch 1']:.2f}x",
        f"{speed['threads 1, batch 16']:.2f}x",
        f"{row['seconds']:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
