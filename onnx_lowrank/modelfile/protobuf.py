"""Functions on ONNX protobufs, without a linked graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

__all__ = [
    "all_names",
    "all_tensors",
    "copy_field",
    "inner_nodes",
    "readable",
    "reads",
    "value_info",
    "without_initializers",
]


def all_names(proto: ModelProto) -> set[str]:
    """Collect the names of all nodes and tensors, including those in subgraphs."""
    names: set[str] = set()

    def visit(graph: GraphProto) -> None:
        names.update(t.name for t in graph.initializer)
        for values in (graph.input, graph.output, graph.value_info):
            names.update(v.name for v in values)
        for node in graph.node:
            names.update((node.name, *node.input, *node.output))
            for attribute in node.attribute:
                for inner in (attribute.g, *attribute.graphs):
                    if inner.node or inner.output:
                        visit(inner)

    visit(proto.graph)
    return names


def all_tensors(proto: ModelProto) -> Iterator[TensorProto]:
    """Yield every tensor with values: initializers and constants, in subgraphs and functions too.

    Sparse tensors are left out.
    """

    def of_nodes(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
        for node in nodes:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                for graph in (attribute.g, *attribute.graphs):
                    yield from graph.initializer
                    yield from of_nodes(graph.node)

    yield from proto.graph.initializer
    yield from of_nodes(proto.graph.node)
    for function in proto.functions:
        yield from of_nodes(function.node)


def readable(proto: ModelProto) -> ModelProto:
    """A copy of ``proto`` for onnx-graphsurgeon: without weights, and what it cannot decode.

    Its nodes and tensors refer to each other and to what they were read from, which stays in
    memory until Python looks for such circles: weights of initializers should not. Unchanged nodes
    are written back from the original, so byte strings that are no text may be left out.
    """
    copy = without_initializers(proto)
    for tensor in proto.graph.initializer:
        copy.graph.initializer.add(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
    for node in _all_nodes(copy):
        kept = [a for a in node.attribute if not _binary(a)]
        if len(kept) < len(node.attribute):
            del node.attribute[:]
            node.attribute.extend(kept)
    return copy


def without_initializers(proto: ModelProto) -> ModelProto:
    """A copy of a model without the initializers of its graph."""
    copy = ModelProto()
    for field, value in proto.ListFields():
        if field.name != "graph":
            copy_field(copy, field.name, value)
    copy.graph.SetInParent()
    for field, value in proto.graph.ListFields():
        if field.name != "initializer":
            copy_field(copy.graph, field.name, value)
    return copy


def _all_nodes(proto: ModelProto) -> Iterator[NodeProto]:
    """The nodes of a model, those of subgraphs and functions among them."""
    for node in (*proto.graph.node, *(n for f in proto.functions for n in f.node)):
        yield node
        yield from (inner for inner, _ in inner_nodes(node, ""))


def _binary(attribute: AttributeProto) -> bool:
    """Whether an attribute holds byte strings that are no text."""
    try:
        for value in (attribute.s, *attribute.strings):
            value.decode()
    except UnicodeDecodeError:
        return True
    return False


def copy_field(target: Any, name: str, value: Any) -> None:
    """Set a field of a message: a scalar, a message or a repeated field."""
    if isinstance(value, (str, bytes, int, float)):
        setattr(target, name, value)
    elif hasattr(value, "CopyFrom"):
        getattr(target, name).CopyFrom(value)
    else:
        getattr(target, name).extend(value)


def inner_nodes(node: NodeProto, place: str) -> Iterator[tuple[NodeProto, str]]:
    """Yield the nodes in the subgraphs of a node, at any depth, each with ``place``."""
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield inner, place
                yield from inner_nodes(inner, place)


def reads(node: NodeProto) -> Iterator[str]:
    """Yield the inputs of a node, and the tensors that its subgraphs read from outside."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            if not graph.node and not graph.output:
                continue
            own = {i.name for i in graph.input} | {t.name for t in graph.initializer}
            own |= {t.values.name for t in graph.sparse_initializer}
            own |= {name for n in graph.node for name in n.output}
            for inner in graph.node:
                yield from (name for name in reads(inner) if name not in own)
            yield from (o.name for o in graph.output if o.name not in own)


def value_info(name: str, element: int, dims: Sequence[int] | None = None) -> ValueInfoProto:
    """Make the description of a tensor: name, element type and shape."""
    return onnx.helper.make_tensor_value_info(name, element, dims)
