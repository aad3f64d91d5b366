"""Gemm, MatMul and the input side of recurrent nodes as layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.chains.geometry import LinearGeometry
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.graph.nodes import Node
from onnx_lowrank.layers.layer import Layer
from onnx_lowrank.layers.operands import (
    NotLinear,
    bias_add,
    bias_shape_for,
    constant_of,
    operand_name,
    refuse_overridable,
    refuse_quantized,
    weight_of,
)
from onnx_lowrank.layers.placed import PlacedLayer

__all__ = ["gemm", "matmul", "recurrent"]

Array = npt.NDArray[np.floating[Any]]


def gemm(graph: Graph, node: Node, name: str) -> PlacedLayer:
    """``alpha x W + beta b``, both factors taken into the numbers.

    Raises:
        NotLinear: the first operand is constant, or the weight or bias cannot be read.
    """
    if graph.is_constant(node.inputs[0].name):
        raise NotLinear("its first operand is constant")
    weight = weight_of(graph, node, 1)
    transposed = bool(graph.attribute(node, "transB", 0))
    alpha = float(graph.attribute(node, "alpha", 1.0))
    beta = float(graph.attribute(node, "beta", 1.0))
    shape = weight.shape if transposed else weight.shape[::-1]
    weight_name, bias_name = node.inputs[1].name, operand_name(node, 2)
    bias_size: int | None = None
    if bias_name:
        bias = constant_of(graph, bias_name, "bias")
        bias_size = bias.size
        if bias.size not in (1, shape[0]) or (bias.ndim == 2 and bias.shape[0] != 1):
            raise NotLinear(f"its bias of shape {bias.shape} differs from row to row")

    def read() -> tuple[Array, Array | None]:
        values = constant_of(graph, weight_name, "weight").astype(np.float64)
        matrix = alpha * (values if transposed else values.T)
        if not bias_name:
            return matrix, None
        offset = beta * constant_of(graph, bias_name, "bias").astype(np.float64)
        return matrix, np.broadcast_to(offset.reshape(-1), (shape[0],))

    layer = Layer(
        name=name,
        op="Gemm",
        dtype=weight.dtype,
        shape=shape,
        geometry=LinearGeometry(-2 if graph.attribute(node, "transA", 0) else -1, -1),
        biased=bias_name is not None,
        _load=read,
    )
    return PlacedLayer(
        value=layer,
        input=node.inputs[0].name,
        output=node.outputs[0].name,
        nodes=(node,),
        sharers=graph.uses(weight_name),
        bias_size=bias_size,
    )


def matmul(graph: Graph, node: Node, name: str) -> PlacedLayer:
    """``x W`` or ``W x``, with the Add of a bias that follows it and nothing else.

    A weight ``(1, ..., K, N)`` counts as a matrix where the input has as many axes.

    Raises:
        NotLinear: not exactly one operand is constant, or the weight is not a matrix.
    """
    constant = [graph.is_constant(t.name) for t in node.inputs]
    if all(constant):
        raise NotLinear("both operands are constant")
    if not any(constant):
        for position in (1, 0):
            refuse_overridable(graph, node.inputs[position].name, "weight")
            refuse_quantized(graph, node.inputs[position].name)
        raise NotLinear("no operand is constant")
    left = constant[0]
    if left and graph.rank(node.inputs[1].name) == 1:
        raise NotLinear("its input is a vector")
    weight = weight_of(graph, node, 0 if left else 1)
    weight_name = node.inputs[0 if left else 1].name
    if weight.ndim < 2 or any(size != 1 for size in weight.shape[:-2]):
        raise NotLinear(f"weight has {weight.ndim} axes; a matrix has 2")
    ahead = graph.extents(node.inputs[1 if left else 0].name) if weight.ndim > 2 else None
    if weight.ndim > 2 and len(ahead or ()) < weight.ndim:
        raise NotLinear("its weight may have more axes than its input, by what the model declares")
    rows, columns = weight.shape[-2:]
    shape = (rows, columns) if left else (columns, rows)
    axis = -2 if left else -1
    nodes: tuple[Node, ...] = (node,)
    output: str = node.outputs[0].name
    bias_name: str | None = None
    bias_shape: tuple[int, ...] | None = None
    bias_size: int | None = None
    follower = bias_add(graph, output)
    if follower is not None:
        add, operand = follower
        bias = constant_of(graph, operand, "bias")
        bias_shape = bias_shape_for(bias.shape, shape[0], axis)
        if bias_shape is not None:
            bias_size = bias.size
            nodes, output, bias_name = (node, add), add.outputs[0].name, operand

    def read() -> tuple[Array, Array | None]:
        values = constant_of(graph, weight_name, "weight").reshape(rows, columns)
        matrix = values if left else values.T
        if bias_name is None:
            return matrix, None
        offset = constant_of(graph, bias_name, "bias").reshape(-1)
        return matrix, np.broadcast_to(offset, (shape[0],))

    layer = Layer(
        name=name,
        op="MatMul",
        dtype=weight.dtype,
        shape=shape,
        geometry=LinearGeometry(axis, axis),
        biased=bias_name is not None,
        _load=read,
    )
    return PlacedLayer(
        value=layer,
        input=node.inputs[1 if left else 0].name,
        output=output,
        nodes=nodes,
        sharers=graph.uses(weight_name),
        bias_shape=bias_shape,
        bias_size=bias_size,
        unit_axes=weight.ndim - 2,
    )


def recurrent(graph: Graph, node: Node, name: str) -> PlacedLayer:
    """The product with the input weights; what stays inside the node is none of it.

    Raises:
        NotLinear: its weight cannot be read.
    """
    weight = weight_of(graph, node, 1)
    if weight.ndim != 3:
        raise NotLinear(f"weight has {weight.ndim} axes; the weight of a {node.op} has 3")
    weight_name, bias_name = node.inputs[1].name, operand_name(node, 3)
    if bias_name:
        constant_of(graph, bias_name, "bias")
    directions, rows, inputs = weight.shape

    def read() -> tuple[Array, Array | None]:
        values = constant_of(graph, weight_name, "weight").reshape(-1, inputs)
        if not bias_name:
            return values, None
        # the second half belongs to the recurrent product
        return values, constant_of(graph, bias_name, "bias")[:, :rows].reshape(-1)

    layer = Layer(
        name=name,
        op=str(node.op),
        dtype=weight.dtype,
        shape=(directions * rows, inputs),
        geometry=LinearGeometry(),
        biased=bias_name is not None,
        _load=read,
        directions=directions,
    )
    return PlacedLayer(
        value=layer,
        input=node.inputs[0].name,
        output=next(t.name for t in node.outputs if t.name),
        nodes=(node,),
        sharers=graph.uses(weight_name),
    )
