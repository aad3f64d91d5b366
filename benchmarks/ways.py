"""Ways to compress a whole network, from what other tools do to the defaults of this one."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

import onnx_lowrank

__all__ = ["WAYS", "options_of"]

#: options of :func:`onnx_lowrank.compress` by the name that tables show
WAYS: dict[str, dict[str, Any]] = {
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

#: ranks come in steps, and a third of a layer is a little more than 0.33 of it
_STEP = 0.01


def options_of(way: dict[str, Any], ratio: float, model: Path) -> dict[str, Any]:
    """Options of :func:`onnx_lowrank.compress`, with a ratio of MACs as the target.

    A way whose ``ranks`` are ``ratio`` gets it as the ratio of every layer but the first and the
    last, which uniform methods leave alone, as is usual.

    Args:
        way: options, without a target.
        ratio: part of the MACs that is to be left.
        model: the model to compress.
    """
    if way.get("ranks") != "ratio":
        return {**way, "target": f"macs={ratio}"}
    layers = [layer.name for layer in onnx_lowrank.inspect(model).layers if layer.shape]
    ends = [glob.escape(layers[0]), glob.escape(layers[-1])]
    return {**way, "ranks": f"ratio={ratio + _STEP:g}", "exclude": ends}
