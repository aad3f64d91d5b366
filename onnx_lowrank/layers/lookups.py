"""Lookups of rows of a table as layers: the embedding of a text model.

    Gather(E, ids)        y = E[ids],  that is  W x  with  W = E^T (d, V)  and a one-hot x

Most Gathers of a graph are none: they choose channels, or reckon with shapes. These are no layers,
and nobody is told of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.chains.lookup_geometry import LookupGeometry
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.graph.nodes import Node
from onnx_lowrank.layers.layer import LOOKUP, Layer
from onnx_lowrank.layers.operands import FLOATS, NotLinear, constant_of, refuse_quantized, weight_of
from onnx_lowrank.layers.placed import PlacedLayer

__all__ = ["looks_up", "lookup"]

Array = npt.NDArray[np.floating[Any]]

#: rows of the smallest table that is a vocabulary; smaller ones say which of a few kinds it is
FEWEST_ROWS = 256

#: operators that tell of a tensor nothing but its shape
_OF_SHAPE = frozenset({"Shape", "Size"})
#: operators that count positions
_COUNTING = frozenset({"CumSum", "Range"})


def looks_up(graph: Graph, node: Node) -> bool:
    """Whether a node looks rows of a constant table up, by numbers that are not constant."""
    if node.op != LOOKUP or len(node.inputs) < 2:
        return False
    table, numbers = (str(t.name) for t in node.inputs[:2])
    extents = graph.extents(table)
    if extents is None or len(extents) != 2 or not (extents[0] or 0) >= FEWEST_ROWS:
        return False
    if graph.attribute(node, "axis", 0) not in (0, -2) or graph.rank(numbers) == 0:
        return False
    if graph.is_constant(numbers):
        return False
    if graph.is_quantized(table) or graph.overridable(table):
        return True
    if not graph.is_constant(table):
        return False
    values = graph.constant(table)
    return values is None or values.dtype.name in FLOATS


def lookup(graph: Graph, node: Node, name: str) -> PlacedLayer:
    """The product of a table with one-hot rows.

    Args:
        graph: the graph.
        node: a node that :func:`looks_up`.
        name: name of the layer.

    Raises:
        NotLinear: its table cannot be read or is used otherwise too, or shapes alone decide which
            rows are read.
    """
    table, numbers = (str(t.name) for t in node.inputs[:2])
    refuse_quantized(graph, table)
    weight = weight_of(graph, node, 0)
    if not _fed(graph, numbers):
        raise NotLinear("the rows that it reads follow from positions, not from data")
    sharers = graph.uses(table)
    alike = [n for n in graph.consumers(table) if n.inputs[0].name == table and looks_up(graph, n)]
    inner = {id(n) for n in graph.nodes}
    if len(alike) < sharers or not all(id(n) in inner for n in alike):
        raise NotLinear("its table is tied: other nodes use it too, and not to look rows up")

    def read() -> tuple[Array, Array | None]:
        return constant_of(graph, table, "weight").T, None

    layer = Layer(
        name=name,
        op=LOOKUP,
        dtype=weight.dtype,
        shape=weight.shape[::-1],
        geometry=LookupGeometry(),
        biased=False,
        _load=read,
    )
    return PlacedLayer(layer, numbers, str(node.outputs[0].name), (node,), sharers)


def _fed(graph: Graph, tensor: str) -> bool:
    """Whether fed values decide a tensor; else positions do, which are counted off a shape."""
    waiting, seen, fed = [tensor], {tensor}, False
    while waiting:
        name = waiting.pop()
        node = graph.producer(name)
        if node is None:
            fed = fed or not graph.is_constant(name)
        elif node.op in _COUNTING:
            return False
        elif node.op not in _OF_SHAPE:
            more = graph.reads(node) - seen - {""}
            seen |= more
            waiting += sorted(more)
    return fed
