"""Backward elimination of groups of inputs that several linear maps read.

The optimal brain surgeon, for groups of columns. With ``P = (R + rho I)^-1`` and ``M = B P``,
removing group j and solving for the rest again raises the error by

    score_j = tr(M_j P_jj^-1 M_j^T),     M -= M_j P_jj^-1 P_j,    P -= P_j^T P_jj^-1 P_j

so that each removal downdates the inverse instead of computing it, O(d^2) a column. Consumers of
the same groups share the choice and nothing else: scores are added with their weights, and each
downdates an inverse of its own, at the cost ``sum_c d_c^3``. The order is nested: every number of
groups is read off it.

To read all of ``P`` and ``M`` for each removal takes far longer than to compute with them. So the
groups of least score form a *pool*, whose blocks of ``P`` and ``M`` follow from one another without
the rest: removals among it are exact, until the least score there exceeds the least outside as it
was. Then all of them are removed from ``P`` and ``M`` at once. Up to the size of a pool this is
the elimination one by one; above, what a removal did to scores outside of the pool is seen some
removals later.

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

from onnx_lowrank.linalg import lapack
from onnx_lowrank.linalg.blas_threads import one_thread
from onnx_lowrank.linalg.cholesky import inverse_of
from onnx_lowrank.linalg.group_problem import Problem, regularised
from onnx_lowrank.linalg.groups import Consumer, Groups

__all__ = ["Elimination", "obs_elimination"]

Array = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.intp]

#: groups of least score among which removals are exact: at least and at the most, and columns that
#: make work between; and the largest number of these removals
_LEAST, _MOST, _COLUMNS, _TOGETHER = 16, 32, 256, 32

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
    order: list[int] = []
    increases: list[float] = []
    afresh = False
    while (left := problem.groups.count - keep - len(order)) > 0:
        chosen, rises = _together(states, min(left, _TOGETHER))
        if not chosen and afresh:
            raise np.linalg.LinAlgError("the moments of the inputs are singular")
        afresh = not chosen
        for state in states:
            if afresh:
                state.compute()
            else:
                state.remove(np.array(sorted(chosen), dtype=np.intp))
        order += chosen
        increases += rises
    last = _joint(states)
    for j in np.argsort(last, kind="stable"):
        if np.isfinite(last[j]):
            order.append(int(j))
            increases.append(float(last[j]))
    return Elimination(np.array(order, dtype=np.intp), np.array(increases))


def _together(states: Sequence[_State], most: int) -> tuple[list[int], list[float]]:
    """The next groups to remove from all states, and what each raises the error by.

    Returns:
        Up to ``most`` groups; none where rounding has spoilt an inverse.
    """
    scores = _joint(states)
    ranked = np.argsort(scores, kind="stable")
    size = min(max(_COLUMNS // max(state.widest for state in states), _LEAST), _MOST)
    pool = np.sort(ranked[:size])
    pool = pool[np.isfinite(scores[pool])]
    beyond = scores[ranked[size]] if len(ranked) > size else np.inf
    with one_thread():  # several wait for each other more than small products take
        return _of_pool([state.pool(pool) for state in states], pool, beyond, most)


def _of_pool(
    parts: Sequence[_Pool], pool: Indices, beyond: float, most: int
) -> tuple[list[int], list[float]]:
    """The next groups to remove from a pool: up to ``most``, of scores up to ``beyond``."""
    chosen: list[int] = []
    rises: list[float] = []
    while len(chosen) < most:
        scores = _joint(parts)
        local = int(np.argmin(scores))
        if chosen and scores[local] > beyond:
            break
        try:
            for part in parts:
                part.remove(local)
        except np.linalg.LinAlgError:
            break
        chosen.append(int(pool[local]))
        rises.append(float(scores[local]))
    return chosen, rises


class _Blocks:
    """Where the blocks of groups stand in matrices of their columns."""

    def __init__(self, groups: Groups) -> None:
        widths, offsets = groups.widths[0], np.arange(groups.widths.max())
        self._inside = offsets < widths[:, None]
        # (G, w): columns of each group; beyond its width its first one again, masked below
        self._at = groups.starts[0, :, None] + np.where(self._inside, offsets, 0)

    def scores(self, inverse: Array, mapped: Array) -> Array:
        """Scores ``tr(P_jj^-1 M_j^T M_j) (G,)`` from ``P (d, d)`` and ``M^T (d, k)``."""
        if self._at.shape[1] == 1:
            traces = np.einsum("ij,ij->i", mapped, mapped) / inverse.diagonal()
        else:
            both = self._inside[:, :, None] & self._inside[:, None, :]
            own = inverse[self._at[:, :, None], self._at[:, None, :]]
            own = np.where(both, own, np.eye(self._at.shape[1]))
            rows = mapped[self._at] * self._inside[:, :, None]
            grams = rows @ rows.transpose(0, 2, 1)
            traces = np.trace(np.linalg.solve(own, grams), axis1=1, axis2=2)
        found: Array = np.maximum(traces, 0.0)
        return found


class _Pool:
    """Some groups of one consumer.

    Args:
        inverse: their part of ``P``, which is changed.
        mapped: their rows of ``M^T``, which are changed.
        groups: their columns.
    """

    def __init__(self, inverse: Array, mapped: Array, groups: Groups) -> None:
        self._inverse, self._map, self._groups = inverse, mapped, groups
        self._blocks = _Blocks(groups)
        self._gone = np.zeros(groups.count, dtype=bool)

    def scores(self) -> Array:
        """Scores ``(G,)``; infinite for groups already removed."""
        return np.where(self._gone, np.inf, self._blocks.scores(self._inverse, self._map))

    def remove(self, j: int) -> None:
        """Downdate by one group; raises LinAlgError where its block is not positive definite."""
        own = self._groups.columns(np.array([j]))
        left, right = _update(self._inverse, self._map, own)
        self._inverse -= left @ left.T
        self._map -= left @ right.T
        self._inverse[own, own] = 1.0  # zero by now but for rounding, and read no more
        self._gone[j] = True


class _State:
    """State of one consumer: inverse and map of the groups that stay.

    Args:
        regular: ``R + rho I (d, d)``, positive definite.
        cross: ``B^T (d, k)``.
        groups: groups of the d columns.
    """

    _groups: Groups  # of the columns that stay
    _fresh: int  # columns when the inverse was computed
    _inverse: Array
    _map: Array  # M^T

    def __init__(self, regular: Array, cross: Array, groups: Groups) -> None:
        self._regular, self._cross, self._all = regular, cross, groups
        self._names = np.arange(groups.count)
        self.compute()

    @property
    def widest(self) -> int:
        """Largest number of columns of a group that stays."""
        return int(self._groups.widths.max())

    def scores(self) -> Array:
        """Scores ``(G,)``; infinite for groups already removed."""
        found = np.full(self._all.count, np.inf)
        found[self._names] = _Blocks(self._groups).scores(self._inverse, self._map)
        return found

    def pool(self, which: Indices) -> _Pool:
        """Some of the groups that stay, by themselves."""
        local = np.searchsorted(self._names, which)
        at = self._groups.columns(local)
        return _Pool(self._inverse[np.ix_(at, at)], self._map[at], self._groups.restricted(local))

    def remove(self, which: Indices) -> None:
        """Downdate by groups; compute the inverse again if few stay or rounding has spoilt it."""
        local = np.searchsorted(self._names, which)
        own = self._groups.columns(local)
        kept = np.setdiff1d(np.arange(len(self._names)), local)
        columns = self._groups.columns(kept)
        self._names = self._names[kept]
        if len(columns) <= _AFRESH * self._fresh:
            self.compute()
            return
        try:
            left, right = _update(self._inverse, self._map, own)
        except np.linalg.LinAlgError:
            self.compute()
            return
        left = left[columns]
        self._inverse = self._inverse[np.ix_(columns, columns)]
        # the inverse is symmetric, and its transpose in column order
        lapack.downdate(self._inverse.T, left, left)
        self._map = self._map[columns] - left @ right.T
        self._groups = self._all.restricted(self._names)

    def compute(self) -> None:
        """Compute inverse and map of the groups that stay from the moments."""
        columns = self._all.columns(self._names)
        self._fresh = len(columns)
        regular, cross = self._regular[np.ix_(columns, columns)], self._cross[columns]
        factor = lapack.potrf(regular.T, overwrite=True, clean=True)
        self._map = lapack.potrs(factor, cross)
        self._inverse = inverse_of(factor)
        self._groups = self._all.restricted(self._names)


def _update(inverse: Array, mapped: Array, own: Indices) -> tuple[Array, Array]:
    """What removing the columns ``own`` takes off: ``P -= l l^T`` and ``M^T -= l r^T``.

    Args:
        inverse: ``P (d, d)``.
        mapped: ``M^T (d, k)``.
        own: numbers of the columns.

    Returns:
        ``l = P_j^T L^-T (d, w)`` and ``r = M_j L^-T (k, w)``, with ``P_jj = L L^T``.

    Raises:
        numpy.linalg.LinAlgError: ``P_jj`` is not positive definite.
    """
    rows = inverse[own]
    solved = lapack.trtrs(lapack.potrf(rows[:, own]), np.hstack([rows, mapped[own]]))
    return solved[:, : len(inverse)].T, solved[:, len(inverse) :].T


def _joint(states: Sequence[_State] | Sequence[_Pool]) -> Array:
    """Sum of the scores of all consumers, whose cross moments contain the roots of the weights."""
    total: Array = np.sum([state.scores() for state in states], axis=0)
    return total
