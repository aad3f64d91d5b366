"""Extents that a model reads at run time (Shape), and the tensors that it computes from them.

A tensor of extents is followed entry by entry, each an integer or the axis of the tensor that it
was read from. So a computed Reshape is understood as long as the model does not calculate with the
number of channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from onnx.helper import tensor_dtype_to_np_dtype

from onnx_lowrank.channels.labels import Dim, Flow, first_output, label
from onnx_lowrank.graph.graph import Node

__all__ = ["follow_extents"]

#: Operators whose results are followed.
_MOVES = frozenset({"Gather", "Slice", "Concat", "Unsqueeze", "Squeeze", "Cast", "Identity", "Add"})
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
        known = flow.graph.extents(entry.tensor) if isinstance(entry, Dim) else None
        value = known[entry.axis] if isinstance(entry, Dim) and known is not None else entry
        if not isinstance(value, int):
            return None
        found.append(value)
    return np.array(found, _type(flow, tensor)).reshape(flow.dims[tensor].shape)


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
    if node.op == "Add":
        pairs = list(zip(*(e.flat for e in np.broadcast_arrays(*entries)), strict=True))
        sums = [_sum(a, b) for a, b in pairs]
        shape = np.broadcast_shapes(*(e.shape for e in entries))
        return None if None in sums else _objects(sums).reshape(shape)
    if node.op == "Gather" and names[1] not in flow.dims and value.ndim == 1:
        return np.asarray(value.take(entries[1].astype(np.int64)), object)
    if node.op == "Slice":
        if flow.graph.opset < 10:
            return np.asarray(value[node.attrs["starts"][0] : node.attrs["ends"][0]], object)
        if any(n in flow.dims for n in names[1:]):
            return None
        step = int(entries[4][0]) if len(names) > 4 else 1
        return np.asarray(value[int(entries[1][0]) : int(entries[2][0]) : step], object)
    if node.op in ("Squeeze", "Unsqueeze"):
        return value.reshape(() if node.op == "Squeeze" else (-1,)) if value.size == 1 else None
    return np.asarray(value, object) if node.op in ("Cast", "Identity") else None


def _sum(first: object, second: object) -> object:
    if isinstance(first, int) and isinstance(second, int):
        return first + second
    zeros = [x == 0 for x in (first, second)]
    return (second if zeros[0] else first) if any(zeros) else None


def _objects(items: list[Any]) -> npt.NDArray[np.object_]:
    result = np.empty(len(items), object)
    result[:] = items
    return result
