"""Prune a model: which channels may go, how many under a budget, and the cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.base import Pruning
from onnx_lowrank.blas import blas_for
from onnx_lowrank.chain import aligned_ranks
from onnx_lowrank.channel_cut import Remains, cut_groups, gather_input
from onnx_lowrank.channels import ChannelGroup, find_channel_groups
from onnx_lowrank.cost import layer_cost
from onnx_lowrank.graph import Graph
from onnx_lowrank.layers import Layer
from onnx_lowrank.moments import Moments
from onnx_lowrank.plan import GroupDecision
from onnx_lowrank.preparation import Prepared
from onnx_lowrank.progress import Progress
from onnx_lowrank.prune_plan import Ledger, Removable, Side, plan_counts
from onnx_lowrank.selection import Selection, parts_of, solved_weights

__all__ = ["Judged", "Kept", "Prunable", "Pruner", "Seen"]

Array = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]

#: channels that stay, by name of what they are taken from
Kept = Mapping[str, Labels]

#: of the weights that are solved again, in units of the mean variance of the inputs
_RIDGE = 1e-6

#: most numbers of channels that a plan looks at in a group, where any number will do
_COUNTS = 128


@dataclass(frozen=True)
class Prunable:
    """Channels that may go: those of a group, or what one layer reads, through a Gather.

    Attributes:
        name: of the group; of the layer, and ``(input)``.
        size: number of channels.
        group: to cut; None for a Gather in front of the only reader.
        readers: layers, and the positions ``(size, w)`` of each channel on their axis of inputs.
    """

    name: str
    size: int
    group: ChannelGroup | None
    readers: tuple[tuple[Layer, Labels], ...]


@dataclass(frozen=True)
class Seen:
    """A reader as it should be solved: its map, and the moments of what it reads."""

    layer: Layer
    moments: Moments


@dataclass(frozen=True)
class Judged:
    """What it would cost to do with fewer.

    Attributes:
        order: the channels to keep longest first.
        losses: ``(size + 1,)`` by number of channels left.
    """

    order: Labels
    losses: Array


class Pruner:
    """One model and what may go of it; to be cut at any budget.

    Args:
        prepared: the model; never changed.
        method: how channels are chosen.
        metric: ``macs | params | size``.
        progress: is told of every group.
    """

    def __init__(
        self, prepared: Prepared, method: Pruning, metric: str, progress: Progress
    ) -> None:
        self._prepared, self._method, self._metric = prepared, method, metric
        self._progress = progress
        self._layers = {layer.name: layer for layer in prepared.layers}
        self._numbers = {name: i for i, name in enumerate(self._layers)}
        self._found = find_channel_groups(prepared.graph, prepared.shapes)
        self._refused = {g.name: r for g in self._found if (r := self._refusal(g))}
        self.prunables = {p.name: p for p in (*self._cuts(), *self._gathers())}

    # -- planning --------------------------------------------------------------------------------

    @cached_property
    def judged(self) -> dict[str, Judged]:
        """Orders and losses of everything that may go."""
        found = {}
        with self._progress.task("prune", len(self.prunables)) as advance:
            for name, prunable in self.prunables.items():
                found[name] = self.judge(prunable, {})
                advance(1)
        return found

    def judge(
        self,
        prunable: Prunable,
        rows: Mapping[str, Mask],
        seen: Mapping[str, Seen] | None = None,
    ) -> Judged:
        """Order and losses.

        Args:
            prunable: what may go.
            rows: outputs ``(N,)`` that count, of readers where it is not all of them.
            seen: readers as they should be solved, where not by the original's data.
        """
        selection = self._selection(prunable, rows, seen or {})
        with blas_for(max((len(p.sigma) for p in selection.parts), default=0)):
            order = self._method.order(selection)
            losses = selection.losses(order, self._method.options.solve)
        return Judged(order, np.maximum(losses, 0.0))

    def _selection(
        self, prunable: Prunable, rows: Mapping[str, Mask], seen: Mapping[str, Seen]
    ) -> Selection:
        parts = []
        for layer, positions in prunable.readers:
            total = self._prepared.moments.totals.get(layer.name, 0.0)
            reader = self._seen(layer.name, seen)
            with blas_for(layer.patch):
                parts += parts_of(
                    reader.layer, positions, reader.moments, total, rows.get(layer.name)
                )
        return Selection(tuple(parts), self._made(prunable))

    @property
    def cost(self) -> float:
        """Of all layers, as they are."""
        return self._ledger().total

    def plan(self, budget: float, what: str) -> tuple[Kept, float]:
        """Channels to keep under a budget on the cost of the layers, and the loss of that.

        Raises:
            BudgetError: it cannot be met.
        """
        keep = self._method.options.keep
        if keep:
            counts = {n: max(round(keep * p.size), 1) for n, p in self.prunables.items()}
        else:
            removables = [self._removable(p) for p in self.prunables.values()]
            counts = plan_counts(removables, self._ledger(), budget, what)
        kept = {n: np.sort(self.judged[n].order[:c]) for n, c in counts.items()
                if c < self.prunables[n].size}  # fmt: skip
        if self._method.options.chain == "bottom_up":
            kept = self._bottom_up(kept)
        return kept, sum(float(self.judged[n].losses[len(k)]) for n, k in kept.items())

    def refined(self, kept: Kept) -> Kept:
        """As many channels, and no greater loss: see :meth:`Pruning.refined`."""
        found = {}
        with self._progress.task("swap channels", len(kept)) as advance:
            for name, left in kept.items():
                selection = self._selection(self.prunables[name], {}, {})
                found[name] = np.sort(self._method.refined(selection, left))
                advance(1)
        return found

    def _bottom_up(self, kept: Kept) -> dict[str, Labels]:
        """As many channels, chosen from the output on, for those outputs alone that stay."""
        chosen: dict[str, Labels] = {}
        rows: dict[str, Mask] = {}
        for name, prunable in reversed(self.prunables.items()):
            if name not in kept:
                continue
            again = self.judge(prunable, rows)
            chosen[name] = np.sort(again.order[: len(kept[name])])
            gone = np.setdiff1d(np.arange(prunable.size), chosen[name])
            for producer in prunable.group.producers if prunable.group else ():
                outputs = self._layers[producer.name].shape[0]
                mask = rows.setdefault(producer.name, np.ones(outputs, bool))
                mask[[row for j in gone for row in producer.rows[j]]] = False
        return chosen

    def decisions(self, kept: Kept) -> list[GroupDecision]:
        """A decision and a reason for everything that may go, and for every group that may not."""
        made = []
        for name, prunable in self.prunables.items():
            if name in kept:
                left = kept[name]
                made.append(
                    GroupDecision(
                        name, "cut" if prunable.group else "gather", prunable.size,
                        tuple(int(k) for k in left), float(self.judged[name].losses[len(left)]),
                        f"{len(left)} of {prunable.size} channels are left",
                    )
                )  # fmt: skip
        for group in self._found:
            if group.name not in kept:
                reason = self._refused.get(group.name)
                why = reason or "the budget is met with less error elsewhere"
                decision = "frozen" if reason else "keep"
                made.append(GroupDecision(group.name, decision, group.size, (), 0.0, why))
        return made

    # -- cutting ---------------------------------------------------------------------------------

    def _seen(self, name: str, seen: Mapping[str, Seen]) -> Seen:
        return seen.get(name) or Seen(self._layers[name], self._prepared.moments[name])

    def apply(self, graph: Graph, kept: Kept, seen: Mapping[str, Seen] | None = None) -> Remains:
        """Cut ``graph``, a copy of the one that was planned on, and solve the readers again.

        Args:
            graph: changed.
            kept: channels that stay.
            seen: readers as they should be solved, where not by the original's data.

        Raises:
            ValueError: ``kept`` names something that may not go, or channels that are not there.
        """
        cuts, gathers = [], []
        for name, left in kept.items():
            prunable = self.prunables[name]
            if prunable.group is None:
                gathers.append(prunable.readers[0][0])
            else:
                cuts.append((prunable.group, [int(k) for k in left]))
        positions = self.positions(kept)
        weights = {}
        for name, left in positions.items():
            if self._method.options.solve and self._layers[name].sharers == 1:
                reader = self._seen(name, seen or {})
                weights[name] = solved_weights(reader.layer, left, reader.moments, _RIDGE)
        through = {layer.name for layer in gathers}
        own = {name: w for name, w in weights.items() if name not in through}
        remains = cut_groups(graph, cuts, own) if cuts else Remains({}, {})
        for layer in gathers:
            given = weights.get(layer.name)
            mask = next(iter(remains.kept.get(layer.output, {}).values()), None)
            if given is not None and mask is not None:
                given = given[0][mask], None if given[1] is None else given[1][mask]
            gather_input(graph, layer.name, positions[layer.name].tolist(), given)
        return remains

    def positions(self, kept: Kept) -> dict[str, Labels]:
        """What the readers are left with, on their axes of inputs."""
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

    def moments(self, kept: Kept) -> dict[str, Moments]:
        """Those of the layers as the cut would leave them, were their inputs not to change."""
        positions = self.positions(kept)
        return {
            name: _restricted(self._prepared.moments[name], layer, positions.get(name))
            for name, layer in self._layers.items()
        }

    # -- what there is ---------------------------------------------------------------------------

    def _refusal(self, group: ChannelGroup) -> str | None:
        if group.frozen is not None:
            return group.frozen
        for name in (*(p.name for p in group.producers), *(c.name for c in group.consumers)):
            if name not in self._layers:
                return f"{name} is left alone"
        ends = [*(p.rows for p in group.producers), *(c.columns for c in group.consumers)]
        if any(len({len(units) for units in end}) > 1 for end in ends):
            return "its channels are not alike"
        return "it is a single channel" if group.size < 2 else None

    def _cuts(self) -> Iterator[Prunable]:
        for group in self._found:
            if group.name not in self._refused:
                readers = tuple(
                    (self._layers[c.name], np.array(c.columns, np.intp).reshape(group.size, -1))
                    for c in group.consumers
                )
                yield Prunable(group.name, group.size, group, readers)

    def _gathers(self) -> Iterator[Prunable]:
        """Layers that may read less than the cuts of groups would give them."""
        options = self._method.options
        if not options.gather or options.keep:
            return
        served = {
            g.consumers[0].name for g in self._found
            if g.name not in self._refused and len(g.consumers) == 1
            and len(g.consumers[0].columns[0]) == 1
        }  # fmt: skip
        for layer in self._layers.values():
            inputs = layer.shape[1]
            if layer.name in served or layer.groups > 1 or inputs < 2 or layer.sharers > 1:
                continue
            readers = ((layer, np.arange(inputs)[:, None]),)
            yield Prunable(f"{layer.name} (input)", inputs, None, readers)

    def _made(self, prunable: Prunable) -> tuple[Array, Array]:
        """L1 and L2 norms of what makes each channel, else of what reads it."""
        if prunable.group is not None and prunable.group.producers:
            blocks = [
                self._layers[p.name].stage.weight[np.array(p.rows)].reshape(prunable.size, -1)
                for p in prunable.group.producers
            ]
        else:
            blocks = [
                np.moveaxis(layer.stage.weight, 1, 0)[positions].reshape(prunable.size, -1)
                for layer, positions in prunable.readers
            ]
        joined = np.concatenate(blocks, axis=1)
        return np.abs(joined).sum(axis=1), np.sqrt(np.square(joined).sum(axis=1))

    def excludes(self, prunable: Prunable) -> frozenset[str]:
        """Names of what cannot be cut together with a Gather: groups that its layer reads."""
        if prunable.group is not None:
            return frozenset()
        reader = prunable.readers[0][0]
        return frozenset(
            p.name for p in self.prunables.values()
            if p.group is not None and any(la is reader for la, _ in p.readers)
        )  # fmt: skip

    # -- costs -----------------------------------------------------------------------------------

    def _ledger(self) -> Ledger:
        layers = self._layers.values()
        costs, biases, made = zip(*map(self._costs, layers), strict=True) if layers else ((),) * 3
        return Ledger(
            costs,
            [layer.shape[0] for layer in layers],
            [layer.shape[1] for layer in layers],
            biases,
            made,
        )

    def _costs(self, layer: Layer) -> tuple[float, float, float]:
        """Of the weights, of the bias, and of the bias that solving gives a layer without."""
        cost = layer_cost(layer, self._prepared.shapes)
        if self._metric == "macs":
            return float(cost.macs), 0.0, 0.0
        whole = cost.parameters if self._metric == "params" else cost.bytes
        unit = whole / (layer.stage.parameters or 1)
        if layer.stage.bias is not None:
            return whole - unit * layer.shape[0], unit * layer.shape[0], 0.0
        means = self._prepared.moments[layer.name].mean is not None
        solved = means and self._method.options.solve and layer.sharers == 1
        # a recurrent node has a second bias, of its state
        return float(whole), 0.0, unit * layer.shape[0] * (1 + layer.recurrent) * solved

    def _removable(self, prunable: Prunable) -> Removable:
        counts = _counts(prunable.size, self._metric == "macs")
        losses = self.judged[prunable.name].losses
        return Removable(
            prunable.name, losses, counts, self._sides(prunable), self.excludes(prunable)
        )

    def _sides(self, prunable: Prunable) -> tuple[Side, ...]:
        sides = [
            Side(self._numbers[layer.name], False, positions.shape[1])
            for layer, positions in prunable.readers
        ]
        if prunable.group is None:
            return tuple(sides)
        sides += [
            Side(self._numbers[p.name], True, len(p.rows[0])) for p in prunable.group.producers
        ]
        carried = {output for output, position in prunable.group.carried if position == 1}
        sides += [
            Side(self._numbers[layer.name], True, layer.shape[0] // prunable.size)
            for layer in self._layers.values()
            if layer.depthwise and layer.nodes[0].outputs[0].name in carried
        ]
        return tuple(sides)


def _restricted(moments: Moments, layer: Layer, positions: Labels | None) -> Moments:
    if positions is None or moments.covariance is None or moments.mean is None:
        return moments
    taps = int(np.prod(layer.shape[2:], dtype=int))
    patch = (positions[:, None] * taps + np.arange(taps)).reshape(-1)
    covariance = moments.covariance[:, patch[:, None], patch]
    return Moments(moments.count, moments.mean[:, patch], covariance)


def _counts(size: int, aligned: bool) -> Labels:
    """Numbers of channels that may be left, falling."""
    fewer = aligned_ranks(size - 1) if aligned else range(1, size, max(size // _COUNTS, 1))
    return np.array([size, *sorted(fewer, reverse=True)], np.intp)
