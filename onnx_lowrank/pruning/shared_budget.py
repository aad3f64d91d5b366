"""One budget for pruning and factorization: how much of the saving is left to pruning.

Both lose response, in the same unit: the error of what a layer makes relative to what it ends up
in. So growing shares are planned to the end until the predicted loss of both rises, and the one of
least loss is taken, if that is less than what all factorizations lose without pruning. The moments
of the narrower layers are those of the original without the channels that go. Slow methods (whose
every rank is a solution of its own) are left out of these shares, not of the plan; errors of wide
layers are computed at every third rank and read off between them; and a layer that keeps the same
channels at two shares is taken apart once.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import isfinite
from typing import ClassVar

import numpy as np

from onnx_lowrank.analysis.cost import model_cost, other_cost
from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.analysis.preparation import Prepared
from onnx_lowrank.chains.chain import Chain, Rank
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import Layer, PlacedLayer, find_layers
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.passkit.base import Decomposition, Factorization, Skip
from onnx_lowrank.planning.candidates import Choice, least_cost
from onnx_lowrank.planning.lagrangian import allocate
from onnx_lowrank.planning.proposals import make_choices
from onnx_lowrank.progress import Progress
from onnx_lowrank.pruning.greedy import Budget, OutOfReachError
from onnx_lowrank.pruning.pruner import Kept, Pruner

__all__ = ["share_budget"]

#: parts of the saving that pruning makes
SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)

#: where none of them meets the budget: parts of the cost that pruning leaves
LEVELS = tuple(k / 20 for k in range(19, 0, -1))

#: of the ranks of a factorization the error is computed at one in so many, where patches are wide
_STRIDE, _WIDE = 3, 600

#: an error that counts as none
_EXACT = 1e-12

Shapes = Mapping[str, tuple[int, ...]]


def share_budget(
    pruner: Pruner,
    prepared: Prepared,
    factorizations: Sequence[Factorization],
    budget: Budget,
    measure: Callable[[Model, Graph, Sequence[PlacedLayer]], Shapes],
    metric: str,
    unpruned: float,
    gain: float,
) -> Kept:
    """Channels to keep, so that factorization makes up the rest with the least loss of both.

    Args:
        pruner: of the model.
        prepared: the model.
        factorizations: that follow.
        budget: on the cost of all layers.
        measure: shapes of the tensors of a model.
        metric: of the budget.
        unpruned: predicted loss of all factorizations without pruning; infinite where they do not
            meet the budget.
        gain: how many times less the loss of both must be.

    Raises:
        OutOfReachError: no share meets it.
    """
    rest = Rest(pruner, prepared, factorizations, measure, metric)
    best: tuple[float, Kept] | None = (unpruned / gain, {}) if isfinite(unpruned) else None
    before = unpruned
    for share in SHARES:
        limit = pruner.cost - share * (pruner.cost - budget.limit)
        try:
            kept, loss = pruner.plan(replace(budget, limit=limit))
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
            best = loss, kept
    return best[1] if best is not None else _any(pruner, rest, budget)


def _any(pruner: Pruner, rest: Rest, budget: Budget) -> Kept:
    """The first channels to keep that leave factorization enough to do.

    What is left by pruning does not depend on the budget here, so that what is said to be in reach
    is, when it is asked for.

    Raises:
        OutOfReachError: nothing meets the budget.
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
            return kept
        if level <= budget.limit:
            break
    raise budget.unmet(least)


class Rest:
    """What factorization would lose on what pruning leaves.

    Args:
        pruner: of the model.
        prepared: the model.
        factorizations: that follow.
        measure: shapes of the tensors of a model.
        metric: of costs.
    """

    def __init__(
        self,
        pruner: Pruner,
        prepared: Prepared,
        factorizations: Sequence[Factorization],
        measure: Callable[[Model, Graph, Sequence[PlacedLayer]], Shapes],
        metric: str,
    ) -> None:
        self._pruner, self._prepared, self._measure = pruner, prepared, measure
        quick = [f for f in factorizations if not f.slow] or factorizations
        self._passes = [_Quicker(f) for f in quick]
        self._metric = metric
        self._choices: dict[tuple[str, bytes], Choice] = {}

    def loss(self, kept: Kept, budget: Budget) -> float:
        """Predicted, of factorizing what is left within the whole budget.

        Raises:
            OutOfReachError: it cannot be met.
        """
        choices, others = self._proposed(kept)
        limit = int(budget.limit + budget.fixed - others)
        least = least_cost(choices)
        if least > limit:
            raise budget.unmet(least + others - budget.fixed)
        chosen = allocate(choices, limit)
        return sum(c.weight * p.error for c, p in zip(choices, chosen, strict=True))

    def _proposed(self, kept: Kept) -> tuple[list[Choice], float]:
        """All layers, taken apart where they have not been with these channels.

        And the cost of all else: vectors along the channels are shorter, biases have been added.
        """
        graph = Graph(self._prepared.model)
        self._pruner.apply(graph, kept)
        model = graph.to_model()
        graph = Graph(model)
        keys = {la.name: (la.name, self._channels(la, kept)) for la in self._prepared.layers}
        layers = [layer for layer in find_layers(graph)[0] if layer.name in keys]
        new = [layer for layer in layers if keys[layer.name] not in self._choices]
        moments = self._pruner.moments(kept)
        for layer in new:
            covariance = moments[layer.name].covariance
            if covariance is not None and len(covariance) != layer.groups:
                moments[layer.name] = Moments()  # depthwise: nobody takes it apart
        shapes = self._measure(model, graph, layers)
        found = make_choices(
            new, self._passes, moments, shapes, self._metric,
            self._prepared.moments.totals, Progress(),
        )  # fmt: skip
        self._choices |= {keys[choice.layer]: choice for choice in found.choices}
        choices = [self._choices[keys[layer.name]] for layer in layers]
        return choices, other_cost(model_cost(model, shapes), shapes, layers, self._metric)

    def _channels(self, layer: PlacedLayer, kept: Kept) -> bytes:
        """What is left of the groups that a layer makes or reads."""
        return b"".join(
            name.encode() + b"\0" + left.tobytes()
            for name, left in kept.items()
            if layer.name in self._pruner.touched(name)
        )


@dataclass(frozen=True)
class _Quicker(Factorization):
    """Another one, its errors read off between ranks in wide layers."""

    name: ClassVar[str] = "quicker"
    ops: ClassVar[frozenset[str]] = Factorization.ops | {"LSTM", "GRU", "RNN"}

    whole: Factorization

    @property
    def spec(self) -> str:
        return self.whole.spec

    def refuses(self, layer: Layer) -> Skip | None:
        return self.whole.skips(layer)

    def propose(
        self, layer: Layer, moments: Moments, max_parameters: int | None = None
    ) -> Sequence[Decomposition]:
        found = self.whole.propose(layer, moments, max_parameters)
        return [_Interpolated(d) for d in found] if layer.patch > _WIDE else found


@dataclass(frozen=True)
class _Interpolated:
    """A decomposition whose errors are computed at one in :data:`_STRIDE` of its ranks."""

    whole: Decomposition
    known: dict[int, float] = field(default_factory=dict)

    @property
    def variant(self) -> str:
        return self.whole.variant

    def ranks(self) -> Iterable[Rank]:
        return self.whole.ranks()

    def error(self, rank: Rank) -> float:
        if not isinstance(rank, int):
            return self.whole.error(rank)
        low, high = self._neighbours(rank)
        ends = [max(self._known(r), _EXACT) for r in (low, high)]
        return float(np.exp(np.interp(rank, [low, high], np.log(ends))))

    def outline(self, rank: Rank) -> Chain:
        return self.whole.outline(rank)

    def cut(self, rank: Rank) -> Chain:
        return self.whole.cut(rank)

    def _known(self, rank: int) -> float:
        if rank not in self.known:
            self.known[rank] = self.whole.error(rank)
        return self.known[rank]

    @cached_property
    def _grid(self) -> list[int]:
        """The ranks that are computed."""
        grid = [rank for rank in self.whole.ranks() if isinstance(rank, int)]
        return sorted({*grid[::_STRIDE], *grid[-1:]})

    def _neighbours(self, rank: int) -> tuple[int, int]:
        place = bisect_left(self._grid, rank)
        if place == len(self._grid) or self._grid[place] == rank:
            return rank, rank
        return self._grid[max(place - 1, 0)], self._grid[place]
