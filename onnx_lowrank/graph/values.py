"""Properties of values that follow from the graph: types, and shapes that depend on data.

A shape *depends on data* where it follows from the values that are fed, not from their shapes:
behind NonZero or NonMaxSuppression, or a Reshape to computed sizes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import onnx
from onnx import TensorProto, TypeProto, shape_inference

from onnx_lowrank.graph.constant_folding import SHAPE_LIKE
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.graph.nodes import Node
from onnx_lowrank.modelfile.model import Model

__all__ = ["DataShapes", "before", "data_shapes", "no_tensors", "value_types"]

_DEFAULT = (None, "", "ai.onnx")

#: operators whose results have a length that depends on the values of their inputs
_COUNTING = frozenset({"NonMaxSuppression", "NonZero", "StringSplit", "Unique"})
#: positions of the operands whose values determine the shape of a result
_SHAPING = {
    "BlackmanWindow": (0,), "CenterCropPad": (1,), "Col2Im": (1, 2), "Compress": (1,),
    "ConstantOfShape": (0,), "DFT": (1,), "Expand": (1,), "HammingWindow": (0,),
    "HannWindow": (0,), "Loop": (0, 1),
    "MaxUnpool": (2,), "MelWeightMatrix": (0, 1), "OneHot": (1,), "Pad": (1,),
    "Range": (0, 1, 2), "Reshape": (1,), "Resize": (2, 3), "STFT": (1, 3), "Slice": (1, 2, 3, 4),
    "Split": (1,), "SplitToSequence": (1,), "Tile": (1,), "TopK": (1,), "Upsample": (1,),
}  # fmt: skip
#: operators with subgraphs, whose results may have any shape
_CONTROL = frozenset({"If", "Loop", "Scan", "SequenceMap"})
#: operators that make values other than tensors, for which inference may not say so
_BOXING = frozenset({
    "Optional", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert",
    "SequenceMap", "SplitToSequence", "ZipMap",
})  # fmt: skip


@dataclass(frozen=True)
class DataShapes:
    """Tensors whose shapes or values depend on data.

    Attributes:
        surely: tensors whose shapes depend on data.
        perhaps: tensors whose shapes may depend on data, because they come from control flow or
            operators of other domains; includes ``surely``.
        fed: tensors whose values depend on the inputs.
    """

    surely: frozenset[str]
    perhaps: frozenset[str]
    fed: frozenset[str]


def data_shapes(graph: Graph) -> DataShapes:
    """Find the tensors of a graph whose shapes or values depend on data."""
    fed, surely, perhaps = set(graph.inputs), set[str](), set[str]()
    for node in graph.nodes:
        reads, makes = graph.reads(node), _outputs(node)
        if not reads & fed and not reads & perhaps and not node.op.startswith("Random"):
            continue
        default = node.domain in _DEFAULT
        if default and node.op in ("Shape", "Size"):
            if reads & perhaps:
                fed.update(makes)
            continue
        fed.update(makes)
        places = _SHAPING.get(node.op, ()) if default else ()
        sizes = {t.name for i, t in enumerate(node.inputs) if i in places}
        counted = default and node.op in _COUNTING
        if reads & surely or sizes & fed or counted:
            surely.update(makes)
        if reads & perhaps or sizes & fed or counted or not default or node.op in _CONTROL:
            perhaps.update(makes)
    return DataShapes(frozenset(surely), frozenset(perhaps), frozenset(fed))


def before(graph: Graph, shapes: DataShapes, tensor: str) -> list[str]:
    """Find the last tensors on the way to ``tensor`` whose shapes do not depend on data.

    Inputs of the graph and constants are left out.
    """
    found: dict[str, None] = {}
    seen, pending = {tensor}, [tensor]
    while pending:
        node = graph.producer(pending.pop())
        if node is None:
            continue
        for name in sorted(graph.reads(node) - seen):
            seen.add(name)
            if name in shapes.surely:
                pending.append(name)
            elif name in shapes.fed and graph.producer(name) is not None:
                found[name] = None
    return list(found)


def value_types(model: Model) -> dict[str, TypeProto]:
    """Types of the values of the main graph, as the model declares them or as inferred."""
    graph = model.proto.graph
    skeleton = onnx.ModelProto(ir_version=max(model.proto.ir_version, 4))
    skeleton.opset_import.extend(model.proto.opset_import)
    skeleton.functions.extend(model.proto.functions)
    skeleton.graph.name = "skeleton"
    skeleton.graph.node.extend(graph.node)
    weights = {t.name for t in graph.initializer}
    for tensor in graph.initializer:
        if math.prod(tensor.dims) > SHAPE_LIKE:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            skeleton.graph.input.append(info)
        else:
            skeleton.graph.initializer.append(tensor)
    skeleton.graph.input.extend(v for v in graph.input if v.name not in weights)
    skeleton.graph.output.extend(graph.output)
    try:
        inferred = shape_inference.infer_shapes(skeleton).graph
    except Exception:  # one bad node must not stop the rest
        inferred = skeleton.graph
    stated = (graph.input, graph.value_info, graph.output)
    given = (inferred.value_info, inferred.output, *stated)
    return {v.name: v.type for values in given for v in values}


def no_tensors(graph: Graph) -> frozenset[str]:
    """Names of the values other than tensors of numbers: sequences, maps, optionals, strings."""
    found = {name for name, kind in value_types(graph.model).items() if _boxed(kind)}
    for node in graph.nodes:
        if node.op in _BOXING:
            found.update(_outputs(node))
    return frozenset(found)


def _boxed(kind: TypeProto) -> bool:
    which = kind.WhichOneof("value")
    if which == "tensor_type":
        return bool(kind.tensor_type.elem_type == TensorProto.STRING)
    return which is not None


def _outputs(node: Node) -> Iterable[str]:
    return [t.name for t in node.outputs if not t.is_empty()]
