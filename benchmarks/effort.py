"""``python -m benchmarks.effort``: what takes time beside MACs, in MACs.

Every chain that the passes propose is timed in the place of its layer, in ONNX Runtime on one
thread, and the features of :mod:`onnx_lowrank.analysis.time_model` are fitted to the times, in
relative error. A
plan by MACs counts by what comes out (``work.TOUCHED`` and its neighbours).
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from benchmarks.models import MODELS
from benchmarks.rows import head
from onnx_lowrank.analysis.time_model import CALLED, STRAYED, TOUCHED
from onnx_lowrank.engine.run import Run
from onnx_lowrank.engine.workbench import DataOptions
from onnx_lowrank.latency.fit import Sample
from onnx_lowrank.latency.probe import place_of
from onnx_lowrank.latency.table import LatencyTable
from onnx_lowrank.latency.timer import RuntimeTimer
from onnx_lowrank.planning.proposals import make_choices
from onnx_lowrank.planning.registry import parse_list
from onnx_lowrank.planning.timed_candidates import TimingOptions
from onnx_lowrank.progress import Progress
from onnx_lowrank.runtime.runtime import Runtime

__all__ = ["HEADER", "Rates", "fitted", "parser", "timed"]

PASSES = "fold_batchnorm,svd,spatial_svd,channel_svd,cp,cp{form=three},tucker2"
#: of the calibration samples: times do not depend on what is fitted to them
SAMPLES = 100

HEADER = (
    "model", "batch", "chains", "ns a MAC", "a number moved", "a number out of blocks", "a node",
    "scatter", "scatter of what plans count by",
)  # fmt: skip


class Rates(NamedTuple):
    """Nanoseconds of a MAC; all else in MACs; scatter of the logarithms of what is left."""

    mac: float
    moved: float
    strayed: float
    called: float
    scatter: float
    scatter_of_plans: float


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.effort", description=__doc__)
    names = [n for n in MODELS if not n.startswith("digits")]
    made.add_argument("--models", nargs="+", default=names)
    made.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    made.add_argument("--limit", type=float, default=120.0, help="seconds for each, about")
    return made


def main() -> None:
    """Measure what the arguments name."""
    arguments = parser().parse_args()
    every: list[Sample] = []
    print(head(HEADER))
    for name in arguments.models:
        if not MODELS[name].path.is_file():
            print(f"| {name} | not at hand |")
            continue
        for batch in arguments.batches:
            found = timed(name, batch, arguments.limit)
            every += found
            print(line(name, str(batch), found), flush=True)
    if every:
        print(line("all", "", every))


def timed(name: str, batch: int, limit: float) -> list[Sample]:
    """Chains of a model with their times."""
    passes = parse_list(PASSES)
    run = Run(
        MODELS[name].path, passes, DataOptions(MODELS[name].read(), SAMPLES, None, None, 0),
        Runtime(threads=1), TimingOptions(batch), None,
    )  # fmt: skip
    work = run.prepared
    proposals = make_choices(
        work.layers, passes.factorizations, work.moments, work.shapes, "macs", {}, Progress()
    )
    feed, shapes = run.at_batch(work)
    table = LatencyTable(RuntimeTimer(run.runtime), limit=limit)
    table.measure(
        work.model, feed,
        [(place_of(work.graph, la, shapes), proposals.outlines[la.name]) for la in work.layers],
    )  # fmt: skip
    return table.samples


def fitted(samples: list[Sample]) -> Rates:
    """What the times come from."""
    seconds = np.array([s.seconds for s in samples])
    # bytes of single precision to numbers
    features = np.array([s.features for s in samples]) / (1, 4, 4, 1)
    rates, _ = nnls(features / seconds[:, None], np.ones(len(seconds)))
    mac = max(float(rates[0]), 1e-15)
    plans = features @ np.array([1, TOUCHED, STRAYED, CALLED])

    def scatter(expected: npt.NDArray[np.float64]) -> float:
        return float(np.std(np.log(seconds / expected)))

    moved, strayed, called = (float(r) / mac for r in rates[1:])
    return Rates(1e9 * mac, moved, strayed, called, scatter(features @ rates), scatter(plans))


def line(name: str, batch: str, samples: list[Sample]) -> str:
    """A row of the table."""
    r = fitted(samples)
    return (
        f"| {name} | {batch} | {len(samples)} | {r.mac:.4f} | {r.moved:.1f} | {r.strayed:.0f} "
        f"| {r.called:,.0f} | {r.scatter:.2f} | {r.scatter_of_plans:.2f} |"
    )


if __name__ == "__main__":
    main()
