"""What a model costs: MACs, parameters, bytes; and the shapes that MACs are counted from.

MACs are counted from the graph alone, so that a written file can be counted independently of the
plan that made it: :mod:`onnx_lowrank.analysis.counting` says how, and which nodes no total holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, shape_inference

from onnx_lowrank.analysis.bodies import Flat, flatten
from onnx_lowrank.analysis.counting import (
    SHAPELESS,
    Counts,
    Uncounted,
    count,
    limit_key,
    tensors_to_measure,
)
from onnx_lowrank.analysis.parameters import parameters_of
from onnx_lowrank.errors import ModelError
from onnx_lowrank.graph.constant_folding import SHAPE_LIKE
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import PlacedLayer
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.runtime.runtime import Runtime
from onnx_lowrank.runtime.session import Feed

__all__ = [
    "Cost",
    "layer_cost",
    "model_cost",
    "other_cost",
    "tensor_shapes",
]

Shapes = Mapping[str, tuple[int, ...]]

_NOTHING = Counts()

#: rounds that a Loop is given where it is meant to be ended by its condition
ENDLESS = 1 << 31

#: how tensors begin that hold the shapes of others
_STEM = "onnx_lowrank_shape_"


@dataclass(frozen=True)
class Cost:
    """Cost of a model, or of a part.

    Attributes:
        macs: multiply-accumulates of one inference (at batch 1 where the batch is dynamic), of
            contractions alone (:mod:`onnx_lowrank.analysis.mac_formulas`).
        parameters: numbers that take part in computing (:mod:`onnx_lowrank.analysis.parameters`).
        bytes: of the file, external data included.
        counts: the MACs node by node, and the nodes that :attr:`macs` leaves out.
    """

    macs: int
    parameters: int
    bytes: int
    counts: Counts = _NOTHING

    def of(self, metric: str) -> int:
        """Return what is counted under the name of a target: ``macs``, ``params`` or ``size``."""
        return {"macs": self.macs, "params": self.parameters, "size": self.bytes}[metric]

    @property
    def uncounted(self) -> tuple[Uncounted, ...]:
        """Nodes that may do products, but are not in :attr:`macs`."""
        return self.counts.uncounted

    @property
    def macs_label(self) -> str:
        """How :attr:`macs` is to be called: what is left out must show."""
        left = len(self.uncounted)
        return f"MACs without {left} node{'s' * (left > 1)}" if left else "MACs"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as of ``--json``."""
        return {
            "macs": self.macs,
            "params": self.parameters,
            "bytes": self.bytes,
            "uncounted": [{"name": n.name, "op": n.op, "reason": n.reason} for n in self.uncounted],
        }

    @property
    def remarks(self) -> list[str]:
        """What a reader of :attr:`macs` must know, in sentences."""
        said = []
        if left := Uncounted.said(self.uncounted):
            hint = "; give --calib or --input-shape" if self._shapeless else ""
            said.append(left + hint)
        if self.counts.larger:
            names = ", ".join(dict.fromkeys(self.counts.larger))
            said.append(f"of an If the branch with more MACs is counted: {names}")
        return said

    @property
    def _shapeless(self) -> bool:
        return any(n.reason == SHAPELESS for n in self.uncounted)


def model_cost(model: Model, shapes: Shapes) -> Cost:
    """Cost of a whole model, as written.

    Args:
        model: the model.
        shapes: of its tensors, by name (:func:`tensor_shapes`).
    """
    counts = count(flatten(model), shapes)
    return Cost(counts.macs, parameters_of(model.proto), model.bytes, counts)


def other_cost(whole: Cost, shapes: Shapes, layers: Iterable[PlacedLayer], metric: str) -> int:
    """Part of a model's cost that is no layer's, as of normalizations and names in the file.

    Biases of one element are counted here as long as the refit makes them, which those of chains
    are.
    """
    rest = whole.of(metric)
    for layer in layers:
        rest -= layer_cost(layer, shapes).of(metric)
        if metric != "macs":
            rest += layer.broadcast * (layer.value.dtype.itemsize if metric == "size" else 1)
    return rest


def layer_cost(layer: PlacedLayer, shapes: Shapes) -> Cost:
    """Cost of one layer; a shared weight is divided among its sharers."""
    stage = layer.value.outline
    shape = shapes.get(layer.input)
    parameters = stage.parameters // layer.sharers
    return Cost(
        stage.macs(shape) if shape is not None else 0,
        parameters,
        parameters * layer.value.dtype.itemsize,
    )


def tensor_shapes(
    model: Model,
    inputs: Mapping[str, tuple[int, ...]],
    feed: Feed | None = None,
    runtime: Runtime | None = None,
    needed: Iterable[str] = (),
    wished: Iterable[str] = (),
) -> dict[str, tuple[int, ...]]:
    """Concrete shapes of tensors: of the main graph, and of the bodies that are laid out beside it.

    What inference cannot tell is asked of the runtime, which computes the tensors but keeps none:
    of each it hands out the shape. Tensors that costs are counted from are always asked for; those
    of bodies that do not run, as the branch of an If that was not taken, stay unknown.

    Args:
        model: the model.
        inputs: concrete shapes of its inputs.
        feed: an input of these shapes; run for what inference alone cannot tell.
        runtime: how to run it.
        needed: other tensors whose shape must be known.
        wished: tensors whose shape is good to know; some may be no tensors, as sequences are.

    Raises:
        ModelError: the runtime refuses what is needed.
    """
    flat = flatten(model)
    known, others = _inferred(flat, inputs)
    counted, inside, limits = tensors_to_measure(flat)
    if limits:
        known |= _constant_values(Graph(flat.to_model()), limits)
    if feed is None or runtime is None:
        return known
    must = [t for t in dict.fromkeys([*needed, *counted]) if t not in known]
    more = [t for t in dict.fromkeys(wished) if t not in known and t not in {*must, *others}]
    if must or more:
        graph = Graph(model)
        try:
            known |= _measured(graph, [*must, *more], feed, runtime)
        except ModelError:
            if not more:
                raise
            known |= _measured(graph, must, feed, runtime)
    unknown = [t for t in limits if limit_key(t) not in known]
    bodies = [left for own in inside if (left := [t for t in own if t not in known])]
    if unknown or bodies:
        graph = Graph(flat.to_model())
        with suppress(ModelError):
            known |= _values(graph, unknown, feed, runtime)
        for body in bodies:
            with suppress(ModelError):
                known |= _measured(graph, body, feed, runtime)
    return known


def _measured(
    graph: Graph, tensors: Sequence[str], feed: Feed, runtime: Runtime
) -> dict[str, tuple[int, ...]]:
    """Shapes of tensors in a run, none of which is kept."""
    given = {t: feed[t].shape for t in tensors if t in feed}
    asked = [t for t in tensors if t not in given]
    if not asked:
        return given
    part = graph.extract(graph.input_types(), asked)
    del part.proto.graph.output[:]
    names = {f"{_STEM}{i}": tensor for i, tensor in enumerate(asked)}
    for name, tensor in names.items():
        part.proto.graph.node.append(onnx.helper.make_node("Shape", [tensor], [name]))
        part.proto.graph.output.append(
            onnx.helper.make_tensor_value_info(name, TensorProto.INT64, None)
        )
    found = runtime.session(part, lean=True).run(feed)
    return given | {names[k]: tuple(map(int, v)) for k, v in found.items()}


def _values(
    graph: Graph, tensors: Sequence[str], feed: Feed, runtime: Runtime
) -> dict[str, tuple[int, ...]]:
    """Values of scalars in a run, as they stand among shapes."""
    if not tensors:
        return {}
    part = graph.extract(graph.input_types(), tensors)
    found = dict(feed)
    if part.proto.graph.output:
        found |= runtime.session(part, lean=True).run(feed)
    return _scalars({t: found[t] for t in tensors})


def _constant_values(graph: Graph, tensors: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Values of scalars that follow from constants, as they stand among shapes."""
    found = {t: graph.constant(t) for t in tensors}
    return _scalars({t: value for t, value in found.items() if value is not None})


def _scalars(values: Mapping[str, npt.NDArray[Any]]) -> dict[str, tuple[int, ...]]:
    return {
        limit_key(t): (int(np.ravel(value)[0]),)
        for t, value in values.items()
        if np.size(value) == 1 and np.ravel(value)[0] < ENDLESS
    }


def _inferred(
    flat: Flat, inputs: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, tuple[int, ...]], set[str]]:
    """Shapes that inference tells, and names of what is no tensor."""
    source = flat.model.proto
    skeleton = onnx.ModelProto(ir_version=source.ir_version)
    skeleton.opset_import.extend([*source.opset_import, *flat.opsets])
    skeleton.functions.extend(source.functions)
    graph = skeleton.graph
    graph.name = "skeleton"
    graph.node.extend([*source.graph.node, *flat.nodes])
    graph.output.extend(onnx.ValueInfoProto(name=o.name) for o in source.graph.output)
    constants = [*((t.name, t) for t in source.graph.initializer), *flat.constants]
    found: dict[str, tuple[int, ...]] = {}
    for name, tensor in constants:
        found[name] = tuple(tensor.dims)
        if math.prod(tensor.dims) > SHAPE_LIKE:
            graph.input.append(
                onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims)
            )
        else:
            graph.initializer.add().CopyFrom(tensor)
            graph.initializer[-1].name = name
    for sparse in source.graph.sparse_initializer:
        values = sparse.values
        found[values.name] = tuple(sparse.dims)
        graph.input.append(
            onnx.helper.make_tensor_value_info(values.name, values.data_type, sparse.dims)
        )
    named = set(found)
    for value in source.graph.input:
        if value.name in named:
            continue
        shape = inputs.get(value.name)
        if shape is None or not value.type.HasField("tensor_type"):
            graph.input.append(value)
            continue
        element = value.type.tensor_type.elem_type
        graph.input.append(onnx.helper.make_tensor_value_info(value.name, element, shape))
    try:
        inferred = shape_inference.infer_shapes(skeleton, data_prop=True)
    except Exception:  # an odd node must not stop the rest; the runtime knows better
        inferred = skeleton
    found.update(inputs)
    others = set()
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        if value.type.WhichOneof("value") not in (None, "tensor_type"):
            others.add(value.name)
        elif value.type.tensor_type.HasField("shape") and value.name not in found:
            dims = [
                d.dim_value if d.HasField("dim_value") else None
                for d in value.type.tensor_type.shape.dim
            ]
            if all(d is not None and d >= 0 for d in dims):
                found[value.name] = tuple(int(d) for d in dims if d is not None)
    return found, others
