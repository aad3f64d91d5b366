"""The built-in passes, one file each, in the order in which they are listed and tried."""

from __future__ import annotations

from onnx_lowrank.base import Pass
from onnx_lowrank.passes.channel_svd import ChannelSvd
from onnx_lowrank.passes.cp import Cp
from onnx_lowrank.passes.fold_batchnorm import FoldBatchnorm
from onnx_lowrank.passes.recurrent_svd import RecurrentSvd
from onnx_lowrank.passes.spatial_svd import SpatialSvd
from onnx_lowrank.passes.svd import Svd
from onnx_lowrank.passes.tucker2 import Tucker2

__all__ = [
    "BUILT_IN",
    "ChannelSvd",
    "Cp",
    "FoldBatchnorm",
    "RecurrentSvd",
    "SpatialSvd",
    "Svd",
    "Tucker2",
]

BUILT_IN: tuple[type[Pass], ...] = (
    FoldBatchnorm,
    Svd,
    SpatialSvd,
    ChannelSvd,
    Tucker2,
    Cp,
    RecurrentSvd,
)
