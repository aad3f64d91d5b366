"""What is measured of one compressed model, in terms of :data:`benchmarks.figures.UNITS`."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

import numpy as np

import onnx_lowrank
from benchmarks.figures import speedup_name
from onnx_lowrank.latency.pairs import measure_latency
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.runtime.runtime import Runtime

__all__ = [
    "Outcome",
    "calibration_count",
    "compress_and_measure",
    "cost_figures",
    "in_own_process",
    "samples_used",
    "speedups",
    "validation_figures",
]

T = TypeVar("T")

_BATCHES = (1, 16)


class Outcome(NamedTuple):
    """What came of compressing a model once.

    Attributes:
        samples: how many were used, by what for.
        figures: by name.
        errors: relative response error of each layer before it was solved again.
    """

    samples: dict[str, int]
    figures: dict[str, float]
    errors: dict[str, float]


def compress_and_measure(
    model: Path, archive: Path, options: Mapping[str, Any], seconds: float
) -> Outcome:
    """Compress once, in this process, and measure all that is known of the result.

    Args:
        model: path of the model.
        archive: path of its data.
        options: keyword arguments of :func:`onnx_lowrank.compress`.
        seconds: time for each of the four timings: one and two threads, batches of 1 and 16.

    Raises:
        BudgetError: the target cannot be met.
    """
    with TemporaryDirectory() as folder:
        start = time.perf_counter()
        result = onnx_lowrank.compress(model, calib=archive, seed=0, force=True, **options)
        spent = time.perf_counter() - start
        peak = _peak_bytes()
        output = Path(folder) / "out.onnx"
        result.save(output)
        figures = {
            **cost_figures(model, output),
            **validation_figures(result.report.validation),
            **speedups(model, output, archive, seconds, threads=(1, 2)),
            "seconds": round(spent, 1),
            "peak_bytes": peak,
        }
    errors = {d.layer: d.error for d in result.plan.decisions}
    return Outcome(samples_used(result, archive), figures, errors)


def cost_figures(model: Path, output: Path) -> dict[str, float]:
    """MACs, parameters and bytes left, counted in the files."""
    before, after = (onnx_lowrank.inspect(path).cost for path in (model, output))
    return {
        "macs": after.macs / before.macs,
        "params": after.parameters / before.parameters,
        "bytes": after.bytes / before.bytes,
    }


def validation_figures(validation: onnx_lowrank.Validation) -> dict[str, float]:
    """Accuracy, where there are labels, and how far the first output moved."""
    figures = {}
    if validation.accuracy is not None:
        figures["accuracy_before"] = validation.accuracy.reference
        figures["accuracy"] = validation.accuracy.new
    for first in validation.outputs[:1]:
        figures["snr"] = first.snr_db
        if first.top1_agreement is not None:
            figures["agreement"] = first.top1_agreement
    return figures


def samples_used(result: onnx_lowrank.Result, archive: Path) -> dict[str, int]:
    """How many samples calibrated a result, and how many tested it."""
    calibration = result.plan.samples or calibration_count(archive)
    return {"calibration": calibration, "test": result.report.validation.samples}


def calibration_count(archive: Path) -> int:
    """How many calibration samples an archive has."""
    with np.load(archive, allow_pickle=False) as arrays:
        return min(len(arrays[k]) for k in arrays.files if "." not in k)


def speedups(
    model: Path, output: Path, archive: Path, seconds: float, threads: Sequence[int] = (1,)
) -> dict[str, float]:
    """Speed-ups at batches of 1 and 16, by runs in alternation.

    Args:
        model: path of the original.
        output: path of the compressed model.
        archive: path of the data.
        seconds: time for each timing; 0 for none.
        threads: numbers of threads of ONNX Runtime.
    """
    if not seconds:
        return {}
    with np.load(archive, allow_pickle=False) as arrays:
        inputs = {k: arrays[k][: max(_BATCHES)] for k in arrays.files if "." not in k}
    feeds = [(batch, {k: v[:batch] for k, v in inputs.items()}) for batch in _BATCHES]
    pair = load(model), load(output)
    return {
        speedup_name(count, timed.batch): round(timed.speedup, 3)
        for count in threads
        for timed in measure_latency(*pair, feeds, Runtime(threads=count), seconds)
    }


def in_own_process(function: Callable[..., T], *arguments: Any) -> T:
    """The function's result from a new process, so that its peak memory is its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def _peak_bytes() -> int:
    """Peak resident memory of this process alone (ru_maxrss starts at that of its parent)."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)
