"""Pruning by onnxsim, to be compared with, in an interpreter that has it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import onnx_lowrank

__all__ = ["nearest_share", "prune_with_onnxsim"]

_SCRIPT = Path(__file__).with_name("onnxsim_script.py")

#: parts of the channels that a search for a number of MACs looks at
_STEPS = 8


def prune_with_onnxsim(
    interpreter: str, model: Path, output: Path, ratio: float, archive: Path | None, count: int
) -> None:
    """Prune to the part of the channels that comes nearest to a ratio of MACs.

    How many channels go depends on the method, not on the samples, so the search makes do with two.

    Args:
        interpreter: path of a Python that has onnxsim.
        model: path of the original.
        output: path to write.
        ratio: part of the MACs that is to be left.
        archive: path of the data, to rank channels by samples (Wanda); None ranks by weights (L2).
        count: calibration samples to rank by.

    Raises:
        subprocess.CalledProcessError: onnxsim fails.
    """
    whole = onnx_lowrank.inspect(model).cost.macs
    few, all_of_them = [], []
    if archive is not None:
        few = [str(_drawn(archive, output.with_name("few.npz"), 2))]
        all_of_them = [str(_drawn(archive, output.with_name("drawn.npz"), count))]

    def left(share: float, data: Sequence[str] = few) -> float:
        command = [interpreter, "-P", str(_SCRIPT), str(model), str(output), str(share), *data]
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


def _drawn(archive: Path, path: Path, count: int) -> Path:
    """Some of the calibration samples, in a file of their own."""
    with np.load(archive, allow_pickle=False) as samples:
        inputs = {k: samples[k] for k in samples.files if "." not in k}
    order = np.random.default_rng(0).permutation(len(next(iter(inputs.values()))))[:count]
    drawn = {k: v[order] for k, v in inputs.items()}
    np.savez(path, **drawn)
    return path
