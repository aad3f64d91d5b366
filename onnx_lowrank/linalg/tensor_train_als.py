"""Alternating least squares on the cores of a tensor train, by the response.

    min over G_1 ... G_d   tr((W - What) Sigma (W - What)^T),     What = G_1 G_2 ... G_d

With all cores but one at rest, ``What = L X R`` is linear in the core ``X (r', n, c, r)`` between
what is left and right of it, ``L (A, B, r')`` and ``R (r, A', B')``; the rows ``n`` are separate
regressions of one Gram matrix

    gram[(i b j), (i' b' j')] = sum LL[i, i'; p, p'] RR[j, j'; q, q'] Sigma[(p b q), (p' b' q')]
    LL[i, i'; p, p'] = sum_A L[A, p, i] L[A, p', i'],      RR likewise

which is formed and factored while it is small; a large one is left to conjugate gradients, which
need no more than ``What Sigma``. The cores left and right are kept orthonormal, so with
``Sigma = I`` the Gram matrix is the identity.

All of it goes on in coordinates where each column mode has unit covariance: with ``L_k L_k^T`` the
marginal covariance of mode k, a train of the columns of ``W (L_1 (x) ... (x) L_d)`` is a train of
``W`` with core k times ``L_k``, of the same ranks, and what is left of Sigma is far better
conditioned. The TT-SVD of that matrix is also the better start of the two, as a rule.

Reference:
    Holtz, Rohwedder & Schneider 2012, The alternating linear scheme for tensor optimization in the
    tensor train format; Oseledets 2011.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.linalg import lapack
from onnx_lowrank.linalg.conjugate_gradients import conjugate_gradients

__all__ = ["TrainRegression", "to_matrix"]

Array = npt.NDArray[np.floating[Any]]

#: unknowns of one row up to which the Gram matrix of a core is formed, and elements on the way
_GRAM, _ELEMENTS = 2048, 2**24


class TrainRegression:
    """The problem of fitting the responses of one matrix by trains of any ranks.

    Args:
        weight: matrix ``(N, C)`` of the padded size.
        sigma: covariance ``(C, C)``, positive semi-definite; None is the identity.
        column_modes: sizes ``(c_1, ..., c_d)`` with the product C.

    Attributes:
        weight: matrix ``(N, C)`` in the coordinates of unit marginals.
    """

    def __init__(self, weight: Array, sigma: Array | None, column_modes: Sequence[int]) -> None:
        self._columns = tuple(column_modes)
        self._sigma = sigma
        self._roots: list[Array] = [np.eye(c) for c in column_modes]
        self._inverses = self._roots
        self.weight = weight
        if sigma is not None:
            self._roots = _roots(sigma, self._columns)
            self._inverses = [np.linalg.inv(r) for r in self._roots]
            self.weight = _along(weight, self._roots, self._columns)
            transposed = [r.T for r in self._inverses]
            half = _along(sigma, transposed, self._columns)
            self._sigma = _along(half.T, transposed, self._columns)
        self._target = self._weighted(self.weight)

    def inside(self, cores: Sequence[Array]) -> list[Array]:
        """Transform the cores of a matrix to the coordinates of unit marginals."""
        return [_recoloured(g, r) for g, r in zip(cores, self._roots, strict=True)]

    def outside(self, cores: Sequence[Array]) -> list[Array]:
        """Transform cores back to the coordinates of the input; the inverse of :meth:`inside`."""
        return [_recoloured(g, r) for g, r in zip(cores, self._inverses, strict=True)]

    def objective(self, cores: Sequence[Array]) -> float:
        """Error ``tr(D Sigma D^T)`` of the padded size, for cores inside."""
        left = self.weight - to_matrix(cores)
        return float(np.sum(self._weighted(left) * left))

    def improved(
        self, cores: Sequence[Array], rounds: int, tolerance: float, steps: int
    ) -> tuple[list[Array], int, bool]:
        """Improve cores by some rounds of alternating least squares.

        Args:
            cores: first cores, inside.
            rounds: largest number of rounds; each solves inner cores twice, outer cores once.
            tolerance: relative change of the error at which to stop.
            steps: number of conjugate-gradient steps for a core too large to be solved at once.

        Returns:
            Cores inside, number of rounds, and whether the error came to rest.
        """
        best = list(cores)
        error, done = self.objective(best), 0
        energy = float(np.sum(self._target * self.weight))
        converged = bool(error <= np.finfo(np.float64).eps * energy)
        while done < rounds and not converged:
            done += 1
            found = self._round(best, steps)
            now = self.objective(found)
            converged = error - now <= tolerance * error
            if now < error:
                best, error = found, now
        return best, done, converged

    def _round(self, cores: Sequence[Array], steps: int) -> list[Array]:
        cores = list(cores)
        rights: list[Array] = [np.ones((1, 1, 1))]  # rights[-1 - k] is right of core k
        for k in range(len(cores) - 1, 0, -1):
            cores[k - 1], cores[k] = _right_orthonormal(cores[k - 1], cores[k])
            rights.append(_with_right(cores[k], rights[-1]))
        lefts: list[Array] = [np.ones((1, 1, 1))]
        for k in range(len(cores) - 1):
            cores[k] = self._solved(lefts[-1], cores[k], rights.pop(), steps)
            cores[k], cores[k + 1] = _left_orthonormal(cores[k], cores[k + 1])
            lefts.append(_with_left(lefts[-1], cores[k]))
        right = rights.pop()
        for k in range(len(cores) - 1, 0, -1):
            cores[k] = self._solved(lefts.pop(), cores[k], right, steps)
            cores[k - 1], cores[k] = _right_orthonormal(cores[k - 1], cores[k])
            right = _with_right(cores[k], right)
        return cores

    def _solved(self, left: Array, core: Array, right: Array, steps: int) -> Array:
        """Solve or improve the core between ``left (A, B, i)`` and ``right (j, A', B')``."""
        target = _read(left, self._target, right, core.shape)
        if self._sigma is None:
            return target
        i, n, c, j = core.shape
        # sum first over the side that leaves the smaller array
        rest = (i * c * right.shape[2], left.shape[1] * c * j)
        if i * c * j > _GRAM or min(rest) ** 2 > _ELEMENTS:

            def normal(x: Array) -> Array:
                return _read(left, self._weighted(_composed(left, x, right)), right, core.shape)

            return conjugate_gradients(normal, target, core, steps)
        gram = _gram(left, right, self._sigma, c, rest[0] <= rest[1])
        start = core.transpose(0, 2, 3, 1).reshape(-1, n)
        residual = target.transpose(0, 2, 3, 1).reshape(-1, n) - gram @ start
        # a covariance without full rank, or padding, leaves the Gram matrix singular
        gram[np.diag_indices(len(gram))] += max(
            1e-12 * float(np.trace(gram)) / len(gram), np.finfo(np.float64).tiny
        )
        moved = start + lapack.posv(gram, residual)
        return np.ascontiguousarray(moved.reshape(i, c, j, n).transpose(0, 3, 1, 2))

    def _weighted(self, matrix: Array) -> Array:
        return matrix if self._sigma is None else matrix @ self._sigma


def to_matrix(cores: Sequence[Array]) -> Array:
    """Multiply cores ``(r, n, c, r')`` out to the matrix ``(N, C)`` of the padded size."""
    product: Array = np.ones((1, 1, 1))
    for core in cores:
        product = _with_left(product, core)
    return product[:, :, 0]


def _with_left(left: Array, core: Array) -> Array:
    """Contract ``(A, B, i)`` and ``(i, n, c, j)`` to ``(A n, B c, j)``."""
    product = np.tensordot(left, core, 1).transpose(0, 2, 1, 3, 4)
    return product.reshape(len(left) * core.shape[1], -1, core.shape[3])


def _with_right(core: Array, right: Array) -> Array:
    """Contract ``(i, n, c, j)`` and ``(j, A, B)`` to ``(i, n A, c B)``."""
    product = np.tensordot(core, right, 1).transpose(0, 1, 3, 2, 4)
    return product.reshape(len(core), core.shape[1] * right.shape[1], -1)


def _composed(left: Array, core: Array, right: Array) -> Array:
    """The product ``L X R``, ``(N, C)``."""
    product = np.tensordot(left, _with_right(core, right), 1).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(product).reshape(product.shape[0] * product.shape[1], -1)


def _read(left: Array, matrix: Array, right: Array, shape: Sequence[int]) -> Array:
    """The product ``L^T Y R^T``, of the shape of a core: the adjoint of :func:`_composed`."""
    _, n, c, _ = shape
    (a, b, _), (_, after, behind) = left.shape, right.shape
    parts = matrix.reshape(a, n, after, b, c, behind)
    if a * b == 1:
        return np.tensordot(parts[0, :, :, 0], right, ((1, 3), (1, 2)))[None]
    seen = np.tensordot(left, parts, ((0, 1), (0, 3)))  # (i, n, A', c, B')
    product: Array = np.tensordot(seen, right, ((2, 4), (1, 2)))
    return product


def _gram(left: Array, right: Array, sigma: Array, c: int, left_first: bool) -> Array:
    """The Gram matrix ``(i c j, i c j)`` of one core."""
    b, i = left.shape[1:]
    j, _, behind = right.shape
    flat: Array = left.reshape(len(left), -1)
    lefts: Array = (flat.T @ flat).reshape(b, i, b, i).transpose(1, 3, 0, 2).reshape(i * i, b * b)
    flat = right.transpose(0, 2, 1).reshape(j * behind, -1)
    rights: Array = (flat @ flat.T).reshape(j, behind, j, behind).transpose(1, 3, 0, 2)
    rights = rights.reshape(behind * behind, j * j)
    parts = sigma.reshape(b, c, behind, b, c, behind).transpose(0, 3, 1, 4, 2, 5)
    if left_first:
        seen = lefts @ parts.reshape(b * b, -1)
        product = seen.reshape(-1, behind * behind) @ rights
    else:
        seen = parts.reshape(-1, behind * behind) @ rights
        product = lefts @ seen.reshape(b * b, -1)
    shaped = product.reshape(i, i, c, c, j, j).transpose(0, 2, 4, 1, 3, 5)
    return np.ascontiguousarray(shaped).reshape(i * c * j, -1)


def _left_orthonormal(core: Array, after: Array) -> tuple[Array, Array]:
    """Two cores with the same product, the first one with orthonormal columns."""
    q, r = np.linalg.qr(core.reshape(-1, core.shape[3]))
    return q.reshape(*core.shape[:3], -1), np.tensordot(r, after, 1)


def _right_orthonormal(before: Array, core: Array) -> tuple[Array, Array]:
    """Two cores with the same product, the second one with orthonormal rows."""
    q, r = np.linalg.qr(core.reshape(len(core), -1).T)
    return np.tensordot(before, r.T, 1), q.T.reshape(-1, *core.shape[1:])


def _recoloured(core: Array, own: Array) -> Array:
    """A core ``(i, n, c, j)`` times a map ``(c, c)`` of its column mode."""
    return np.ascontiguousarray(np.moveaxis(np.tensordot(core, own, (2, 0)), -1, 2))


def _along(matrix: Array, maps: Sequence[Array], modes: Sequence[int]) -> Array:
    """The product ``matrix (M_1 (x) ... (x) M_d)``: each column mode times its own map."""
    product = matrix.reshape(len(matrix), *modes)
    for k, own in enumerate(maps):
        product = np.moveaxis(np.tensordot(product, own, (k + 1, 0)), -1, k + 1)
    return np.ascontiguousarray(product).reshape(matrix.shape)


def _roots(sigma: Array, modes: Sequence[int]) -> list[Array]:
    """Cholesky factors of the marginal covariances of all column modes, with mean diagonal 1."""
    roots = []
    for k, size in enumerate(modes):
        before, behind = math.prod(modes[:k]), math.prod(modes[k + 1 :])
        marginal = np.einsum(
            "pbqpdq->bd", sigma.reshape(before, size, behind, before, size, behind)
        )
        mean = float(np.trace(marginal)) / size
        # any invertible map works; padding and constant channels must not make it singular
        scaled = marginal / mean if mean > 0 else marginal
        roots.append(lapack.potrf(scaled + 1e-6 * np.eye(size), clean=True))
    return roots
