"""Edits of constants and attributes that depend on numbers of channels, after a cut.

These are targets of Reshape, Expand and Resize, sizes of Split, bounds of Slice, indices of Gather,
pads of Pad, groups of depthwise convolutions, scale and numbers of heads of Attention. Values that
the model computes at run time follow by themselves.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.channels.atoms import IntArray
from onnx_lowrank.channels.attention_nodes import attention_node
from onnx_lowrank.channels.labels import Dim, Flow, first_output, varying
from onnx_lowrank.channels.moves import pads, slices
from onnx_lowrank.channels.parts import part_read
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.graph.nodes import Node
from onnx_lowrank.layers import initial_zeros
from onnx_lowrank.layers.layer import RECURRENT

__all__ = ["EDITS", "Cut", "Edit", "Mask", "constant_operand"]

Mask = npt.NDArray[np.bool_]
#: names of constants by input position, and attributes by name
Edit = tuple[dict[int, str], dict[str, Any]]


@dataclass
class Cut:
    """A cut: the positions that stay of every tensor and constant operand.

    Attributes:
        flow: labels of the graph.
        gone: roots of the channels that go.
        kept: masks of the positions that stay, by tensor and axis; only axes that lose some.
        operands: masks of the positions that stay in constant operands, by (node output, input
            position) and axis.
    """

    flow: Flow
    gone: IntArray
    kept: dict[str, dict[int, Mask]] = field(default_factory=dict)
    operands: dict[tuple[str, int], dict[int, Mask]] = field(
        default_factory=lambda: defaultdict(dict)
    )

    def masks(self, labels: IntArray, name: str) -> dict[int, Mask]:
        """Masks of the positions that stay, by axis; only axes that lose some."""
        keep = ~np.isin(self.flow.atoms.roots(labels), self.gone)
        if keep.all():
            return {}
        if not keep.any():
            raise ValueError(f"nothing would be left of {name}")
        result = {}
        for axis in varying(labels):
            others = tuple(a for a in range(labels.ndim) if a != axis)
            mask: Mask = np.asarray(keep.any(axis=others))
            if not mask.all():
                result[axis] = mask
        return result

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Shape of a tensor after the cut."""
        shape = list(self.flow.shapes[tensor])
        for axis, mask in self.kept.get(tensor, {}).items():
            shape[axis] = int(mask.sum()) * (shape[axis] // mask.size)
        return tuple(shape)

    def changes(self, extents: str) -> bool:
        """Whether a tensor of extents holds one that is smaller after the cut."""
        entries: list[object] = self.flow.dims[extents].reshape(-1).tolist()
        return any(
            isinstance(e, Dim) and self.kept.get(e.tensor, {}).keys() & e.axes for e in entries
        )

    def rows(self, output: str) -> Mask | None:
        """Mask of the rows that stay of the layer that makes ``output``; None if all do.

        Those of a recurrent layer are (direction, gate, hidden unit).
        """
        node = self.flow.graph.producer(output)
        if node is None or node.op not in RECURRENT:
            return next(iter(self.kept.get(output, {}).values()), None)
        mask = self.operands.get((output, 2), {}).get(1)
        directions = self.flow.shape(node.inputs[2].name)[0]
        return None if mask is None else np.tile(mask, directions)


def _groups(graph: Graph, cut: Cut, node: Node) -> Edit:
    groups = int(graph.attribute(node, "group", 1))
    shape = cut.flow.shapes[node.inputs[0].name]
    if groups > 1 and groups == shape[1]:
        return {}, {"group": cut.shape(node.inputs[0].name)[1]}
    return {}, {}


def _target(graph: Graph, cut: Cut, node: Node) -> Edit:
    index = 3 if node.op == "Resize" else 1
    if len(node.inputs) <= index or node.inputs[index].is_empty():
        return {}, {}
    name = node.inputs[index].name
    target = cut.flow.target(name)
    assert target is not None
    new_in, new_out = cut.shape(node.inputs[0].name), cut.shape(node.outputs[0].name)
    old_in, old_out = (cut.flow.shapes[t.name] for t in (node.inputs[0], node.outputs[0]))
    difference = np.zeros(len(target), np.int64)
    zero_copies = node.op == "Reshape" and not graph.attribute(node, "allowzero", 0)
    for axis, entry in enumerate(target):
        if not isinstance(entry, int):
            continue
        if entry == 0 and zero_copies:
            if (old_in[axis] - new_in[axis]) != (old_out[axis] - new_out[axis]):
                difference[axis] = new_out[axis]
        elif entry > 1 or (entry == 1 and node.op != "Expand"):
            difference[axis] = new_out[axis] - old_out[axis]
    if not difference.any():
        return {}, {}
    value = graph.constant(name)
    if value is not None:
        return {index: graph.renew_constant(name, value + difference)}, {}
    moved = graph.fresh(name)
    step = graph.add_constant(f"{name}_difference", difference)
    graph.insert(node, lambda: graph.make_node("Add", "", [name, step], moved))
    return {index: moved}, {}


def _split(graph: Graph, cut: Cut, node: Node) -> Edit:
    x = node.inputs[0].name
    axis = int(graph.attribute(node, "axis", 0)) % len(cut.flow.shapes[x])
    if axis not in cut.kept.get(x, {}):
        return {}, {}
    sizes = [cut.shape(t.name)[axis] for t in node.outputs]
    if graph.opset < 13:
        return {}, {"split": sizes}
    return {1: graph.add_constant(f"{x}_split", np.array(sizes, np.int64))}, {"num_outputs": None}


def _slice(graph: Graph, cut: Cut, node: Node) -> Edit:
    x = node.inputs[0].name
    masks, rank = cut.kept.get(x, {}), len(cut.flow.shapes[x])
    ranges = {a: r for a, r in slices(cut.flow, node).items() if a in masks}
    if not ranges:
        return {}, {}
    if graph.opset < 10:
        starts, ends = (np.array(node.attrs[k], np.int64) for k in ("starts", "ends"))
        axes = node.attrs.get("axes", range(len(starts)))
    else:
        starts, ends = (constant_operand(graph, node, i).copy() for i in (1, 2))
        given = len(node.inputs) > 3 and not node.inputs[3].is_empty()
        axes = constant_operand(graph, node, 3).tolist() if given else range(len(starts))
    for i, axis in enumerate(axes):
        if axis % rank in ranges:
            first, last = ranges[axis % rank]
            mask = masks[axis % rank]
            starts[i], ends[i] = mask[:first].sum(), mask[:last].sum()
    if graph.opset < 10:
        return {}, {"starts": starts.tolist(), "ends": ends.tolist()}
    both = zip((1, 2), (starts, ends), strict=True)
    return {i: graph.renew_constant(node.inputs[i].name, v) for i, v in both}, {}


def _gather(graph: Graph, cut: Cut, node: Node) -> Edit:
    x = node.inputs[0].name
    if first_output(node) in cut.flow.parts:  # what is joined is no longer of one width
        part = part_read(graph, node)
        assert part is not None
        return {0: part.tensor, 1: graph.add_constant(f"{x}_index", part.indices)}, {}
    axis = int(graph.attribute(node, "axis", 0)) % len(cut.flow.shapes[x])
    mask = cut.kept.get(x, {}).get(axis)
    if mask is None:
        return {}, {}
    indices = constant_operand(graph, node, 1)
    indices = np.where(indices < 0, indices + mask.size, indices)
    left = (np.cumsum(mask) - 1)[indices[mask[indices]] if indices.ndim else indices]
    return {1: graph.renew_constant(node.inputs[1].name, np.asarray(left, indices.dtype))}, {}


def _pad(graph: Graph, cut: Cut, node: Node) -> Edit:
    y = node.outputs[0].name
    rank = len(cut.flow.shapes[y])
    ranges = {a: r for a, r in pads(cut.flow, node).items() if a in cut.kept.get(y, {})}
    if not ranges:
        return {}, {}
    stated = "pads" in node.attrs
    amounts = (
        np.array(node.attrs["pads"], np.int64)
        if stated
        else constant_operand(graph, node, 1).copy()
    )
    given = len(node.inputs) > 3 and not node.inputs[3].is_empty()
    axes = (
        [a % rank for a in constant_operand(graph, node, 3).tolist()]
        if given
        else list(range(rank))
    )
    for i, axis in enumerate(axes):
        if axis in ranges:
            (begin, end), mask = ranges[axis], cut.kept[y][axis]
            amounts[i] = mask[:begin].sum()
            amounts[i + len(axes)] = mask[mask.size - end :].sum()
    if stated:
        return {}, {"pads": amounts.tolist()}
    return {1: graph.renew_constant(node.inputs[1].name, amounts)}, {}


def _recurrent(graph: Graph, cut: Cut, node: Node) -> Edit:
    """The number of hidden units, and initial states of other widths."""
    mask = cut.operands.get((first_output(node), 2), {}).get(2)
    if mask is None:
        return {}, {}
    inputs: dict[int, str] = {}
    for index in (5, 6):
        name = node.inputs[index].name if len(node.inputs) > index else ""
        if not name or graph.is_constant(name) or name in cut.kept:
            continue
        if initial_zeros(graph, name):
            inputs[index] = ""
            continue
        inputs[index] = _gathered(graph, node, name, mask)
    return inputs, {"hidden_size": int(mask.sum())}


def _attention(graph: Graph, cut: Cut, node: Node) -> Edit:
    """The scale of the scores, which stays that of the old width; or numbers of heads."""
    found, query = attention_node(graph, cut.flow.shapes, node), node.inputs[0].name
    if found is None or query not in cut.kept:
        return {}, {}
    if not cut.flow.heads.whole:
        return {}, {"scale": found.scale}
    if not found.folded:
        return {}, {}
    counts = [cut.shape(node.inputs[i].name)[-1] // found.widths[0] for i in (0, 1)]
    return {}, {"q_num_heads": counts[0], "kv_num_heads": counts[1]}


def _rotary(graph: Graph, cut: Cut, node: Node) -> Edit:
    """The number of heads, which a RotaryEmbedding of three axes states."""
    name, count = node.inputs[0].name, int(graph.attribute(node, "num_heads", 0))
    if not count or name not in cut.kept:
        return {}, {}
    return {}, {"num_heads": cut.shape(name)[-1] * count // cut.flow.shapes[name][-1]}


def _gathered(graph: Graph, node: Node, state: str, mask: Mask) -> str:
    """Put a Gather of the units that stay in front of a node's initial state; its output."""
    output, name = graph.fresh(f"{state}_kept"), graph.fresh(f"{state}_gather")
    operands = [state, graph.add_constant(f"{state}_units", np.flatnonzero(mask))]
    graph.insert(node, lambda: graph.make_node("Gather", name, operands, output, {"axis": 2}))
    return output


#: Edits of operators with constants or attributes that depend on the number of channels.
EDITS: dict[str, Callable[[Graph, Cut, Node], Edit]] = {
    "Conv": _groups,
    "ConvTranspose": _groups,
    "Reshape": _target,
    "Expand": _target,
    "Resize": _target,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Pad": _pad,
    "Attention": _attention,
    "RotaryEmbedding": _rotary,
    **dict.fromkeys(RECURRENT, _recurrent),
}


def constant_operand(graph: Graph, node: Node, index: int) -> npt.NDArray[Any]:
    """Value of a constant operand."""
    value = graph.constant(node.inputs[index].name)
    assert value is not None
    return value
