"""Run passes, and say which pass and which layer failed where one does."""

from __future__ import annotations

from collections.abc import Sequence

from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.passkit.base import Rewrite

__all__ = ["canonicalise"]


def canonicalise(source: Model, rewrites: Sequence[Rewrite]) -> Model:
    """Return the model that the other passes see: BatchNormalization folded, and the like."""
    graph = Graph(source)
    for rewrite in rewrites:
        rewrite.run(graph)
    return graph.to_model()
