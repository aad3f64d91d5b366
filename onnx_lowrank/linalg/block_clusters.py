"""Equal clusters of the inputs and of the outputs of a kernel whose blocks are near low rank.

The inputs of one of ``G`` clusters lie in ``H K1`` dimensions of the space of their columns where
each of its ``H`` blocks has an input rank of ``K1``; the outputs of one of ``H`` clusters in
``G K2`` of the space of their rows. While these are less than the sizes ``C / G`` and ``N / H``,
subspace clustering on either side alone finds them (:mod:`onnx_lowrank.linalg.equal_clusters`);
beyond, the search below may end short of them.

From any start, in turn: the best factors of every block by orthogonal iteration,

    W_gh[n, c, t] ~ sum_pq U[n, p] A[p, q, t] V[c, q],

and every input to the cluster whose ``U, A``, at rest, leave least of it over all output clusters;
then outputs likewise by ``A, V``, both with equal sizes. The best round is kept.

With a covariance the columns are weighted by the deviation of their channel and by a root of the
taps' mean covariance, which keeps block structure as it is; correlations between channels are left
to the factorization.

Reference:
    Denton, Zaremba, Bruna, LeCun & Fergus 2014, section 3.3; Vidal 2011, Subspace clustering.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.linalg.equal_clusters import assign_equally, cluster_subspaces

__all__ = ["Clusters", "check_blocks", "find_clusters"]

Array = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.intp]

#: rounds of the search
_ROUNDS = 20


@dataclass(frozen=True)
class Clusters:
    """Channels cluster by cluster, in runs of equal length.

    Attributes:
        inputs: permutation of the input channels ``(C,)``, ``groups[0]`` clusters.
        outputs: permutation of the output channels ``(N,)``, ``groups[1]`` clusters.
        groups: ``(G, H)``.
    """

    inputs: Labels
    outputs: Labels
    groups: tuple[int, int]

    @classmethod
    def of(cls, inputs: Labels, outputs: Labels, groups: tuple[int, int]) -> Clusters:
        """Make clusters from the cluster of each input ``(C,)`` and of each output ``(N,)``."""
        by_input, by_output = (np.argsort(x, kind="stable") for x in (inputs, outputs))
        return cls(by_input, by_output, groups)


def find_clusters(
    kernel: Array,
    sigma: Array | None,
    groups: tuple[int, int],
    ranks: tuple[int, int],
    starts: int = 2,
    seed: int = 0,
) -> Clusters:
    """Find clusters of inputs and outputs whose blocks are near ``ranks``.

    Args:
        kernel: ``(N, C, taps)``.
        sigma: covariance ``(C taps, C taps)`` of the patch; None is the identity.
        groups: ``(G, H)``, divisors of ``C`` and ``N``.
        ranks: ``(K1, K2)`` of a block; ``(K, K)`` for K outer products.
        starts: number of starts to try: the present order of the channels, then subspace
            clustering, then random ones.
        seed: random seed.

    Raises:
        ValueError: ``groups`` do not divide the channels, or a rank is less than 1.
    """
    check_blocks(kernel, groups, ranks)
    g, h = groups
    outputs, inputs, _ = kernel.shape
    q, p = min(ranks[0], inputs // g), min(ranks[1], outputs // h)
    seen = _weighted(kernel.astype(np.float64, copy=False), sigma)
    columns, rows = seen.swapaxes(0, 1).reshape(inputs, -1), seen.reshape(outputs, -1)
    natural = (np.arange(inputs) // (inputs // g), np.arange(outputs) // (outputs // h))
    best, least = natural, np.inf
    for start in range(max(starts, 1)):
        labels = natural
        if start == 1:
            labels = (
                cluster_subspaces(columns, g, h * q, seed),
                cluster_subspaces(rows, h, g * p, seed),
            )
        elif start:
            rng = np.random.default_rng([seed, start])
            labels = rng.permutation(natural[0]), rng.permutation(natural[1])
        labels, left = _refined(seen, labels, (g, h), (q, p))
        if left < least:
            best, least = labels, left
    return Clusters.of(*best, groups)


def check_blocks(kernel: Array, groups: tuple[int, int], ranks: tuple[int, int]) -> None:
    """Refuse clusters of unequal size and blocks of rank 0.

    Raises:
        ValueError: ``groups`` do not divide the channels, or a rank is less than 1.
    """
    outputs, inputs, _ = kernel.shape
    g, h = groups
    if min(g, h) < 1 or inputs % g or outputs % h:
        raise ValueError(f"{g} and {h} do not divide {inputs} inputs and {outputs} outputs")
    if min(ranks) < 1:
        raise ValueError(f"ranks {ranks} must be 1 or more")


def _refined(
    seen: Array, labels: tuple[Labels, Labels], groups: tuple[int, int], ranks: tuple[int, int]
) -> tuple[tuple[Labels, Labels], float]:
    """The best labels of the alternation, and their squared residual."""
    best, least = labels, np.inf
    inputs, outputs = labels
    for _ in range(_ROUNDS):
        by_input, _, left = _residuals(seen, (inputs, outputs), groups, ranks)
        if not left < least * (1 - 1e-9):
            break
        best, least = (inputs, outputs), left
        inputs = assign_equally(by_input)
        _, by_output, _ = _residuals(seen, (inputs, outputs), groups, ranks)
        outputs = assign_equally(by_output)
    return best, least


def _residuals(
    seen: Array, labels: tuple[Labels, Labels], groups: tuple[int, int], ranks: tuple[int, int]
) -> tuple[Array, Array, float]:
    """Squared residuals of inputs ``(C, G)`` and outputs ``(N, H)`` by cluster, and their sum."""
    g, h = groups
    by_input = np.zeros((seen.shape[1], g))
    by_output = np.zeros((seen.shape[0], h))
    left = 0.0
    for i in range(h):
        rows = seen[labels[1] == i]
        for j in range(g):
            block = rows[:, labels[0] == j]
            u, v = _bases(block, ranks)
            core = np.einsum("nct,np,cq->pqt", block, u, v, optimize=True)
            left += max(float(np.sum(block**2) - np.sum(core**2)), 0.0)
            # all inputs on the row space of this block's other factors, all outputs likewise
            to_inputs = np.einsum("np,pqt->qnt", u, core, optimize=True).reshape(v.shape[1], -1)
            to_outputs = np.einsum("cq,pqt->pct", v, core, optimize=True).reshape(u.shape[1], -1)
            columns = rows.swapaxes(0, 1).reshape(seen.shape[1], -1)
            by_input[:, j] += _outside(columns, to_inputs)
            own = seen[:, labels[0] == j].reshape(len(seen), -1)
            by_output[:, i] += _outside(own, to_outputs)
    return by_input, by_output, left


def _bases(block: Array, ranks: tuple[int, int]) -> tuple[Array, Array]:
    """Output and input factors of a block, two rounds of orthogonal iteration."""
    v = _leading(block.swapaxes(0, 1), ranks[0])
    for _ in range(2):
        u = _leading(np.einsum("nct,cq->nqt", block, v, optimize=True), ranks[1])
        v = _leading(np.einsum("nct,np->cpt", block, u, optimize=True), ranks[0])
    return u, v


def _leading(tensor: Array, rank: int) -> Array:
    """The leading left singular vectors of the first unfolding."""
    flat = tensor.reshape(len(tensor), -1)
    vectors: Array = np.linalg.eigh(flat @ flat.T)[1][:, ::-1][:, :rank]
    return vectors


def _outside(rows: Array, spanning: Array) -> Array:
    """Squared distance of each row to the span of ``spanning``'s rows."""
    _, values, basis = np.linalg.svd(spanning, full_matrices=False)
    floor = (values[0] if len(values) else 0.0) * max(spanning.shape) * np.finfo(np.float64).eps
    basis = basis[values > floor]
    distance: Array = np.sum(rows**2, axis=1) - np.sum((rows @ basis.T) ** 2, axis=1)
    return distance


def _weighted(kernel: Array, sigma: Array | None) -> Array:
    """The kernel times the deviations of its channels and a root of their taps' covariance."""
    if sigma is None:
        return kernel
    _, channels, taps = kernel.shape
    own = np.einsum("csct->cst", sigma.reshape(channels, taps, channels, taps))
    variances = np.maximum(np.einsum("ctt->c", own), 0.0) / taps
    mean = np.einsum("cst->st", own) / max(float(variances.sum()), np.finfo(np.float64).tiny)
    values, vectors = np.linalg.eigh(mean)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    weighted: Array = (kernel * np.sqrt(variances)[:, None]) @ root
    return weighted
