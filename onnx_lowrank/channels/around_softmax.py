"""Products around a softmax: of queries and keys above it, of its result and values below it.

The operator Attention has all of them in one node.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from onnx_lowrank.channels.attention_nodes import AttentionNode, attention_node
from onnx_lowrank.channels.labels import first_output
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.graph.nodes import Node

__all__ = ["SCALES", "Seen", "around_softmax", "one_number"]

Shapes = Mapping[str, tuple[int, ...]]

#: operators between the product of queries and keys and the softmax, beside scales
_ABOVE = frozenset({
    "Add", "Sub", "Where", "Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Max", "Min",
    "Clip", "Dropout",
})  # fmt: skip
#: operators between the softmax and the product with the values
_BELOW = _ABOVE - {"Add", "Sub", "Max", "Min", "Clip"}
SCALES = frozenset({"Mul", "Div"})


@dataclass(frozen=True)
class Seen:
    """A softmax with the products around it.

    Attributes:
        softmax: its node.
        scoring: product of queries and keys.
        mixing: product with the values; None where there is none.
        scales: tensors of one element that scores are multiplied by, or divided by (True).
        whole: how the operator Attention is read, where one such node is all of these.
    """

    softmax: Node
    scoring: Node | None
    mixing: Node | None
    scales: tuple[tuple[str, bool], ...]
    whole: AttentionNode | None = None


def around_softmax(graph: Graph, shapes: Shapes) -> Iterator[Seen]:
    """Yield each softmax over the last axis whose scores come from a product of activations."""
    for node in graph.nodes:
        whole = attention_node(graph, shapes, node)
        if whole is not None:
            yield Seen(node, node, node, (), whole)
        if node.op != "Softmax" or node.domain not in (None, "", "ai.onnx"):
            continue
        rank = len(shapes.get(first_output(node), ()))
        axis = int(graph.attribute(node, "axis", -1 if graph.opset >= 13 else 1))
        if rank < 2 or axis % rank != rank - 1:
            continue
        above = _above(graph, shapes, node.inputs[0].name, 0)
        if above is not None:
            yield Seen(node, above[0], _below(graph, first_output(node)), above[1])


def _is_product(graph: Graph, node: Node) -> bool:
    return node.op == "MatMul" and not any(graph.is_constant(t.name) for t in node.inputs)


def _above(
    graph: Graph, shapes: Shapes, tensor: str, depth: int
) -> tuple[Node, tuple[tuple[str, bool], ...]] | None:
    """The product that scores come from, and the scales on the way."""
    node = graph.producer(tensor)
    if node is None or depth > 12:
        return None
    if _is_product(graph, node):
        return node, ()
    if node.op in SCALES:
        operands = one_number(graph, shapes, node)
        if operands is None:
            return None
        data, scale = operands
        found = _above(graph, shapes, data, depth + 1)
        return None if found is None else (found[0], (*found[1], (scale, node.op == "Div")))
    if node.op not in _ABOVE:
        return None
    for operand in node.inputs:
        if operand.name and not graph.is_constant(operand.name):
            found = _above(graph, shapes, operand.name, depth + 1)
            if found is not None:
                return found
    return None


def one_number(graph: Graph, shapes: Shapes, node: Node) -> tuple[str, str] | None:
    """Data and factor of a product by one number; None where it is by several."""
    names = [t.name for t in node.inputs]
    for data, scale in (names, names[::-1])[: 1 if node.op == "Div" else 2]:
        value = graph.constant(scale) if graph.is_constant(scale) else None
        shape = shapes.get(scale) if value is None else value.shape
        if shape is not None and int(np.prod(shape)) == 1 and not graph.is_constant(data):
            return data, scale
    return None


def _below(graph: Graph, tensor: str) -> Node | None:
    """The product with the values, on the way from a softmax."""
    pending, known = [tensor], set()
    while pending:
        name = pending.pop(0)
        for node in graph.consumers(name):
            if _is_product(graph, node):
                return node if node.inputs[0].name == name else None
            if node.op in _BELOW and id(node) not in known:
                known.add(id(node))
                pending.append(first_output(node))
    return None
