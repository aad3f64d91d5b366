"""Pieces of a model that is larger than memory, which run one after the other.

Nodes keep their order. A piece ends before the node whose weights would make it too large, and
passes on the tensors that later pieces read.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.graph.nodes import Node
from onnx_lowrank.modelfile.checks import tensor_bytes
from onnx_lowrank.modelfile.external_data import place
from onnx_lowrank.modelfile.model import Model

__all__ = ["Piece", "pieces"]


@dataclass(frozen=True)
class Piece:
    """A sequence of consecutive nodes.

    Attributes:
        outputs: names of the tensors that it makes for other pieces, or as outputs of the model.
        needed: names of the tensors that must be kept after it has run.
    """

    outputs: tuple[str, ...]
    needed: frozenset[str]


def pieces(graph: Graph, limit: int) -> list[Piece]:
    """Cut a model into pieces, in the order in which they run.

    Args:
        graph: the model.
        limit: largest weights of a piece of several nodes, in bytes.
    """
    sizes = _sizes(graph.model)
    runs: list[list[Node]] = [[]]
    held: set[str] = set()
    total = 0
    for node in graph.nodes:
        new = (graph.reads(node) & sizes.keys()) - held
        weight = sum(sizes[name] for name in new)
        if runs[-1] and weight and total + weight > limit:
            runs.append([])
            new, total = graph.reads(node) & sizes.keys(), 0
            held = set()
            weight = sum(sizes[name] for name in new)
        runs[-1].append(node)
        held |= new
        total += weight
    needed = frozenset(graph.outputs)
    found: list[Piece] = []
    for run in reversed(runs):
        made = {t.name for node in run for t in node.outputs if not t.is_empty()}
        outputs = tuple(sorted(made & needed))
        if outputs:
            found.append(Piece(outputs, needed))
        needed = (needed - made) | {r for node in run for r in graph.reads(node)} - made
    return found[::-1]


def _sizes(model: Model) -> dict[str, int]:
    return {
        t.name: place(t).length if t.external_data else tensor_bytes(t)
        for t in model.proto.graph.initializer
    }
