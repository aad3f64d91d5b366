"""The built-in passes, one file each, in the order in which they are listed and tried."""

from __future__ import annotations

from onnx_lowrank.passes.attention_rank import AttentionRank
from onnx_lowrank.passes.bicluster import BiclusterPass
from onnx_lowrank.passes.channel_svd import ChannelSvd
from onnx_lowrank.passes.circulant import Circulant
from onnx_lowrank.passes.cp import Cp
from onnx_lowrank.passes.embedding_svd import EmbeddingSvd
from onnx_lowrank.passes.fold_batchnorm import FoldBatchnorm
from onnx_lowrank.passes.lowrank_sparse import LowrankSparse
from onnx_lowrank.passes.monochromatic import MonochromaticPass
from onnx_lowrank.passes.prune_channels import PruneChannels
from onnx_lowrank.passes.recurrent_svd import RecurrentSvd
from onnx_lowrank.passes.spatial_svd import SpatialSvd
from onnx_lowrank.passes.svd import Svd
from onnx_lowrank.passes.tensor_train import TensorTrainPass
from onnx_lowrank.passes.tucker2 import Tucker2
from onnx_lowrank.passkit.base import Pass

__all__ = [
    "BUILT_IN",
    "AttentionRank",
    "BiclusterPass",
    "ChannelSvd",
    "Circulant",
    "Cp",
    "EmbeddingSvd",
    "FoldBatchnorm",
    "LowrankSparse",
    "MonochromaticPass",
    "PruneChannels",
    "RecurrentSvd",
    "SpatialSvd",
    "Svd",
    "TensorTrainPass",
    "Tucker2",
]

BUILT_IN: tuple[type[Pass], ...] = (
    FoldBatchnorm,
    Svd,
    SpatialSvd,
    ChannelSvd,
    Tucker2,
    Cp,
    TensorTrainPass,
    RecurrentSvd,
    EmbeddingSvd,
    MonochromaticPass,
    BiclusterPass,
    LowrankSparse,
    Circulant,
    PruneChannels,
    AttentionRank,
)
