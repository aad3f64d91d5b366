"""What a reader of channels is to reproduce when it is solved again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.layers import Layer
from onnx_lowrank.pruning.turns import Turn, turned_layer, turned_moments

__all__ = ["ReaderTarget"]


@dataclass(frozen=True)
class ReaderTarget:
    """Problem of solving a reader: the map to reproduce, and the moments of its inputs."""

    layer: Layer
    moments: Moments

    def turned(self, turns: Sequence[Turn]) -> ReaderTarget:
        """The same in the bases that the layer reads and makes channels in."""
        moments = turned_moments(self.layer.name, self.moments, turns)
        return ReaderTarget(turned_layer(self.layer, turns), moments)
