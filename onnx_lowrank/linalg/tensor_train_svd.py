"""TT-SVD: a matrix as a tensor train by one singular value decomposition after the other.

With the tensor over pairs ``m_k = n_k c_k``, the unfolding ``(r_{k-1} m_k, m_{k+1} ...
m_d)`` is cut at its ``r_k`` leading singular values, from the left to the right. What the cuts drop
is orthogonal, so the squared error is the sum of all squared singular values dropped, and it is the
best possible with two cores, no more than d - 1 times the best with d. Cut where a part
``epsilon^2 / (d - 1)`` of the energy is lost at most, each, the whole loses ``epsilon^2`` at most.
The first unfolding, by far the widest, is decomposed once for all ranks.

Reference:
    Oseledets 2011, Tensor-train decomposition, SIAM J. Sci. Comput. 33.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["TrainSvd"]

Array = npt.NDArray[np.floating[Any]]


class TrainSvd:
    """TT-SVDs of one matrix, at all ranks."""

    def __init__(
        self, weight: Array, row_modes: Sequence[int], column_modes: Sequence[int]
    ) -> None:
        self._modes = list(zip(row_modes, column_modes, strict=True))
        order = len(self._modes)
        paired = weight.reshape(*row_modes, *column_modes)
        paired = paired.transpose([k + s for k in range(order) for s in (0, order)])
        first = row_modes[0] * column_modes[0]
        self._first = _Split(np.ascontiguousarray(paired).reshape(first, -1))
        self._energy = float(np.sum(weight**2))

    def cores(self, ranks: Sequence[int] = (), epsilon: float | None = None) -> list[Array]:
        """Compute cores of ``ranks``, or of the smallest ranks that lose at most ``epsilon``."""
        cores: list[Array] = []
        split, before = self._first, 1
        budget = 0.0 if epsilon is None else epsilon**2 * self._energy / (len(self._modes) - 1)
        for k, (n, c) in enumerate(self._modes[:-1]):
            rank = ranks[k] if epsilon is None else split.rank_within(budget)
            basis, rest = split.cut(rank)
            cores.append(basis.reshape(before, n, c, rank))
            before = rank
            if k + 2 < len(self._modes):
                n, c = self._modes[k + 1]
                split = _Split(rest.reshape(rank * n * c, -1))
        cores.append(rest.reshape(before, *self._modes[-1], 1))
        return cores


class _Split:
    """Split of ``matrix (m, M)`` into an orthonormal basis times a rest, at all ranks.

    The eigenvectors come from the smaller of the two Gram matrices; the product is still exact, as
    it is the projection of the matrix on them.
    """

    def __init__(self, matrix: Array) -> None:
        self._matrix = matrix
        self._wide = matrix.shape[0] <= matrix.shape[1]
        gram = matrix @ matrix.T if self._wide else matrix.T @ matrix
        values, vectors = np.linalg.eigh(gram)
        self._squares = np.maximum(values[::-1], 0.0)
        self._vectors = vectors[:, ::-1]

    def rank_within(self, loss: float) -> int:
        """The smallest rank (1 or more) that drops squared singular values of at most ``loss``."""
        left = np.cumsum(self._squares[::-1])[::-1]  # sums that ranks 0, 1, ... drop
        rounding = len(left) * float(np.finfo(np.float64).eps) * float(left[0])
        return max(int(np.sum(left > loss + rounding)), 1)

    def cut(self, rank: int) -> tuple[Array, Array]:
        """Basis ``(m, r)`` and rest ``(r, M)``."""
        vectors = self._vectors[:, :rank]
        if self._wide:
            return vectors, vectors.T @ self._matrix
        q, r = np.linalg.qr(self._matrix @ vectors)
        return q, r @ vectors.T
