"""The group lasso on second moments: the problem, and the certificate of a solution.

    min_M  1/2 E||Y - M X||^2 + lam sum_j ||M_j||_F         R = E[x x^T],  B = E[y x^T]

``M_j`` are the columns of group j. Only ``R`` and ``B`` are needed: the gradient is ``M R - B``.
``M`` is optimal where, with the residual correlation ``G = B - M R``,

    G_j = lam M_j / ||M_j||   where M_j != 0,        ||G_j|| <= lam   elsewhere.

The certificate is the largest distance from this over the groups, in units of ``lam``. It is
the stopping rule of every solver. Above ``lam_max = max_j ||B_j||`` nothing is left.

Several consumers of the same groups, each with inputs ``x_c`` of its own, keep or lose a group
together:

    min  1/2 sum_c weight_c E||Y_c - M_c X_c||^2 + lam sum_j sqrt(sum_c weight_c ||M_c,j||^2)

With ``sqrt(weight_c) M_c`` for ``M_c`` this is the problem above for a block-diagonal ``R``. The
blocks are kept apart: products and inverses cost ``sum_c d_c^2`` and ``sum_c d_c^3``.

Groups may be penalised unequally, by ``lam p_j ||M_j||``: the same problem for inputs divided by
their ``p_j``. With ``p_j = 1 / ||W_j||``, W the map that is to be imitated, a group no longer pays
for being small in amplitude (He et al. scale so); supports are then much better.

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

#: stands in for scales that are zero; its square is still a normal number
TINY = 1e-100


@dataclass(frozen=True)
class GroupLasso:
    """A solution.

    Attributes:
        weights: ``M (N, d)`` of each consumer, exact zeros in the groups left out.
        support: rising indices of the groups kept.
        lam: weight of the penalty.
        certificate: largest distance of 0 from the subdifferential over the groups, over ``lam``.
        iterations: of the solver.
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
        R: C symmetric positive semi-definite ``(d_c, d_c)``, the blocks of a diagonal.
        cross: ``(d, k)``, ``sqrt(weight) B`` transposed and compressed.
        bases: C times ``(N_c, k_c)`` with orthonormal columns, ``M = basis X^T``; None where
            ``k_c = N_c``.
        outputs: C times ``k_c``.
        groups: of the d columns.
        scale: ``(d,)``, what inputs were divided by, over ``sqrt(weight)``: ``M = X^T / scale``.
    """

    R: tuple[Array, ...]
    cross: Array
    bases: tuple[Array | None, ...]
    outputs: tuple[int, ...]
    groups: Groups
    scale: Array

    @classmethod
    def of(cls, consumers: Sequence[Consumer], penalties: Array | None = None) -> Problem:
        """The problem of these consumers, and ``p (G,)`` or equal penalties.

        Raises:
            ValueError: no consumer, shapes that do not belong together, or a weight or penalty
                that is not positive.
        """
        if not consumers:
            raise ValueError("no consumer of the groups; there must be 1 at least")
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
        """The problem of these groups alone."""
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
        """``R X (d, k)``; given rising ``columns``, ``X`` is of these rows, the rest zero."""
        if columns is None:
            return np.concatenate(
                [R @ X[rows] for R, rows in zip(self.R, self.groups.rows, strict=True)]
            )
        return np.concatenate([R[:, own] @ X[at] for R, at, own in self._parts(columns)])

    def zero_is_best(self, j: int, residual: Array, X: Array, lam: float) -> bool:
        """Whether group j had better be zero, all else as it is."""
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
        """``X (d, k)`` of the consumers' weights ``(N, d)``, or zeros."""
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
        """Of rising columns: each block, where its columns are among them, and which they are."""
        parts = []
        for R, rows in zip(self.R, self.groups.rows, strict=True):
            first, last = np.searchsorted(columns, [rows.start, rows.stop])
            parts.append((R, slice(first, last), columns[first:last] - rows.start))
        return parts


def lambda_max(consumers: Sequence[Consumer], penalties: Array | None = None) -> float:
    """The least ``lam`` that leaves no group, for ``p (G,)`` or equal penalties."""
    squares = [c.weight * Groups.of(c.widths).norms(c.B.T) ** 2 for c in consumers]
    norms = np.sqrt(np.sum(squares, axis=0))
    return float(np.max(norms if penalties is None else norms / penalties))


def require_positive(lam: float) -> None:
    """Refuse a penalty of nothing.

    Raises:
        ValueError: ``lam`` is not above 0.
    """
    if not lam > 0:
        raise ValueError(f"lam {lam} must be positive; without a penalty use least squares")


def regularised(R: Array, ridge: float) -> Array:
    """``R + rho I (d, d)``, ``rho`` in units of the mean diagonal.

    Raises:
        ValueError: a ridge below 0.
    """
    if ridge < 0:
        raise ValueError(f"ridge {ridge} must not be negative")
    regular = np.array(R, dtype=np.float64, order="C")
    regular[np.diag_indices(len(regular))] += ridge * float(np.trace(regular)) / len(regular)
    return regular


def _checked(consumer: Consumer, d: int) -> tuple[Array, Array, float]:
    """``R``, ``B``, and the root of the weight."""
    R = np.asarray(consumer.R, dtype=np.float64)
    B = np.asarray(consumer.B, dtype=np.float64)
    if R.shape != (d, d) or B.ndim != 2 or B.shape[1] != d:
        raise ValueError(f"R {R.shape} and B {B.shape} must have the {d} columns of the groups")
    if not 0 < consumer.weight < np.inf:
        raise ValueError(f"weight {consumer.weight} of a consumer must be positive and finite")
    return R, B, math.sqrt(consumer.weight)
