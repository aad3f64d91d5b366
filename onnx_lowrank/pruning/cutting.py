"""Passes that take channels out of one model, of groups and of attention heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from onnx_lowrank.analysis.preparation import Prepared
from onnx_lowrank.passkit.base import HeadNarrowing, Pruning, PruningOptions
from onnx_lowrank.pruning.head_moments import ScoreMoments
from onnx_lowrank.pruning.heads import TurnedHeads, turn_heads
from onnx_lowrank.pruning.prunable import Found, Prunable, find_prunables
from onnx_lowrank.pruning.weighing import Halves

__all__ = ["Cutting"]


@dataclass(frozen=True)
class Cutting:
    """Passes that take channels out, with what they need to know.

    Attributes:
        options: how to go about it.
        channels: chooses channels of groups; None to leave them.
        heads: chooses bases for the channels of heads; None to leave them.
        measure: measures queries and keys of the blocks that were found, by name of the block.
        weigh: measures factors of groups, by the model with one of them cut to half, and by the
            losses foreseen; see :mod:`onnx_lowrank.pruning.weighing`.
    """

    options: PruningOptions
    channels: Pruning | None
    heads: HeadNarrowing | None = None
    measure: Callable[[Found], Mapping[str, ScoreMoments]] = lambda found: {}
    weigh: Callable[[Halves, Mapping[str, float]], Mapping[str, float]] = lambda halves, losses: {}

    def found(self, prepared: Prepared) -> Found:
        """All groups and prunables of a model."""
        gather = self.channels is not None and self.options.gather and not self.options.keep
        return find_prunables(
            prepared, self.channels is not None, gather, heads=self.heads is not None,
            whole=self.options.heads,
        )  # fmt: skip

    def turned(self, found: Found, prepared: Prepared) -> dict[str, TurnedHeads]:
        """Heads in the bases that they are cut in, by name of the prunable."""
        inside = [p for p in found.prunables.values() if p.pairs]
        if not inside or self.heads is None:
            return {}
        scores = self.measure(found)

        def turn(prunable: Prunable) -> TurnedHeads:
            assert self.heads is not None
            return turn_heads(prunable, found, self.heads, prepared, scores)

        return {p.name: turn(p) for p in inside}
