"""Turn a Chain into nodes: one writer for all passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.chain import Chain, Stage
from onnx_lowrank.geometry import ConvGeometry
from onnx_lowrank.graph import Graph, Node
from onnx_lowrank.layers import Layer

__all__ = ["Written", "apply_chain", "update_chain"]

Array = npt.NDArray[np.floating[Any]]


@dataclass
class Written:
    """A chain in the graph, and the names under which its numbers can be changed.

    Attributes:
        layer: what it replaced.
        chain: as written.
        weights: initializer of each stage's weight.
        bias: initializer of the last stage's bias, or None.
    """

    layer: Layer
    chain: Chain
    weights: tuple[str, ...]
    bias: str | None


def apply_chain(graph: Graph, layer: Layer, chain: Chain) -> Written:
    """Replace ``layer`` by ``chain``; the output tensor keeps its name, a single node too."""
    chain = chain.astype(layer.dtype)
    weights: list[str] = []
    bias = None

    def make() -> list[Node]:
        nonlocal bias
        nodes: list[Node] = []
        tensor = layer.input
        for stage in chain.stages:
            last = stage is chain.last
            alone = len(chain.stages) == 1
            name = layer.name if alone else graph.fresh(f"{layer.name}_{stage.role}")
            weights.append(graph.add_constant(f"{name}_weight", _stored_weight(layer, stage)))
            if stage.bias is not None:
                bias = graph.add_constant(f"{name}_bias", _stored_bias(layer, stage.bias))
            output = layer.output if last else graph.fresh(f"{layer.output}_{stage.role}")
            nodes += _stage_nodes(graph, layer, stage, name, (tensor, weights[-1], bias), output)
            tensor = output
        return nodes

    graph.replace(layer.nodes, make)
    return Written(layer, chain, tuple(weights), bias)


def update_chain(graph: Graph, written: Written, chain: Chain) -> None:
    """Give the stages of a written chain other numbers of the same shapes."""
    chain = chain.astype(written.layer.dtype)
    for name, stage in zip(written.weights, chain.stages, strict=True):
        graph.set_constant(name, _stored_weight(written.layer, stage))
    if written.bias is not None and chain.last.bias is not None:
        graph.set_constant(written.bias, _stored_bias(written.layer, chain.last.bias))
    written.chain = chain


def _stage_nodes(
    graph: Graph,
    layer: Layer,
    stage: Stage,
    name: str,
    inputs: tuple[str, str, str | None],
    output: str,
) -> list[Node]:
    tensor, weight, bias = inputs
    geometry = stage.geometry
    if isinstance(geometry, ConvGeometry):
        operands = [tensor, weight] if bias is None else [tensor, weight, bias]
        return [graph.make_node("Conv", name, operands, output, _conv_attributes(geometry))]
    if layer.op == "Gemm":
        if bias is None and graph.opset < 11:  # the third operand was not optional yet
            bias = graph.add_constant(f"{name}_zero", np.zeros(1, layer.dtype))
        operands = [tensor, weight] if bias is None else [tensor, weight, bias]
        attributes = {"transA": int(geometry.input_axis == -2), "transB": 1}
        return [graph.make_node("Gemm", name, operands, output, attributes)]
    operands = [weight, tensor] if geometry.input_axis == -2 else [tensor, weight]
    if bias is None:
        return [graph.make_node("MatMul", name, operands, output)]
    product = graph.fresh(f"{output}_product")
    return [
        graph.make_node("MatMul", name, operands, product),
        graph.make_node("Add", graph.fresh(f"{name}_add"), [product, bias], output),
    ]


def _conv_attributes(geometry: ConvGeometry) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "kernel_shape": list(geometry.kernel),
        "strides": list(geometry.strides),
        "dilations": list(geometry.dilations),
        "group": geometry.groups,
    }
    if geometry.auto_pad == "NOTSET":
        attributes["pads"] = list(geometry.pads)
    else:
        attributes["auto_pad"] = geometry.auto_pad
    return attributes


def _multiplies_left(layer: Layer) -> bool:
    return not isinstance(layer.geometry, ConvGeometry) and layer.geometry.output_axis == -2


def _stored_weight(layer: Layer, stage: Stage) -> Array:
    """The weight in the orientation that the operator wants; Gemm is written with transB."""
    if layer.op == "MatMul" and not _multiplies_left(layer):
        return stage.weight.T
    return stage.weight


def _stored_bias(layer: Layer, bias: Array) -> Array:
    if layer.op != "MatMul":
        return bias
    if layer.bias_shape is not None:
        return bias.reshape(layer.bias_shape)
    return bias.reshape(-1, 1) if _multiplies_left(layer) else bias
