"""Constants of a chain as they are stored in the file: their order, orientation and names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.chains.chain import Chain, Stage
from onnx_lowrank.chains.geometry import ConvGeometry
from onnx_lowrank.chains.protocol import Step
from onnx_lowrank.chains.special_stages import Branches, Select, TensorTrainStep
from onnx_lowrank.layers import PlacedLayer, turned

__all__ = ["flat", "multiplies_left", "stored", "weight_position"]

Array = npt.NDArray[Any]


def flat(chain: Chain) -> Iterator[Step]:
    """Yield the steps of a chain, with the steps of branches in their places."""
    for step in chain.stages:
        if isinstance(step, Branches):
            for branch in step.chains:
                yield from flat(branch)
        else:
            yield step


def stored(
    layer: PlacedLayer, step: Step, last: bool, kept_bias: Array | None, renewed: bool = False
) -> Iterator[tuple[str, Array]]:
    """Yield the constants of a step: a word for the name, and the values.

    Args:
        layer: layer whose place the chain takes.
        step: a step of the chain other than branches.
        last: whether the chain ends with the step.
        kept_bias: bias of the recurrent product; see
            :class:`~onnx_lowrank.layers.writer.Written`.
        renewed: whether the layer's own nodes read the constants; new nodes of a Gemm have
            ``transB``.
    """
    if isinstance(step, Select):
        yield "index", np.array(step.index, np.int64)
    elif isinstance(step, TensorTrainStep):
        for number, matrix in enumerate(step.matrices, 1):
            yield f"core{number}", matrix
        if step.bias is not None:
            yield "bias", step.bias
    elif isinstance(step, Stage) and layer.value.recurrent and last:
        yield from _recurrent_numbers(layer, step, kept_bias)
    elif isinstance(step, Stage):
        yield "weight", _stored_weight(layer, step, renewed)
        if step.bias is not None:
            yield "bias", _stored_bias(layer, step.bias)


def _recurrent_numbers(
    layer: PlacedLayer, stage: Stage, kept_bias: Array | None
) -> Iterator[tuple[str, Array]]:
    directions = layer.value.directions
    yield "weight", stage.weight.reshape(directions, -1, stage.inputs)
    if stage.bias is None and kept_bias is None:
        return
    rows = stage.outputs // directions
    own = np.zeros(stage.outputs) if stage.bias is None else stage.bias
    other = np.zeros((directions, rows)) if kept_bias is None else kept_bias
    both = np.concatenate([own.reshape(directions, rows), other], axis=1)
    yield "bias", both.astype(layer.value.dtype)


def multiplies_left(layer: PlacedLayer) -> bool:
    """Whether the weight is the first operand of a MatMul."""
    return not isinstance(layer.geometry, ConvGeometry) and layer.geometry.output_axis == -2


def weight_position(layer: PlacedLayer) -> int:
    """Position of the weight among the operands of the layer's node."""
    return 0 if multiplies_left(layer) or layer.value.lookup else 1


def _stored_weight(layer: PlacedLayer, stage: Stage, renewed: bool) -> Array:
    """The weight in the orientation that the node reads."""
    if isinstance(stage.geometry, ConvGeometry):
        return turned(stage.weight, stage.groups) if stage.geometry.transposed else stage.weight
    if layer.op == "Gemm" and (not renewed or layer.nodes[0].attrs.get("transB", 0)):
        return stage.weight
    matrix = stage.weight if multiplies_left(layer) else stage.weight.T
    return matrix.reshape((1,) * layer.unit_axes + matrix.shape) if renewed else matrix


def _stored_bias(layer: PlacedLayer, bias: Array) -> Array:
    if layer.op != "MatMul":
        return bias
    if layer.bias_shape is not None:
        return bias.reshape(layer.bias_shape)
    return bias.reshape(-1, 1) if multiplies_left(layer) else bias
