"""Protobufs of an edited graph: the whole model, or a part of it as a model of its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

from onnx_lowrank.protobuf import copy_field, reads, value_info

__all__ = ["edited", "part"]

#: an initializer by name, of the original or of an edit; None for other tensors
_Constants = Callable[[str], TensorProto | None]

#: below it every initializer must be listed as an input
_UNLISTED = 4


def edited(
    source: ModelProto,
    nodes: Sequence[NodeProto],
    used: Collection[str],
    made: Collection[str],
    forgotten: Collection[str],
    constant: _Constants,
) -> ModelProto:
    """The model with other nodes; all else is a copy of the original.

    Args:
        source: the original.
        nodes: of the main graph.
        used: tensors that are read, or outputs of the graph.
        made: tensors that the nodes make.
        forgotten: tensors whose shape is no longer that of the original.
        constant: initializers by name.
    """
    proto = ModelProto()
    for field, value in source.ListFields():
        if field.name == "graph":
            continue
        copy_field(proto, field.name, value)
    for field, value in source.graph.ListFields():
        if field.name not in {"node", "initializer", "input", "value_info"}:
            copy_field(proto.graph, field.name, value)
    listed = {i.name for i in source.graph.input}
    # what nobody read in the original either is not ours to judge
    orphans = {name for n in source.graph.node for name in reads(n)} - set(used)
    original = {t.name: t for t in source.graph.initializer}
    gone = original.keys() & orphans
    proto.graph.input.extend(i for i in source.graph.input if i.name not in gone)
    proto.graph.initializer.extend(t for name, t in original.items() if name not in gone)
    known = {*original, *(t.values.name for t in source.graph.sparse_initializer)}
    new = [t for n in sorted(set(used) - known) if (t := constant(n)) is not None]
    proto.graph.initializer.extend(new)
    if source.ir_version < _UNLISTED:
        proto.graph.input.extend(value_info(t.name, t.data_type, t.dims) for t in new)
    proto.graph.node.extend(nodes)
    alive = {*used, *made} - set(forgotten)
    proto.graph.value_info.extend(
        v for v in source.graph.value_info if v.name in alive or v.name in listed
    )
    return proto


def part(
    source: ModelProto,
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, int],
    outputs: Sequence[str],
    constant: _Constants,
) -> ModelProto:
    """Some of the nodes as a model of its own.

    Args:
        source: the original.
        nodes: in topological order.
        inputs: tensors that may be fed, with their ONNX element types; of these, what is read.
        outputs: tensors to compute.
        constant: initializers by name.
    """
    used = {name for n in nodes for name in reads(n)} | set(outputs)
    proto = ModelProto(ir_version=source.ir_version)
    proto.opset_import.extend(source.opset_import)
    proto.functions.extend(source.functions)
    proto.graph.name = "part"
    proto.graph.node.extend(nodes)
    fed = {i.name: i for i in source.graph.input}
    sparse = {t.values.name: t for t in source.graph.sparse_initializer}
    for name in sorted(used - inputs.keys()):
        if name in sparse:
            proto.graph.sparse_initializer.append(sparse[name])
        elif (tensor := constant(name)) is not None:
            proto.graph.initializer.append(tensor)
    for name, element in inputs.items():
        if name in used:
            proto.graph.input.append(value_info(name, element))
    if source.ir_version < _UNLISTED:
        for tensor in proto.graph.initializer:
            proto.graph.input.append(
                fed.get(tensor.name) or value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    proto.graph.output.extend(ValueInfoProto(name=o) for o in outputs)
    return proto
