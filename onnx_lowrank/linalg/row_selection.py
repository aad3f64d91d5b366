"""Samples that represent all others: self-representation with few rows, and picks among them.

Formula: for features ``X (d, n)``, one column for each sample, find ``A (n, n)`` that minimises

    sum_i ||x_i - X a_i|| + gamma sum_j ||a^j||

with ``a_i`` the columns and ``a^j`` the rows of ``A``: the l2,1 norms of ``(X - X A)^T`` and ``A``.
A row with a large norm belongs to a sample that many others are made of.

Iteratively reweighted: with ``u_i = 1 / (2 ||x_i - X a_i||)`` and ``D = diag 1 / (2 ||a^j||)`` the
minimum is ``a_i = (X^T X + gamma / u_i D)^-1 X^T x_i``. From ``X D^-1 X^T = W S^2 W^T``

    A = D^-1 (X^T W) C,   c_i = (S^2 + gamma / u_i)^-1 W^T x_i,   x_i - X a_i = W gamma / u_i c_i

so that neither ``A`` nor a matrix of its size is ever made: norms of rows and products between
rows come from the matrix ``C C^T`` of the size of ``d``. A step costs ``n d^2``.

Samples that are copies of one another can share their weights without changing the objective, so
only the first of them stands for all, counted as often as there are copies.

Reference: F. Nie, H. Wang, H. Huang, C. Ding, "Early Active Learning via Joint Structured
Sparsity", IJCAI 2013.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnx_lowrank.linalg.blas_threads import blas_for

__all__ = ["Representation", "by_norm", "decorrelated", "represent"]

Array = npt.NDArray[np.float64]

#: norms are smoothed by this part of what they are at most, for a norm has no derivative at 0
_SMOOTHING = 1e-6


@dataclass(frozen=True)
class Representation:
    """A self-representation of samples.

    Attributes:
        candidates: numbers of the samples that stand for themselves and their copies, ``(m,)``.
        copies: how many samples each stands for, ``(m,)``.
        rows: a matrix ``(m, r)`` whose rows have the lengths of the rows of ``A``, and the products
            with one another that these have.
        objective: value of the objective after each step, not rising.
        gamma: weight of the rows that it was found with.
    """

    candidates: npt.NDArray[np.int64]
    copies: npt.NDArray[np.int64]
    rows: Array
    objective: tuple[float, ...]
    gamma: float

    @property
    def norms(self) -> Array:
        """Length of the row of each candidate, ``(m,)``."""
        norms: Array = np.linalg.norm(self.rows, axis=1)
        return norms


def represent(
    features: Array, share: float = 0.1, steps: int = 200, settled: float = 1e-4
) -> Representation:
    """Represent samples by as few of them as pays.

    Args:
        features: ``(n, d)``, one row for each sample, finite.
        share: gamma, as a part of the least at which no sample pays; between 0 and 1.
        steps: largest number of reweighted solves.
        settled: relative step of the objective at which no more are made.
    """
    unique, first, copies = np.unique(features, axis=0, return_index=True, return_counts=True)
    order = np.argsort(first)
    x = unique[order].astype(np.float64)
    candidates, copies = first[order].astype(np.int64), copies[order].astype(np.int64)
    largest = float(np.linalg.norm(x, axis=1).max())
    if largest == 0:  # a single sample without features
        return Representation(candidates, copies, np.zeros((len(x), 1)), (0.0,), 0.0)
    x /= largest
    gamma = share * _least_without_rows(x, copies)
    solver = _Reweighted(x, copies.astype(np.float64), gamma)
    with blas_for(min(x.shape)):
        objective = [solver.step()]
        for _ in range(steps - 1):
            objective.append(solver.step())
            if objective[-2] - objective[-1] <= settled * objective[-2]:
                break
    values = tuple(largest * value for value in objective)
    return Representation(candidates, copies, solver.rows, values, largest * gamma)


def by_norm(found: Representation, count: int) -> npt.NDArray[np.int64]:
    """Pick the samples with the longest rows.

    Args:
        found: the representation.
        count: number of samples to pick; fewer are returned where there are fewer candidates.

    Returns:
        Numbers of samples, the longest row first; ties go to the lower number.
    """
    return found.candidates[np.argsort(-found.norms, kind="stable")[:count]]


def decorrelated(found: Representation, count: int, alpha: float = 1.0) -> npt.NDArray[np.int64]:
    """Pick samples with long rows that no picked row resembles.

    Each pick is ``argmax_i ||a^i|| - alpha max_s <a^i, a^s> / ||a^s||`` over the picked ``s``. The
    product is divided by a length so that both terms have one unit: with ``alpha`` 1 a row in the
    direction of a picked one is worth nothing.

    Args:
        found: the representation.
        count: number of samples to pick; fewer are returned where there are fewer candidates.
        alpha: weight of the resemblance.

    Returns:
        Numbers of samples in the order of picking; ties go to the lower number.
    """
    norms = found.norms
    alike = np.full(len(norms), -np.inf)
    worth = norms.copy()
    picked: list[int] = []
    for _ in range(min(count, len(norms))):
        best = int(np.argmax(worth))
        picked.append(best)
        towards = found.rows[best] / max(float(norms[best]), np.finfo(np.float64).tiny)
        alike = np.maximum(alike, found.rows @ towards)
        worth = norms - alpha * alike
        worth[picked] = -np.inf
    return found.candidates[picked]


def _least_without_rows(x: Array, copies: npt.NDArray[np.int64]) -> float:
    """The least gamma at which ``A = 0`` is the minimum.

    There no row pays for itself: ``||(<x_j, x_i> / ||x_i||)_i|| <= gamma`` for every ``j``.
    """
    norms = np.linalg.norm(x, axis=1)
    directions = x[norms > 0] / norms[norms > 0, None]
    second = directions.T @ (copies[norms > 0, None] * directions)
    return float(np.sqrt(np.einsum("ij,jk,ik->i", x, second, x, optimize=True).max()))


class _Reweighted:
    """The iteration, on samples as rows of ``x``, each counted ``copies`` times."""

    def __init__(self, x: Array, copies: Array, gamma: float) -> None:
        if x.shape[1] > len(x):  # the same products in fewer columns
            x = np.asarray(np.linalg.qr(x.T, mode="r")).T
        self._x, self._copies, self._gamma = x, copies, gamma
        self._residuals = np.linalg.norm(x, axis=1)
        self._norms = np.ones(len(x))
        self.rows = np.zeros((len(x), 1))

    def step(self) -> float:
        """Solve once with the weights of the last solution; return the smoothed objective."""
        smoothed = np.hypot(self._residuals, _SMOOTHING)
        inverse = np.sqrt(2 * np.hypot(self._norms, _SMOOTHING))[:, None]  # diagonal of D^-1/2
        scaled = self._x * inverse
        squares, w = np.linalg.eigh(scaled.T @ scaled)
        turned, squares = self._x @ w, np.maximum(squares, 0)
        over = 2 * self._gamma * smoothed[:, None]
        solved = turned / (squares + over)  # the columns of C
        self._residuals = np.linalg.norm(over * solved, axis=1)
        counted = np.sqrt(self._copies)[:, None] * solved
        factor = np.asarray(np.linalg.qr(counted, mode="r"))
        self.rows = inverse**2 * (turned @ factor.T)
        self._norms = np.linalg.norm(self.rows, axis=1)
        fit = float(self._copies @ np.hypot(self._residuals, _SMOOTHING))
        return fit + self._gamma * float(np.hypot(self._norms, _SMOOTHING).sum())
