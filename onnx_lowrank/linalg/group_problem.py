"""The group lasso on second moments: the problem, and the certificate of a solution.

    min_M  1/2 E||Y - M X||^2 + lam sum_j ||M_j||_F         R = E[x x^T],  B = E[y x^T]

``M_j`` are the columns of group j. Only ``R`` and ``B`` are needed: the gradient is ``M R - B``.
``M`` is optimal where, with the residual correlation ``G = B - M R``,

    G_j = lam M_j / ||M_j||   where M_j != 0,        ||G_j|| <= lam   elsewhere.

The certificate is the largest distance from this over the groups, in units of ``lam``. It is
the stopping rule of every solver. Above ``lam_max = max_j ||B_j||`` all groups are zero.

Several consumers of the same groups, each with inputs ``x_c`` of its own, keep or lose a group
together:

    min  1/2 sum_c weight_c E||Y_c - M_c X_c||^2 + lam sum_j sqrt(sum_c weight_c ||M_c,j||^2)

With ``sqrt(weight_c) M_c`` for ``M_c`` this is the problem above for a block-diagonal ``R``. The
blocks are kept apart: products and inverses cost ``sum_c d_c^2`` and ``sum_c d_c^3``.

Groups may be penalised unequally, by ``lam p_j ||M_j||``: the same problem for inputs divided by
their ``p_j``. With ``p_j = 1 / ||W_j||``, W the map that is to be reproduced, a group is not
penalised for small inputs with large weights (He et al. scale so); supports are then much better.

The penalty does not change when the outputs are rotated, and ``M`` lies in the column space of
``B``. So for N > d, with ``B = Q T`` (thin QR), the d rows of ``T`` pose the same problem. To go
below min(N, d) rows, the ones left out must be smaller than ``lam`` times the tolerance in every
group; on correlated inputs that spared hardly a row.

Reference:
    Yuan & Lin 2006, Model selection and estimation in regression with grouped variables; Zou 2006,
    The adaptive lasso (unequal penalties); He, Zhang & Sun 2017, Channel pruning for accelerating
    very deep neural networks; Liu, Palatucci & Zhang 2009, Blockwise coordinate descent procedures
    for the multi-task lasso (one support for several regressions).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.linalg.groups import Consumer, Groups

__all__ = ["TINY", "GroupLasso", "Problem", "lambda_max", "regularised", "require_positive"]

Array = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.intp]

#: replaces scales that are zero; its square is still a normal number
TINY = 1e-100


@dataclass(frozen=True)
class GroupLasso:
    """A solution of the group lasso.

    Attributes:
        weights: map ``M (N, d)`` of each consumer, exactly zero in the groups left out.
        support: numbers of the groups kept, rising.
        lam: weight of the penalty.
        certificate: largest distance of 0 from the subdifferential over the groups, over ``lam``.
        iterations: number of iterations of the solver.
        converged: whether the certificate is within the tolerance.
    """

    weights: tuple[Array, ...]
    support: Indices
    lam: float
    certificate: float
    iterations: int
    converged: bool


@dataclass(frozen=True)
class Problem:
    """Moments of C consumers, outputs compressed to ``k_c <= min(N_c, d_c)``.

    Solutions are ``X (d, k)``, ``d = sum d_c``, ``k = max k_c``: each consumer's ``sqrt(weight)
    M^T``, one below the other, with zeros beyond its ``k_c``.

    Attributes:
        R: symmetric positive semi-definite matrices ``(d_c, d_c)`` of the consumers.
        cross: ``sqrt(weight) B``, transposed and compressed, ``(d, k)``.
        bases: matrices ``(N_c, k_c)`` with orthonormal columns, ``M = basis X^T``; None where
            ``k_c = N_c``.
        outputs: numbers ``k_c`` of compressed outputs.
        groups: groups of the d columns.
        scale: divisors of the inputs times ``sqrt(weight)``, ``(d,)``: ``M = X^T / scale``.
    """

    R: tuple[Array, ...]
    cross: Array
    bases: tuple[Array | None, ...]
    outputs: tuple[int, ...]
    groups: Groups
    scale: Array

    @classmethod
    def of(cls, consumers: Sequence[Consumer], penalties: Array | None = None) -> Problem:
        """Make the problem of some consumers, with penalties ``p (G,)`` or equal ones.

        Raises:
            ValueError: there is no consumer, shapes do not fit together, or a weight or penalty is
                not positive.
        """
        if not consumers:
            raise ValueError("there is no consumer of the groups; give one or more")
        groups = Groups.of(*(consumer.widths for consumer in consumers))
        divisors: Array = np.ones(int(groups.widths.sum()))
        if penalties is not None:
            if penalties.shape != (groups.count,) or not np.all(
                np.isfinite(penalties) & (penalties > 0)
            ):
                raise ValueError(
                    f"penalties {penalties.shape} must be positive and finite, one for a group"
                )
            divisors = groups.spread(penalties.astype(np.float64))[:, 0]
        matrices, crosses, bases = [], [], []
        scale = divisors.copy()
        for consumer, rows in zip(consumers, groups.rows, strict=True):
            R, B, root = _checked(consumer, rows.stop - rows.start)
            divisor = divisors[rows]
            matrices.append(R if penalties is None else R / divisor / divisor[:, None])
            cross, basis = root * B / divisor, None
            if len(B) > B.shape[1]:
                basis, cross = np.linalg.qr(cross)
            crosses.append(cross)
            bases.append(basis)
            scale[rows] *= root
        outputs = tuple(len(cross) for cross in crosses)
        stacked = np.zeros((len(scale), max(outputs)))
        for cross, rows in zip(crosses, groups.rows, strict=True):
            stacked[rows, : len(cross)] = cross.T
        return cls(tuple(matrices), stacked, tuple(bases), outputs, groups, scale)

    def restricted(self, which: Indices) -> Problem:
        """The problem of some of the groups."""
        columns = self.groups.columns(which)
        blocks = [(R, own) for R, _, own in self._parts(columns)]
        return Problem(
            tuple(R[np.ix_(own, own)] for R, own in blocks),
            self.cross[columns],
            self.bases,
            self.outputs,
            self.groups.restricted(which),
            self.scale[columns],
        )

    def product(self, X: Array, columns: Indices | None = None) -> Array:
        """The product ``R X (d, k)``; with rising ``columns``, ``X`` has these rows only."""
        if columns is None:
            return np.concatenate(
                [R @ X[rows] for R, rows in zip(self.R, self.groups.rows, strict=True)]
            )
        return np.concatenate([R[:, own] @ X[at] for R, at, own in self._parts(columns)])

    def zero_is_best(self, j: int, residual: Array, X: Array, lam: float) -> bool:
        """Whether zero is the best value of group j, given the others."""
        square = 0.0
        for R, rows, start, width in zip(
            self.R,
            self.groups.rows,
            self.groups.starts[:, j],
            self.groups.widths[:, j],
            strict=True,
        ):
            own = slice(start, start + width)
            inside = slice(start - rows.start, start - rows.start + width)
            pull = residual[own] + R[inside, inside] @ X[own]
            square += float(np.vdot(pull, pull))
        return square <= lam**2

    def start(self, weights: Sequence[Array] | None) -> Array:
        """Solution ``X (d, k)`` for the consumers' weights ``(N, d)``, or zeros."""
        X = np.zeros_like(self.cross)
        for M, basis, k, rows in zip(
            weights or (), self.bases, self.outputs, self.groups.rows, strict=weights is not None
        ):
            scaled = M * self.scale[rows]
            X[rows, :k] = (scaled if basis is None else basis.T @ scaled).T
        return X

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
        weights = []
        for basis, k, rows in zip(self.bases, self.outputs, self.groups.rows, strict=True):
            own = X[rows, :k].T
            weights.append((own if basis is None else basis @ own) / self.scale[rows])
        support = np.flatnonzero(self.groups.norms(X) > 0)
        return GroupLasso(
            tuple(weights), support, lam, certificate, iterations, bool(certificate <= tolerance)
        )

    def _parts(self, columns: Indices) -> list[tuple[Array, slice, Indices]]:
        """Split rising columns by block: the block, their places, and their numbers within it."""
        parts = []
        for R, rows in zip(self.R, self.groups.rows, strict=True):
            first, last = np.searchsorted(columns, [rows.start, rows.stop])
            parts.append((R, slice(first, last), columns[first:last] - rows.start))
        return parts


def lambda_max(consumers: Sequence[Consumer], penalties: Array | None = None) -> float:
    """The smallest ``lam`` at which all groups are zero, for penalties ``p (G,)`` or equal ones."""
    squares = [c.weight * Groups.of(c.widths).norms(c.B.T) ** 2 for c in consumers]
    norms = np.sqrt(np.sum(squares, axis=0))
    return float(np.max(norms if penalties is None else norms / penalties))


def require_positive(lam: float) -> None:
    """Refuse a penalty that is not positive.

    Raises:
        ValueError: ``lam`` is not above 0.
    """
    if not lam > 0:
        raise ValueError(f"lam {lam} must be positive; without a penalty use least squares")


def regularised(R: Array, ridge: float) -> Array:
    """The matrix ``R + rho I (d, d)``, with ``rho`` in units of the mean diagonal.

    Raises:
        ValueError: the ridge is below 0.
    """
    if ridge < 0:
        raise ValueError(f"ridge {ridge} must not be negative")
    regular = np.array(R, dtype=np.float64, order="C")
    regular[np.diag_indices(len(regular))] += ridge * float(np.trace(regular)) / len(regular)
    return regular


def _checked(consumer: Consumer, d: int) -> tuple[Array, Array, float]:
    """Check a consumer; return ``R``, ``B`` and the root of its weight."""
    R = np.asarray(consumer.R, dtype=np.float64)
    B = np.asarray(consumer.B, dtype=np.float64)
    if R.shape != (d, d) or B.ndim != 2 or B.shape[1] != d:
        raise ValueError(f"R {R.shape} and B {B.shape} must have the {d} columns of the groups")
    if not 0 < consumer.weight < np.inf:
        raise ValueError(f"weight {consumer.weight} of a consumer must be positive and finite")
    return R, B, math.sqrt(consumer.weight)
