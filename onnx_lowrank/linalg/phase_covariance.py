"""Covariance of patches of which each reads the columns of one phase only.

Let a row ``x`` be zero outside the columns of its phase p, as the patches of a transposed
convolution are. With the share ``w_p`` of the rows of phase p its covariance is

    Sigma = D - v v^T,     D = diag(w_p E_p[x x^T]),     v = E[x]

block-diagonal but for a matrix of rank one, which comes of the bias that all phases share. Products
and solutions cost ``sum_p d_p^2`` and ``sum_p d_p^3``:

    (D - v v^T)^-1 = D^-1 + z z^T / (1 - v^T z),     z = D^-1 v

Reference:
    Sherman & Morrison 1950, Adjustment of an inverse matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.linalg import lapack

__all__ = ["Covariance", "PhaseCovariance", "by_group", "mean_variance", "solved", "taken"]

Array = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class PhaseCovariance:
    """The matrix ``D - v v^T (d, d)``; ``rows @ it`` multiplies, and numpy can write it out.

    Attributes:
        blocks: blocks ``(d_p, d_p)`` of ``D``, by phase.
        columns: rising numbers of the columns of each, ``(d_p,)``; together they are all d.
        shift: ``v (d,)``.
    """

    blocks: tuple[Array, ...]
    columns: tuple[Indices, ...]
    shift: Array

    __array_ufunc__ = None  # so that ``rows @ it`` is ours

    def __len__(self) -> int:
        return len(self.shift)

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return sum(block.nbytes for block in self.blocks)

    @property
    def trace(self) -> float:
        """Sum of the diagonal."""
        of_blocks = sum(float(np.trace(block)) for block in self.blocks)
        return of_blocks - float(self.shift @ self.shift)

    @property
    def square(self) -> float:
        """Sum of the squares of all elements."""
        whole = sum(float(np.vdot(block, block)) for block in self.blocks)
        mixed = sum(
            float(self.shift[at] @ block @ self.shift[at])
            for block, at in zip(self.blocks, self.columns, strict=True)
        )
        return whole - 2 * mixed + float(self.shift @ self.shift) ** 2

    def __rmatmul__(self, rows: Array) -> Array:
        """The product ``rows (..., d)`` times the matrix."""
        made: Array = -(rows @ self.shift)[..., None] * self.shift
        for block, at in zip(self.blocks, self.columns, strict=True):
            made[..., at] += rows[..., at] @ block
        return made

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        made = -np.outer(self.shift, self.shift)
        for block, at in zip(self.blocks, self.columns, strict=True):
            made[np.ix_(at, at)] += block
        return made if dtype is None else made.astype(dtype, copy=False)

    def times(self, factor: float, ridge: float = 0.0) -> PhaseCovariance:
        """The matrix ``factor * Sigma + ridge * I``, of a factor above 0."""
        blocks = tuple(block * factor for block in self.blocks)
        for block in blocks:
            block[np.diag_indices(len(block))] += ridge
        return replace(self, blocks=blocks, shift=self.shift * np.sqrt(factor))

    def single(self) -> tuple[PhaseCovariance, float]:
        """The same in float32, and what it is divided by, so that nothing overflows."""
        largest = max(float(np.max(np.abs(b), initial=0.0)) for b in self.blocks) or 1.0
        small = tuple((block / largest).astype(np.float32) for block in self.blocks)
        shift = (self.shift / np.sqrt(largest)).astype(np.float32)
        return replace(self, blocks=small, shift=shift), largest

    def taken(self, columns: Indices) -> PhaseCovariance:
        """The covariance of some of the columns, in the order given."""
        place = np.empty(len(self), np.intp)
        number = np.empty(len(self), np.intp)
        for phase, at in enumerate(self.columns):
            place[at], number[at] = np.arange(len(at)), phase
        own = [np.flatnonzero(number[columns] == phase) for phase in range(len(self.columns))]
        return PhaseCovariance(
            tuple(
                block[np.ix_(place[columns[at]], place[columns[at]])]
                for block, at in zip(self.blocks, own, strict=True)
            ),
            tuple(own),
            self.shift[columns],
        )

    def solve(self, right: Array, ridge: float = 0.0) -> Array:
        """The solution ``(d, n)`` of ``(Sigma + ridge I) X = right``.

        Raises:
            numpy.linalg.LinAlgError: the matrix is not positive definite.
        """
        found, z = np.empty_like(right), np.empty_like(self.shift)
        for block, at in zip(self.blocks, self.columns, strict=True):
            factor = _factor(block, ridge)
            found[at] = lapack.potrs(factor, right[at])
            z[at] = lapack.potrs(factor, self.shift[at])
        left = 1 - float(self.shift @ z)
        if not left > 0:
            raise np.linalg.LinAlgError("the covariance is not positive definite")
        found += np.outer(z / left, z @ right)
        return found


Covariance = Array | PhaseCovariance
"""A covariance ``(d, d)``."""


def by_group(covariances: Array | PhaseCovariance) -> Sequence[Covariance]:
    """Covariances of groups ``(groups, d, d)`` one by one; phases are of one group."""
    if isinstance(covariances, PhaseCovariance):
        return [covariances]
    return list(covariances)


def taken(sigma: Covariance, columns: Indices) -> Covariance:
    """The covariance of some of the columns, in the order given."""
    if isinstance(sigma, PhaseCovariance):
        return sigma.taken(columns)
    own: Array = sigma[np.ix_(columns, columns)]
    return own


def mean_variance(sigma: Covariance) -> float:
    """The mean of the diagonal."""
    trace = sigma.trace if isinstance(sigma, PhaseCovariance) else float(np.trace(sigma))
    return trace / len(sigma)


def solved(sigma: Covariance, ridge: float, right: Array) -> Array:
    """The solution ``(d, n)`` of ``(Sigma + ridge I) X = right``, which may be written over.

    Raises:
        numpy.linalg.LinAlgError: the matrix is not positive definite.
    """
    if isinstance(sigma, PhaseCovariance):
        return sigma.solve(right, ridge)
    return lapack.potrs(_factor(sigma, ridge), right, overwrite=True)


def _factor(sigma: Array, ridge: float) -> Array:
    """The Cholesky factor of ``Sigma + ridge I``, as SciPy takes it."""
    shifted = sigma.copy()
    shifted[np.diag_indices(len(shifted))] += ridge
    # the transpose is the same matrix in the order of LAPACK, which writes over it then
    return lapack.potrf(shifted.T, overwrite=True)
