"""Heads: last layers, whose outputs are class scores.

A head is found by structure: its output reaches a Softmax or a LogSoftmax along the axis of its
outputs, through nodes that only move, reshape or cast, add constants or scale all scores alike;
nothing else reads the scores, and no product comes after. So the softmax of an attention, which
weighs values by a product, belongs to no head.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.graph.nodes import Node
from onnx_lowrank.layers.placed import PlacedLayer

__all__ = ["Head", "find_heads"]

#: extents at one sample; None where one is not known
_Shape: TypeAlias = Sequence[int | None]

_SOFTMAX = frozenset({"Softmax", "LogSoftmax"})
_SAME = frozenset({"Identity", "Cast", "Dropout"})
_RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
#: operators of products: behind one of them a softmax gives weights, not answers
_PRODUCTS = frozenset(
    {"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "LSTM", "GRU", "RNN", "Attention",
     "MatMulInteger", "QLinearMatMul", "ConvInteger", "QLinearConv"}
)  # fmt: skip
_NO_SCORES: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True)
class Head:
    """The class scores that a last layer makes.

    Attributes:
        scores: name of the tensor of scores, whose softmax gives the probabilities of classes.
        axis: axis of the classes.
    """

    scores: str
    axis: int


def find_heads(
    graph: Graph,
    layers: Iterable[PlacedLayer],
    shapes: Mapping[str, tuple[int, ...]],
    scores: Mapping[str, int] = _NO_SCORES,
) -> dict[str, Head]:
    """Find the heads among some layers, by name of the layer.

    Args:
        graph: the model.
        layers: the layers to look at.
        shapes: shapes of the layers' inputs at one sample, by tensor name.
        scores: outputs of the model that are known to hold class scores, with the axis of the
            classes; a last layer in front of one is a head without a softmax.
    """
    inner = {id(node) for node in graph.nodes}
    found = {}
    for layer in layers:
        if layer.value.recurrent or layer.value.lookup or layer.groups > 1 or layer.sharers > 1:
            continue
        shape = layer.geometry.output_shape(shapes[layer.input], layer.shape[0])
        head = _head(graph, inner, layer, shape, scores)
        if head is not None:
            found[layer.name] = head
    return found


def _head(
    graph: Graph,
    inner: set[int],
    layer: PlacedLayer,
    shape: _Shape,
    scores: Mapping[str, int],
) -> Head | None:
    """Follow the output of a layer to a softmax; None if it does not get there."""
    tensor, classes = layer.output, layer.shape[0]
    axis = layer.geometry.channel_axis % len(shape)
    while True:
        if tensor in scores:
            return Head(tensor, axis) if scores[tensor] % len(shape) == axis else None
        readers = graph.consumers(tensor)
        if len(readers) != 1 or graph.is_output(tensor) or id(readers[0]) not in inner:
            return None
        node = readers[0]
        if node.op in _SOFTMAX:
            along = _softmax_axes(graph, node, len(shape))
            if axis not in along or math.prod(shape[a] or 0 for a in along) != classes:
                return None
            return None if _weighs(graph, node) else Head(tensor, axis)
        moved = _moved(graph, node, tensor, shape, axis)
        if moved is None:
            return None
        shape, axis = moved
        tensor = node.outputs[0].name


def _softmax_axes(graph: Graph, node: Node, rank: int) -> range:
    """Axes over which a softmax sums; before opset 13 these are all from its axis on."""
    if graph.opset >= 13:
        axis = int(graph.attribute(node, "axis", -1)) % rank
        return range(axis, axis + 1)
    return range(int(graph.attribute(node, "axis", 1)) % rank, rank)


def _moved(
    graph: Graph, node: Node, tensor: str, shape: _Shape, axis: int
) -> tuple[_Shape, int] | None:
    """Shape and axis of the classes behind a node; None if it does more than move them."""
    names = [str(t.name) for t in node.inputs]
    if node.op in _SAME:
        return shape, axis
    if node.op == "Transpose":
        order = graph.attribute(node, "perm") or tuple(reversed(range(len(shape))))
        return [shape[a] for a in order], list(order).index(axis)
    if node.op in _RESHAPES and names[0] == tensor:
        return _reshaped(graph, node, shape, axis)
    other = next((n for n in names if n != tensor), "")
    if len(names) != 2 or not graph.is_constant(other) or graph.overridable(other):
        return None
    value = graph.constant(other)
    if value is None or value.ndim > len(shape):
        return None
    if node.op == "Add" or (node.op == "Sub" and names[0] == tensor):
        return shape, axis
    scales = node.op == "Mul" or (node.op == "Div" and names[0] == tensor)
    return (shape, axis) if scales and value.size == 1 and value.item() > 0 else None


def _reshaped(graph: Graph, node: Node, shape: _Shape, axis: int) -> tuple[_Shape, int] | None:
    """The axis with as many classes that has as many elements behind it as before."""
    if node.op == "Flatten":
        start = int(graph.attribute(node, "axis", 1)) % (len(shape) + 1)
        made: _Shape | None = (None, _product(shape[start:]))
    else:
        made = graph.extents(node.outputs[0].name)
    behind = _product(shape[axis + 1 :])
    if made is None or behind is None:
        return None
    for place in reversed(range(len(made))):
        if made[place] == shape[axis] and _product(made[place + 1 :]) == behind:
            return made, place
    return None


def _product(extents: _Shape) -> int | None:
    known = [e for e in extents if e is not None]
    return math.prod(known) if len(known) == len(extents) else None


def _weighs(graph: Graph, softmax: Node) -> bool:
    """Whether a product depends on the probabilities that a softmax makes."""
    return any(
        node.op in _PRODUCTS
        or (node.op == "Mul" and not any(graph.is_constant(t.name) for t in node.inputs))
        for node in _behind(graph, softmax)
    )


def _behind(graph: Graph, node: Node) -> Iterator[Node]:
    """Yield all nodes that depend on a node."""
    seen: set[int] = set()
    waiting = [node]
    while waiting:
        for output in waiting.pop().outputs:
            for reader in graph.consumers(output.name):
                if id(reader) not in seen:
                    seen.add(id(reader))
                    waiting.append(reader)
                    yield reader
