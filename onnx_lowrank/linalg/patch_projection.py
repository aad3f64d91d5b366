"""Projection of a patch onto r directions, and regression of the response on them.

A kernel ``W[n, a, b]`` reads a patch ``x[a, b]``. The axes ``a`` (always with the channels) are
contracted by a basis ``V[k, a]``, the axes ``b`` by a second map ``H[n, k, b]``:

    What[n, a, b] = sum_k H[n, k, b] V[k, a]

``b`` empty is reduced-rank regression; ``b`` one kernel axis is the spatial decomposition of
Tai et al.; ``a`` the channels alone is a 1x1 convolution in front of a narrower one.

Basis: right singular vectors ``Q`` of ``S^(1/2) M`` with ``M[a, (n, b)] = W[n, a, b]`` and
``S = sum_b Sigma[(., b), (., b)]``, brought back as ``V = (M Q)^T``: no inverse root is needed.
With ``b`` empty or ``Sigma = I`` it is optimal (Eckart & Young 1936), else the optimum of a bound,
and :meth:`PatchProjection.refined` goes on from there: ``V`` by conjugate gradients, ``H`` exactly,
in turn. On trained networks the first round takes most of what there is, 10 to 50 % of the error.

Regression: ``H`` is the exact least-squares solution under the full ``Sigma``. The features of
rank r are the first r of those of any larger rank, so one Cholesky factor serves all ranks: the
error of each is a partial sum, the solution of each a triangular solve.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg

from onnx_lowrank.linalg.cholesky import cholesky
from onnx_lowrank.linalg.conjugate_gradients import conjugate_gradients

__all__ = ["Factors", "PatchProjection"]

Array = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Factors:
    """Both maps at one rank.

    Attributes:
        basis: first map ``(r, *a)``.
        last: last map ``(N, r, *b)``.
        error: error ``tr(D Sigma D^T)``.
    """

    basis: Array
    last: Array
    error: float


class PatchProjection:
    """Projection of one kernel at all ranks.

    Args:
        kernel: kernel ``(N, *patch)`` of one group, ``patch`` of ``d`` elements.
        sigma: covariance ``(d, d)`` of the patch, positive definite; None is the identity.
        first: axes of ``patch`` that the basis contracts.
        max_rank: largest rank; by default the numerical rank.
    """

    def __init__(
        self, kernel: Array, sigma: Array | None, first: Sequence[int], max_rank: int | None = None
    ) -> None:
        patch = kernel.shape[1:]
        rest = [i for i in range(len(patch)) if i not in first]
        order = [*first, *rest]
        self._first, self._rest = [patch[i] for i in first], [patch[i] for i in rest]
        a, b = math.prod(self._first), math.prod(self._rest)
        tensor = kernel.transpose(0, *(i + 1 for i in order)).reshape(len(kernel), a, b)
        metric = None
        if sigma is not None:
            paired = sigma.reshape(*patch, *patch)
            paired = paired.transpose(*order, *(i + len(patch) for i in order))
            metric = paired.reshape(a * b, a * b)
        self._a, self._b, self._metric = a, b, metric
        flat = tensor.reshape(len(kernel), a * b)
        self._weighted = flat if metric is None else flat @ metric  # W Sigma
        self.energy = float(np.sum(self._weighted * flat))
        self._basis = _basis(tensor, metric, self._weighted, max_rank)
        self._factor, self._cross, gains = self._regression(self._basis)
        self._explained = np.concatenate([[0.0], np.cumsum(gains)])

    @property
    def max_rank(self) -> int:
        """Largest rank with a direction of its own."""
        return len(self._basis)

    def error(self, rank: int) -> float:
        """Error ``tr((W - What) Sigma (W - What)^T)`` at ``rank``, before refinement."""
        return max(self.energy - float(self._explained[min(rank, self.max_rank)]), 0.0)

    def factors(self, rank: int) -> Factors:
        """Basis and last map of ``rank``, before refinement; zeros beyond :attr:`max_rank`."""
        width = min(rank, self.max_rank) * self._b
        last = _solved(self._factor[:width, :width], self._cross[:, :width])
        return self._shaped(self._basis[:rank], last, self.error(rank), rank)

    def refined(self, rank: int, rounds: int, steps: int = 8) -> Factors:
        """Basis and last map of ``rank`` after ``rounds`` of alternating least squares.

        Args:
            rank: number of directions.
            rounds: largest number of rounds; each solves the basis, then the last map.
            steps: number of conjugate-gradient steps for the basis.
        """
        if self._metric is None or self._b == 1 or rank == 0:
            return self.factors(rank)  # optimal already
        best = self.factors(rank)
        basis = self._basis[:rank]
        last = best.last[:, : len(basis)].reshape(-1, len(basis), self._b)
        for _ in range(rounds):
            basis = _unit_rows(self._improved(basis, last, steps))
            factor, cross, gains = self._regression(basis)
            last = _solved(factor, cross).reshape(-1, len(basis), self._b)
            error = max(self.energy - float(gains.sum()), 0.0)
            if error >= best.error:
                break
            best = self._shaped(basis, last, error, rank)
        return best

    def _improved(self, basis: Array, last: Array, steps: int) -> Array:
        """Lower ``||(W - H V) Sigma^(1/2)||^2`` in ``V`` by conjugate gradients from ``basis``."""
        a, b, rank = self._a, self._b, len(basis)
        assert self._metric is not None
        # the normal operator sum_b,b' (H^T H)[k b, k' b'] V[k'] Sigma[(., b'), (., b)]
        gram = np.tensordot(last, last, (0, 0)).reshape(rank, b * rank * b)
        metric = self._metric.reshape(a, b * a * b)

        def normal(v: Array) -> Array:
            read = (v @ metric).reshape(rank, b, a, b).transpose(3, 0, 1, 2)
            product: Array = gram @ read.reshape(b * rank * b, a)
            return product

        target = np.tensordot(last, self._weighted.reshape(-1, a, b), ((0, 2), (0, 2)))
        return conjugate_gradients(normal, target, basis, steps)

    def _regression(self, basis: Array) -> tuple[Array, Array, Array]:
        """Cholesky factor of the features' Gram matrix, ``W Sigma Z^T``, and gain of each rank."""
        cross = _contract(self._weighted.T, basis, self._b).T
        if self._metric is None:
            gram = np.kron(basis @ basis.T, np.eye(self._b))
        else:
            gram = _contract(_contract(self._metric, basis, self._b).T, basis, self._b)
        factor = cholesky(gram)
        gains = linalg.solve_triangular(factor, cross.T, lower=True, check_finite=False)
        return factor, cross, np.sum(gains**2, axis=1).reshape(len(basis), self._b).sum(axis=1)

    def _shaped(self, basis: Array, last: Array, error: float, rank: int) -> Factors:
        short = rank - len(basis)
        basis = np.pad(basis, [(0, short), (0, 0)])
        last = np.pad(last.reshape(-1, rank - short, self._b), [(0, 0), (0, short), (0, 0)])
        return Factors(
            basis.reshape(rank, *self._first), last.reshape(-1, rank, *self._rest), error
        )


def _solved(factor: Array, cross: Array) -> Array:
    solution: Array = linalg.cho_solve((factor, True), cross.T, check_finite=False).T
    return solution


def _unit_rows(rows: Array) -> Array:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Array = rows / np.where(norms > 0, norms, 1.0)
    return unit


def _basis(tensor: Array, metric: Array | None, seen: Array, max_rank: int | None) -> Array:
    """Compute the basis ``V (R, a)`` with unit rows; ``seen (N, a b)`` is ``W Sigma``."""
    outputs, a, b = tensor.shape
    stacked = tensor.transpose(1, 0, 2).reshape(a, outputs * b)
    marginal = None if metric is None else np.einsum("ibjb->ij", metric.reshape(a, b, a, b))
    if outputs * b <= a:
        apart = stacked if marginal is None or b == 1 else marginal @ stacked
        weighted = seen.T if b == 1 else apart
        values, vectors = np.linalg.eigh(stacked.T @ weighted)
        directions = stacked @ vectors
    else:
        root = None if marginal is None else cholesky(marginal)
        rotated = stacked if root is None else root.T @ stacked
        values, vectors = np.linalg.eigh(rotated @ rotated.T)
        directions = stacked @ (rotated.T @ vectors)
    values, directions = values[::-1], directions[:, ::-1]
    # smaller eigenvalues are rounding errors of the Gram matrix
    floor = max(values[0], 0.0) * max(a, outputs * b) * np.finfo(np.float64).eps
    rank = max(int(np.sum(values > floor)), 1)
    return _unit_rows(directions[:, : rank if max_rank is None else min(rank, max_rank)].T)


def _contract(matrix: Array, basis: Array, b: int) -> Array:
    """Contract the rows ``(a, b)`` of ``matrix`` to rows ``(k, b)``."""
    a, columns = basis.shape[1], matrix.shape[1]
    return (basis @ matrix.reshape(a, b * columns)).reshape(-1, columns)
