"""What a model costs: MACs, parameters, bytes.

MACs are counted from the graph alone, so that a written file can be counted independently of the
plan that made it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import TensorProto, shape_inference

from onnx_lowrank.constants import SHAPE_LIKE
from onnx_lowrank.graph import Graph, Node
from onnx_lowrank.layers import Layer
from onnx_lowrank.model import Model
from onnx_lowrank.runtime import Feed, Runtime

__all__ = [
    "Cost",
    "cost_of",
    "layer_cost",
    "model_cost",
    "node_macs",
    "node_tensors",
    "other_cost",
    "tensor_shapes",
]

Shapes = Mapping[str, tuple[int, ...]]

_FLOATS = frozenset(
    {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
)
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@dataclass(frozen=True)
class Cost:
    """Cost of a model, or of a part.

    Attributes:
        macs: multiply-accumulates of one inference (at batch 1 where the batch is dynamic).
        parameters: elements of floating-point initializers.
        bytes: of the file, external data included.
    """

    macs: int
    parameters: int
    bytes: int


def model_cost(model: Model, shapes: Shapes) -> Cost:
    """Cost of a whole model, as written.

    Args:
        model: the model.
        shapes: of its tensors, by name (:func:`tensor_shapes`).
    """
    graph = Graph(model)
    macs = sum(node_macs(graph, node, shapes) or 0 for node in graph.nodes)
    parameters = sum(
        math.prod(dims) for _, dims, element in graph.initializers() if element in _FLOATS
    )
    return Cost(macs, parameters, model.bytes)


def cost_of(cost: Cost, metric: str) -> int:
    """What a cost is in ``macs``, ``params`` or ``size``."""
    return {"macs": cost.macs, "params": cost.parameters, "size": cost.bytes}[metric]


def other_cost(whole: Cost, shapes: Shapes, layers: Iterable[Layer], metric: str) -> int:
    """Part of a model's cost that is no layer's, as of normalizations and names in the file.

    Biases of one element are counted here as long as the refit makes them, which those of chains
    are.
    """
    rest = cost_of(whole, metric)
    for layer in layers:
        rest -= cost_of(layer_cost(layer, shapes), metric)
        if metric != "macs":
            rest += layer.broadcast * (layer.dtype.itemsize if metric == "size" else 1)
    return rest


def layer_cost(layer: Layer, shapes: Shapes) -> Cost:
    """Cost of one layer; a shared weight is divided among its sharers."""
    stage = layer.stage
    shape = shapes.get(layer.input)
    parameters = stage.parameters // layer.sharers
    return Cost(
        stage.macs(shape) if shape is not None else 0,
        parameters,
        parameters * layer.dtype.itemsize,
    )


def node_tensors(node: Node) -> list[str]:
    """Tensors whose shapes :func:`node_macs` reads."""
    if node.domain not in (None, "", "ai.onnx"):
        return []
    if node.op in ("Conv", "ConvTranspose", "MatMul", "Gemm"):
        tensors = [*node.inputs[:2], node.outputs[0]]
    elif node.op in _GATES:
        tensors = node.inputs[:3]
    else:
        return []
    return [t.name for t in tensors]


def node_macs(graph: Graph, node: Node, shapes: Shapes) -> int | None:
    """MACs of one node; None where a shape is unknown, 0 for operators that do no products."""
    if node.domain not in (None, "", "ai.onnx"):
        return 0

    def shape(tensor: Any) -> tuple[int, ...] | None:
        return shapes.get(tensor.name)

    if node.op in ("Conv", "ConvTranspose"):
        weight, x, y = shape(node.inputs[1]), shape(node.inputs[0]), shape(node.outputs[0])
        if weight is None or x is None or y is None:
            return None
        # every weight meets every output position (Conv), every input position (ConvTranspose)
        spatial = y if node.op == "Conv" else x
        return math.prod(weight) * spatial[0] * math.prod(spatial[2:])
    if node.op in ("MatMul", "Gemm"):
        a, y = shape(node.inputs[0]), shape(node.outputs[0])
        if a is None or y is None:
            return None
        inner = a[0] if node.op == "Gemm" and graph.attribute(node, "transA", 0) else a[-1]
        return math.prod(y) * inner
    if node.op in _GATES:
        w, r, x = shape(node.inputs[1]), shape(node.inputs[2]), shape(node.inputs[0])
        if w is None or r is None or x is None:
            return None
        return (math.prod(w) + math.prod(r)) * x[0] * x[1]
    return 0


def tensor_shapes(
    model: Model,
    inputs: Mapping[str, tuple[int, ...]],
    feed: Feed | None = None,
    runtime: Runtime | None = None,
    needed: Iterable[str] = (),
) -> dict[str, tuple[int, ...]]:
    """Concrete shapes of the tensors of the main graph.

    Args:
        model: the model.
        inputs: concrete shapes of its inputs.
        feed: an input of these shapes; run for what inference alone cannot tell.
        runtime: how to run it.
        needed: tensors whose shape must be known; only these are asked of the runtime.
    """
    known = _inferred(model, inputs)
    missing = [t for t in needed if t not in known]
    if missing and feed is not None and runtime is not None:
        graph = Graph(model)
        part = graph.extract(graph.input_types(), missing)
        for name, value in runtime.session(part, lean=True).run(feed).items():
            known[name] = value.shape
    return known


def _inferred(model: Model, inputs: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    skeleton = onnx.ModelProto()
    skeleton.ir_version = model.proto.ir_version
    skeleton.opset_import.extend(model.proto.opset_import)
    skeleton.functions.extend(model.proto.functions)
    graph = skeleton.graph
    graph.name = "skeleton"
    graph.node.extend(model.proto.graph.node)
    graph.output.extend(onnx.ValueInfoProto(name=o.name) for o in model.proto.graph.output)
    for tensor in model.proto.graph.initializer:
        if math.prod(tensor.dims) > SHAPE_LIKE:
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
        else:
            graph.initializer.append(tensor)
    for sparse in model.proto.graph.sparse_initializer:
        values = sparse.values
        graph.input.append(
            onnx.helper.make_tensor_value_info(values.name, values.data_type, sparse.dims)
        )
    named = {t.name for t in model.proto.graph.initializer}
    named |= {t.values.name for t in model.proto.graph.sparse_initializer}
    for value in model.proto.graph.input:
        if value.name in named:
            continue
        shape = inputs.get(value.name)
        fixed = onnx.helper.make_tensor_value_info(
            value.name, value.type.tensor_type.elem_type, shape
        )
        graph.input.append(fixed)
    try:
        inferred = shape_inference.infer_shapes(skeleton, data_prop=True)
    except Exception:  # an odd node must not stop the rest; the runtime knows better
        inferred = skeleton
    found = {t.name: tuple(t.dims) for t in model.proto.graph.initializer}
    found |= {t.values.name: tuple(t.dims) for t in model.proto.graph.sparse_initializer}
    found.update(inputs)
    for value in (*inferred.graph.value_info, *inferred.graph.output):
        if value.type.tensor_type.HasField("shape"):
            dims = [
                d.dim_value if d.HasField("dim_value") else None
                for d in value.type.tensor_type.shape.dim
            ]
            if all(d is not None and d >= 0 for d in dims):
                found[value.name] = tuple(int(d) for d in dims if d is not None)
    return found
