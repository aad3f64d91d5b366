"""``python -m benchmarks``: every model by every method, as JSON and as a table.

Each cell runs in a process of its own. ``python -m benchmarks.layers`` compares methods layer by
layer, ``python -m benchmarks.alone`` runs a network by each method alone.
"""

from __future__ import annotations

import argparse
import json
import platform
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.methods import METHODS, ends
from benchmarks.metrics import in_own_process
from benchmarks.models import MODELS

COLUMNS = ("threads 1, batch 1", "threads 1, batch 16", "threads 2, batch 1", "threads 2, batch 16")


def main() -> None:
    """Measure what the arguments name."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each timing")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/benchmark.json"))
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print(_header())
    for name in arguments.models:
        benchmark = MODELS[name]
        if not benchmark.path.is_file():
            print(f"| {name} | not at hand |")
            continue
        with TemporaryDirectory() as folder:
            archive = Path(folder) / "samples.npz"
            np.savez(archive, **benchmark.read())  # type: ignore[arg-type]
            for ratio, method in product(benchmark.ratios, arguments.methods):
                options = {"samples": benchmark.calibration, **METHODS[method]}
                if options.get("ranks") == "ratio":
                    options["exclude"] = ends(benchmark.path)
                job = (benchmark.path, archive, ratio, options, arguments.seconds)
                row = {"model": name, "target": ratio, "method": method, **in_own_process(job)}
                rows.append(row)
                print(_line(row), flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    machine = {"cpu": platform.processor(), "onnxruntime": onnxruntime.__version__}
    arguments.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))


def _header() -> str:
    names = ["model", "method", "MACs", "params", "top-1", "same answer", "SNR", *COLUMNS,
             "seconds", "peak MB"]  # fmt: skip
    return f"| {' | '.join(names)} |\n|{'---|' * len(names)}"


def _line(row: dict[str, Any]) -> str:
    before, after = row["accuracy_before"], row["accuracy"]
    accuracy = "" if after is None else f"{before:.1%} -> {after:.1%} of {row['samples']}"
    cells = [
        row["model"],
        row["method"],
        f"{row['macs']:.2f}",
        f"{row['params']:.2f}",
        accuracy,
        "" if row["agreement"] is None else f"{row['agreement']:.1%}",
        f"{row['snr_db']:.1f} dB",
        *(f"{row['speedup'][c]:.2f}x" for c in COLUMNS),
        f"{row['seconds']:.0f}",
        f"{row['peak_bytes'] / 1e6:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
