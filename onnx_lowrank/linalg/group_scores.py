"""Which groups of inputs to keep: plain rankings, a backward elimination, and least squares after.

The same inputs as the group lasso, ``R = E[x x^T]`` and ``B = E[y x^T]``. On given columns S the
best map, with a ridge ``rho`` in units of the mean diagonal of ``R``, and its error are

    M_S = B_S (R_SS + rho I)^-1
    E||Y - M_S X_S||^2 = E||Y||^2 - 2 tr(M_S B_S^T) + tr(M_S R_SS M_S^T)

Backward elimination (the optimal brain surgeon, for groups of columns): with ``P = R^-1`` and
``M = B P``, removing group j and solving for the rest again raises the error by

    score_j = tr(M_j P_jj^-1 M_j^T),     M -= M_j P_jj^-1 P_j,    P -= P_j^T P_jj^-1 P_j

so that each removal downdates the inverse instead of computing it, O(d^2) a column. Updates of
``P`` and ``M`` are gathered and applied together; only what the scores read is kept current: the
blocks ``P_jj`` and ``M_j^T M_j``. The order is nested: every number of groups is read off it.

Reference:
    Hassibi & Stork 1993, Second order derivatives for network pruning: optimal brain surgeon; Li
    et al. 2017, Pruning filters for efficient convnets (magnitude); He, Zhang & Sun 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import linalg

from onnx_lowrank.linalg.group_lasso import Problem
from onnx_lowrank.linalg.groups import Groups

__all__ = [
    "Elimination",
    "debias",
    "energy_scores",
    "magnitude_scores",
    "obs_elimination",
    "random_scores",
    "reconstruction_error",
    "top_groups",
]

Array = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.intp]

#: updates are applied when they have this many columns, and removed columns are dropped then
_GATHERED = 256


@dataclass(frozen=True)
class Elimination:
    """Groups in the order of their removal.

    Attributes:
        order: ``(G,)``, the first is the one most easily missed.
        increases: ``(G,)``, rise of the error (with its ridge term) by each removal, in the
            units of ``E||Y||^2``.
    """

    order: Indices
    increases: Array

    def support(self, keep: int) -> Indices:
        """The last ``keep`` groups to go, rising."""
        return np.sort(self.order[len(self.order) - keep :])


def debias(R: Array, B: Array, columns: Indices, ridge: float) -> Array:
    """``M_S (N, |S|)``, the least-squares map on these columns.

    Args:
        R: ``E[x x^T] (d, d)``.
        B: ``E[y x^T] (N, d)``.
        columns: S.
        ridge: in units of the mean diagonal of ``R``, all of it, whatever the columns.

    Raises:
        ValueError: a ridge below 0.
        numpy.linalg.LinAlgError: ``R_SS`` is singular; a ridge above 0 helps.
    """
    regular = _regularised(R, ridge)[np.ix_(columns, columns)]
    factor = linalg.cho_factor(regular, lower=True, overwrite_a=True, check_finite=False)
    solution: Array = linalg.cho_solve(factor, B[:, columns].T, check_finite=False).T
    return np.ascontiguousarray(solution)


def reconstruction_error(
    R: Array, B: Array, weights: Array, columns: Indices, energy: float
) -> float:
    """``E||Y - M_S X_S||^2``.

    Exact for any weights; from moments, so accurate to about 1e-16 of ``energy``.

    Args:
        R: ``E[x x^T] (d, d)``.
        B: ``E[y x^T] (N, d)``.
        weights: ``M_S (N, |S|)``.
        columns: S.
        energy: ``E||Y||^2``.
    """
    fitted = weights @ R[np.ix_(columns, columns)]
    return max(energy + float(np.vdot(fitted - 2 * B[:, columns], weights)), 0.0)


def magnitude_scores(
    W: Array, widths: Sequence[int] | Indices, norm: Literal["l1", "l2"] = "l2"
) -> Array:
    """``(G,)``: norm of each group's block of the weights ``W (N, d)``."""
    groups = Groups.of(widths)
    if norm == "l2":
        return groups.norms(np.asarray(W, dtype=np.float64).T)
    sums: Array = np.add.reduceat(np.abs(W).sum(axis=0, dtype=np.float64), groups.starts)
    return sums


def energy_scores(R: Array, widths: Sequence[int] | Indices) -> Array:
    """``(G,)``: mean square of each group's inputs, from the diagonal of ``R (d, d)``."""
    groups = Groups.of(widths)
    sums: Array = np.add.reduceat(np.diag(R).astype(np.float64), groups.starts)
    means: Array = sums / groups.widths
    return means


def random_scores(widths: Sequence[int] | Indices, seed: int) -> Array:
    """``(G,)``: numbers without meaning."""
    return np.random.default_rng(seed).random(len(Groups.of(widths).widths))


def top_groups(scores: Array, keep: int) -> Indices:
    """The ``keep`` highest, rising; of equal ones the first."""
    return np.sort(np.argsort(-scores, kind="stable")[:keep])


def obs_elimination(
    R: Array, B: Array, widths: Sequence[int] | Indices, ridge: float, keep: int = 1
) -> Elimination:
    """Remove one group after the other, each time the one whose loss costs least.

    Args:
        R: ``E[x x^T] (d, d)``.
        B: ``E[y x^T] (N, d)``.
        widths: columns of each group, side by side; they add up to d.
        ridge: in units of the mean diagonal of ``R``.
        keep: the removal of the last so many is not computed: they end the order, by their scores
            at that point, which then stand in for ``increases``.

    Raises:
        ValueError: shapes that do not belong together, a ridge below 0, ``keep`` below 1.
        numpy.linalg.LinAlgError: ``R`` is singular; a ridge above 0 helps.
    """
    if keep < 1:
        raise ValueError(f"keep {keep} must be 1 at least")
    problem = Problem.of(R, B, widths)
    state = _State(_regularised(problem.R, ridge), problem.cross, problem.groups)
    order, increases = [], []
    for _ in range(len(problem.groups.widths) - keep):
        scores = state.scores()
        chosen = int(np.argmin(scores))
        order.append(int(state.names[chosen]))
        increases.append(float(scores[chosen]))
        state.remove(chosen)
    last = state.scores()
    for j in np.argsort(last, kind="stable"):
        if np.isfinite(last[j]):
            order.append(int(state.names[j]))
            increases.append(float(last[j]))
    return Elimination(np.array(order, dtype=np.intp), np.array(increases))


class _State:
    """What is left: inverse and map as of the last application, updates since, current blocks.

    Args:
        regular: ``R + rho I (d, d)``, positive definite.
        cross: ``B^T (d, k)``.
        groups: of the d columns.
    """

    def __init__(self, regular: Array, cross: Array, groups: Groups) -> None:
        factor = linalg.cholesky(regular, lower=True, check_finite=False)
        lower = linalg.lapack.dpotri(factor, lower=1)[0]
        self._inverse = np.tril(lower) + np.tril(lower, -1).T
        self._map = self._inverse @ cross  # M^T
        self.names = np.arange(len(groups.widths))
        self._settle(groups)

    def _settle(self, groups: Groups) -> None:
        """No updates are pending: read the blocks."""
        self._groups, self._gone = groups, np.zeros(len(groups.widths), dtype=bool)
        d, k = self._map.shape
        self._count = 0
        # P = inverse - left left^T,  M^T = map - left right^T
        self._left, self._right = np.zeros((d, 0)), np.zeros((k, 0))
        offsets = np.arange(groups.widths.max())
        self._inside = offsets < groups.widths[:, None]
        # (G, w): columns of each group; beyond its width its first one again, masked below
        self._at = groups.starts[:, None] + np.where(self._inside, offsets, 0)
        self._both = self._inside[:, :, None] & self._inside[:, None, :]
        own = self._inverse[self._at[:, :, None], self._at[:, None, :]]
        self._own = np.where(self._both, own, np.eye(len(offsets)))
        rows = self._map[self._at] * self._inside[:, :, None]
        self._grams = rows @ rows.transpose(0, 2, 1)

    def scores(self) -> Array:
        """``tr(P_jj^-1 M_j^T M_j)``; infinite for what is gone."""
        products = np.linalg.solve(self._own, self._grams)
        traces: Array = np.trace(products, axis1=1, axis2=2)
        return np.where(self._gone, np.inf, np.maximum(traces, 0.0))

    def remove(self, j: int) -> None:
        """Downdate by one group."""
        own = slice(self._groups.starts[j], self._groups.starts[j] + self._groups.widths[j])
        inverse = self._inverse[:, own] - self._left @ self._left[own].T
        rows = self._map[own] - self._left[own] @ self._right.T
        factor = linalg.cholesky(inverse[own], lower=True, check_finite=False)
        # with P_jj = L L^T:  left = P_j^T L^-T,  right = M_j L^-T
        left = linalg.solve_triangular(factor, inverse.T, lower=True, check_finite=False).T
        right = linalg.solve_triangular(factor, rows, lower=True, check_finite=False).T
        # M^T right now, for the change of M_j^T M_j
        read = self._map @ right - self._left @ (self._right.T @ right)
        u = left[self._at] * self._inside[:, :, None]
        v = (read - 0.5 * left @ (right.T @ right))[self._at] * self._inside[:, :, None]
        change = u @ v.transpose(0, 2, 1)
        self._grams -= change + change.transpose(0, 2, 1)
        self._own -= u @ u.transpose(0, 2, 1)
        self._gone[j] = True
        self._own[j], self._grams[j] = np.eye(self._own.shape[1]), 0.0
        self._left = np.concatenate([self._left, left], axis=1)
        self._right = np.concatenate([self._right, right], axis=1)
        if self._left.shape[1] >= _GATHERED:
            self._apply()

    def _apply(self) -> None:
        """Carry out what was gathered and forget what is gone."""
        kept = np.flatnonzero(~self._gone)
        columns = self._groups.columns(kept)
        left = self._left[columns]
        self._inverse = self._inverse[np.ix_(columns, columns)] - left @ left.T
        self._map = self._map[columns] - left @ self._right.T
        self.names = self.names[kept]
        self._settle(Groups.of(self._groups.widths[kept]))


def _regularised(R: Array, ridge: float) -> Array:
    """``R + rho I``, ``rho`` in units of the mean diagonal."""
    if ridge < 0:
        raise ValueError(f"ridge {ridge} must not be negative")
    regular = np.array(R, dtype=np.float64, order="C")
    regular[np.diag_indices(len(regular))] += ridge * float(np.trace(regular)) / len(regular)
    return regular
