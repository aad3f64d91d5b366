"""Protobufs of an edited graph: the whole model, or a part of it as a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, shape_inference

from onnx_lowrank.graph.constant_folding import SHAPE_LIKE
from onnx_lowrank.modelfile.protobuf import copy_field, reads, value_info

__all__ = ["edited", "inferred_extents", "overridable", "part", "weights_as_inputs"]

#: returns an initializer by name, of the original or new; None for other tensors
_Constants = Callable[[str], TensorProto | None]

#: fewest axes of a weight; scalars and shapes have fewer
_WEIGHT = 2

#: first IR version in which initializers need not be listed as inputs
_UNLISTED = 4


def overridable(source: ModelProto) -> set[str]:
    """Names of the initializers that are graph inputs too: a caller may feed another value.

    Before IR version 4 every initializer had to be listed as an input, and exporters went on to
    list all of them; so where all are listed, none counts, and :func:`edited` lists none.
    """
    if source.ir_version < _UNLISTED or weights_as_inputs(source):
        return set()
    return _listed(source)


def weights_as_inputs(source: ModelProto) -> int:
    """Number of initializers, where every one is listed as an input though none has to be.

    0 where no weight is among them, or nodes hold more numbers: an exporter that lists weights out
    of habit lists all, and what is listed alone, as a state that may be fed, is meant to be.
    """
    tensors = source.graph.initializer
    listed = _listed(source) if source.ir_version >= _UNLISTED else set()
    if listed != {t.name for t in tensors} or all(len(t.dims) < _WEIGHT for t in tensors):
        return 0
    constants = (n for n in source.graph.node if n.op_type == "Constant")
    held = (a.t for n in constants for a in n.attribute if a.name == "value")
    return len(listed) if _numbers(tensors) >= _numbers(held) else 0


def _numbers(tensors: Iterable[TensorProto]) -> int:
    return sum(math.prod(t.dims) for t in tensors)


def _listed(source: ModelProto) -> set[str]:
    return {i.name for i in source.graph.input} & {t.name for t in source.graph.initializer}


def inferred_extents(source: ModelProto) -> dict[str, tuple[int | None, ...]]:
    """Extents of the tensors of the main graph by ONNX shape inference; None where dynamic."""
    skeleton = ModelProto(ir_version=max(source.ir_version, _UNLISTED))
    skeleton.opset_import.extend(source.opset_import)
    skeleton.functions.extend(source.functions)
    graph = skeleton.graph
    graph.name = "skeleton"
    graph.node.extend(source.graph.node)
    graph.output.extend(source.graph.output)
    graph.value_info.extend(source.graph.value_info)
    large = [t for t in source.graph.initializer if math.prod(t.dims) > SHAPE_LIKE]
    graph.initializer.extend(t for t in source.graph.initializer if math.prod(t.dims) <= SHAPE_LIKE)
    names = {t.name for t in large}
    graph.input.extend(i for i in source.graph.input if i.name not in names)
    graph.input.extend(value_info(t.name, t.data_type, t.dims) for t in large)
    try:
        found = shape_inference.infer_shapes(skeleton, data_prop=True).graph
    except Exception:  # one bad node must not stop the rest
        found = graph
    return {
        v.name: tuple(d.dim_value if d.dim_value > 0 else None for d in shape.dim)
        for v in (*found.input, *found.value_info, *found.output)
        if v.type.tensor_type.HasField("shape")
        for shape in [v.type.tensor_type.shape]
    }


def edited(
    source: ModelProto,
    nodes: Sequence[NodeProto],
    used: Collection[str],
    made: Collection[str],
    forgotten: Collection[str],
    constant: _Constants,
) -> ModelProto:
    """Make the model with other nodes; everything else is a copy of the original.

    Args:
        source: the original model.
        nodes: nodes of the main graph.
        used: names of the tensors that are read or that are outputs of the graph.
        made: names of the tensors that the nodes make.
        forgotten: names of the tensors whose shapes have changed.
        constant: returns initializers by name; those of the original may have other values.
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
    # initializers that no node read in the original stay, and so do inputs
    orphans = {name for n in source.graph.node for name in reads(n)} - set(used)
    orphans -= overridable(source)
    original = {t.name for t in source.graph.initializer}
    known = original | {t.values.name for t in source.graph.sparse_initializer}
    names = [t.name for t in source.graph.initializer if t.name not in orphans]
    tensors = {n: t for n in (*names, *sorted(set(used) - known)) if (t := constant(n)) is not None}
    proto.graph.initializer.extend(tensors.values())
    left = set() if weights_as_inputs(source) else tensors.keys()
    proto.graph.input.extend(
        _declared(i, tensors.get(i.name))
        for i in source.graph.input
        if i.name not in original or i.name in left
    )
    if source.ir_version < _UNLISTED:
        proto.graph.input.extend(
            value_info(t.name, t.data_type, t.dims)
            for t in tensors.values()
            if t.name not in original
        )
    proto.graph.node.extend(nodes)
    alive = {*used, *made} - set(forgotten)
    proto.graph.value_info.extend(
        v
        for v in source.graph.value_info
        if (v.name in alive or v.name in listed) and _agree(v, tensors.get(v.name))
    )
    return proto


def _agree(value: ValueInfoProto, tensor: TensorProto | None) -> bool:
    """Whether the declared type and shape of a tensor fit its values."""
    kind = value.type.tensor_type
    if tensor is None or not value.type.HasField("tensor_type"):
        return True
    if kind.elem_type not in (0, tensor.data_type):
        return False
    sizes = [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]
    return not kind.HasField("shape") or (
        len(sizes) == len(tensor.dims)
        and all(size in (None, n) for size, n in zip(sizes, tensor.dims, strict=True))
    )


def _declared(value: ValueInfoProto, tensor: TensorProto | None) -> ValueInfoProto:
    """A graph input; if it lists an initializer, with the initializer's type and shape."""
    if tensor is None or _agree(value, tensor):
        return value
    copy = ValueInfoProto()
    copy.CopyFrom(value)
    copy.type.CopyFrom(value_info(tensor.name, tensor.data_type, tensor.dims).type)
    return copy


def part(
    source: ModelProto,
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, int],
    outputs: Sequence[str],
    constant: _Constants,
) -> ModelProto:
    """Make a model of some of the nodes.

    Args:
        source: the original model.
        nodes: nodes in topological order.
        inputs: ONNX element types of the tensors that may be fed, by name; those that the nodes
            read become inputs.
        outputs: names of the tensors to compute.
        constant: returns initializers by name.
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
            # sequences and optionals have no element type of their own
            proto.graph.input.append(value_info(name, element) if element else fed[name])
    if source.ir_version < _UNLISTED:
        for tensor in proto.graph.initializer:
            proto.graph.input.append(
                fed.get(tensor.name) or value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    proto.graph.output.extend(ValueInfoProto(name=o) for o in outputs)
    return proto
