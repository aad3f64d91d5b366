"""What is measured of one cell of ``benchmarks.pruning``."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

import onnx_lowrank
from benchmarks.models import Benchmark
from benchmarks.pruning_cells import Cell
from onnx_lowrank.errors import BudgetError
from onnx_lowrank.latency.pairs import measure_latency
from onnx_lowrank.modelfile.model import load
from onnx_lowrank.runtime.runtime import Runtime

__all__ = ["answers", "measure", "nearest_share", "with_peer"]

_BATCH = 50

#: parts of the channels that a search for a number of MACs looks at
_STEPS = 8


def measure(
    cell: Cell, benchmark: Benchmark, archive: Path, folder: Path, peer: str | None, seconds: float
) -> dict[str, Any]:
    """Compress once and measure.

    Args:
        cell: what to do.
        benchmark: its model.
        archive: its data.
        folder: for files on the way.
        peer: an interpreter with onnxsim; None leaves such cells out.
        seconds: to time each batch size; 0 for no timing.

    Returns:
        The cell's fields and ``refused`` (why there is no result), or the parts of MACs and
        parameters left, wrong answers before and after, answers that differ, speed-ups, seconds.
    """
    row = asdict(cell)
    output = folder / "out.onnx"
    start = time.perf_counter()
    try:
        if cell.passes:
            result = onnx_lowrank.compress(
                benchmark.path, calib=archive, target=cell.target, passes=cell.passes,
                samples=_samples(cell, archive), repair=cell.repair, threads=1,
                seed=cell.seed, force=True,
            )  # fmt: skip
            result.save(output)
            row["predicted"] = sum(g.loss for g in result.plan.groups)
            row["groups"] = {g.name: [len(g.kept), g.size] for g in result.plan.groups if g.kept}
        elif peer is None:
            return {**row, "refused": "onnxsim is not at hand"}
        else:
            ratio = float(cell.target.partition("=")[2])
            with_peer(peer, cell, benchmark.path, archive, output, ratio)
    except BudgetError as error:
        return {**row, "refused": str(error)}
    row["seconds"] = round(time.perf_counter() - start, 1)
    before, after = (onnx_lowrank.inspect(p).cost for p in (benchmark.path, output))
    row |= {"macs": after.macs / before.macs, "params": after.parameters / before.parameters}
    with np.load(archive, allow_pickle=False) as samples:
        tested = {k[5:]: samples[k] for k in samples.files if k.startswith("test.")}
    labels = tested.pop("labels")
    old, new = (answers(p, tested) for p in (benchmark.path, output))
    row |= {
        "tested": len(labels),
        "wrong_before": int(np.sum(old != labels)),
        "wrong": int(np.sum(new != labels)),
        "differ": int(np.sum(old != new)),
    }
    if seconds:
        feeds = [(b, {k: v[:b] for k, v in tested.items()}) for b in (1, 16)]
        pair = load(benchmark.path), load(output)
        timed = measure_latency(*pair, feeds, Runtime(threads=1), seconds)
        row["speedup"] = {f"batch {t.batch}": round(t.speedup, 3) for t in timed}
    return row


def answers(model: Path, inputs: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.intp]:
    """The largest class of each sample by the first output, ``(samples,)``."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    count = len(next(iter(inputs.values())))
    found = []
    for at in range(0, count, _BATCH):
        (scores, *_) = session.run(None, {k: v[at : at + _BATCH] for k, v in inputs.items()})
        found.append(scores.reshape(len(scores), -1).argmax(axis=1))
    return np.concatenate(found)


def with_peer(
    peer: str, cell: Cell, model: Path, archive: Path, output: Path, ratio: float
) -> None:
    """Prune by onnxsim to the part of the channels that comes nearest to a ratio of MACs.

    How many go hangs on the method, not on the samples, so the search makes do with a few.
    """
    script = Path(__file__).with_name("pruning_onnxsim.py")
    whole = onnx_lowrank.inspect(model).cost.macs
    few, all_of_them = [], []
    if "Wanda" in cell.name:
        few = [str(_drawn(archive, output.with_name("few.npz"), 2))]
        all_of_them = [str(_drawn(archive, output.with_name("drawn.npz"), cell.samples))]

    def left(share: float, data: Sequence[str] = few) -> float:
        command = [peer, "-P", str(script), str(model), str(output), str(share), *data]
        subprocess.run(command, check=True, capture_output=True)
        return onnx_lowrank.inspect(output).cost.macs / whole

    left(nearest_share(left, ratio), all_of_them)


def nearest_share(left: Callable[[float], float], ratio: float) -> float:
    """The share, among those that bisection looks at, that leaves what is nearest to a ratio."""
    low, high = 0.0, 1.0
    seen = {}
    for _ in range(_STEPS):
        share = (low + high) / 2
        seen[share] = left(share)
        low, high = (share, high) if seen[share] > ratio else (low, share)
    return min(seen, key=lambda s: abs(seen[s] - ratio))


def _drawn(archive: Path, path: Path, count: int | None) -> Path:
    """Some of the calibration samples, in a file of their own."""
    with np.load(archive, allow_pickle=False) as samples:
        inputs = {k: samples[k] for k in samples.files if "." not in k}
    order = np.random.default_rng(0).permutation(len(next(iter(inputs.values()))))[:count]
    np.savez(path, **{k: v[order] for k, v in inputs.items()})
    return path


def _samples(cell: Cell, archive: Path) -> int | None:
    """As many as asked, or all where there are fewer."""
    with np.load(archive, allow_pickle=False) as samples:
        count = min(len(samples[k]) for k in samples.files if "." not in k)
    return None if cell.samples is None or cell.samples >= count else cell.samples
