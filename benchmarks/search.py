"""``python -m benchmarks.search``: models within a drop of accuracy, two targets, half the time.

Labels are used to judge, never to calibrate. Rows go into one JSON file; rows that are there
already are measured again only with ``--again``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

import onnx_lowrank
from benchmarks.models import MODELS, SHARED, Benchmark
from benchmarks.rows import head, known_rows, write_rows

__all__ = ["HEADER", "NEEDS", "Need", "line", "measure", "parser"]

Row = Mapping[str, Any]


class Need(NamedTuple):
    """What is asked of a model: options of :func:`onnx_lowrank.compress`."""

    model: str
    name: str
    samples: int
    options: dict[str, Any]


NEEDS = (
    Need("cifar10_vgg_s", "--max-drop 1%", 1000, {"max_drop": 0.01}),
    Need("cifar10_vgg_s", "--max-drop 1% --target params=0.25 --target macs", 1000,
         {"max_drop": 0.01, "target": ["params=0.25", "macs"]}),
    Need("cifar10_vgg16_bn", "--max-drop 0.4% --target params=0.16 --target macs", 1000,
         {"max_drop": 0.004, "target": ["params=0.16", "macs"]}),
    Need("cifar10_vgg16_bn", "--target macs=0.33 --target params=0.16", 1000,
         {"target": ["macs=0.33", "params=0.16"]}),
    Need("cifar10_vgg16_bn", "--target macs=0.25 --target params=0.1", 1000,
         {"target": ["macs=0.25", "params=0.1"]}),
    Need("cifar10_resnet56", "--target latency=0.5", 1000, {"target": "latency=0.5"}),
)  # fmt: skip

HEADER = (
    "model", "asked", "found", "top-1", "MACs left", "parameters left", "batch 1", "batch 16",
    "seconds", "what was said",
)  # fmt: skip

_VGG16 = SHARED / "models" / "cifar10_vgg16_bn.onnx"


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__)
    made.add_argument("--models", nargs="+", default=sorted({n.model for n in NEEDS}))
    made.add_argument("--needs", nargs="+", default=sorted({n.name for n in NEEDS}))
    made.add_argument("--cache", default="", help="folder of times; none by default")
    made.add_argument("--again", action="store_true", help="measure what has been measured")
    made.add_argument("--out", type=Path, default=Path("benchmarks/results/search.json"))
    return made


def main() -> None:
    """Measure what the arguments name."""
    arguments = parser().parse_args()
    rows: dict[str, Row] = known_rows(arguments.out)
    print(head(HEADER))
    for need in _chosen(arguments.models, arguments.needs):
        benchmark = _benchmark(need.model)
        if not benchmark.path.is_file():
            print(f"| {need.model} | not at hand |")
            continue
        key = f"{need.model} {need.name}"
        if arguments.again or key not in rows:
            rows[key] = measure(need, benchmark, arguments.cache)
            write_rows(arguments.out, rows)
        print(line(rows[key]), flush=True)


def measure(need: Need, benchmark: Benchmark, cache: str = "") -> Row:
    """One row: one thread, ratios of the best of runs in alternation."""
    with TemporaryDirectory() as folder:
        archive = Path(folder) / "samples.npz"
        np.savez(archive, **benchmark.read())  # type: ignore[arg-type]
        begun = time.perf_counter()
        result = onnx_lowrank.compress(
            benchmark.path, calib=archive, samples=need.samples, threads=1, cache=cache,
            force=True, **need.options,
        )  # fmt: skip
        spent = time.perf_counter() - begun
    report = result.report
    accuracy = report.validation.accuracy
    assert accuracy is not None
    return {
        "model": need.model,
        "asked": need.name,
        "found": result.plan.target,
        "samples": accuracy.samples,
        "accuracy_before": accuracy.reference,
        "accuracy": accuracy.new,
        "macs": report.macs_ratio,
        "params": report.after.parameters / report.before.parameters,
        "speedup": {str(p.batch): round(p.speedup, 3) for p in report.latency},
        "seconds": round(spent, 1),
        "notes": [n for n in report.notes if "is the least" in n or n.startswith("latency")],
    }


def line(row: Row) -> str:
    """A row of the table."""
    cells = [
        row["model"],
        f"`{row['asked']}`",
        row["found"],
        f"{row['accuracy_before']:.1%} -> {row['accuracy']:.1%} of {row['samples']}",
        f"{row['macs']:.2f}",
        f"{row['params']:.2f}",
        *(f"{row['speedup'][b]:.2f}x" if b in row["speedup"] else "" for b in ("1", "16")),
        f"{row['seconds']:.0f}",
        "; ".join(row["notes"]),
    ]
    return f"| {' | '.join(cells)} |"


def _chosen(models: list[str], needs: list[str]) -> Iterator[Need]:
    return (n for n in NEEDS if n.model in models and n.name in needs)


def _benchmark(name: str) -> Benchmark:
    if name in MODELS:
        return MODELS[name]
    return replace(MODELS["cifar10_vgg_s"], path=_VGG16)  # the same samples


if __name__ == "__main__":
    main()
