"""Pruner: chooses the channels of a model that go under a budget, and cuts them out."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.analysis.preparation import Prepared
from onnx_lowrank.chains.chain import Stage
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import PlacedLayer
from onnx_lowrank.linalg.blas_threads import blas_for, side_by_side
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.passkit.channel_selection import Selection, parts_of
from onnx_lowrank.passkit.runner import order, refined
from onnx_lowrank.planning.plan import GroupDecision
from onnx_lowrank.progress import Progress
from onnx_lowrank.pruning.channel_cuts import ChannelCuts, KeptChannels
from onnx_lowrank.pruning.costs import Costs
from onnx_lowrank.pruning.cutting import Cutting
from onnx_lowrank.pruning.greedy import Budget, OutOfReachError, plan_counts
from onnx_lowrank.pruning.heads import TurnedHeads
from onnx_lowrank.pruning.prunable import Prunable, norms
from onnx_lowrank.pruning.reader_target import ReaderTarget
from onnx_lowrank.pruning.weighing import Halves

__all__ = ["ChannelOrder", "Pruner"]

Array = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]

#: power of measured factors where there are no heads: the better of the plans at two shares loses
#: less by it than by the factors themselves in five of ten cases (six nets), more in three
_DAMPED = 0.5

#: loss a layer that whole blocks of channels may cost above the finer grid
_LOSS_PER_LAYER = 0.005


@dataclass(frozen=True)
class ChannelOrder:
    """Order in which the channels of a prunable go, with the losses.

    Attributes:
        order: numbers of the channels, those to keep longest first.
        losses: loss ``(size + 1,)`` by number of channels left.
    """

    order: Labels
    losses: Array


class Pruner:
    """Prunes one model at any budget.

    Attributes:
        cuts: what becomes of the model when channels go.

    Args:
        prepared: the model; it is not changed.
        methods: passes that choose channels.
        metric: unit of costs: ``macs | params | size``.
        progress: receives one step for each group.
    """

    def __init__(
        self, prepared: Prepared, methods: Cutting, metric: str, progress: Progress
    ) -> None:
        self._prepared, self._methods = prepared, methods
        self._progress, self._options = progress, methods.options
        self._guessed: Pruner | None = None
        self._layers = {layer.name: layer for layer in prepared.products}
        self.found = methods.found(prepared)
        self.prunables = self.found.prunables
        self._costs = Costs(prepared, self.found, metric, self._options.solve)
        self.cuts = ChannelCuts(
            prepared, self.prunables, self._options.solve, lambda name: self.heads[name].turns
        )

    @cached_property
    def heads(self) -> dict[str, TurnedHeads]:
        """Heads in the bases that they are cut in, by name of the prunable."""
        return self._methods.turned(self.found, self._prepared)

    @property
    def products(self) -> float:
        """Cost of the products of activations that channels of heads pass."""
        return sum(map(self._costs.of_product, self.found.products))

    @property
    def weighs(self) -> bool:
        """Whether the losses of groups are measured, as where there are heads among them."""
        inside = any(prunable.pairs for prunable in self.prunables.values())
        return inside or bool(self.found.products)

    @cached_property
    def orders(self) -> dict[str, ChannelOrder]:
        """Orders and losses of all prunables, by name; weighed where :attr:`weighs` says so."""
        if self._guessed is not None:
            return self._weighed(self._guessed.orders, _DAMPED)
        prunables = list(self.prunables.values())
        _ = self.heads  # found once, not on every thread
        with self._progress.task("prune", len(prunables)) as advance:
            orders = side_by_side(
                lambda p: self.order_of(p, {}), prunables, list(map(_width, prunables)), advance
            )
        found = dict(zip(self.prunables, orders, strict=True))
        return self._weighed(found) if self.weighs else found

    def weighed(self) -> Pruner:
        """The same with losses that are measured, where they are not so already.

        Where there are no heads the factors are damped.
        """
        if self.weighs:
            return self
        made = copy.copy(self)
        made.__dict__.pop("orders", None)
        made._guessed = self
        return made

    def _weighed(
        self, orders: dict[str, ChannelOrder], power: float = 1.0
    ) -> dict[str, ChannelOrder]:
        """The same with losses in one measure; a Gather, unmeasured, weighs as the worst group."""
        half = {n: (p.size + 1) // 2 for n, p in self.prunables.items() if p.group is not None}
        kept = {n: {n: np.sort(orders[n].order[:count])} for n, count in half.items()}

        def halved(name: str) -> Model:
            graph = Graph(self._prepared.model)
            self.cuts.apply(graph, kept[name])
            return graph.to_model()

        def zeroed(name: str) -> dict[str, Stage]:
            return self.cuts.zeroed(kept[name])

        losses = {n: float(orders[n].losses[count]) for n, count in half.items()}
        touched = frozenset().union(*map(self.layers_of, half))
        stages = {la.name: la.stage for la in self._prepared.layers if la.name in touched}
        halves = Halves(self._prepared.model, stages, zeroed, halved)
        factors = {n: f**power for n, f in self._methods.weigh(halves, losses).items()}
        worst = max(factors.values(), default=1.0)
        return {
            n: replace(o, losses=o.losses * factors.get(n, 1.0 if n in losses else worst))
            for n, o in orders.items()
        }

    def order_of(
        self,
        prunable: Prunable,
        rows: Mapping[str, Mask],
        targets: Mapping[str, ReaderTarget] | None = None,
    ) -> ChannelOrder:
        """Order the channels of a prunable, with the losses.

        Args:
            prunable: the prunable.
            rows: masks ``(N,)`` of the outputs that count, by reader; all count by default.
            targets: problems of readers by name, where they differ from those of the original.
        """
        selection = self._selection(prunable, rows, targets or {})
        if prunable.pairs:  # in the order of their bases
            first = np.arange(prunable.size)
            lost = selection.losses(first) + self.heads[prunable.name].losses
            return ChannelOrder(first, np.maximum(lost, 0.0))
        with blas_for(max((len(p.sigma) for p in selection.parts), default=0)):
            assert self._methods.channels is not None
            ranked = order(self._methods.channels, selection, f"channels {prunable.name!r}")
            losses = selection.losses(ranked, self._options.solve)
        return ChannelOrder(ranked, np.maximum(losses, 0.0))

    def _selection(
        self, prunable: Prunable, rows: Mapping[str, Mask], targets: Mapping[str, ReaderTarget]
    ) -> Selection:
        parts = []
        for layer, positions in prunable.readers:
            known = self._prepared.moments
            total = known.totals.get(layer.name, 0.0)
            reader = self.cuts.target(layer.name, targets)
            if prunable.pairs:
                reader = reader.turned(self.heads[prunable.name].turns)
            moments = replace(reader.moments, outputs=known.metric(layer.name))
            with blas_for(layer.patch):
                parts += parts_of(reader.layer, positions, moments, total, rows.get(layer.name))
        return Selection(tuple(parts), norms(prunable, self._layers))

    @property
    def cost(self) -> float:
        """Cost of all layers, and of the :attr:`products`, with all their channels."""
        return self._costs.ledger().total

    def plan(self, budget: Budget) -> tuple[KeptChannels, float]:
        """Choose the channels to keep under a budget on the cost of the layers.

        Returns:
            The channels that stay, and the predicted loss.

        Raises:
            OutOfReachError: the budget cannot be met.
        """
        keep = self._options.keep
        if keep:
            counts = {n: max(round(keep * p.size), 1)
                      for n, p in self.prunables.items() if not p.pairs}  # fmt: skip
        else:
            counts = self._counts(budget)
        kept = {n: np.sort(self.orders[n].order[:c]) for n, c in counts.items()
                if c < self.prunables[n].size}  # fmt: skip
        if self._options.chain == "bottom_up":
            kept = self._bottom_up(kept)
        return kept, sum(float(self.orders[n].losses[len(k)]) for n, k in kept.items())

    def _counts(self, budget: Budget) -> dict[str, int]:
        """Numbers of channels, in blocks unless blocks lose far more than the next finer grid."""
        losses = {name: order.losses for name, order in self.orders.items()}
        plans: list[dict[str, int]] = []
        unmet = budget.unmet(self.cost)
        for grid, removables in enumerate(self._costs.grids(losses)):
            if grid > 1 and plans:
                break
            try:
                plans.append(plan_counts(removables, self._costs.ledger(), budget))
            except OutOfReachError as error:
                unmet = min(unmet, error, key=lambda e: e.least)
        if not plans:
            raise unmet
        found = [sum(float(losses[n][c]) for n, c in plan.items()) for plan in plans]
        bearable = found[-1] + _LOSS_PER_LAYER * len(self._layers)
        return plans[0] if found[0] <= bearable else plans[-1]

    def refined(self, kept: KeptChannels) -> KeptChannels:
        """Improve a choice by :meth:`Pruning.refined`; the numbers of channels stay the same."""

        def better(name: str) -> Labels:
            if self.prunables[name].pairs:
                return kept[name]
            assert self._methods.channels is not None
            selection = self._selection(self.prunables[name], {}, {})
            return refined(self._methods.channels, selection, kept[name], f"channels {name!r}")

        names = list(kept)
        widths = [_width(self.prunables[name]) for name in names]
        with self._progress.task("swap channels", len(names)) as advance:
            return dict(zip(names, side_by_side(better, names, widths, advance), strict=True))

    def _bottom_up(self, kept: KeptChannels) -> dict[str, Labels]:
        """Choose as many channels again from the output on, by the outputs that stay only."""
        chosen: dict[str, Labels] = {}
        rows: Mapping[str, Mask] = {}
        for name, prunable in reversed(list(self.prunables.items())):
            if name not in kept:
                continue
            if prunable.pairs:
                chosen[name] = kept[name]
                continue
            again = self.order_of(prunable, rows)
            chosen[name] = np.sort(again.order[: len(kept[name])])
            rows = self.cuts.rows({n: c for n, c in chosen.items() if not self.prunables[n].pairs})
        return chosen

    def layers_of(self, name: str) -> frozenset[str]:
        """Names of the layers that make, carry or read the channels of a prunable."""
        layers = self._prepared.products
        sides = (side.layer for side in self.prunables[name].sides)
        return frozenset(layers[side].name for side in sides if side < len(layers))

    def channels_of(self, layer: PlacedLayer, kept: KeptChannels) -> bytes:
        """A key of the channels that stay in the groups that a layer makes or reads."""
        return b"".join(
            name.encode() + b"\0" + left.tobytes()
            for name, left in kept.items()
            if layer.name in self.layers_of(name)
        )

    def decisions(self, kept: KeptChannels) -> list[GroupDecision]:
        """List a decision with its reason for each cut and Gather, then for the other groups."""
        made = []
        for name, prunable in self.prunables.items():
            if name in kept:
                left = kept[name]
                what = _what(prunable)
                made.append(
                    GroupDecision(
                        name, "cut" if prunable.group else "gather", prunable.size,
                        tuple(int(k) for k in left), float(self.orders[name].losses[len(left)]),
                        f"{len(left)} of {prunable.size} {what} are left",
                    )
                )  # fmt: skip
        for group in self.found.groups:
            if group.name not in kept:
                reason = self.found.refused.get(group.name)
                why = reason or "the budget is met with less error elsewhere"
                decision = "frozen" if reason else "keep"
                made.append(GroupDecision(group.name, decision, group.size, (), 0.0, why))
        made += [
            GroupDecision(name, "frozen", 0, (), 0.0, reason)
            for block in self.found.blocks for name, reason in block.refused.items()
        ]  # fmt: skip
        return made


def _what(prunable: Prunable) -> str:
    """What the channels of a prunable are, for messages."""
    if prunable.pairs:
        return "channels of each head"
    return "heads" if prunable.group is not None and prunable.group.products else "channels"


def _width(prunable: Prunable) -> int:
    """Number of columns of the widest reader."""
    return max((layer.patch for layer, _ in prunable.readers), default=0)
