"""Ways to compress, from what other tools do to what this one does."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

import onnx_lowrank

__all__ = ["METHODS", "ends"]

METHODS: dict[str, dict[str, Any]] = {
    "weight space, uniform": {
        "passes": "fold_batchnorm,svd{metric=identity},spatial_svd{metric=identity}",
        "ranks": "ratio",
        "repair": "none",
    },
    "response metric, uniform": {
        "passes": "fold_batchnorm,svd,spatial_svd",
        "ranks": "ratio",
        "repair": "none",
    },
    "planned": {"repair": "none"},
    "planned, refit": {},
}


def ends(model: Path) -> list[str]:
    """First and last layer, which uniform methods leave alone, as is usual."""
    layers = [layer.name for layer in onnx_lowrank.inspect(model).layers if layer.shape]
    return [glob.escape(layers[0]), glob.escape(layers[-1])]
