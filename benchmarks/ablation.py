"""``python -m benchmarks.ablation``: what each step from plain SVD to the default brings.

One row a step, each on top of the one before, on the same samples. Rows go into one JSON file;
rows that are there already are measured again only with ``--again``. Steps that differ in nothing
but the repair share a plan, and its seconds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import onnx_lowrank
from benchmarks.methods import METHODS, ends
from benchmarks.metrics import asked
from benchmarks.models import MODELS, Benchmark
from benchmarks.rows import head, known_rows, write_rows
from onnx_lowrank.engine.api import DEFAULT_PASSES
from onnx_lowrank.latency.pairs import measure_latency
from onnx_lowrank.modelfile.model import load
from onnx_lowrank.planning.plan import Plan
from onnx_lowrank.runtime.runtime import Runtime

__all__ = ["HEADER", "STEPS", "key_of", "line", "measured", "parser"]

Row = Mapping[str, Any]

#: options of :func:`onnx_lowrank.compress`, in the order of the table
STEPS: dict[str, dict[str, Any]] = {
    "weight space, one ratio": METHODS["weight space, uniform"],
    "response metric, one ratio": METHODS["response metric, uniform"],
    "planned ranks": {"repair": "none", "rounds": 0},
    "last stages solved again": {"repair": "last", "rounds": 0},
    "whole chains solved again": {"repair": "chain", "rounds": 0},
    "behind the ReLU": {"repair": "relu", "rounds": 0},
    "layers weighed by a round": {"repair": "relu", "rounds": 1},
    "with pruning wherever the plan likes it": {
        "repair": "relu",
        "rounds": 1,
        "passes": DEFAULT_PASSES.replace("prune_channels{gain=2}", "prune_channels"),
    },
}

NETS = ("cifar10_resnet20", "cifar10_resnet56", "cifar10_vgg_s")
RATIOS = (0.5, 0.33)
HEADER = (
    "model", "MACs asked", "step", "MACs left", "top-1", "same answer", "SNR", "batch 1",
    "batch 16", "seconds",
)  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__)
    made.add_argument("--models", nargs="+", default=list(NETS), choices=MODELS)
    made.add_argument("--ratios", nargs="+", type=float, default=list(RATIOS), help="of MACs left")
    made.add_argument("--steps", nargs="+", default=list(STEPS), choices=STEPS)
    made.add_argument("--seconds", type=float, default=0.0, help="to time each result, at batch 1 "
                      "and 16 and one thread; 0 for no timing")  # fmt: skip
    made.add_argument("--again", action="store_true", help="measure what has been measured")
    made.add_argument("--out", type=Path, default=Path("benchmarks/results/ablation.json"))
    return made


def main() -> None:
    """Measure what the arguments name."""
    arguments = parser().parse_args()
    rows: dict[str, Row] = known_rows(arguments.out)
    print(head(HEADER))
    for name in arguments.models:
        if not MODELS[name].path.is_file():
            print(f"| {name} | not at hand |")
            continue
        known = {} if arguments.again else rows
        cells = list(product(arguments.ratios, arguments.steps))
        for row in measured(name, MODELS[name], cells, known, arguments.seconds):
            rows[key_of(row)] = row
            write_rows(arguments.out, rows)
            print(line(row), flush=True)


def measured(
    name: str,
    benchmark: Benchmark,
    cells: Sequence[tuple[float, str]],
    known: Mapping[str, Row],
    seconds: float = 0.0,
) -> Iterator[Row]:
    """A row for each ratio and step, in order: those that are known, the others measured."""
    plans: dict[str, tuple[Plan, float]] = {}
    with TemporaryDirectory() as folder:
        archive = Path(folder) / "samples.npz"
        for ratio, step in cells:
            start: Row = {"model": name, "ratio": ratio, "step": step}
            if key_of(start) in known:
                yield known[key_of(start)]
                continue
            if not archive.is_file():
                np.savez(archive, **benchmark.read())  # type: ignore[arg-type]
            yield {**start, **_measure(benchmark, archive, ratio, step, plans, seconds)}


def key_of(row: Row) -> str:
    """What tells a row from others."""
    return f"{row['model']}/{row['ratio']}/{row['step']}"


def line(row: Row) -> str:
    """One row of the table."""
    speed = row["speedup"]
    cells = [
        row["model"],
        f"{row['ratio']}",
        row["step"],
        f"{row['macs']:.2f}",
        f"{row['accuracy_before']:.1%} -> {row['accuracy']:.1%} of {row['samples']}",
        f"{row['agreement']:.1%}",
        f"{row['snr_db']:.1f} dB",
        *(f"{speed[b]:.2f}x" if b in speed else "" for b in ("1", "16")),
        f"{row['seconds']:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _measure(
    benchmark: Benchmark,
    archive: Path,
    ratio: float,
    step: str,
    plans: dict[str, tuple[Plan, float]],
    seconds: float,
) -> dict[str, Any]:
    options = asked(ratio, STEPS[step])
    repair = options.pop("repair")
    if "ranks" in options:
        options["exclude"] = ends(benchmark.path)
    key = json.dumps(options, sort_keys=True)
    if key not in plans:
        begun = time.perf_counter()
        made = onnx_lowrank.plan(
            benchmark.path, calib=archive, samples=benchmark.calibration, threads=1, **options
        )
        plans[key] = made, time.perf_counter() - begun
    plan, spent = plans[key]
    begun = time.perf_counter()
    result = onnx_lowrank.apply(
        benchmark.path, replace(plan, repair=repair), calib=archive, threads=1, force=True
    )
    spent += time.perf_counter() - begun
    validation, speed = result.report.validation, {}
    if seconds:
        output = archive.with_name("out.onnx")
        result.save(output)
        with np.load(archive, allow_pickle=False) as samples:
            inputs = {k: samples[k][:16] for k in samples.files if "." not in k}
        feeds = [(b, {k: v[:b] for k, v in inputs.items()}) for b in (1, 16)]
        pair = load(benchmark.path), load(output)
        for timed in measure_latency(*pair, feeds, Runtime(threads=1), seconds):
            speed[str(timed.batch)] = round(timed.speedup, 3)
    assert validation.accuracy is not None
    return {
        "macs": result.report.macs_ratio,
        "samples": validation.samples,
        "accuracy_before": validation.accuracy.reference,
        "accuracy": validation.accuracy.new,
        "agreement": validation.outputs[0].top1_agreement,
        "snr_db": validation.outputs[0].snr_db,
        "behind_relu": {
            r.layer: [r.behind_relu.linear, r.behind_relu.error]
            for r in result.report.refits
            if r.behind_relu is not None
        },
        "speedup": speed,
        "seconds": round(spent, 1),
    }


if __name__ == "__main__":
    main()
