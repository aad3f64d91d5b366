"""What becomes of a model when channels go: cut out, or put to zero where they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.analysis.preparation import Prepared
from onnx_lowrank.chains.chain import Stage
from onnx_lowrank.channels.cut import Remains, cut_groups, gather_input
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import PlacedLayer
from onnx_lowrank.passkit.channel_selection import solved_weights
from onnx_lowrank.pruning.prunable import Prunable
from onnx_lowrank.pruning.reader_target import ReaderTarget
from onnx_lowrank.pruning.remaining import RemainingMoments
from onnx_lowrank.pruning.turns import Turn, turned_layer

__all__ = ["ChannelCuts", "KeptChannels"]

Array = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]

#: numbers of the channels that stay, rising, by name of the prunable
KeptChannels = Mapping[str, Labels]

#: ridge of the weights that are solved again, in units of the mean variance of the inputs
_RIDGE = 1e-6


@dataclass(frozen=True)
class ChannelCuts:
    """Cuts of one model, by the channels that stay.

    Attributes:
        prepared: the model; it is not changed.
        prunables: its groups of channels, by name.
        solve: whether the readers of channels that go are solved again.
        turns_of: bases that the channels of heads are cut in, by name of the prunable.
    """

    prepared: Prepared
    prunables: Mapping[str, Prunable]
    solve: bool
    turns_of: Callable[[str], Sequence[Turn]]

    @cached_property
    def _layers(self) -> Mapping[str, PlacedLayer]:
        return {layer.name: layer for layer in self.prepared.products}

    def target(self, name: str, targets: Mapping[str, ReaderTarget]) -> ReaderTarget:
        """The problem of solving a reader: a given one, or that of the original."""
        return targets.get(name) or ReaderTarget(
            self._layers[name].value, self.prepared.moments[name]
        )

    def apply(
        self, graph: Graph, kept: KeptChannels, targets: Mapping[str, ReaderTarget] | None = None
    ) -> Remains:
        """Cut ``graph``, a copy of the one that was planned on, and solve the readers again.

        Args:
            graph: graph to change.
            kept: channels that stay.
            targets: problems of readers by name, where they differ from those of the original.

        Raises:
            ValueError: ``kept`` names a group that must stay, or channels that do not exist.
        """
        cuts, gathers = [], []
        for name, left in kept.items():
            prunable = self.prunables[name]
            if prunable.group is None:
                gathers.append(prunable.readers[0][0])
            else:
                cuts.append((prunable.group, [int(k) for k in left]))
        positions, weights = self.positions(kept), self._solved(kept, targets or {})
        through = {layer.name for layer in gathers}
        own = {name: w for name, w in weights.items() if name not in through}
        remains = cut_groups(graph, cuts, own) if cuts else Remains({}, {})
        for layer in gathers:
            given = weights.get(layer.name)
            mask = remains.rows.get(layer.name)
            if given is not None and mask is not None:
                given = given[0][mask], None if given[1] is None else given[1][mask]
            gather_input(graph, layer.name, positions[layer.name].tolist(), given)
        return remains

    def _solved(
        self, kept: KeptChannels, targets: Mapping[str, ReaderTarget]
    ) -> dict[str, tuple[Array, Array | None]]:
        """Weights and biases of the layers that have others after a cut, by name.

        They read what stays, and make all that they made, in the bases that heads are cut in.
        """
        positions, turns = self.positions(kept), self._turns(kept)
        weights: dict[str, tuple[Array, Array | None]] = {}
        for name in dict.fromkeys([*positions, *(turn.layer for turn in turns)]):
            reader = self.target(name, targets).turned(turns)
            if name in positions and self.solve and self._layers[name].sharers == 1:
                left = positions[name]
                weights[name] = solved_weights(reader.layer, left, reader.moments, _RIDGE)
            elif any(turn.layer == name for turn in turns):
                stage = reader.layer.stage
                left = positions.get(name, np.arange(stage.weight.shape[1]))
                weights[name] = stage.weight[:, left], stage.bias
        return weights

    def zeroed(self, kept: KeptChannels) -> dict[str, Stage]:
        """The layers that a cut changes, whole, with zeros in the place of what goes, by name."""
        positions, solved = self.positions(kept), self._solved(kept, {})
        # of heads that no layer reads, those that make them answer nothing
        made = self.rows({n: k for n, k in kept.items() if self.prunables[n].pairs})
        found = {}
        for name in dict.fromkeys([*positions, *solved]):
            layer = self._layers[name]
            stage = layer.stage
            left = positions.get(name, np.arange(layer.shape[1]))
            read, bias = solved.get(name, (stage.weight[:, left], stage.bias))
            weight = np.zeros(layer.shape)
            weight[:, left] = read
            if name in made:
                weight[~made[name]] = 0.0
                bias = None if bias is None else np.where(made[name], bias, 0.0)
            found[name] = replace(stage, weight=weight, bias=bias)
        return found

    def positions(self, kept: KeptChannels) -> dict[str, Labels]:
        """Positions that stay on the axes of inputs of the readers, by layer name."""
        gone: dict[str, list[Labels]] = {}
        for name, left in kept.items():
            prunable = self.prunables[name]
            lost = np.setdiff1d(np.arange(prunable.size), left)
            for layer, positions in prunable.readers:
                gone.setdefault(layer.name, []).append(positions[lost].reshape(-1))
        return {
            name: np.setdiff1d(np.arange(self._layers[name].shape[1]), np.concatenate(lost))
            for name, lost in gone.items()
        }

    def moments(self, kept: KeptChannels) -> RemainingMoments:
        """Moments of the layers after the cut, if the channels that stay did not change.

        Each is made when it is read: those of all layers together may take gigabytes. Those of
        depthwise layers, which no pass factorizes, are left out.
        """
        return RemainingMoments(
            self.prepared.moments, self._layers, self.positions(kept), self.rows(kept),
            self._turns(kept),
        )  # fmt: skip

    def rows(self, kept: KeptChannels) -> dict[str, Mask]:
        """Masks ``(N,)`` of the outputs that stay of the layers that make the channels, by name."""
        rows: dict[str, Mask] = {}
        for name, left in kept.items():
            group = self.prunables[name].group
            for producer in group.producers if group is not None else ():
                every = np.ones(self._layers[producer.name].shape[0], bool)
                mask = rows.setdefault(producer.name, every)
                gone = np.setdiff1d(np.arange(self.prunables[name].size), left)
                mask[[row for j in gone for row in producer.rows[j]]] = False
        return rows

    def turned(self, kept: KeptChannels) -> tuple[PlacedLayer, ...]:
        """The layers of the model, those that make channels in the bases that these are cut in."""
        turns = [turn for turn in self._turns(kept) if not turn.columns]
        layers = self.prepared.layers
        return tuple(replace(la, value=turned_layer(la.value, turns)) for la in layers)

    def _turns(self, kept: KeptChannels) -> list[Turn]:
        return [t for n in kept if self.prunables[n].pairs for t in self.turns_of(n)]
