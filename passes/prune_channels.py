"""prune_channels: fewer channels, chosen by how much the layers that read them need each.

Before:      layers -> channels (through activations, pools, sums, concatenations ...) -> layers
After:       the same nodes, narrower; or a Gather in front of a layer that reads fewer channels
             than there are, where others need them (gather=true)
             of LSTM, GRU and RNN the channels are hidden units, in all gates and both directions
             of attention the channels are whole heads (heads=true), with all heads of queries
             that share keys and values; attention_rank, which makes heads narrower, must not be
             among the passes then
Conditions:  the channels are not those of a graph input or output, and pass only operators with a
             rule; a layer of one group may read fewer of any channels through a Gather
Numbers:     under a budget on MACs, convolutions keep whole blocks of channels where these do not
             lose far more than finer numbers, and a Gather is used only where it saves time;
             together with factorizations under one budget, the model is built with and without
             pruning, and what the judge finds nearer to the original is kept

Formula:     min_M  1/2 E||Y - M X||^2 + lambda sum_j ||M_j||     over all readers of a group
             method=obs:    backward elimination of the channel whose removal, with all weights
                            solved again, adds least to the loss (default)
             method=lasso:  the order in which channels enter as lambda falls, each channel's norm
                            weighed by 1 / ||W_j||; solver=fista|reweighted are the published
                            solvers, which reach the same optimum later than newton
             method=l1|l2:  norms of the filters that make the channel
             method=energy: mean square of the channel
             method=random: by seed
             The readers' weights are the least-squares map from the channels that stay
             (solve=true).

Reference:   Hassibi & Stork 1993, Second order derivatives for network pruning; He, Zhang & Sun
             2017, Channel pruning for accelerating very deep neural networks; Li et al. 2017,
             Pruning filters for efficient convnets; Yuan & Lin 2006; Zou 2006 (adaptive lasso).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from onnx_lowrank.linalg.group_elimination import obs_elimination
from onnx_lowrank.linalg.group_lasso_path import SOLVERS, path, weight_penalties
from onnx_lowrank.linalg.group_scores import energy_scores, random_scores
from onnx_lowrank.linalg.group_swaps import swap_groups
from onnx_lowrank.passkit.base import Pruning, PruningOptions
from onnx_lowrank.passkit.channel_selection import Selection

__all__ = ["PruneChannels"]

Labels = npt.NDArray[np.intp]

#: ridges in units of the mean variance of a reader's inputs, from the smallest that the rounding of
#: float32 sums allows; thousands of nearly equal columns need a larger one
_RIDGES = (1e-6, 1e-4, 1e-2)

#: largest number of columns of all readers together with which a choice is refined
_SWAPPED = 3000

#: number of sizes at which the lasso's order is read
_POINTS = 24


@dataclass(frozen=True)
class PruneChannels(Pruning):
    """Fewer channels, chosen by how much the layers that read them need each."""

    name: ClassVar[str] = "prune_channels"

    method: str = "obs"
    solve: bool = True
    chain: str = "parallel"
    gather: bool = True
    keep: float = 0.0
    optional: bool = False
    seed: int = 0
    solver: str = "newton"
    heads: bool = False

    choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "method": ("obs", "lasso", "l1", "l2", "energy", "random"),
        "chain": ("parallel", "top_down", "bottom_up"),
        "solver": SOLVERS,
    }

    @property
    def options(self) -> PruningOptions:
        """Options that the engine reads."""
        return PruningOptions(
            self.solve, self.chain, self.gather, self.keep, self.optional, self.heads
        )

    def refined(self, selection: Selection, kept: Labels) -> Labels:
        """Swap channels while that lowers the loss, if the readers are small enough."""
        consumers = [p.consumer for p in selection.phases]
        if self.method != "obs" or not 0 < sum(len(c.R) for c in consumers) <= _SWAPPED:
            return kept
        return _with_least_ridge(lambda ridge: swap_groups(consumers, kept, ridge))

    def order(self, selection: Selection) -> Labels:
        """See the base."""
        if self.method == "obs":
            consumers = [p.consumer for p in selection.phases]
            if not consumers:  # no reader loses anything
                return np.arange(selection.size)
            return _with_least_ridge(
                lambda ridge: np.array(obs_elimination(consumers, ridge).order[::-1])
            )
        if self.method == "lasso":
            return _lasso(selection, self.solver)
        return np.argsort(-self._scores(selection), kind="stable")

    def _scores(self, selection: Selection) -> npt.NDArray[np.floating[Any]]:
        if self.method == "random":
            return random_scores([1] * selection.size, self.seed)
        if self.method == "energy":
            parts = [
                energy_scores(np.asarray(p.sigma), [p.width] * selection.size)
                for p in selection.phases
            ]
            # average the energies that each reader's patches give for the same channel
            return np.asarray(np.mean([p / (p.mean() or 1.0) for p in parts], axis=0))
        l1, l2 = selection.made
        return l1 if self.method == "l1" else l2


def _with_least_ridge(solve: Callable[[float], Labels]) -> Labels:
    """Solve with the smallest ridge with which all matrices are positive definite."""
    for ridge in _RIDGES[:-1]:
        with suppress(np.linalg.LinAlgError):
            return solve(ridge)
    return solve(_RIDGES[-1])


def _lasso(selection: Selection, solver: str) -> Labels:
    """Order of the channels by when they enter the path, then by the energy of their part."""
    consumers = [p.consumer for p in selection.phases]
    if not consumers:
        return np.arange(selection.size)
    penalties = weight_penalties(consumers, [p.weight for p in selection.phases])
    points = sorted(set(np.linspace(1, selection.size, _POINTS + 1).astype(int)[:-1].tolist()))
    rank = np.full(selection.size, len(points))
    supports = path(consumers, points, penalties=penalties, solver=solver)
    for place, support in reversed(list(enumerate(supports))):
        rank[support] = place
    weight = np.sum(
        [p.share * _alone(np.asarray(p.sigma), p.weight, p.width) for p in selection.phases],
        axis=0,
    )
    return np.lexsort((-weight, rank))


def _alone(
    sigma: npt.NDArray[np.floating[Any]], weight: npt.NDArray[np.floating[Any]], width: int
) -> npt.NDArray[np.floating[Any]]:
    """Energy of each channel's part of the response, ``(G,)``."""
    gram = (weight.T @ weight) * sigma
    blocks = gram.reshape(len(gram) // width, width, -1, width)
    index = np.arange(len(blocks))
    return np.asarray(blocks[index, :, index].sum(axis=(1, 2)))
