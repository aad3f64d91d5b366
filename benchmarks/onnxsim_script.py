"""Structured pruning by onnxsim, as a script for an interpreter that has it (Python >= 3.11).

``python -P onnxsim_script.py MODEL OUTPUT SPARSITY [SAMPLES.npz]``: simplify, which folds
BatchNormalization, then drop that part of the channels of every chain that onnxsim finds, by the
norms of their filters; with samples by those norms times the norms of the channels on them (Wanda).
It imports nothing of this package: onnxsim is installed apart.
"""

from __future__ import annotations

import sys
from importlib import import_module

import numpy as np
import onnx

#: samples at a time
_BATCH = 50


def prune(model: str, output: str, sparsity: float, samples: str | None) -> None:
    """Read, prune, write.

    Args:
        model: path to read.
        output: path to write.
        sparsity: part of the channels that goes.
        samples: archive of inputs by name; None ranks by filters alone.
    """
    onnxsim = import_module("onnxsim")
    simple, _ = onnxsim.simplify(onnx.load(model))
    pruning = import_module("onnxsim.pruning")
    if samples is None:
        pruned = pruning.apply_structured_pruning(simple, sparsity=sparsity)
    else:
        with np.load(samples, allow_pickle=False) as archive:
            inputs = dict(archive)
        count = len(next(iter(inputs.values())))
        data = [
            {name: values[at : at + _BATCH] for name, values in inputs.items()}
            for at in range(0, count, _BATCH)
        ]
        pruned = pruning.apply_structured_wanda_pruning(
            simple, calibration_data=data, sparsity=sparsity
        )
    onnx.save(pruned, output)


if __name__ == "__main__":
    _, source, target, share, *rest = sys.argv
    prune(source, target, float(share), rest[0] if rest else None)
