"""Extents that a model reads at run time (Shape), and the tensors that it computes from them.

A tensor of extents is followed entry by entry, each an integer or the axis of the tensor that it
was read from. So a computed Reshape is understood as long as the model does not calculate with the
number of channels.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx.helper import tensor_dtype_to_np_dtype

from onnx_lowrank.channels.labels import Dim, Flow, first_output, label
from onnx_lowrank.graph.nodes import Node

__all__ = ["follow_extents"]

#: Operators whose results are followed.
_MOVES = frozenset({
    "Gather", "Slice", "Concat", "Unsqueeze", "Squeeze", "Reshape", "Cast", "Identity", "Add",
    "Mul",
})  # fmt: skip
#: Position of the input that is a shape, by operator.
_TARGETS = {"Reshape": 1, "Expand": 1, "Resize": 3}


def follow_extents(flow: Flow, node: Node) -> bool:
    """Follow extents through a node; return whether the node does nothing else."""
    names = [t.name for t in node.inputs]
    output = node.outputs[0].name
    if node.op == "Shape":
        rank = len(flow.shape(names[0]))
        axes = range(rank)[flow.graph.attribute(node, "start", 0) : node.attrs.get("end", rank)]
        flow.dims[output] = _objects([Dim(names[0], a) for a in axes])
        return True
    given = [i for i, n in enumerate(names) if n in flow.dims]
    if not given or given == [_TARGETS.get(node.op)]:
        return False
    only = all(n in flow.dims or not n or flow.graph.is_constant(n) for n in names)
    if only and node.op in _MOVES and (value := _moved(flow, node, names)) is not None:
        flow.dims[output] = value
        return True
    for i in given:
        if (numbers := _static(flow, names[i])) is not None:
            flow.numbers[first_output(node), i] = numbers
        else:
            flow.use(flow.dims[names[i]].flat, f"{label(node)} computes with their number")
    if only and node.outputs[0].name in flow.shapes and len(flow.shapes[output]) < 2:
        flow.dims[output] = np.full(flow.shapes[output], None, object)
    return only


def _static(flow: Flow, tensor: str) -> npt.NDArray[Any] | None:
    """Values of extents that are the same at every run of a model with attention; else None.

    A head's width may be read at run time to scale its scores; a cut writes down what it was.
    """
    if not flow.heads.products:
        return None
    found = []
    entries: list[object] = flow.dims[tensor].reshape(-1).tolist()
    for entry in entries:
        value = _number(flow, entry)
        if value is None:
            return None
        found.append(value)
    return np.array(found, _type(flow, tensor)).reshape(flow.dims[tensor].shape)


def _number(flow: Flow, entry: object) -> int | None:
    """An entry as an integer, where it is the same at every run."""
    if not isinstance(entry, Dim):
        return entry if isinstance(entry, int) else None
    known = flow.graph.extents(entry.tensor) or ()
    extents = [e for e in known[entry.axis : entry.axis + entry.span] if e is not None]
    return math.prod(extents) if len(extents) == entry.span else None


def _type(flow: Flow, tensor: str) -> np.dtype[Any]:
    """Element type of a tensor of extents: that of the last Cast."""
    node = flow.graph.producer(tensor)
    while node is not None and node.op != "Shape":
        if node.op == "Cast":
            return np.dtype(tensor_dtype_to_np_dtype(int(node.attrs["to"])))
        node = flow.graph.producer(next(t.name for t in node.inputs if t.name in flow.dims))
    return np.dtype(np.int64)


def _moved(flow: Flow, node: Node, names: list[str]) -> npt.NDArray[np.object_] | None:
    entries: list[Any] = [flow.target(n) if n else None for n in names]
    value = entries[0]
    if node.op == "Concat":
        return np.concatenate([e.reshape(-1) for e in entries])
    if node.op in ("Add", "Mul"):
        pairs = list(zip(*(e.flat for e in np.broadcast_arrays(*entries)), strict=True))
        made = [_sum(a, b) if node.op == "Add" else _times(flow, a, b) for a, b in pairs]
        shape = np.broadcast_shapes(*(e.shape for e in entries))
        return None if None in made else _objects(made).reshape(shape)
    if node.op == "Gather" and names[1] not in flow.dims and value.ndim == 1:
        return np.asarray(value.take(entries[1].astype(np.int64)), object)
    if node.op == "Slice":
        if flow.graph.opset < 10:
            return np.asarray(value[node.attrs["starts"][0] : node.attrs["ends"][0]], object)
        if any(n in flow.dims for n in names[1:]):
            return None
        step = int(entries[4][0]) if len(names) > 4 else 1
        return np.asarray(value[int(entries[1][0]) : int(entries[2][0]) : step], object)
    if node.op == "Reshape":
        return value.reshape([int(n) for n in entries[1]]) if names[1] not in flow.dims else None
    if node.op in ("Squeeze", "Unsqueeze"):
        return value.reshape(() if node.op == "Squeeze" else (-1,)) if value.size == 1 else None
    return np.asarray(value, object) if node.op in ("Cast", "Identity") else None


def _sum(first: object, second: object) -> object:
    if isinstance(first, int) and isinstance(second, int):
        return first + second
    zeros = [x == 0 for x in (first, second)]
    return (second if zeros[0] else first) if any(zeros) else None


def _times(flow: Flow, first: object, second: object) -> object:
    """Product of two entries: of integers, by 1, or of axes of a tensor that lie side by side."""
    if isinstance(first, int) and isinstance(second, int):
        return first * second
    ones = [_number(flow, x) == 1 for x in (first, second)]
    if any(ones):
        return second if ones[0] else first
    if isinstance(first, Dim) and isinstance(second, Dim) and first.tensor == second.tensor:
        before, behind = sorted((first, second), key=lambda d: d.axis)
        if before.axes[-1] + 1 == behind.axis:
            return Dim(first.tensor, before.axis, before.span + behind.span)
    return None


def _objects(items: list[Any]) -> npt.NDArray[np.object_]:
    result = np.empty(len(items), object)
    result[:] = items
    return result
