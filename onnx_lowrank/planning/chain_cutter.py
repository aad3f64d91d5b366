"""Chains of layers as decisions have them; as many as there is room for are kept."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from threading import Lock

from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.chains.chain import Chain
from onnx_lowrank.layers import PlacedLayer
from onnx_lowrank.passkit.base import Factorization
from onnx_lowrank.planning.plan import Decision
from onnx_lowrank.planning.proposals import cut_candidate, outlined

__all__ = ["ChainCutter"]

#: bytes of chains that are kept for the next plan, which may well have them too
_ROOM = 512 << 20


class ChainCutter:
    """Cuts chains, each once as long as there is room; threads may ask for different ones at once.

    Args:
        passes: that may have made the decisions.
    """

    def __init__(self, passes: Sequence[Factorization]) -> None:
        self._passes = tuple(passes)
        self._chains: dict[Hashable, Chain] = {}
        self._room = _ROOM
        self._storing = Lock()

    def cut(
        self, channels: Hashable, layer: PlacedLayer, decision: Decision, moments: Moments
    ) -> Chain:
        """The chain that a decision puts in the place of a layer.

        Args:
            channels: equal where the same channels that the layer makes or reads stay.
            layer: of the model without the others.
            decision: what becomes of it.
            moments: of its input.

        Raises:
            PlanError: the decision names no pass, form or rank that there is.
        """
        form = (decision.method, decision.variant, decision.rank, decision.parameters)
        key = (channels, layer.name, form)
        if key in self._chains:
            return self._chains[key]
        chain = cut_candidate(layer.value, decision, self._passes, moments)
        size = 8 * chain.parameters
        with self._storing:
            if size <= self._room:
                self._room -= size
                self._chains[key] = chain
        return chain

    def outline(self, layer: PlacedLayer, decision: Decision, moments: Moments) -> Chain | None:
        """The chain without its numbers; see :func:`~onnx_lowrank.planning.proposals.outlined`.

        Raises:
            PlanError: the decision names no pass, form or rank that there is.
        """
        return outlined(layer.value, decision, self._passes, moments)

    def clear(self) -> None:
        """Keep no chain."""
        self._chains.clear()
        self._room = _ROOM
