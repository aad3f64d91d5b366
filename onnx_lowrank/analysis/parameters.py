"""How many numbers of a model take part in its computations: its parameters.

Counted are the elements of initializers and of Constant nodes that something reads, in the main
graph, in subgraphs and in functions, each once however many nodes share it:

- floating-point ones of every width, and complex ones; scales of quantized weights are among them;
- integers of 8 bits and fewer (quantized weights and their zero points), a weight that packs
  several into a byte by what it packs;
- wider integers where they are dequantized, cast to floats, or the bias of a quantized layer.

Other integers are indices and shapes. Of a sparse tensor the values that are stored count.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from onnx_lowrank.analysis.mac_formulas import DEFAULT_DOMAINS, MICROSOFT
from onnx_lowrank.graph.constant_folding import VIEWS
from onnx_lowrank.modelfile.protobuf import reads

__all__ = ["parameters_of"]


def _types(*prefixes: str) -> frozenset[int]:
    """Element types whose names begin so."""
    types = TensorProto.DataType.items()
    return frozenset(value for name, value in types if name.startswith(prefixes))


_FLOATS = _types("FLOAT", "BFLOAT16", "DOUBLE", "COMPLEX")
_BYTES = _types("INT8", "UINT8")
_NARROW = _BYTES | _types("INT4", "UINT4", "INT2", "UINT2")
_NO_NUMBERS = _types("STRING", "BOOL", "UNDEFINED")

#: where quantized layers read a bias of wide integers
_BIASES = {("", "QLinearConv"): 8, (MICROSOFT, "QLinearConv"): 8, (MICROSOFT, "QGemm"): 6}

#: operators with a weight of several numbers to a byte, and the bits of one by default
_PACKED = {"MatMulNBits": 4, "GatherBlockQuantized": 4, "MatMulBnb4": 4, "MatMulFpQ4": 4}


def parameters_of(proto: ModelProto) -> int:
    """Parameters of a model."""
    total = _of_nodes(proto.graph.node, proto.graph)
    return total + sum(_of_nodes(function.node, None) for function in proto.functions)


def _of_nodes(nodes: Sequence[NodeProto], graph: GraphProto | None) -> int:
    """Parameters of a graph or of a function, with those in its subgraphs."""
    numeric, packed = _numeric(nodes), _packed(nodes)
    total = 0
    if graph is not None:
        used = {name for node in nodes for name in reads(node)} | {o.name for o in graph.output}
        total += sum(
            _elements(t, t.name in numeric, packed.get(t.name, 1))
            for t in graph.initializer
            if t.name in used
        )
        total += sum(
            _elements(t.values, t.values.name in numeric)
            for t in graph.sparse_initializer
            if t.values.name in used
        )
    for node in nodes:
        if node.op_type == "Constant" and node.domain in DEFAULT_DOMAINS:
            name = node.output[0] if node.output else ""
            total += _of_constant(node, name in numeric, packed.get(name, 1))
        for attribute in node.attribute:
            if attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
                graphs = attribute.graphs or [attribute.g]
                total += sum(_of_nodes(g.node, g) for g in graphs)
    return total


def _of_constant(node: NodeProto, numeric: bool, packed: int) -> int:
    for attribute in node.attribute:
        if attribute.name == "value":
            return _elements(attribute.t, numeric, packed)
        if attribute.name == "sparse_value":
            return _elements(attribute.sparse_tensor.values, numeric)
        if attribute.name in ("value_float", "value_floats"):
            return len(attribute.floats) or 1
        if attribute.name in ("value_int", "value_ints") and numeric:
            return len(attribute.ints) or 1
    return 0


def _elements(tensor: TensorProto, numeric: bool, packed: int = 1) -> int:
    kind = tensor.data_type
    if kind in _FLOATS or kind in _NARROW or (numeric and kind not in _NO_NUMBERS):
        return math.prod(tensor.dims) * (packed if kind in _BYTES else 1)
    return 0


def _everywhere(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """The nodes and those of their subgraphs, which may read what is outside."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _everywhere(graph.node)


def _numeric(nodes: Sequence[NodeProto]) -> set[str]:
    """Tensors whose integers are computed with as numbers."""
    found: set[str] = set()
    for node in reversed(list(_everywhere(nodes))):
        domain = "" if node.domain in DEFAULT_DOMAINS else node.domain
        if node.op_type == "DequantizeLinear":
            found.update(node.input[:1])
        elif node.op_type == "Cast":
            to = next((a.i for a in node.attribute if a.name == "to"), 0)
            if to in _FLOATS:
                found.update(node.input[:1])
        bias = _BIASES.get((domain, node.op_type))
        if bias is not None and len(node.input) > bias:
            found.add(node.input[bias])
        if node.op_type in VIEWS and found.intersection(node.output):
            found.update(node.input[:1])
    return found - {""}


def _packed(nodes: Sequence[NodeProto]) -> dict[str, int]:
    """Weights whose bytes hold several numbers, and how many a byte holds."""
    found = {}
    for node in _everywhere(nodes):
        if node.domain == MICROSOFT and node.op_type in _PACKED and len(node.input) > 1:
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            bits = int(attributes.get("bits", _PACKED[node.op_type]))
            if bits in (1, 2, 4):
                index = 0 if node.op_type == "GatherBlockQuantized" else 1
                found[node.input[index]] = 8 // bits
    return found
