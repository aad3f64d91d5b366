"""Monochromatic approximation: a kernel whose outputs each read one of a few colours.

    What[n, c, t] = V[k(n), c] S[n, t],     min tr((W - What) Sigma (W - What)^T)

``V`` holds ``K`` directions in the space of the input channels (of a picture: colours), ``S`` one
spatial kernel for each output, ``k(n)`` the colour that output ``n`` reads. Given ``V`` the outputs
are independent: with ``A_k = sum_cc' V[k,c] V[k,c'] Sigma[(c, .), (c', .)]`` and
``b = sum_c V[k,c] (W Sigma)[n,c,.]`` the best kernel of output ``n`` on colour ``k`` is
``A_k^(-1) b``, and it explains ``b^T A_k^(-1) b`` of its energy, so the best assignment is known
too: each output to the colour that leaves least, or, where all colours must serve equally many
outputs (as in a grouped convolution), a linear assignment problem. Given ``S`` and the assignment
each colour is a least-squares problem in ``C`` unknowns. In turn, as in Lloyd's algorithm, the
error never rises; a colour that nobody reads starts again at the output served worst.

Starts: ``K`` of the outputs' own directions (rank-one SVD, one step of the above), judged by the
error that they leave, which knows no sign. The first start takes greedily what lowers the error
most, the others draw as k-means++ does; the best result is kept.

Reference:
    Denton, Zaremba, Bruna, LeCun & Fergus 2014, Exploiting linear structure within convolutional
    networks for efficient evaluation, section 3.2; Arthur & Vassilvitskii 2007, k-means++.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.linalg.equal_clusters import assign_equally

__all__ = ["Monochromatic", "monochromatic"]

Array = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.intp]

#: relative change of the error by one round at which to stop
_TOLERANCE = 1e-6

#: keeps the normal equations solvable in float64, as a part of the mean of their diagonal
_JITTER = 1e-13


@dataclass(frozen=True)
class Monochromatic:
    """Colours and the outputs that read them, with the history of the search.

    Attributes:
        directions: colours ``V (K, C)``, unit rows.
        spatial: spatial kernels ``S (N, taps)``.
        assignment: number ``k(n)`` of the colour that each output reads, ``(N,)``.
        error: error of the reconstruction, ``tr(D Sigma D^T)``.
        iterations: number of rounds of the start kept.
        converged: whether the error came to rest before the limit on rounds.
    """

    directions: Array
    spatial: Array
    assignment: Labels
    error: float
    iterations: int
    converged: bool

    @property
    def order(self) -> Labels:
        """Numbers of the outputs, sorted by colour, as the rows of a grouped convolution."""
        return np.argsort(self.assignment, kind="stable")

    @property
    def sizes(self) -> Labels:
        """Number of outputs of each colour, ``(K,)``."""
        return np.bincount(self.assignment, minlength=len(self.directions))

    def to_kernel(self) -> Array:
        """The kernel ``What (N, C, taps)``."""
        kernel: Array = self.directions[self.assignment][:, :, None] * self.spatial[:, None]
        return kernel


def monochromatic(
    kernel: Array,
    sigma: Array | None,
    colours: int,
    balanced: bool = False,
    starts: int = 4,
    seed: int = 0,
    max_iterations: int = 100,
) -> Monochromatic:
    """Approximate ``kernel`` with ``colours`` directions.

    Args:
        kernel: ``(N, C, taps)``.
        sigma: covariance ``(C taps, C taps)`` of the patch, positive definite; None is the
            identity.
        colours: number ``K`` of colours.
        balanced: whether all colours are read by equally many outputs.
        starts: number of starts to try.
        seed: random seed of the starts.
        max_iterations: largest number of rounds of a start.

    Raises:
        ValueError: ``colours``, ``starts`` or ``max_iterations`` is below 1, there are more
            colours than outputs, or ``balanced`` is set and ``K`` does not divide ``N``.
    """
    outputs = len(kernel)
    if not 1 <= colours <= outputs:
        raise ValueError(f"{colours} colours for {outputs} outputs; ask for 1 to {outputs}")
    if balanced and outputs % colours:
        raise ValueError(f"{outputs} outputs cannot be divided equally among {colours} colours")
    if min(starts, max_iterations) < 1:
        raise ValueError("starts and max_iterations must be 1 or more")
    response = _Response(kernel.astype(np.float64, copy=False), sigma)
    own = response.own_directions()
    table = response.energies[:, None] - response.spatial(own)[0]
    best: Monochromatic | None = None
    for start in range(starts):
        if start == 0:
            chosen = _greedy(table, colours)
        else:
            chosen = _drawn(table, colours, np.random.default_rng([seed, start]))
        found = _iterated(response, own, own[chosen], balanced, max_iterations)
        if best is None or found.error < best.error:
            best = found
    assert best is not None
    return best


class _Response:
    """The least-squares problems of one kernel."""

    def __init__(self, kernel: Array, sigma: Array | None) -> None:
        outputs, channels, taps = kernel.shape
        self.kernel, self.weighted, self._paired = kernel, kernel, None  # W, W Sigma
        if sigma is not None:
            paired = sigma.reshape(channels, taps, channels, taps).transpose(0, 2, 1, 3)
            self._paired = paired.reshape(channels**2, taps**2)
            self.weighted = (kernel.reshape(outputs, -1) @ sigma).reshape(kernel.shape)
        self.energies = np.sum(self.weighted * kernel, axis=(1, 2))

    def spatial(self, directions: Array) -> tuple[Array, Array]:
        """Energy that each colour explains of each output ``(N, K)``, and kernels ``(N, K, t)``."""
        seen = np.einsum("nct,kc->knt", self.weighted, directions, optimize=True)
        pairs = directions[:, :, None] * directions[:, None]
        kernels = _solved(self._over_channels(pairs), seen.swapaxes(1, 2)).swapaxes(1, 2)
        return np.sum(seen * kernels, axis=2).T, kernels.swapaxes(0, 1)

    def colours(self, spatial: Array, assignment: Labels, before: Array) -> Array:
        """Solve for the unit directions ``(K, C)``, given kernels ``(N, t)`` and assignment."""
        member = (np.arange(len(before))[:, None] == assignment).astype(np.float64)
        pairs = (member[:, :, None] * spatial).swapaxes(1, 2) @ spatial
        seen = member @ np.einsum("nct,nt->nc", self.weighted, spatial)
        return _unit(_solved(self._over_taps(pairs), seen[:, :, None])[:, :, 0], before)

    def own_directions(self) -> Array:
        """The best direction of each output by itself, ``(N, C)``."""
        directions = np.linalg.svd(self.kernel, full_matrices=False)[0][:, :, 0]
        if self._paired is None:
            return directions
        each = np.arange(len(directions))
        return self.colours(self.spatial(directions)[1][each, each], each, directions)

    def error(self, other: Array) -> float:
        """Error ``tr(D Sigma D^T)`` of another kernel, ``D = W - other``."""
        d = self.kernel - other
        if self._paired is None:
            return float(np.sum(d**2))
        between = np.tensordot(d, d, (0, 0)).swapaxes(1, 2).reshape(self._paired.shape)
        return max(float(np.sum(between * self._paired)), 0.0)

    def _over_channels(self, pairs: Array) -> Array:
        """The sums ``sum_cc' pairs[k, c, c'] Sigma[(c, .), (c', .)]``, ``(K, t, t)``."""
        taps = self.kernel.shape[2]
        if self._paired is None:
            plain: Array = np.trace(pairs, axis1=1, axis2=2)[:, None, None] * np.eye(taps)
            return plain
        summed: Array = pairs.reshape(len(pairs), -1) @ self._paired
        return summed.reshape(-1, taps, taps)

    def _over_taps(self, pairs: Array) -> Array:
        """The sums ``sum_tt' pairs[k, t, t'] Sigma[(., t), (., t')]``, ``(K, C, C)``."""
        channels = self.kernel.shape[1]
        if self._paired is None:
            plain: Array = np.trace(pairs, axis1=1, axis2=2)[:, None, None] * np.eye(channels)
            return plain
        summed: Array = pairs.reshape(len(pairs), -1) @ self._paired.T
        return summed.reshape(-1, channels, channels)


def _iterated(
    response: _Response, own: Array, directions: Array, balanced: bool, limit: int
) -> Monochromatic:
    """Run Lloyd's algorithm from some directions."""
    each = np.arange(len(own))
    best, last, done, converged = None, np.inf, 0, False
    while done < limit and not converged:
        done += 1
        explained, kernels = response.spatial(directions)
        assignment = assign_equally(-explained) if balanced else np.argmax(explained, axis=1)
        unread = np.setdiff1d(np.arange(len(directions)), assignment)
        if len(unread):
            left = response.energies - explained[each, assignment]
            directions = directions.copy()
            directions[unread] = own[np.argsort(-left, kind="stable")[: len(unread)]]
            explained, kernels = response.spatial(directions)
            assignment = np.argmax(explained, axis=1)
        spatial = kernels[each, assignment]
        error = float(np.sum(response.energies - explained[each, assignment]))
        converged = bool(last - error <= _TOLERANCE * abs(last)) and done > 1
        if error < last:
            best, last = (directions, spatial, assignment), error
        directions = response.colours(spatial, assignment, directions)
    assert best is not None
    result = Monochromatic(*best, 0.0, done, converged)
    return Monochromatic(*best, response.error(result.to_kernel()), done, converged)


def _greedy(table: Array, colours: int) -> list[int]:
    """Choose columns of ``table (N, N)`` greedily, so that they leave little."""
    chosen: list[int] = []
    left = np.full(len(table), np.inf)
    for _ in range(colours):
        totals = np.minimum(table, left[:, None]).sum(axis=0)
        totals[chosen] = np.inf
        chosen.append(int(np.argmin(totals)))
        left = np.minimum(left, table[:, chosen[-1]])
    return chosen


def _drawn(table: Array, colours: int, rng: np.random.Generator) -> list[int]:
    """Draw columns with probabilities by what the ones before leave above the smallest possible."""
    least = table.min(axis=1)
    chosen = [int(rng.integers(len(table)))]
    while len(chosen) < colours:
        excess = np.maximum(table[:, chosen].min(axis=1) - least, 0.0)
        excess[chosen] = 0.0
        if excess.sum() == 0:
            excess = np.ones(len(table))
            excess[chosen] = 0.0
        chosen.append(int(rng.choice(len(table), p=excess / excess.sum())))
    return chosen


def _solved(matrices: Array, right: Array) -> Array:
    """Solutions ``(K, m, p)`` of positive semi-definite systems ``(K, m, m)``."""
    size = matrices.shape[1]
    scale = np.trace(matrices, axis1=1, axis2=2) / size
    jitter = np.maximum(_JITTER * scale, np.finfo(np.float64).tiny)
    solution: Array = np.linalg.solve(matrices + jitter[:, None, None] * np.eye(size), right)
    return solution


def _unit(rows: Array, before: Array) -> Array:
    """Rows at unit length; zero rows are taken from ``before``."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Array = np.where(norms > 0, rows / np.where(norms > 0, norms, 1.0), before)
    return unit
