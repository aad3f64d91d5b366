"""Rules for operators that move, repeat or leave out data, as a table.

They do the same to the labels. Constants that depend on the number of channels (a Reshape's target,
the sizes of a Split) are adjusted by :mod:`onnx_lowrank.channels.edits`.
"""

from __future__ import annotations

import numpy as np

from onnx_lowrank.channels.atoms import IntArray
from onnx_lowrank.channels.labels import (
    Flow,
    UnknownOperatorError,
    integers,
    joined,
    label,
    operand_name,
    padded,
    reshape_labels,
    varying,
)
from onnx_lowrank.channels.parts import part_read, read_in_parts
from onnx_lowrank.graph.nodes import Node

__all__ = ["MOVES", "pads", "slices"]

Outputs = list[IntArray | None]


def slices(flow: Flow, node: Node) -> dict[int, tuple[int, int]]:
    """First position and end of a Slice along the axes on which its input has channels."""
    x = operand_name(node, 0)
    shape, channels = flow.shape(x), varying(flow.of(x))
    if flow.graph.opset < 10:
        starts, ends = node.attrs["starts"], node.attrs["ends"]
        axes, steps = node.attrs.get("axes", range(len(starts))), [1] * len(starts)
    else:
        axes = range(flow.shape(operand_name(node, 1))[0])
        if len(node.inputs) > 3 and not node.inputs[3].is_empty():
            axes = integers(flow, node, 3).tolist()
        if not {a % len(shape) for a in axes} & set(channels):
            return {}
        starts, ends = (integers(flow, node, i).tolist() for i in (1, 2))
        steps = [1] * len(starts)
        if len(node.inputs) > 4 and not node.inputs[4].is_empty():
            steps = integers(flow, node, 4).tolist()
    result = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        axis %= len(shape)
        if axis not in channels:
            continue
        if step != 1:
            raise UnknownOperatorError(f"the step of {label(node)}")
        first, last, _ = slice(start, end).indices(shape[axis])
        if last <= first:
            raise UnknownOperatorError(f"the empty output of {label(node)}")
        result[axis] = (first, last)
    return result


def pads(flow: Flow, node: Node) -> dict[int, tuple[int, int]]:
    """Amounts that a Pad adds before and behind the axes with channels, where it adds any."""
    x = operand_name(node, 0)
    shape, channels = flow.shape(x), varying(flow.of(x))
    after = flow.shape(operand_name(node, 0, out=True))
    if "pads" in node.attrs:
        amounts = list(node.attrs["pads"])
    elif all(after[a] == shape[a] for a in channels):
        return {}
    else:
        amounts = integers(flow, node, 1).tolist()
    axes = list(range(len(shape)))
    if len(node.inputs) > 3 and not node.inputs[3].is_empty():
        axes = [int(a) % len(shape) for a in integers(flow, node, 3)]
    both = zip(axes, amounts[: len(axes)], amounts[len(axes) :], strict=True)
    return {a: (int(b), int(e)) for a, b, e in both if a in channels and (b or e)}


def _concat(flow: Flow, node: Node) -> Outputs:
    if read_in_parts(flow.graph, node):
        return [None]
    names = [t.name for t in node.inputs]
    rank = len(flow.shape(names[0]))
    axis = int(flow.graph.attribute(node, "axis", 1)) % rank
    if all(axis not in varying(flow.of(n)) for n in names):
        return [joined(flow, node, names)]
    reason = f"channels on another axis of {label(node)}"
    parts = [flow.vector(n, axis, reason) for n in names]
    return [flow.spread(operand_name(node, 0, out=True), axis, np.concatenate(parts))]


def _split(flow: Flow, node: Node) -> Outputs:
    x = operand_name(node, 0)
    labels, rank = flow.of(x), len(flow.shape(x))
    axis = int(flow.graph.attribute(node, "axis", 0)) % rank
    if axis not in varying(labels):
        return [labels] * len(node.outputs)
    sizes = [flow.shape(t.name)[axis] for t in node.outputs]
    if sum(sizes) != labels.shape[axis]:
        raise UnknownOperatorError(f"the sizes of {label(node)}")
    return list(np.split(labels, np.cumsum(sizes)[:-1], axis))


def _slice(flow: Flow, node: Node) -> Outputs:
    labels = flow.of(operand_name(node, 0))
    ranges = slices(flow, node)
    for axis in set(ranges) & set(varying(labels)):
        start, end = ranges[axis]
        labels = labels.take(range(start, end), axis)
    return [labels]


def _gather(flow: Flow, node: Node) -> Outputs:
    x = operand_name(node, 0)
    part, joined_by = part_read(flow.graph, node), flow.graph.producer(x)
    if part is not None and joined_by is not None and read_in_parts(flow.graph, joined_by):
        flow.parts[operand_name(node, 0, out=True)] = tuple(t.name for t in joined_by.inputs)
        x = part.tensor
    labels, rank = flow.of(x), len(flow.shape(x))
    axis = int(flow.graph.attribute(node, "axis", 0)) % rank
    indices = len(flow.shape(operand_name(node, 1)))
    if axis not in varying(labels):
        shape = list(labels.shape)
        shape[axis : axis + 1] = [1] * indices
        return [labels.reshape(shape)]
    value = integers(flow, node, 1)
    if value.ndim > 1:
        raise UnknownOperatorError(f"the indices of {label(node)}")
    return [labels.take(value, axis)]


def _pad(flow: Flow, node: Node) -> Outputs:
    labels = flow.of(operand_name(node, 0))
    for axis, (begin, end) in pads(flow, node).items():
        if str(flow.graph.attribute(node, "mode", "constant")) != "constant" or min(begin, end) < 0:
            raise UnknownOperatorError(f"{label(node)} across channels")
        if len(varying(labels)) > 1:
            raise UnknownOperatorError(f"channels on several axes of {label(node)}")
        parts = [flow.atoms.fresh(begin), labels.reshape(-1), flow.atoms.fresh(end)]
        labels = flow.spread(operand_name(node, 0, out=True), axis, np.concatenate(parts))
    return [labels]


def _transpose(flow: Flow, node: Node) -> Outputs:
    labels = flow.of(operand_name(node, 0))
    return [labels.transpose(flow.graph.attribute(node, "perm") or None)]


def _reshaped(flow: Flow, node: Node) -> Outputs:
    """Labels behind Flatten, Squeeze and Unsqueeze, whose output shape follows by itself."""
    x, y = operand_name(node, 0), operand_name(node, 0, out=True)
    return [reshape_labels(flow.of(x), flow.shape(x), flow.shape(y))]


def _reshape(flow: Flow, node: Node) -> Outputs:
    target = flow.target(operand_name(node, 1)) if len(node.inputs) > 1 else None
    if target is None:
        raise UnknownOperatorError(f"the computed shape of {label(node)}")
    (labels,) = _reshaped(flow, node)
    assert labels is not None
    flow.follow(labels, list(target), f"the shape of {label(node)}")
    return [labels]


def _expand(flow: Flow, node: Node) -> Outputs:
    labels, rank = flow.of(operand_name(node, 0)), len(flow.shape(operand_name(node, 0, out=True)))
    target = flow.target(operand_name(node, 1))
    if target is None or len(target) != rank:
        raise UnknownOperatorError(f"the computed shape of {label(node)}")
    labels = padded(labels, rank)
    flow.follow(labels, list(target), f"the shape of {label(node)}")
    return [labels]


def _tile(flow: Flow, node: Node) -> Outputs:
    labels, repeats = flow.of(operand_name(node, 0)), integers(flow, node, 1)
    along = varying(labels)
    return [np.tile(labels, [int(r) if a in along else 1 for a, r in enumerate(repeats)])]


def _depth_to_space(flow: Flow, node: Node) -> Outputs:
    vector = flow.vector(operand_name(node, 0), 1, f"channels on another axis of {label(node)}")
    area = int(flow.graph.attribute(node, "blocksize")) ** 2
    if str(flow.graph.attribute(node, "mode", "DCR")) == "DCR":
        blocks = vector.reshape(area, -1)
    else:
        blocks = vector.reshape(-1, area).T
    flow.atoms.tie(blocks, blocks[:1])
    return [flow.spread(operand_name(node, 0, out=True), 1, blocks[0])]


def _space_to_depth(flow: Flow, node: Node) -> Outputs:
    vector = flow.vector(operand_name(node, 0), 1, f"channels on another axis of {label(node)}")
    area = int(flow.graph.attribute(node, "blocksize")) ** 2
    return [flow.spread(operand_name(node, 0, out=True), 1, np.tile(vector, area))]


def _resize(flow: Flow, node: Node) -> Outputs:
    x, y = operand_name(node, 0), operand_name(node, 0, out=True)
    before, after = flow.shape(x), flow.shape(y)
    changed = [a for a, (m, n) in enumerate(zip(before, after, strict=True)) if m != n]
    flow.freeze_along(x, changed, f"{label(node)} across channels")
    labels = flow.of(x)
    if len(node.inputs) > 3 and not node.inputs[3].is_empty():
        target = flow.target(operand_name(node, 3))
        if target is None or "axes" in node.attrs:
            raise UnknownOperatorError(f"the sizes of {label(node)}")
        flow.follow(labels, list(target), f"the sizes of {label(node)}")
    return [labels]


MOVES = {
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Pad": _pad,
    "Transpose": _transpose,
    "Flatten": _reshaped,
    "Squeeze": _reshaped,
    "Unsqueeze": _reshaped,
    "Reshape": _reshape,
    "Expand": _expand,
    "Tile": _tile,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Resize": _resize,
    "Upsample": _resize,
}
