"""Rotary embeddings: pairs of channels of queries and keys, turned by an angle for each position.

    x cos + rotated(x) sin      rotated(x) = (-x2, x1), by Neg and Concat of halves or of neighbours
    (x1 cos - x2 sin, x2 cos + x1 sin)
    RotaryEmbedding(x, cos, sin)      the operator, opset 23

A turn acts within a head, so that heads may go as they are; it commutes with few changes of basis.

Reference: Su et al. 2021, RoFormer: enhanced transformer with rotary position embedding.
"""

from __future__ import annotations

import numpy as np

from onnx_lowrank.channels.atoms import IntArray
from onnx_lowrank.channels.labels import Flow, UnknownOperatorError, label, narrowed, operand_name
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.graph.nodes import Node

__all__ = ["is_rotary", "rotary_labels"]

_INSIDE = frozenset({
    "Add", "Cast", "Concat", "Gather", "Identity", "Mul", "Neg", "Reshape", "Slice", "Split",
    "Squeeze", "Sub", "Unsqueeze",
})  # fmt: skip
#: steps from the last node of a rotary embedding to its first
_DEPTH = 8


def is_rotary(graph: Graph, node: Node) -> bool:
    """Whether a node is a rotary embedding, or the last of the nodes that make one."""
    if node.op == "RotaryEmbedding":
        return True
    if node.op not in ("Add", "Concat"):
        return False
    found: set[str] = set()
    level = [node]
    for _ in range(_DEPTH):
        found |= {n.op for n in level}
        above = {id(p): p for n in level for t in n.inputs if (p := graph.producer(t.name))}
        level = [p for p in above.values() if p.op in _INSIDE]
    apart = {"Slice", "Split", "Gather"} & found
    return "Mul" in found and bool({"Neg", "Sub"} & found) and bool(apart)


def rotary_labels(flow: Flow, node: Node) -> list[IntArray | None]:
    """Labels behind the operator RotaryEmbedding, where heads are whole; else nothing is known."""
    name = operand_name(node, 0)
    labels, shape = flow.of(name), flow.shape(name)
    folded = len(shape) == 3
    heads = int(flow.graph.attribute(node, "num_heads", 0)) if folded else shape[1]
    if not flow.heads.whole or heads < 1 or (folded and shape[-1] % heads):
        raise UnknownOperatorError(label(node))
    if labels.shape[0] > 1 or labels.shape[-2] > 1:
        raise UnknownOperatorError(f"channels on another axis of {label(node)}")
    wide = np.broadcast_to(labels, (1, *labels.shape[1:-1], shape[-1]))
    each = wide.reshape(1, heads, -1) if folded else wide
    flow.atoms.tie(each, each[..., :1])
    return [narrowed(wide)]
