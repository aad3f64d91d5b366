"""Version stamps of models that are newer than ONNX Runtime.

The onnx package knows operator sets and IR versions before ONNX Runtime does. A model whose
operators have the same definition in an older operator set may run under its stamp, and gives the
same results.
"""

from __future__ import annotations

from collections.abc import Iterator

from onnx import IR_VERSION, GraphProto, ModelProto, NodeProto, defs

__all__ = ["restamped"]


def restamped(proto: ModelProto, opset: int, ir_version: int) -> ModelProto | None:
    """Stamp a model with a default operator set and an IR version no newer than the given ones.

    Returns:
        ``proto`` itself where it is not newer, else a copy; None where one of its operators
        changed in between, or where the onnx package does not know its stamps either.
    """
    versions = {"" if o.domain == "ai.onnx" else o.domain: o.version for o in proto.opset_import}
    declared = versions.get("", 0)
    if declared <= opset and proto.ir_version <= ir_version:
        return proto
    if declared > defs.onnx_opset_version() or proto.ir_version > int(IR_VERSION):
        return None
    if declared > opset and any(_changed(n, opset, declared) for n in _nodes(proto)):
        return None
    copy = ModelProto()
    copy.CopyFrom(proto)
    copy.ir_version = min(proto.ir_version, ir_version)
    for imports in (copy.opset_import, *(f.opset_import for f in copy.functions)):
        for entry in imports:
            if entry.domain in ("", "ai.onnx"):
                entry.version = min(entry.version, opset)
    return copy


def _changed(node: NodeProto, old: int, new: int) -> bool:
    if node.domain not in ("", "ai.onnx"):
        return False
    try:
        return (
            defs.get_schema(node.op_type, old, "").since_version
            != defs.get_schema(node.op_type, new, "").since_version
        )
    except defs.SchemaError:
        return True


def _nodes(proto: ModelProto) -> Iterator[NodeProto]:
    def inside(graph: GraphProto) -> Iterator[NodeProto]:
        for node in graph.node:
            yield from deep(node)

    def deep(node: NodeProto) -> Iterator[NodeProto]:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from inside(graph)

    yield from inside(proto.graph)
    for function in proto.functions:
        for node in function.node:
            yield from deep(node)
