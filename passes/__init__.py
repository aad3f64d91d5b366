"""The built-in passes, one file each, in the order in which they are listed and tried."""

from __future__ import annotations

from onnx_lowrank.base import Pass
from onnx_lowrank.passes.channel_svd import ChannelSvd
from onnx_lowrank.passes.fold_batchnorm import FoldBatchnorm
from onnx_lowrank.passes.spatial_svd import SpatialSvd
from onnx_lowrank.passes.svd import Svd

__all__ = ["BUILT_IN", "ChannelSvd", "FoldBatchnorm", "SpatialSvd", "Svd"]

BUILT_IN: tuple[type[Pass], ...] = (FoldBatchnorm, Svd, SpatialSvd, ChannelSvd)
