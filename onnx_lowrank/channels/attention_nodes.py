"""The operator Attention (opset 23): all of a block between its layers, in one node.

    Y = softmax(softcap(c Q K^T) + mask) V

Operands have the axes (batch, length, heads * width) or (batch, heads, length, width); several
heads of queries may share keys and values. Values may have another width than queries and keys. So
the node stays what it is when heads are narrower, but for the scale c, which follows from the width
where it is not stated.

Reference: ONNX operators, Attention-23 and Attention-24.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.channels.atoms import IntArray
from onnx_lowrank.channels.labels import (
    Flow,
    UnknownOperatorError,
    first_output,
    label,
    narrowed,
    operand_name,
    padded,
)
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.graph.nodes import Node

__all__ = [
    "AttentionNode", "attention_labels", "attention_node", "operand_labels", "refusals",
    "show_shares",
]  # fmt: skip

#: positions of inputs and outputs that hold keys and values of earlier calls
_PAST, _PRESENT = (4, 5), (1, 2)
#: position of the mask among the inputs
_MASK = 3
#: position of the output for the scores, and the mode in which it has their softmax
_SCORES, _SHARES = 3, 3


@dataclass(frozen=True)
class AttentionNode:
    """How an Attention node reads its operands.

    Attributes:
        output: its first output.
        heads: number of heads of queries.
        kept: number of heads of keys and values.
        folded: whether heads lie on the last axis, with their channels.
        widths: channels of a head of queries and keys, and of one of values.
        scale: factor of the scores.
        softcap: bound c of ``c tanh(s / c)`` on the scores; 0 for none.
        scores: number of scores of a run.
    """

    output: str
    heads: int
    kept: int
    folded: bool
    widths: tuple[int, int]
    scale: float
    softcap: float
    scores: int

    @property
    def parts(self) -> tuple[float, float]:
        """Parts of the node's MACs that are the product with keys, and that with values."""
        return self.widths[0] / sum(self.widths), self.widths[1] / sum(self.widths)

    def per_head(self, values: npt.NDArray[Any], index: int) -> npt.NDArray[Any]:
        """An operand ``(batch, heads, length, width)``: keys and values for all that share them.

        Args:
            values: the operand as it is in the model.
            index: its position among the inputs.
        """
        count = self.kept if index else self.heads
        if self.folded:
            split = values.reshape(*values.shape[:2], count, -1)
            values = split.swapaxes(1, 2)
        return values.repeat(self.heads // count, 1)


def attention_node(
    graph: Graph, shapes: Mapping[str, tuple[int, ...]], node: Node
) -> AttentionNode | None:
    """Read an Attention node; None where it is another node, or shapes do not tell."""
    if node.op != "Attention" or node.domain not in (None, "", "ai.onnx") or len(node.inputs) < 3:
        return None
    known = [shapes.get(operand_name(node, i), ()) for i in range(3)]
    if {len(shape) for shape in known} not in ({3}, {4}):
        return None
    query, key, value = known
    folded = len(query) == 3
    if folded:
        heads, kept = (int(graph.attribute(node, f"{k}_num_heads", 0)) for k in ("q", "kv"))
    else:
        heads, kept = query[1], key[1]
    if heads < 1 or kept < 1 or heads % kept:
        return None
    channels = query[-1], value[-1]
    counts = (heads, kept) if folded else (1, 1)
    if 0 in channels or any(c % n for c, n in zip(channels, counts, strict=True)):
        return None
    widths = channels[0] // counts[0], channels[1] // counts[1]
    scale = graph.attribute(node, "scale")
    scale = 1 / math.sqrt(widths[0]) if scale is None else float(scale)
    softcap = float(graph.attribute(node, "softcap", 0.0))
    scores = query[0] * heads * query[-2] * key[-2]
    output = first_output(node)
    return AttentionNode(output, heads, kept, folded, widths, scale, softcap, scores)


def refusals(graph: Graph, node: Node) -> tuple[str, str]:
    """Why queries and keys, and why values, must keep their width; empty where they need not."""
    keys, values = _cached(graph, node)
    if _used(graph, node, _SCORES) and (
        graph.attribute(node, "qk_matmul_output_mode", 0) != _SHARES
    ):
        keys = keys or f"the scores of {label(node)} are read in front of its softmax too"
    return keys, values


def _cached(graph: Graph, node: Node) -> tuple[str, str]:
    """Why a cache holds keys, and values, as they are; empty where there is none."""
    found = []
    for what, past, present in zip(("keys", "values"), _PAST, _PRESENT, strict=True):
        given = len(node.inputs) > past and not node.inputs[past].is_empty()
        kept = given or _used(graph, node, present)
        found.append(f"{label(node)} keeps a cache of its {what}" if kept else "")
    return found[0], found[1]


def _used(graph: Graph, node: Node, index: int) -> bool:
    """Whether one of a node's outputs is read."""
    name = operand_name(node, index, out=True) if len(node.outputs) > index else ""
    return bool(name) and (graph.is_output(name) or bool(graph.consumers(name)))


def attention_labels(flow: Flow, node: Node) -> list[IntArray | None]:
    """Labels behind an Attention node whose channels are followed: mixed values, caches, scores.

    Channels of queries and keys are tied, and end here; where heads are whole, so are those of
    values, and the heads go on.
    """
    graph = flow.graph
    found = attention_node(graph, flow.shapes, node)
    if found is None or found.output not in flow.heads.products:
        raise UnknownOperatorError(label(node))
    queries, keys, values = (operand_labels(flow, node, found, i) for i in range(3))
    for name in (t.name for t in node.inputs[4:]):
        if name in flow.labels:
            flow.atoms.freeze(flow.labels[name], label(node))
    flow.atoms.tie(queries, keys)
    flow.summed[found.output] = queries
    scores, held = None, refusals(graph, node)
    if flow.heads.whole:
        scores, held = queries[..., :1], _cached(graph, node)
        for every in (queries, values):
            flow.atoms.tie(every, scores)
    if len(node.inputs) > _MASK and not node.inputs[_MASK].is_empty():
        _mask(flow, node, scores)
    for labels, reason in zip((queries, values), held, strict=True):
        if reason:
            flow.atoms.freeze(labels, reason)
    caches = [narrowed(x[:, :: found.heads // found.kept]) for x in (keys, values)]
    if found.folded:
        values = values.swapaxes(1, 2).reshape(1, 1, -1)
    return [narrowed(values), *caches, scores][: len(node.outputs)]


def _mask(flow: Flow, node: Node, heads: IntArray | None) -> None:
    """Tie the heads ``(1, heads, 1, 1)`` of a mask, where it has any, to those of its node."""
    name = operand_name(node, _MASK)
    constant, shape = flow.graph.is_constant(name), flow.shape(name)
    if heads is None or len(shape) < 3 or shape[-3] == 1:
        if not constant:
            flow.atoms.freeze(flow.of(name), label(node))
    elif constant:
        flow.operand(node, _MASK, heads.reshape(heads.shape[4 - len(shape) :]), "carried")
    else:
        flow.atoms.tie(heads, padded(flow.of(name), 4))


def operand_labels(flow: Flow, node: Node, found: AttentionNode, index: int) -> IntArray:
    """Labels ``(1, heads, 1, width)`` of an operand.

    Raises:
        UnknownOperatorError: channels lie along positions or samples.
    """
    name = operand_name(node, index)
    labels, shape = flow.of(name), flow.shape(name)
    if labels.shape[0] > 1 or labels.shape[-2] > 1:
        raise UnknownOperatorError(f"channels on another axis of {label(node)}")
    wide = (1, 1, shape[-1]) if found.folded else (1, shape[1], 1, shape[-1])
    return found.per_head(np.broadcast_to(labels, wide), index)


def show_shares(graph: Graph, nodes: Iterable[AttentionNode]) -> dict[str, str]:
    """Have Attention nodes give what their softmax makes, ``(batch, heads, queries, keys)``.

    Args:
        graph: graph of the nodes; it is changed.
        nodes: nodes whose scores nothing reads in front of the softmax.

    Returns:
        Names of the new tensors, by the first output of the node.
    """
    shown = {}
    for found in nodes:
        node = graph.producer(found.output)
        assert node is not None
        names = [*(t.name for t in node.outputs), "", "", ""][: _SCORES + 1]
        shown[found.output] = names[_SCORES] = names[_SCORES] or graph.fresh(f"{names[0]}_shares")
        _replace(graph, node, names)
    return shown


def _replace(graph: Graph, node: Node, outputs: Sequence[str]) -> None:
    """Replace an Attention node by one that gives what its softmax makes too."""
    inputs = [t.name for t in node.inputs]
    attrs = {**node.attrs, "qk_matmul_output_mode": _SHARES}
    graph.replace([node], lambda: [graph.make_node(node.op, node.name, inputs, outputs, attrs)])
