"""One budget for pruning and factorization: the share of the saving that pruning makes.

Both lose response in the same unit: the error of a layer relative to the sum that its response
enters. So growing shares are planned until the predicted loss of both rises, and the share of least
loss is taken, if that is less than the loss of factorization without pruning; or a share is given,
as predictions and outputs do not agree. The moments of the narrower layers are those of the
original without the channels that go. To save time, slow methods (which solve every rank anew) are
left out of these shares, but not of the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Protocol

from onnx_lowrank.analysis.cost import model_cost, other_cost
from onnx_lowrank.analysis.preparation import Prepared
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import PlacedLayer, find_layers
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.passkit.base import Factorization
from onnx_lowrank.planning.candidates import Choice, least_cost
from onnx_lowrank.planning.lagrangian import allocate
from onnx_lowrank.pruning.channel_cuts import KeptChannels
from onnx_lowrank.pruning.greedy import Budget, OutOfReachError
from onnx_lowrank.pruning.pruner import Pruner

__all__ = ["SHARES", "Factorizing", "Shared", "share_budget", "with_share"]

#: parts of the saving by pruning that are tried
SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)

#: parts of the cost that pruning leaves, tried where no share meets the budget
LEVELS = tuple(k / 20 for k in range(19, 0, -1))

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Shared:
    """Channels that stay, and the part of the saving that those that go make."""

    share: float
    kept: KeptChannels


def share_budget(pruner: Pruner, rest: Factorizing, budget: Budget, unpruned: float) -> Shared:
    """Choose the channels to keep, so that pruning and factorization lose least together.

    Args:
        pruner: prunes the model.
        rest: predicts what factorizing the pruned model loses.
        budget: budget on the cost of all layers.
        unpruned: predicted loss of factorization without pruning, which that with pruning must be
            less than; infinite where there is none, or to prune in any case.

    Raises:
        OutOfReachError: no share meets the budget.
    """
    best = (unpruned, Shared(0.0, {})) if isfinite(unpruned) else None
    before = unpruned
    for share in SHARES:
        try:
            kept, loss = pruner.plan(_limited(pruner, budget, share))
            if best is not None and loss >= best[0]:
                break
            if share < 1:
                loss += rest.loss(kept, budget)
        except OutOfReachError:
            continue
        if loss > before:
            break
        before = loss
        if best is None or loss < best[0]:
            best = loss, Shared(share, kept)
    return best[1] if best is not None else _first_within_budget(pruner, rest, budget)


def with_share(pruner: Pruner, rest: Factorizing, budget: Budget, share: float) -> Shared:
    """Choose the channels to keep so that pruning makes at least ``share`` of the saving.

    It makes more where factorization cannot make the rest.

    Raises:
        OutOfReachError: no share meets the budget.
    """
    for more in (s for s in SHARES if s >= share):
        try:
            kept, _ = pruner.plan(_limited(pruner, budget, more))
            if more < 1:
                rest.loss(kept, budget)
        except OutOfReachError:
            continue
        return Shared(more, kept)
    return _first_within_budget(pruner, rest, budget)


def _limited(pruner: Pruner, budget: Budget, share: float) -> Budget:
    """The budget of pruning that makes ``share`` of the saving."""
    return replace(budget, limit=pruner.cost - share * (pruner.cost - budget.limit))


def _first_within_budget(pruner: Pruner, rest: Factorizing, budget: Budget) -> Shared:
    """Find the least pruning with which factorization meets the budget.

    The levels of pruning do not depend on the budget, so a ratio that an error says can be reached
    is reached when it is asked for.

    Raises:
        OutOfReachError: no level meets the budget.
    """
    least = pruner.cost
    for level in (part * pruner.cost for part in LEVELS):
        try:
            kept = pruner.plan(replace(budget, limit=max(level, budget.limit)))[0]
            if level > budget.limit:
                rest.loss(kept, budget)
        except OutOfReachError as error:
            least = min(least, error.least)
        else:
            saving = pruner.cost - budget.limit
            return Shared(min((pruner.cost - level) / saving, 1.0) if saving > 0 else 1.0, kept)
        if level <= budget.limit:
            break
    raise budget.unmet(least)


class Ask(Protocol):
    """Asks passes for candidates of layers of a pruned model."""

    def __call__(
        self,
        layers: Sequence[PlacedLayer],
        passes: Sequence[Factorization],
        kept: KeptChannels,
        shapes: Shapes,
    ) -> Sequence[Choice]:
        """Choices of the layers, in their order.

        Args:
            layers: of the pruned model.
            passes: to ask.
            kept: channels that stay.
            shapes: of the tensors of the pruned model.
        """


class Factorizing:
    """Predicts the loss of factorizing a pruned model.

    Args:
        pruner: prunes the model.
        prepared: the model before pruning.
        factorizations: passes that factorize the pruned model.
        measure: returns the shapes of the tensors of a model.
        metric: unit of costs: ``macs | params | size``.
        ask: asks passes for candidates.
    """

    def __init__(
        self,
        pruner: Pruner,
        prepared: Prepared,
        factorizations: Sequence[Factorization],
        measure: Callable[[Model, Graph, Sequence[PlacedLayer]], Shapes],
        metric: str,
        ask: Ask,
    ) -> None:
        self._pruner, self._prepared, self._measure = pruner, prepared, measure
        self._passes = [f for f in factorizations if not f.slow] or factorizations
        self._metric, self._ask = metric, ask

    def loss(self, kept: KeptChannels, budget: Budget) -> float:
        """Predict the loss of factorizing the pruned model within the whole budget.

        Raises:
            OutOfReachError: the budget cannot be met.
        """
        choices, others = self._proposed(kept)
        limit = int(budget.limit + budget.fixed - others)
        least = least_cost(choices)
        if least > limit:
            raise budget.unmet(least + others - budget.fixed)
        chosen = allocate(choices, limit)
        return sum(c.weight * p.error for c, p in zip(choices, chosen, strict=True))

    def _proposed(self, kept: KeptChannels) -> tuple[Sequence[Choice], float]:
        """Choices of all layers of the pruned model, and the cost of its other nodes.

        The latter changes with pruning: vectors along the channels get shorter, biases are added.
        """
        graph = Graph(self._prepared.model)
        self._pruner.cuts.apply(graph, kept)
        model = graph.to_model()
        graph = Graph(model)
        names = {layer.name for layer in self._prepared.layers}
        layers = [layer for layer in find_layers(graph)[0] if layer.name in names]
        shapes = self._measure(model, graph, layers)
        choices = self._ask(layers, self._passes, kept, shapes)
        return choices, other_cost(model_cost(model, shapes), shapes, layers, self._metric)
