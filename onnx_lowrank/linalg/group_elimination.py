"""Backward elimination of groups of inputs that several linear maps read.

The optimal brain surgeon, for groups of columns. With ``P = (R + rho I)^-1`` and ``M = B P``,
removing group j and solving for the rest again raises the error by

    score_j = tr(M_j P_jj^-1 M_j^T),     M -= M_j P_jj^-1 P_j,    P -= P_j^T P_jj^-1 P_j

so that each removal downdates the inverse instead of computing it, O(d^2) a column. Consumers of
the same groups share the choice and nothing else: scores are added with their weights, and each
downdates an inverse of its own, at the cost ``sum_c d_c^3``. Updates of ``P`` and ``M`` are
gathered and applied together; only what the scores read is kept current: the blocks ``P_jj`` and
``M_j^T M_j``. The order is nested: every number of groups is read off it.

Each downdate subtracts, so errors of rounding grow; the inverse is computed afresh whenever half of
the columns are gone, at an eighth of the cost of the time before, and where a block has lost its
positive definiteness.

Of groups that repeat one another all but one go at almost no loss: the map that is solved again
reads the one that stays with the weight of all.

Reference:
    Hassibi & Stork 1993, Second order derivatives for network pruning: optimal brain surgeon;
    Kurtic et al. 2022, The optimal BERT surgeon (blocks); Frantar & Alistarh 2022, Optimal brain
    compression (downdates of the inverse).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg

from onnx_lowrank.linalg.group_problem import Problem, regularised
from onnx_lowrank.linalg.groups import Consumer, Groups

__all__ = ["Elimination", "obs_elimination"]

Array = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.intp]

#: updates are applied when they have this many columns
_GATHERED = 128

#: removed columns, whose rows are zero then, are dropped when this part of all is left
_DROPPED = 0.875

#: the inverse is computed afresh when this part of its columns is left
_AFRESH = 0.5


@dataclass(frozen=True)
class Elimination:
    """Groups in the order of their removal.

    Attributes:
        order: numbers of the groups ``(G,)``, in the order in which they are removed.
        increases: rise ``(G,)`` of the error (with its ridge term) by each removal, in the units
            of ``sum_c weight_c E||Y_c||^2``.
    """

    order: Indices
    increases: Array

    def support(self, keep: int) -> Indices:
        """Numbers of the ``keep`` groups that are removed last, rising."""
        return np.sort(self.order[len(self.order) - keep :])


def obs_elimination(consumers: Sequence[Consumer], ridge: float, keep: int = 1) -> Elimination:
    """Remove one group after the other, each time the one that raises the error least.

    Args:
        consumers: the maps that read the groups; one or more.
        ridge: ridge in units of the mean diagonal of each ``R``.
        keep: number of groups whose removal is not computed: they are last in the order, by their
            scores at that point, which take the place of ``increases``.

    Raises:
        ValueError: there is no consumer, shapes do not fit together, a weight is not positive, the
            ridge is below 0, or ``keep`` below 1.
        numpy.linalg.LinAlgError: an ``R`` is singular; a ridge above 0 helps.
    """
    if keep < 1:
        raise ValueError(f"keep {keep} must be 1 or more")
    problem = Problem.of(consumers)
    states = [
        _State(regularised(R, ridge), problem.cross[rows, :k], Groups.of(widths))
        for R, k, rows, widths in zip(
            problem.R, problem.outputs, problem.groups.rows, problem.groups.widths, strict=True
        )
    ]
    order, increases = [], []
    for _ in range(problem.groups.count - keep):
        scores = _joint(states)
        chosen = int(np.argmin(scores))
        order.append(chosen)
        increases.append(float(scores[chosen]))
        for state in states:
            state.remove(chosen)
    last = _joint(states)
    for j in np.argsort(last, kind="stable"):
        if np.isfinite(last[j]):
            order.append(int(j))
            increases.append(float(last[j]))
    return Elimination(np.array(order, dtype=np.intp), np.array(increases))


class _State:
    """State of one consumer: inverse and map, updates not yet applied, and current blocks.

    Args:
        regular: ``R + rho I (d, d)``, positive definite.
        cross: ``B^T (d, k)``.
        groups: groups of the d columns.
    """

    _fresh: int  # columns when the inverse was computed
    _inverse: Array
    _map: Array  # M^T
    _own: Array  # P_jj (G, w, w)
    _grams: Array  # M_j^T M_j (G, w, w)
    _updates: tuple[Array, Array]  # left (d, u), right (k, u), of which the first are in use
    _used: int

    def __init__(self, regular: Array, cross: Array, groups: Groups) -> None:
        self._regular, self._cross, self._all = regular, cross, groups
        self._names = np.arange(groups.count)
        self._compute()

    def scores(self) -> Array:
        """Scores ``tr(P_jj^-1 M_j^T M_j) (G,)``; infinite for groups already removed."""
        if self._own.shape[1] == 1:
            traces: Array = (self._grams / self._own)[:, 0, 0]
        else:
            traces = np.trace(np.linalg.solve(self._own, self._grams), axis1=1, axis2=2)
        found = np.full(self._all.count, np.inf)
        found[self._names] = np.where(self._gone, np.inf, np.maximum(traces, 0.0))
        return found

    def remove(self, j: int) -> None:
        """Downdate by one group; compute the inverse again if rounding has spoilt it."""
        try:
            self._downdate(j)
        except linalg.LinAlgError:
            self._names = self._names[~self._gone]
            self._compute()
            self._downdate(j)
        if self._used >= _GATHERED:
            self._apply()

    @property
    def _pending(self) -> tuple[Array, Array]:
        """Updates that are not yet applied: left ``(d, u)`` and right ``(k, u)``."""
        left, right = self._updates
        return left[:, : self._used], right[:, : self._used]

    def _downdate(self, j: int) -> None:
        local = int(np.searchsorted(self._names, j))
        own = self._groups.columns(np.array([local]))
        before, beside = self._pending
        # the inverse is symmetric, and its rows are together in memory
        inverse = (self._inverse[own] - before[own] @ before.T).T
        rows = self._map[own] - before[own] @ beside.T
        # without the checks of scipy's wrappers, which take longer than a few columns
        factor, failed = linalg.lapack.dpotrf(inverse[own], lower=1)
        if failed:
            raise linalg.LinAlgError("the inverse is not positive definite")
        # with P_jj = L L^T:  left = P_j^T L^-T,  right = M_j L^-T
        back = linalg.lapack.dtrtrs(factor, np.eye(len(own)), lower=1)[0].T
        left, right = inverse @ back, rows.T @ back
        # M^T right now, for the change of M_j^T M_j
        read = self._map @ right - before @ (beside.T @ right)
        u = left[self._at] * self._inside[:, :, None]
        v = (read - 0.5 * left @ (right.T @ right))[self._at] * self._inside[:, :, None]
        change = u @ v.transpose(0, 2, 1)
        self._grams -= change + change.transpose(0, 2, 1)
        self._own -= u @ u.transpose(0, 2, 1)
        self._gone[local] = True
        self._own[local], self._grams[local] = np.eye(self._own.shape[1]), 0.0
        end = self._used + len(own)
        for held, new in zip(self._updates, (left, right), strict=True):
            held[:, self._used : end] = new
        self._used = end

    def _apply(self) -> None:
        """Apply the gathered updates; drop the groups already removed where they are many."""
        left, right = self._pending
        kept = np.flatnonzero(~self._gone)
        columns = self._groups.columns(kept)
        if len(columns) <= _AFRESH * self._fresh:
            self._names = self._names[kept]
            self._compute()
            return
        # in place: the inverse is symmetric, and BLAS can change its transpose
        self._inverse = linalg.blas.dgemm(
            -1.0, left, left, 1.0, self._inverse.T, trans_b=1, overwrite_c=1
        ).T
        self._map -= left @ right.T
        self._used = 0
        if len(columns) <= _DROPPED * len(self._map):
            self._names = self._names[kept]
            self._inverse = self._inverse[np.ix_(columns, columns)]
            self._map = self._map[columns]
            self._settle()

    def _compute(self) -> None:
        """Compute inverse and map of the groups that stay from the moments."""
        columns = self._all.columns(self._names)
        self._fresh = len(columns)
        regular, cross = self._regular[np.ix_(columns, columns)], self._cross[columns]
        factor = linalg.cholesky(regular, lower=True, overwrite_a=True, check_finite=False)
        self._map = linalg.cho_solve((factor, True), cross, check_finite=False)
        # the factor's other half is zero, and stays so
        lower = linalg.lapack.dpotri(factor, lower=1, overwrite_c=1)[0]
        self._inverse = np.add(lower, lower.T, order="C")
        self._inverse[np.diag_indices(len(lower))] /= 2
        self._settle()

    def _settle(self) -> None:
        """Read the blocks, when no updates are pending."""
        self._groups = groups = self._all.restricted(self._names)
        self._gone = np.zeros(groups.count, dtype=bool)
        d, k = self._map.shape
        offsets = np.arange(groups.widths.max())
        # P = inverse - left left^T,  M^T = map - left right^T
        most = _GATHERED - 1 + len(offsets)
        self._updates, self._used = (np.empty((d, most)), np.empty((k, most))), 0
        self._inside = offsets < groups.widths[0, :, None]
        # (G, w): columns of each group; beyond its width its first one again, masked below
        self._at = groups.starts[0, :, None] + np.where(self._inside, offsets, 0)
        both = self._inside[:, :, None] & self._inside[:, None, :]
        own = self._inverse[self._at[:, :, None], self._at[:, None, :]]
        self._own = np.where(both, own, np.eye(len(offsets)))
        rows = self._map[self._at] * self._inside[:, :, None]
        self._grams = rows @ rows.transpose(0, 2, 1)


def _joint(states: Sequence[_State]) -> Array:
    """Sum of the scores of all consumers, whose cross moments contain the roots of the weights."""
    total: Array = np.sum([state.scores() for state in states], axis=0)
    return total
