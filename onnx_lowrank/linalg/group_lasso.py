"""Group lasso on second moments: which groups of inputs a linear map can do without.

    min_M  1/2 E||Y - M X||^2 + lam sum_j ||M_j||_F         R = E[x x^T],  B = E[y x^T]

``M_j`` are the columns of group j. Only ``R`` and ``B`` are needed: the gradient is ``M R - B``.
``M`` is optimal where, with the residual correlation ``G = B - M R``,

    G_j = lam M_j / ||M_j||   where M_j != 0,        ||G_j|| <= lam   elsewhere.

The certificate is the largest distance from this over the groups, in units of ``lam``. It is
the stopping rule of every solver. Above ``lam_max = max_j ||B_j||`` nothing is left.

Groups may be penalised unequally, by ``lam p_j ||M_j||``: the same problem for inputs divided by
their ``p_j``. With ``p_j = 1 / ||W_j||``, W the map that is to be imitated, a group no longer pays
for being small in amplitude (He et al. scale so); supports are then much better.

The penalty does not change when the outputs are rotated, and ``M`` lies in the column space of
``B``. So for N > d, with ``B = Q T`` (thin QR), the d rows of ``T`` pose the same problem. To go
below min(N, d) rows, the ones left out must be smaller than ``lam`` times the tolerance in every
group; on correlated inputs that spared hardly a row.

This file holds the problem and FISTA, with restarts where the momentum points uphill. Alternating
minimisation is in :mod:`onnx_lowrank.linalg.group_lasso_reweighted`, the fast solver in
:mod:`onnx_lowrank.linalg.group_lasso_newton`.

Reference:
    Yuan & Lin 2006, Model selection and estimation in regression with grouped variables; Beck &
    Teboulle 2009, A fast iterative shrinkage-thresholding algorithm; O'Donoghue & Candes 2015,
    Adaptive restart for accelerated gradient schemes; Zou 2006, The adaptive lasso (unequal
    penalties); He, Zhang & Sun 2017, Channel pruning for accelerating very deep neural networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse.linalg import eigsh

from onnx_lowrank.linalg.groups import Groups

__all__ = ["TINY", "Fista", "GroupLasso", "Problem", "fista", "lambda_max", "require_positive"]

Array = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.intp]

#: steps between two looks at the certificate
_EVERY = 10

#: stands in for scales that are zero; its square is still a normal number
TINY = 1e-100

#: largest matrix whose eigenvalues are computed directly
_DENSE = 64


@dataclass(frozen=True)
class GroupLasso:
    """A solution.

    Attributes:
        weights: ``M (N, d)``, exact zeros in the groups left out.
        support: rising indices of the groups kept.
        lam: weight of the penalty.
        certificate: largest distance of 0 from the subdifferential over the groups, over ``lam``.
        iterations: of the solver.
        converged: whether the certificate is within the tolerance.
    """

    weights: Array
    support: Indices
    lam: float
    certificate: float
    iterations: int
    converged: bool


@dataclass(frozen=True)
class Problem:
    """Moments, with the outputs compressed to ``k <= min(N, d)``; solutions are ``X (d, k)``.

    Attributes:
        R: ``(d, d)``, symmetric positive semi-definite.
        cross: ``(d, k)``, ``B`` transposed and compressed.
        basis: ``(N, k)`` with orthonormal columns, ``M = basis X^T``; None where k = N.
        groups: of the d columns.
        scale: ``(d,)``, what inputs were divided by; None is one everywhere.
    """

    R: Array
    cross: Array
    basis: Array | None
    groups: Groups
    scale: Array | None = None

    @classmethod
    def of(
        cls, R: Array, B: Array, widths: Sequence[int] | Indices, penalties: Array | None = None
    ) -> Problem:
        """The problem of moments ``R (d, d)``, ``B (N, d)``, and ``p (G,)`` or equal penalties.

        Raises:
            ValueError: shapes that do not belong together, or a penalty that is not positive.
        """
        groups = Groups.of(widths)
        d = int(groups.widths.sum())
        if R.shape != (d, d) or B.ndim != 2 or B.shape[1] != d:
            raise ValueError(f"R {R.shape} and B {B.shape} must have the {d} columns of the groups")
        R, B = np.asarray(R, dtype=np.float64), np.asarray(B, dtype=np.float64)
        scale = None
        if penalties is not None:
            if penalties.shape != groups.widths.shape or not np.all(
                np.isfinite(penalties) & (penalties > 0)
            ):
                raise ValueError(
                    f"penalties {penalties.shape} must be positive and finite, one for a group"
                )
            scale = groups.spread(penalties.astype(np.float64))[:, 0]
            R, B = R / scale / scale[:, None], B / scale
        if len(B) <= d:
            return cls(R, np.array(B.T, order="C"), None, groups, scale)
        basis, rows = np.linalg.qr(B)
        return cls(R, np.array(rows.T, order="C"), basis, groups, scale)

    def restricted(self, which: Indices) -> Problem:
        """The problem of these groups alone."""
        columns = self.groups.columns(which)
        return Problem(
            self.R[np.ix_(columns, columns)],
            self.cross[columns],
            self.basis,
            Groups.of(self.groups.widths[which]),
            None if self.scale is None else self.scale[columns],
        )

    def start(self, weights: Array | None) -> Array:
        """``X (d, k)`` of weights ``(N, d)``, or zeros."""
        if weights is None:
            return np.zeros_like(self.cross)
        scaled = weights if self.scale is None else weights * self.scale
        return np.array((scaled if self.basis is None else self.basis.T @ scaled).T, order="C")

    def distance(self, residual: Array, X: Array, lam: float) -> float:
        """The certificate of ``X``, given ``residual = cross - R X``."""
        norms = self.groups.norms(X)
        pull = np.divide(lam, norms, out=np.zeros_like(norms), where=norms > 0)
        off = self.groups.norms(residual - X * self.groups.spread(pull))
        return float(np.where(norms > 0, off, np.maximum(off - lam, 0.0)).max()) / lam

    def result(
        self, X: Array, lam: float, certificate: float, iterations: int, tolerance: float
    ) -> GroupLasso:
        """The solution ``X`` as weights."""
        weights = np.array(X.T, order="C") if self.basis is None else self.basis @ X.T
        if self.scale is not None:
            weights /= self.scale
        support = np.flatnonzero(self.groups.norms(X) > 0)
        return GroupLasso(
            weights, support, lam, certificate, iterations, bool(certificate <= tolerance)
        )


class Fista:
    """Accelerated proximal gradient steps, with restarts where momentum points uphill.

    Args:
        problem: what to minimise.
        lam: weight of the penalty.
        X: where to begin ``(d, k)``.
    """

    def __init__(self, problem: Problem, lam: float, X: Array) -> None:
        self.X, self._ahead, self._t = X, X, 1.0
        self._problem, self._lam = problem, lam
        self._lipschitz = _largest_eigenvalue(problem.R)

    def run(self, steps: int) -> Array:
        """``X`` after some steps more."""
        problem, lipschitz = self._problem, self._lipschitz
        for _ in range(steps):
            moved = self._ahead + (problem.cross - problem.R @ self._ahead) / lipschitz
            norms = problem.groups.norms(moved)
            # the proximal map: shrink the norm of each group by lam / L
            kept = np.maximum(norms - self._lam / lipschitz, 0.0)
            scale = np.divide(kept, norms, out=np.zeros_like(norms), where=norms > 0)
            moved *= problem.groups.spread(scale)
            change = moved - self.X
            if np.vdot(self._ahead - moved, change) > 0:
                self._t = 1.0
            following = (1 + np.sqrt(1 + 4 * self._t**2)) / 2
            self._ahead = moved + (self._t - 1) / following * change
            self.X, self._t = moved, following
        return self.X


def lambda_max(B: Array, widths: Sequence[int] | Indices, penalties: Array | None = None) -> float:
    """The least ``lam`` that leaves no group, for ``B (N, d)`` and ``p (G,)``."""
    norms = Groups.of(widths).norms(B.T)
    return float(np.max(norms if penalties is None else norms / penalties))


def fista(
    R: Array,
    B: Array,
    widths: Sequence[int] | Indices,
    lam: float,
    *,
    penalties: Array | None = None,
    start: Array | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = 20_000,
) -> GroupLasso:
    """Solve by accelerated proximal gradient descent.

    Args:
        R: ``E[x x^T] (d, d)``.
        B: ``E[y x^T] (N, d)``.
        widths: columns of each group, side by side; they add up to d.
        lam: weight of the penalty, positive.
        penalties: ``p (G,)``, positive; equal by default.
        start: ``M (N, d)`` to begin at; zero by default.
        tolerance: certificate at which to stop.
        max_iterations: most steps.

    Raises:
        ValueError: shapes that do not belong together, ``lam`` or a penalty not positive.
    """
    problem = Problem.of(R, B, widths, penalties)
    require_positive(lam)
    run = Fista(problem, lam, problem.start(start))
    iterations, certificate = 0, np.inf
    while iterations < max_iterations and certificate > tolerance:
        steps = min(_EVERY, max_iterations - iterations)
        X = run.run(steps)
        iterations += steps
        certificate = problem.distance(problem.cross - problem.R @ X, X, lam)
    return problem.result(run.X, lam, certificate, iterations, tolerance)


def require_positive(lam: float) -> None:
    """Refuse a penalty of nothing.

    Raises:
        ValueError: ``lam`` is not above 0.
    """
    if not lam > 0:
        raise ValueError(f"lam {lam} must be positive; without a penalty use least squares")


def _largest_eigenvalue(R: Array) -> float:
    """An upper bound, a percent above at most for large matrices."""
    if len(R) <= _DENSE:
        largest = float(np.linalg.eigvalsh(R)[-1])
    else:
        start = np.random.default_rng(0).normal(size=len(R))
        values = eigsh(R, 1, v0=start, tol=1e-3, return_eigenvectors=False)
        largest = float(values[0]) * 1.01
    return max(largest, TINY)
