"""Numbers of channels that groups keep under a budget: a greedy choice by loss over saving.

Removing channels saves cost in the layers that make them and in those that read them, and the
saving grows with the number of channels on the other side of a layer; so the saving of a step
depends on all other steps. From nothing removed, the step of least loss for its saving is taken, of
any length (a loss curve is not convex), until the budget is met; what the last step saved too much
is given back where it lowers the loss most. Time that a step adds without being counted in the
budget (a Gather) is its *uncounted cost*, and is subtracted from its saving.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.errors import BudgetError
from onnx_lowrank.planning.amounts import in_reach
from onnx_lowrank.planning.greedy_steps import best_step

__all__ = ["Budget", "Ledger", "OutOfReachError", "Removable", "Side", "plan_counts"]

Array = npt.NDArray[np.floating[Any]]
Counts = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Side:
    """A layer that makes or reads the channels of a group.

    Attributes:
        layer: number of the layer.
        outputs: whether it makes the channels; else it reads them.
        units: number of rows, or of positions on the axis of inputs, for each channel.
    """

    layer: int
    outputs: bool
    units: int


@dataclass(frozen=True)
class Removable:
    """Channels that may be removed: a group, or the inputs of one layer behind a Gather.

    Attributes:
        name: unique name.
        losses: loss with k channels left, ``(G + 1,)``.
        counts: numbers of channels that may be left, falling from G.
        sides: layers that make or read the channels.
        excludes: names of others that cannot be cut together with it.
        uncounted_cost: cost with k channels left, ``(G + 1,)``, that the budget does not count;
            None for none.
    """

    name: str
    losses: Array
    counts: Counts
    sides: tuple[Side, ...]
    excludes: frozenset[str] = frozenset()
    uncounted_cost: Array | None = None

    def uncounted(self, now: int, counts: Counts) -> Any:
        """Uncounted cost that going from ``now`` channels to each of ``counts`` adds."""
        cost = self.uncounted_cost
        return 0.0 if cost is None else cost[counts] - cost[now]


class OutOfReachError(BudgetError):
    """A budget that cannot be met.

    Attributes:
        least: smallest cost of the layers that can be reached.
    """

    def __init__(self, message: str, least: float) -> None:
        super().__init__(message)
        self.least = least


@dataclass(frozen=True)
class Budget:
    """Budget on the cost of the layers of a model.

    Attributes:
        limit: largest :attr:`Ledger.total` allowed.
        what: the target as the user gave it, such as ``macs=0.5``.
        whole: cost of the original model; 0 if it is the cost of the layers.
        fixed: cost of all nodes that pruning does not change.
        named: clause for a message that names the nodes with most of :attr:`fixed`; may be empty.
        metric: the quantity that is limited, ``macs | params | size``.
    """

    limit: float
    what: str = "the budget"
    whole: float = 0.0
    fixed: float = 0.0
    named: str = ""
    metric: str = "macs"

    def unmet(self, least: float) -> OutOfReachError:
        """Make the error that says what can be reached; ``least`` is the layers' smallest cost."""
        reached = f"{least:.4g}"
        if self.whole:
            reached = in_reach(self.metric, least + self.fixed, self.whole)
        return OutOfReachError(
            f"{self.what}: these passes cannot go below {reached}; ask for that, or allow more "
            f"passes or layers{'; ' * bool(self.named)}{self.named}",
            least,
        )


class Ledger:
    """Costs of the layers with some of their channels removed.

    Args:
        costs: cost of the weights of each layer with all channels.
        outputs: number of rows of each layer.
        inputs: number of positions on the axis of inputs of each layer.
        biases: cost of the bias that each layer has.
        made: cost of the bias that each layer is given when it loses inputs.
    """

    def __init__(
        self,
        costs: Sequence[float],
        outputs: Sequence[int],
        inputs: Sequence[int],
        biases: Sequence[float] | None = None,
        made: Sequence[float] | None = None,
    ) -> None:
        zero = [0.0] * len(costs)
        self._costs = np.array([costs, biases or zero, made or zero], float)
        self._sizes = np.array([inputs, outputs], float)
        self._left = self._sizes.copy()

    @property
    def total(self) -> float:
        """Cost of all layers as they are."""
        return float(np.sum(self._cost(slice(None), self._left)))

    def change(self, sides: Sequence[Side], removed: int) -> None:
        """Record that ``removed`` channels go; a negative number brings them back."""
        for side in sides:
            self._left[int(side.outputs), side.layer] -= side.units * removed

    def saved(self, sides: Sequence[Side], removed: Counts) -> Array:
        """Cost that removing each number of channels would save, ``(len(removed),)``."""
        gone: dict[int, list[Side]] = {}
        for side in sides:
            gone.setdefault(side.layer, []).append(side)
        total = np.zeros(len(removed))
        for layer, own in gone.items():
            now = self._left[:, layer, None]
            left = np.repeat(now, len(removed), axis=1)
            for side in own:
                left[int(side.outputs)] -= side.units * removed
            total += self._cost([layer], now) - self._cost([layer], left)
        return total

    def _cost(self, layers: Any, left: Array) -> Array:
        """Costs ``(n,)`` of layers with ``left (2, n)`` inputs and outputs."""
        weights, biases, made = self._costs[:, layers]
        inputs, outputs = left / self._sizes[:, layers]
        given: Array = outputs * (weights * inputs + biases + made * (inputs < 1))
        return given


def plan_counts(removables: Sequence[Removable], ledger: Ledger, budget: Budget) -> dict[str, int]:
    """Choose how many channels each group keeps.

    Args:
        removables: the groups; the first count of each is all its channels.
        ledger: costs; it is changed.
        budget: budget on :attr:`Ledger.total`.

    Returns:
        Numbers of channels left, by name.

    Raises:
        OutOfReachError: the budget is not met with the fewest channels in every group.
    """
    limit = budget.limit
    kept = _greedy(removables, ledger, limit)
    # groups that exclude others may have kept the rest from being cut
    if ledger.total > limit and any(r.excludes for r in removables):
        least = ledger.total
        for r in removables:
            ledger.change(r.sides, kept[r.name] - int(r.counts[0]))
        kept = _greedy([r for r in removables if not r.excludes], ledger, limit)
        kept = {r.name: kept.get(r.name, int(r.counts[0])) for r in removables}
        if ledger.total > limit:
            raise budget.unmet(min(least, ledger.total))
    elif ledger.total > limit:
        raise budget.unmet(ledger.total)
    _fill(removables, kept, ledger, limit)
    return kept


def _greedy(removables: Sequence[Removable], ledger: Ledger, budget: float) -> dict[str, int]:
    """Steps of least loss for their saving, until the budget is met or none is left."""
    kept = {r.name: int(r.counts[0]) for r in removables}
    steps: dict[str, tuple[float, int] | None] = {}
    while ledger.total > budget:
        for r in removables:
            if r.name not in steps:
                steps[r.name] = _down(r, kept[r.name], ledger)
        found = [(s, r) for r in removables if (s := steps[r.name]) is not None]
        if not found:
            break
        (_, count), best = min(found, key=lambda f: f[0][0])
        ledger.change(best.sides, kept[best.name] - count)
        kept[best.name] = count
        changed = {s.layer for s in best.sides}
        for r in removables:
            if r.name in best.excludes or best.name in r.excludes:
                steps[r.name] = None  # can never be cut any more
            elif steps[r.name] is not None and changed & {s.layer for s in r.sides}:
                del steps[r.name]
    return kept


def _down(removable: Removable, now: int, ledger: Ledger) -> tuple[float, int] | None:
    """Smallest loss for a unit saved, and the count that the step leaves; None without a step."""
    counts = removable.counts[removable.counts < now]
    if not len(counts):
        return None
    saved = ledger.saved(removable.sides, now - counts) - removable.uncounted(now, counts)
    loss = np.maximum(removable.losses[counts] - removable.losses[now], 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = np.where(saved > 0, loss / saved, np.inf)
    if not np.isfinite(rates).any():
        return None
    best = int(np.flatnonzero(rates == rates.min())[-1])  # the longest of equal steps
    return float(rates[best]), int(counts[best])


def _fill(
    removables: Sequence[Removable], kept: dict[str, int], ledger: Ledger, budget: float
) -> None:
    """Give channels back within the budget, step by step where they lower the loss most."""
    for _ in range(sum(len(r.counts) for r in removables)):
        left = budget - ledger.total
        steps = [
            (r, r.counts[r.counts > kept[r.name]]) for r in removables if kept[r.name] < r.counts[0]
        ]
        found = [_back(r, kept[r.name], counts, ledger) for r, counts in steps]
        if not found:
            return
        gains, paid, uncounted = (np.concatenate(parts) for parts in zip(*found, strict=True))
        step = best_step(gains, np.maximum(paid + uncounted, 1e-12), (paid <= left) & (gains > 0))
        if step is None:
            return
        chosen, count = [(r, int(count)) for r, counts in steps for count in counts][step]
        ledger.change(chosen.sides, kept[chosen.name] - count)
        kept[chosen.name] = count


def _back(
    removable: Removable, now: int, counts: Counts, ledger: Ledger
) -> tuple[Array, Array, Array]:
    """Loss that each number of channels wins, its cost, and the cost that no budget counts."""
    paid = -ledger.saved(removable.sides, now - counts)
    gains = removable.losses[now] - removable.losses[counts]
    return gains, paid, np.broadcast_to(removable.uncounted(now, counts), paid.shape)
