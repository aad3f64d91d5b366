"""A linear map as a sum of a column-sparse and a low-rank one: the convex problem, by ADMM.

    min_{A, B}  1/2 E||y - (A + B) x||^2 + l1 sum_j ||A_j||_F + l2 ||B||_*

with ``A_j`` the ``width`` columns of input channel j, from moments alone: ``Sigma = E[x x^T]`` and
either the map itself (``y = W x``) or ``E[y x^T]`` and ``E||y||^2``. With ``W`` the least-squares
map the first term is ``1/2 tr((W - A - B) Sigma (W - A - B)^T)`` and a constant.

Two blocks, which is what convergence is proved for: copies ``(P, Q)`` of ``(A, B)`` carry the
quadratic term, ``(A, B)`` the penalties, which do not meet. With ``v = (A, B) - u``,
``s = v_1 + v_2`` and ``Sigma = E diag(e) E^T`` factored once, for every penalty and every ``rho``:

    (P, Q) = v + 1/2 (W - s) E diag(e / (e + rho / 2)) E^T      quadratic step for M = P + Q
    A_j    = max(1 - (l1 / rho) / ||a_j||_F, 0) a_j             column shrinkage of a = P + u_1
    B      = U max(S - l2 / rho, 0) V^T                         of the SVD of b = Q + u_2
    u      = u + (P, Q) - (A, B)

The first ``(P, Q)`` is over-relaxed in the last three. At rest ``rho u_1 = rho u_2`` is
``G = (W - A - B) Sigma``, and the pair is optimal where ``||G_j||_F <= l1``, ``||G||_2 <= l2``,
``<G, A> = l1 sum_j ||A_j||_F`` and ``<G, B> = l2 ||B||_*``. Hence ``A`` is zero for
``l1 >= sqrt(min(width, N)) l2`` and ``B`` for ``l2 >= sqrt(channels) l1``: both live in between.

Reference:
    Boyd et al. 2011, Distributed optimization and statistical learning via ADMM, 3.3.1 (stopping),
    3.4.1 (residual balancing), 3.4.3 (over-relaxation); Cai, Candes & Shen 2010, A singular value
    thresholding algorithm; Yuan & Lin 2006 (group shrinkage).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["LowRankSparse", "LowRankSparseResult", "group_norms", "shrunk_groups", "shrunk_values"]

Array = npt.NDArray[np.floating[Any]]

_RELAXATION = 1.6

#: residual balancing: tolerated ratio of the residuals, and the factor on rho
_BALANCE, _FACTOR = 5.0, 2.0


@dataclass(frozen=True)
class LowRankSparseResult:
    """The sum ``A + B``, with the history of the search.

    Attributes:
        sparse: part ``A (N, d)``, exactly zero outside its channels.
        low_rank: part ``B (N, d)``.
        support: numbers of the channels that ``A`` reads, rising.
        order: numbers of all channels: those of ``A`` by falling ``||A_j||_F``, then the others by
            falling ``||G_j||_F``, in the order in which they would enter.
        rank: rank of ``B``.
        objective: value of the convex problem at ``(A, B)``.
        primal: distance of the copies from ``(A, B)``, relative to ``||W||_F``.
        dual: change of ``rho (A, B)`` in the last step, relative to ``||W Sigma||_F``.
        iterations: steps taken.
        converged: whether both residuals met their tolerance.
    """

    sparse: Array
    low_rank: Array
    support: npt.NDArray[np.intp]
    order: npt.NDArray[np.intp]
    rank: int
    objective: float
    primal: float
    dual: float
    iterations: int
    converged: bool


class LowRankSparse:
    """The problem of one layer, factored once and solved for many penalties.

    Args:
        weight: ``W (N, d)``, with ``y = W x``.
        sigma: ``E[x x^T] (d, d)``, positive semi-definite.
        width: number of columns of one input channel, ``kh * kw``; 1 for a dense layer.
        rest: ``E||y - W x||^2``, where ``y`` is not a linear map of ``x``.

    Raises:
        ValueError: shapes or ``width`` do not fit.
    """

    def __init__(self, weight: Array, sigma: Array, width: int = 1, rest: float = 0.0) -> None:
        d = weight.shape[1]
        if sigma.shape != (d, d):
            raise ValueError(f"sigma {sigma.shape} does not go with {d} columns")
        if width < 1 or d % width:
            raise ValueError(f"{d} columns cannot be divided into channels of {width}")
        self.weight, self.sigma, self.width, self.rest = weight, sigma, width, rest
        values, self._basis = np.linalg.eigh(sigma)
        self._values = np.maximum(values, 0.0)
        self._cross: Array = weight @ sigma

    @classmethod
    def from_moments(
        cls, cross: Array, energy: float, sigma: Array, width: int = 1
    ) -> LowRankSparse:
        """Make the problem from ``E[y x^T] (N, d)`` and ``E||y||^2``."""
        problem = cls(np.zeros_like(cross), sigma, width)
        values = problem._values
        seen = values > len(values) * np.finfo(np.float64).eps * max(float(values[-1]), 0.0)
        basis = problem._basis[:, seen]
        problem.weight = (cross @ basis / values[seen]) @ basis.T
        problem._cross = cross
        problem.rest = max(energy - float(np.sum(cross * problem.weight)), 0.0)
        return problem

    @property
    def largest(self) -> tuple[float, float]:
        """Smallest ``(l1, l2)`` with zero parts: ``max ||(W Sigma)_j||_F``, ``||W Sigma||_2``."""
        most = float(group_norms(self._cross, self.width).max())
        return most, float(np.linalg.norm(self._cross, 2))

    def loss(self, matrix: Array) -> float:
        """Loss ``1/2 E||y - M x||^2`` of a map ``M (N, d)``."""
        left = self.weight - matrix
        return 0.5 * (self.rest + float(np.sum((left @ self.sigma) * left)))

    def objective(self, sparse: Array, low_rank: Array, l1: float, l2: float) -> float:
        """Objective at ``(A, B)``, both ``(N, d)``; an infinite penalty on zero counts as zero."""
        columns = float(group_norms(sparse, self.width).sum())
        nuclear = float(np.linalg.svd(low_rank, compute_uv=False).sum())
        penalties = ((l1, columns), (l2, nuclear))
        return self.loss(sparse + low_rank) + sum(p * size for p, size in penalties if size > 0)

    def solve(
        self,
        l1: float,
        l2: float,
        *,
        start: LowRankSparseResult | None = None,
        rho: float | None = None,
        absolute: float = 1e-6,
        relative: float = 1e-4,
        max_iterations: int = 1000,
    ) -> LowRankSparseResult:
        """Solve for one pair of penalties.

        Args:
            l1: penalty on the columns of ``A``; with infinity only ``B`` stays.
            l2: penalty on the singular values of ``B``; with infinity only ``A`` stays.
            start: solution for other penalties to start from.
            rho: first step parameter; by default the mean eigenvalue of ``Sigma``.
            absolute: tolerance relative to ``||W||_F`` and ``||W Sigma||_F``.
            relative: tolerance relative to the iterates.
            max_iterations: largest number of steps; ``rho`` is fixed after the first half, which
                the proof of convergence needs.

        Raises:
            ValueError: a penalty or ``rho`` is not positive.
        """
        if not (l1 > 0 and l2 > 0 and (rho is None or rho > 0)):
            raise ValueError(f"penalties {l1}, {l2} and rho {rho} must be positive")
        penalties = [(i, p) for i, p in enumerate((l1, l2)) if p < math.inf]
        blocks = max(len(penalties), 1)
        rho = rho or max(float(self._values.mean()), np.finfo(np.float64).tiny)
        z = np.zeros((blocks, *self.weight.shape))
        if start is not None and penalties:
            z = np.stack([(start.sparse, start.low_rank)[i] for i, _ in penalties])
        u = np.repeat(((self.weight - z.sum(axis=0)) @ self.sigma / rho)[None], blocks, axis=0)
        scale = float(np.linalg.norm(self.weight)), float(np.linalg.norm(self._cross))
        ranks, primal, dual, step, converged = [0, 0], 0.0, 0.0, 0, not penalties or scale[1] == 0
        while not converged and step < max_iterations:
            step += 1
            x = self._quadratic(z - u, rho)
            ahead = _RELAXATION * x + (1 - _RELAXATION) * z
            u += ahead
            before, z = z, np.empty_like(z)
            for n, (i, penalty) in enumerate(penalties):
                if i:
                    z[n], ranks[1] = shrunk_values(u[n], penalty / rho)
                else:
                    z[n] = shrunk_groups(u[n], penalty / rho, self.width)
            u -= z
            primal, dual = float(np.linalg.norm(x - z)), rho * float(np.linalg.norm(z - before))
            size = max(float(np.linalg.norm(x)), float(np.linalg.norm(z)))
            near = absolute * scale[0] + relative * size
            still = absolute * scale[1] + relative * rho * float(np.linalg.norm(u))
            converged = primal <= near and dual <= still
            if 2 * step < max_iterations:
                change = _balance(primal / near, dual / still)
                rho, u = rho * change, u / change
        parts = [np.zeros_like(self.weight), np.zeros_like(self.weight)]
        for n, (i, _) in enumerate(penalties):
            parts[i] = z[n]
        sparse, low_rank = parts
        norms = group_norms(sparse, self.width)
        pull = group_norms((self.weight - sparse - low_rank) @ self.sigma, self.width)
        return LowRankSparseResult(
            sparse,
            low_rank,
            np.flatnonzero(norms),
            np.lexsort((-pull, -norms)),
            ranks[1],
            self.objective(sparse, low_rank, l1, l2),
            primal / scale[0] if scale[0] > 0 else 0.0,
            dual / scale[1] if scale[1] > 0 else 0.0,
            step,
            converged,
        )

    def _quadratic(self, v: Array, rho: float) -> Array:
        """Minimise the loss of the sum and ``rho / 2 ||x - v||^2`` over ``x (blocks, N, d)``."""
        part = self._values / (self._values + rho / len(v))
        left = (self.weight - v.sum(axis=0)) @ self._basis
        moved: Array = v + ((left * part) @ self._basis.T) / len(v)
        return moved


def group_norms(matrix: Array, width: int) -> Array:
    """Norms ``||M_j||_F`` of each ``width`` columns of ``(N, d)``."""
    squares = np.einsum("nd,nd->d", matrix, matrix)
    norms: Array = np.sqrt(squares.reshape(-1, width).sum(axis=1))
    return norms


def shrunk_groups(matrix: Array, threshold: float, width: int) -> Array:
    """Proximal map of ``threshold * sum_j ||M_j||_F``."""
    norms = group_norms(matrix, width)
    kept = np.maximum(norms - threshold, 0.0) / np.where(norms > 0, norms, 1.0)
    shrunk: Array = matrix * np.repeat(kept, width)
    return shrunk


def shrunk_values(matrix: Array, threshold: float) -> tuple[Array, int]:
    """Proximal map of ``threshold * ||M||_*``, with the rank of the result."""
    if matrix.shape[0] > matrix.shape[1]:
        turned, rank = shrunk_values(matrix.T, threshold)
        return turned.T, rank
    # the Gram matrix is inexact only for values below 1e-8 of the largest
    squares, vectors = np.linalg.eigh(matrix @ matrix.T)
    values = np.sqrt(np.maximum(squares, 0.0))
    left = values > threshold
    kept = vectors[:, left]
    part = 1 - threshold / values[left]
    return (kept * part) @ (kept.T @ matrix), int(left.sum())


def _balance(primal: float, dual: float) -> float:
    """Factor on ``rho`` that brings the residuals, each over its tolerance, together."""
    if primal > _BALANCE * dual:
        return _FACTOR
    return 1 / _FACTOR if dual > _BALANCE * primal else 1.0
