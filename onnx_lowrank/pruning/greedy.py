"""How many channels each group keeps under a budget: greedy, by loss over what is saved.

Channels of one group save in the layers that make them and in those that read them, and there the
more, the more of the other side is left; so what a step saves depends on all other steps. From
nothing removed, the step of least loss for its saving is taken, of any length (a loss curve is not
convex), until the budget is met; what the last step saved too much is given back where it lowers
the loss most. What a step takes in time without being counted (a Gather) is its *toll*: it makes
the saving worth less, and nothing where it is all of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.errors import BudgetError

__all__ = ["Budget", "Ledger", "OutOfReachError", "Removable", "Side", "plan_counts"]

Array = npt.NDArray[np.floating[Any]]
Counts = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Side:
    """What one channel of a group is to one layer.

    Attributes:
        layer: number of the layer.
        outputs: whether it is made there; else it is read there.
        units: rows, or positions on the axis of inputs, of one channel.
    """

    layer: int
    outputs: bool
    units: int


@dataclass(frozen=True)
class Removable:
    """A group of channels, or what one layer reads of one.

    Attributes:
        name: unique.
        losses: loss ``(G + 1,)`` with k channels left.
        counts: numbers of channels that may be left, falling from G.
        sides: the layers that it touches.
        excludes: names that cannot be cut together with it.
        toll: what having k channels left, ``(G + 1,)``, takes of the saving without being counted
            in the budget; None for nothing.
    """

    name: str
    losses: Array
    counts: Counts
    sides: tuple[Side, ...]
    excludes: frozenset[str] = frozenset()
    toll: Array | None = None

    def tolls(self, now: int, counts: Counts) -> Any:
        """What is to be paid besides for going from ``now`` to each number."""
        return 0.0 if self.toll is None else self.toll[counts] - self.toll[now]


class OutOfReachError(BudgetError):
    """A budget that is not met.

    Attributes:
        least: cost that is.
    """

    def __init__(self, message: str, least: float) -> None:
        super().__init__(message)
        self.least = least


@dataclass(frozen=True)
class Budget:
    """On the layers, as a part of what was asked of the model.

    Attributes:
        limit: on :attr:`Ledger.total`.
        what: as the user has it, ``macs=0.5``.
        whole: cost of the original model; 0 where the layers are all of it.
        fixed: cost of all that no channel changes.
        named: which nodes make up most of :attr:`fixed`, for a message; may be empty.
    """

    limit: float
    what: str = "the budget"
    whole: float = 0.0
    fixed: float = 0.0
    named: str = ""

    def unmet(self, least: float) -> OutOfReachError:
        """The error that names what can be reached, ``least`` being of the layers."""
        reached = f"{least:.4g}"
        if self.whole:
            # rounded up, so that what it says can be asked for
            reached = f"{math.ceil(1000 * (least + self.fixed) / self.whole) / 1000:.3f}"
            reached += " of the original"
        return OutOfReachError(
            f"{self.what}: these passes cannot go below {reached}; ask for a larger part, or "
            f"allow more passes or layers{'; ' * bool(self.named)}{self.named}",
            least,
        )


class Ledger:
    """What the layers cost with some of their channels gone.

    Args:
        costs: of the weights of each layer, whole.
        outputs: rows of each layer.
        inputs: positions on its axis of inputs.
        biases: cost of the bias that each layer has.
        made: cost of the bias that it is given when it loses inputs.
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
        """Take ``removed`` channels out; a negative number brings them back."""
        for side in sides:
            self._left[int(side.outputs), side.layer] -= side.units * removed

    def saved(self, sides: Sequence[Side], removed: Counts) -> Array:
        """What taking out each number of channels would save, ``(len(removed),)``."""
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
        """Of layers with ``left (2, n)`` inputs and outputs, ``(n,)``."""
        weights, biases, made = self._costs[:, layers]
        inputs, outputs = left / self._sizes[:, layers]
        given: Array = outputs * (weights * inputs + biases + made * (inputs < 1))
        return given


def plan_counts(removables: Sequence[Removable], ledger: Ledger, budget: Budget) -> dict[str, int]:
    """Channels left of each group.

    Args:
        removables: the groups; their first count is the whole.
        ledger: costs; it is changed.
        budget: on :attr:`Ledger.total`.

    Raises:
        OutOfReachError: with the fewest channels everywhere it is not met.
    """
    limit = budget.limit
    kept = _greedy(removables, ledger, limit)
    # what excludes others may have shut the way
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
        touched = {s.layer for s in best.sides}
        for r in removables:
            if r.name in best.excludes or best.name in r.excludes:
                steps[r.name] = None  # for good
            elif steps[r.name] is not None and touched & {s.layer for s in r.sides}:
                del steps[r.name]
    return kept


def _down(removable: Removable, now: int, ledger: Ledger) -> tuple[float, int] | None:
    """Least loss for a unit saved, and the count that it leaves."""
    counts = removable.counts[removable.counts < now]
    if not len(counts):
        return None
    saved = ledger.saved(removable.sides, now - counts) - removable.tolls(now, counts)
    loss = np.maximum(removable.losses[counts] - removable.losses[now], 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = np.where(saved > 0, loss / saved, np.inf)
    if not np.isfinite(rates).any():
        return None
    best = int(np.flatnonzero(rates == rates.min())[-1])  # of equal ones the longest
    return float(rates[best]), int(counts[best])


def _fill(
    removables: Sequence[Removable], kept: dict[str, int], ledger: Ledger, budget: float
) -> None:
    """Give channels back where they lower the loss most; each step gives some back to a group."""
    for _ in range(sum(len(r.counts) for r in removables)):
        left, best = budget - ledger.total, None
        for r in removables:
            now = kept[r.name]
            counts = r.counts[r.counts > now]
            if not len(counts) or now == r.counts[0]:
                continue
            paid = -ledger.saved(r.sides, now - counts)
            gain = r.losses[now] - r.losses[counts]
            allowed = (paid <= left) & (gain > 0)
            if not allowed.any():
                continue
            price = np.maximum(paid + r.tolls(now, counts), 1e-12)
            rates = np.where(allowed, gain / price, -np.inf)
            place = int(np.argmax(rates))
            if best is None or rates[place] > best[0]:
                best = (float(rates[place]), r, int(counts[place]))
        if best is None:
            return
        _, chosen, count = best
        ledger.change(chosen.sides, kept[chosen.name] - count)
        kept[chosen.name] = count
