"""What is measured of one compressed model."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import onnx_lowrank
from onnx_lowrank.latency.pairs import measure_latency
from onnx_lowrank.modelfile.model import load
from onnx_lowrank.runtime.runtime import Runtime

__all__ = ["asked", "in_own_process", "measure"]


def measure(
    model: Path, archive: Path, ratio: float, options: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """Compress once, in this process, and measure.

    Args:
        model: its path.
        archive: its data.
        ratio: budget on MACs.
        options: of :func:`onnx_lowrank.compress`.
        seconds: to time each of the four settings.

    Returns:
        Ratios, accuracies, speed-ups by threads and batch, wall seconds, peak resident bytes, and
        the relative response error of each layer before the refit.
    """
    with TemporaryDirectory() as folder:
        start = time.perf_counter()
        result = onnx_lowrank.compress(
            model,
            calib=archive,
            seed=0,
            force=True,
            **asked(ratio, options),
        )
        wall = time.perf_counter() - start
        peak = _peak_bytes()
        output = Path(folder) / "out.onnx"
        result.save(output)
        counted = onnx_lowrank.inspect(output).cost
        with np.load(archive, allow_pickle=False) as samples:
            inputs = {k: samples[k][:16] for k in samples.files if "." not in k}
        pair = load(model), load(output)
        speed = {}
        for threads in (1, 2):
            feeds = [(b, {k: v[:b] for k, v in inputs.items()}) for b in (1, 16)]
            for timed in measure_latency(*pair, feeds, Runtime(threads=threads), seconds):
                speed[f"threads {threads}, batch {timed.batch}"] = round(timed.speedup, 3)
    report = result.report
    accuracy = report.validation.accuracy
    first = report.validation.outputs[0]
    return {
        "macs": counted.macs / report.before.macs,
        "params": counted.parameters / report.before.parameters,
        "bytes": counted.bytes / report.before.bytes,
        "samples": report.validation.samples,
        "accuracy_before": None if accuracy is None else accuracy.reference,
        "accuracy": None if accuracy is None else accuracy.new,
        "agreement": first.top1_agreement,
        "snr_db": first.snr_db,
        "speedup": speed,
        "seconds": round(wall, 1),
        "peak_bytes": peak,
        "errors": {d.layer: d.error for d in result.plan.decisions},
    }


def in_own_process(job: tuple[Any, ...]) -> dict[str, Any]:
    """:func:`measure` of these arguments in a new process, so that its peak memory is its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(measure, *job).result()


def asked(ratio: float, options: dict[str, Any]) -> dict[str, Any]:
    """The options, with the ratio as a budget or as that of every layer.

    Ranks come in steps, and a third of a layer is a little more than 0.33 of it.
    """
    if options.get("ranks") == "ratio":
        return {**options, "ranks": f"ratio={ratio + 0.01:g}"}
    return {**options, "target": f"macs={ratio}"}


def _peak_bytes() -> int:
    """Peak resident memory of this process alone (ru_maxrss starts at that of its parent)."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)
