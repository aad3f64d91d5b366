"""Checks of a model before anything else reads it.

Files come from anywhere. Here they are checked once, so that no other module need ask whether a
name is text, a tensor has as many values as it declares, or an operator has its operands. A model
that ONNX Runtime runs passes, also where ``onnx.checker`` is stricter (unknown operators, newer
opsets, nodes out of order).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from heapq import heappop, heappush

import onnx
from google.protobuf.message import Message
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    defs,
)

from onnx_lowrank.errors import ModelError
from onnx_lowrank.modelfile.protobuf import all_tensors, reads

__all__ = ["sound", "tensor_bytes"]

_ELEMENTS = frozenset(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}
#: fields of a tensor that hold values
_TYPED = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
#: operators with a sliding window
_WINDOWS = frozenset({"AveragePool", "Conv", "ConvTranspose", "LpPool", "MaxPool"})
#: element types whose values take two numbers
_COMPLEX = (TensorProto.COMPLEX64, TensorProto.COMPLEX128)

#: bits of an element, for types that are smaller than a byte
_BITS = {
    element: bits
    for name, element in TensorProto.DataType.items()
    for bits in (2, 4, 6)
    if re.fullmatch(rf"(U?INT|FLOAT){bits}(E.*)?", name)
}


def sound(proto: ModelProto, name: str) -> ModelProto:
    """Check a model and put its nodes in topological order.

    Args:
        proto: the model.
        name: name of the model, for messages.

    Returns:
        ``proto`` itself where its nodes are in order, else a copy.

    Raises:
        ModelError: the model cannot be run; the message says where it is broken.
    """
    if proto.ir_version < 1 or not proto.graph.node:
        raise ModelError(f"{name}: not an ONNX model, or a model without nodes; export it again")
    if not proto.opset_import:
        raise ModelError(f"{name}: declares no opset; export it again")
    try:
        _check_text(proto)
        opsets = _opsets(proto.opset_import)
        if any(not 0 < version < 2**31 for version in opsets.values()):
            raise _Broken(f"it declares the opset {min(opsets.values())}, which does not exist")
        _check_graph(proto.graph, opsets, within=False)
        for function in proto.functions:
            _check_nodes(function.node, opsets | _opsets(function.opset_import), within=True)
        for tensor in all_tensors(proto):
            _check_tensor(tensor)
        for sparse in proto.graph.sparse_initializer:
            if any(d < 0 for d in sparse.dims):
                raise _Broken(
                    f"tensor {sparse.values.name!r} has the negative shape {list(sparse.dims)}"
                )
        return _in_order(proto)
    except _Broken as broken:
        raise ModelError(f"{name}: broken model, {broken}; export it again") from None


def tensor_bytes(tensor: TensorProto) -> int:
    """Size in bytes of the values of ``tensor``, by its shape and type."""
    count = math.prod(tensor.dims)
    if bits := _BITS.get(tensor.data_type):
        return (count * bits + 7) // 8
    return count * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


class _Broken(ModelError):  # noqa: N818 - internal; replaced by an error that names the file
    """The place where a model is broken, without the name of the model."""


def _check_text(message: Message) -> None:
    pending: list[Message] = [message]
    while pending:
        for field, value in pending.pop().ListFields():
            many = isinstance(value, Iterable) and not isinstance(value, (str, bytes))
            if field.message_type is not None:
                pending.extend(value if many else [value])
            elif field.type == field.TYPE_STRING and not all(
                isinstance(v, str) and "\0" not in v for v in (value if many else [value])
            ):
                raise _Broken(f"a field {field.name} in it is not valid text")


def _opsets(imports: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    return {"" if o.domain == "ai.onnx" else o.domain: o.version for o in imports}


def _check_graph(graph: GraphProto, opsets: Mapping[str, int], *, within: bool) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.tensor_type
        if value.type.HasField("tensor_type") and kind.elem_type not in (0, *_ELEMENTS):
            raise _Broken(f"{value.name!r} has the unknown element type {kind.elem_type}")
    _check_nodes(graph.node, opsets, within=within)


def _check_nodes(nodes: Iterable[NodeProto], opsets: Mapping[str, int], *, within: bool) -> None:
    for node in nodes:
        domain = "" if node.domain == "ai.onnx" else node.domain
        if domain == "" and domain not in opsets:
            raise _Broken(f"{_title(node)} needs the default opset, which is not declared")
        schema = _schema(node.op_type, opsets.get(domain, 1), domain)
        if schema is not None:
            _check_operands(node, schema)
            _check_window(node)
        for attribute in node.attribute:
            _check_attribute(node, attribute, schema)
            for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                _check_graph(graph, opsets, within=within)
            if attribute.ref_attr_name and not within:
                raise _Broken(
                    f"{_title(node)} refers to an attribute of a function, but is in none"
                )


@lru_cache(maxsize=4096)
def _schema(op: str, version: int, domain: str) -> defs.OpSchema | None:
    try:
        return defs.get_schema(op, version, domain)
    except defs.SchemaError:
        return None


def _check_operands(node: NodeProto, schema: defs.OpSchema) -> None:
    for given, wanted, least, what in (
        (node.input, schema.inputs, schema.min_input, "inputs"),
        (node.output, schema.outputs, schema.min_output, "outputs"),
    ):
        single = defs.OpSchema.FormalParameterOption.Single
        if len(given) < least or any(
            not name and formal.option == single
            for name, formal in zip(given, wanted, strict=False)
        ):
            raise _Broken(f"{_title(node)} needs {least} {what}, found {list(given)}")


def _check_attribute(
    node: NodeProto, attribute: AttributeProto, schema: defs.OpSchema | None
) -> None:
    if attribute.ref_attr_name:
        return
    known = None if schema is None else schema.attributes.get(attribute.name)
    kind = AttributeProto.AttributeType.Name(attribute.type)
    if kind == "UNDEFINED" or (known is not None and str(known.type) != f"AttrType.{kind}"):
        raise _Broken(f"the attribute {attribute.name!r} of {_title(node)} has the wrong type")


def _check_window(node: NodeProto) -> None:
    """Refuse invalid sizes of a sliding window; ONNX Runtime crashes on some of them."""
    if node.op_type not in _WINDOWS:
        return
    given = {a.name: list(a.ints) for a in node.attribute if a.type == AttributeProto.INTS}
    axes: set[float] = {
        len(given[k]) for k in ("kernel_shape", "strides", "dilations") if given.get(k)
    }
    if pads := given.get("pads"):
        axes.add(len(pads) / 2)
    lowest = {"kernel_shape": 1, "strides": 1, "dilations": 1, "pads": 0}
    if len(axes) > 1 or any(min(given.get(k) or [v]) < v for k, v in lowest.items()):
        sizes = ", ".join(f"{k} {given[k]}" for k in lowest if k in given)
        raise _Broken(f"{_title(node)} has an invalid window: {sizes}")


def _check_tensor(tensor: TensorProto) -> None:
    where = f"tensor {tensor.name!r}"
    if tensor.data_type not in _ELEMENTS:
        raise _Broken(f"{where} has the unknown element type {tensor.data_type}")
    if any(d < 0 for d in tensor.dims):
        raise _Broken(f"{where} has the negative shape {list(tensor.dims)}")
    if tensor.data_location == TensorProto.EXTERNAL:
        return
    if tensor.HasField("raw_data") and tensor.data_type != TensorProto.STRING:
        wanted, found, unit = tensor_bytes(tensor), len(tensor.raw_data), "bytes"
    elif tensor.data_type in _BITS:
        return  # several values share a field, and how has changed over time
    else:
        found, unit = sum(len(getattr(tensor, field)) for field in _TYPED), "values"
        wanted = math.prod(tensor.dims) * (2 if tensor.data_type in _COMPLEX else 1)
    if wanted != found:
        shape = "x".join(map(str, tensor.dims)) or "a scalar"
        raise _Broken(f"{where} declares {shape}, {wanted} {unit}, and holds {found}")


def _in_order(proto: ModelProto) -> ModelProto:
    """``proto``, or a copy with the nodes of the main graph in topological order."""
    graph, nodes = proto.graph, list(proto.graph.node)
    given = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    given |= {t.values.name for t in graph.sparse_initializer}
    makers: dict[str, int] = {}
    for i, node in enumerate(nodes):
        for output in filter(None, node.output):
            if output in makers or output in given:
                raise _Broken(f"the tensor {output!r} has two producers")
            makers[output] = i
    waits = []
    for node in nodes:
        names = set(reads(node))
        if unknown := names - given - makers.keys():
            raise _Broken(f"{_title(node)} reads {min(unknown)!r}, which no node produces")
        waits.append({makers[name] for name in names if name in makers})
    for value in graph.output:
        if value.name not in makers and value.name not in given:
            raise _Broken(f"no node produces its output {value.name!r}")
    if all(max(w, default=-1) < i for i, w in enumerate(waits)):
        return proto
    readers: list[list[int]] = [[] for _ in nodes]
    for i, w in enumerate(waits):
        for maker in w:
            readers[maker].append(i)
    left = [len(w) for w in waits]
    ready = [i for i in range(len(nodes)) if not left[i]]
    order: list[int] = []
    while ready:
        order.append(i := heappop(ready))
        for reader in readers[i]:
            left[reader] -= 1
            if not left[reader]:
                heappush(ready, reader)
    if len(order) < len(nodes):
        stuck = next(i for i, count in enumerate(left) if count)
        raise _Broken(f"its nodes form a cycle (at {_title(nodes[stuck])})")
    copy = ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes[i] for i in order)
    return copy


def _title(node: NodeProto) -> str:
    return f"{node.op_type} {(node.name or next(iter(node.output), ''))!r}"
