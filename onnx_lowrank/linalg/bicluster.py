"""A kernel in blocks: equal clusters of inputs by equal clusters of outputs, each of low rank.

``G`` clusters of ``C / G`` inputs and ``H`` of ``N / H`` outputs cut the kernel into blocks
``W_gh (N / H, C / G, t)``, and each is written alone, in one of two forms:

    core:    What_gh[n, c, t] = sum_pq E[n, p] A[p, q, t] V[q, c]      q < K1, p < K2
    outer:   What_gh[n, c, t] = sum_k  E[n, k] A[k, t]    V[k, c]      k < K

The ``E`` of one output cluster reads the features of all its ``G`` blocks at once, so it is the
exact regression of its outputs on them under the full ``Sigma``:

    E_h = W_h Sigma Z_h^T (Z_h Sigma Z_h^T)^-1

Clusters come from :mod:`onnx_lowrank.linalg.block_clusters`.

Factors: each block by :class:`Tucker` or :class:`CpProblem` under its own part of ``Sigma``,
then ``E``; then in turn ``V`` and ``A`` of all blocks by conjugate gradients on the true error and
``E`` exactly, which never raises it. With a ``Sigma`` the blocks of weight space, their ``E`` under
``Sigma``, are tried as well and the better result kept.

On six convolutions of trained networks, 2 x 1 to 4 x 4 blocks at half their MACs, the first round
of refinement took 8 to 36 % of the error of the core form, two more 1 to 14 %; clusters took up to
15 % against channels in the order they come in, often nothing.

Reference:
    Denton, Zaremba, Bruna, LeCun & Fergus 2014, Exploiting linear structure within convolutional
    networks for efficient evaluation, section 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.linalg.block_clusters import Clusters, check_blocks, find_clusters
from onnx_lowrank.linalg.block_regression import BlockRegression, Blocks
from onnx_lowrank.linalg.cp_regression import CpProblem, Search
from onnx_lowrank.linalg.tucker import Tucker

__all__ = ["Bicluster", "BlockSearch", "Clusters", "bicluster", "find_clusters"]

Array = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.intp]

#: limits of the search for one block's factors: sweeps of the outer form, rounds of the core form
_SWEEPS, _ALTERNATIONS = 50, 4
#: conjugate-gradient steps for each factor, in a round of refinement of all blocks together
_STEPS = 8


@dataclass(frozen=True)
class BlockSearch:
    """How clusters and factors are looked for.

    Attributes:
        starts: number of starts of the search for clusters, and of the outer products.
        seed: random seed.
        rounds: number of rounds of refinement of all blocks together.
    """

    starts: int = 2
    seed: int = 0
    rounds: int = 1


_USUAL = BlockSearch()


@dataclass(frozen=True)
class Bicluster:
    """Factors of all blocks, as weights of grouped convolutions.

    The way through: gather channels by ``inputs``; ``reduce`` with G groups, whose channels come
    as (g, h, q); gather them by :attr:`shuffle`, as (h, g, q); ``core`` with H G groups; ``expand``
    with H groups; gather by :attr:`inverse`.

    Attributes:
        clusters: clusters of the channels.
        reduce: factor ``V (G H K1, C / G)``.
        core: factor ``A (H G K2, K1, taps)``; ``(H G K, 1, taps)``, depthwise, for outer products.
        expand: factor ``E (N, G K2)``, rows cluster by cluster.
        outer: whether the blocks are sums of outer products.
        error: ``tr(D Sigma D^T)``, of the reconstruction.
    """

    clusters: Clusters
    reduce: Array
    core: Array
    expand: Array
    outer: bool
    error: float

    @property
    def shuffle(self) -> Labels:
        """Numbers of the channels of ``reduce`` in the order of the core's input."""
        g, h = self.clusters.groups
        places = np.arange(len(self.reduce)).reshape(g, h, -1)
        return places.swapaxes(0, 1).reshape(-1)

    @property
    def core_groups(self) -> int:
        """Number of groups of the core's convolution."""
        g, h = self.clusters.groups
        return len(self.core) if self.outer else g * h

    @property
    def inverse(self) -> Labels:
        """Numbers of the rows of ``expand`` in the order of the outputs."""
        return np.argsort(self.clusters.outputs)

    def to_kernel(self) -> Array:
        """The kernel ``What (N, C, taps)``, with channels in their original order."""
        g, h = self.clusters.groups
        inputs, (_, width, taps) = self.reduce.shape[1], self.core.shape
        core = (h, g, -1, taps) if self.outer else (h, g, -1, width, taps)
        reduce = self.reduce.reshape(g, h, -1, inputs).swapaxes(0, 1)
        features = Blocks(reduce, self.core.reshape(core)).features()
        last = self.expand.reshape(h, -1, g, features.shape[2]).swapaxes(1, 2)
        placed = (last @ features).swapaxes(1, 2).reshape(len(self.expand), -1, taps)
        kernel = np.empty_like(placed)
        kernel[np.ix_(self.clusters.outputs, self.clusters.inputs)] = placed
        return kernel


def bicluster(
    kernel: Array,
    sigma: Array | None,
    groups: tuple[int, int],
    ranks: tuple[int, int] | int,
    search: BlockSearch = _USUAL,
    clusters: Clusters | None = None,
) -> Bicluster:
    """Approximate ``kernel`` block by block.

    Args:
        kernel: ``(N, C, taps)``.
        sigma: covariance ``(C taps, C taps)`` of the patch, positive definite; None is the
            identity.
        groups: ``(G, H)``, divisors of ``C`` and ``N``.
        ranks: ``(K1, K2)`` for blocks with a core, ``K`` for sums of outer products.
        search: how clusters and factors are looked for.
        clusters: clusters to use; found by default.

    Raises:
        ValueError: ``groups`` do not divide the channels or are not those of ``clusters``, or
            a rank is less than 1.
    """
    pair = (ranks, ranks) if isinstance(ranks, int) else ranks
    check_blocks(kernel, groups, pair)
    if clusters is not None and clusters.groups != groups:
        raise ValueError(f"the clusters given are {clusters.groups}, not {groups}")
    kernel = kernel.astype(np.float64, copy=False)
    cp_search = Search(search.starts, search.seed, _SWEEPS)
    best: tuple[Clusters, Blocks, Array] | None = None
    least = np.inf
    for metric in (None,) if sigma is None else (None, sigma):
        found = clusters or find_clusters(kernel, metric, groups, pair, search.starts, search.seed)
        problem = BlockRegression(kernel, sigma, found)
        blocks = _alone(problem, ranks, metric is not None, cp_search)
        expand, error = problem.solved(blocks)
        for _ in range(search.rounds):
            moved = problem.improved(blocks, expand, _STEPS)
            again, lower = problem.solved(moved)
            if not lower < error:
                break
            blocks, expand, error = moved, again, lower
        if best is None or error < least:
            best, least = (found, blocks, expand), error
    assert best is not None
    result = _written(*best)
    return replace(result, error=_distance(kernel - result.to_kernel(), sigma))


def _alone(
    problem: BlockRegression, ranks: tuple[int, int] | int, measured: bool, search: Search
) -> Blocks:
    """Factorize each block by itself, in weight space or under its own part of ``Sigma``."""
    h, g, outputs, inputs, _ = problem.shape
    reduce, core = [], []
    for i, j in np.ndindex(h, g):
        block, own = problem.block(i, j, measured)
        if isinstance(ranks, int):
            terms = CpProblem(block, own).solve(ranks, search)
            reduce.append(terms.rows[0])
            core.append(terms.rows[1])
        else:
            q, p = min(ranks[0], inputs), min(ranks[1], outputs)
            factors = Tucker(block, own, q).pair(q, p, _ALTERNATIONS)
            short = (0, ranks[0] - q)
            reduce.append(np.pad(factors.reduce, [short, (0, 0)]))
            core.append(np.pad(factors.core, [(0, ranks[1] - p), short, (0, 0)]))
    return Blocks(
        np.stack(reduce).reshape(h, g, -1, inputs), np.stack(core).reshape(h, g, *core[0].shape)
    )


def _written(clusters: Clusters, blocks: Blocks, expand: Array) -> Bicluster:
    """Arrange the factors as weights of grouped convolutions."""
    h, g, q, inputs = blocks.reduce.shape
    outer, taps = blocks.core.ndim == 4, blocks.core.shape[-1]
    return Bicluster(
        clusters,
        blocks.reduce.swapaxes(0, 1).reshape(g * h * q, inputs),
        blocks.core.reshape(-1, 1 if outer else q, taps),
        expand,
        outer,
        0.0,
    )


def _distance(difference: Array, sigma: Array | None) -> float:
    flat = difference.reshape(len(difference), -1)
    return float(np.sum((flat if sigma is None else flat @ sigma) * flat))
