"""Projection of a patch onto r directions, and regression of the response on them.

A kernel ``W[n, a, b]`` reads a patch ``x[a, b]``. The axes ``a`` (always with the channels) are
contracted by a basis ``V[k, a]``, the axes ``b`` by a second map ``H[n, k, b]``:

    What[n, a, b] = sum_k H[n, k, b] V[k, a]

``b`` empty is reduced-rank regression; ``b`` one kernel axis is the spatial decomposition of
Tai et al.; ``a`` the channels alone is a 1x1 convolution in front of a narrower one.

With ``b`` empty all is known in closed form. Let ``P`` be the leading eigenvectors of
``W Sigma W^T``, orthonormal; then ``V = P^T W``, ``H = P``, and the error of rank r is what
``P^T W Sigma W^T P`` lacks of the energy (Izenman 1975). Else:

Basis: right singular vectors ``Q`` of ``S^(1/2) M`` with ``M[a, (n, b)] = W[n, a, b]`` and
``S = sum_b Sigma[(., b), (., b)]``, brought back as ``V = (M Q)^T``: no inverse root is needed.
With ``Sigma = I`` it is optimal (Eckart & Young 1936), else the optimum of a bound, and
:meth:`PatchProjection.refined` goes on from there: ``V`` by conjugate gradients, which
``sum_b H[., b]^T H[., b]`` and ``S`` precondition, ``H`` exactly, in turn. On trained networks the
first round takes most of what there is, 1 to 30 % of the error.

Regression: ``H`` is the exact least-squares solution under the full ``Sigma``. The features of
rank r are the first r of those of any larger rank, so one Cholesky factor serves all ranks: the
error of each is a partial sum, the solution of each a triangular solve.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.lazily import lazy
from onnx_lowrank.linalg import lapack
from onnx_lowrank.linalg.cholesky import cholesky
from onnx_lowrank.linalg.conjugate_gradients import (
    STEPS,
    Single,
    conjugate_gradients,
    damped_inverse,
    near_product,
    single_of,
)
from onnx_lowrank.linalg.patch_metric import PatchMetric, contracted
from onnx_lowrank.linalg.phase_covariance import Covariance

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
        self,
        kernel: Array,
        sigma: Covariance | None,
        first: Sequence[int],
        max_rank: int | None = None,
    ) -> None:
        patch = kernel.shape[1:]
        rest = [i for i in range(len(patch)) if i not in first]
        order = [*first, *rest]
        self._first, self._rest = [patch[i] for i in first], [patch[i] for i in rest]
        a, b = math.prod(self._first), math.prod(self._rest)
        tensor = kernel.transpose(0, *(i + 1 for i in order)).reshape(len(kernel), a, b)
        self._a, self._b = a, b
        self._metric = None if sigma is None else PatchMetric.of(sigma, patch, first)
        flat = tensor.reshape(len(kernel), a * b)
        self._weighted = flat if self._metric is None else self._metric.product(flat)  # W Sigma
        self.energy = float(np.sum(self._weighted * flat))
        self._last: Array | None = None  # (N, R), where it is that of all ranks
        if b == 1:
            self._basis, self._last, gains = _reduced_rank(flat, sigma, self._weighted, max_rank)
        else:
            self._basis = _basis(tensor, self._metric, max_rank)
            gains = self._features[2]
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
        if self._last is not None:
            last = self._last[:, :width]
        else:
            factor, cross, _ = self._features
            last = _solved(factor[:width, :width], cross[:, :width])
        return self._shaped(self._basis[:rank], last, self.error(rank), rank)

    def refined(self, rank: int, rounds: int, steps: int = STEPS) -> Factors:
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
        assert self._metric is not None
        gram = np.tensordot(last, last, (0, 0))
        weighted = self._weighted.reshape(-1, self._a, self._b)
        target = np.tensordot(last, weighted, ((0, 2), (0, 2)))
        (small, one), (whole, other) = single_of(gram), self._single
        inverse = near_product(np.einsum("kbqb->kq", gram), self._inverse)
        single = Single(partial(whole.normal, gram=small), one * other, inverse)
        normal = partial(self._metric.normal, gram=gram)
        return conjugate_gradients(normal, target, basis, steps, single)

    @lazy
    def _inverse(self) -> Array:
        """The inverse of the covariance of columns ``a``, summed over ``b``."""
        assert self._metric is not None
        return damped_inverse(self._metric.marginal())

    @lazy
    def _single(self) -> tuple[PatchMetric, float]:
        """The metric in float32, and what it is divided by."""
        assert self._metric is not None
        return self._metric.single()

    @lazy
    def _features(self) -> tuple[Array, Array, Array]:
        """What :meth:`_regression` gives for the basis of all ranks."""
        return self._regression(self._basis)

    def _regression(self, basis: Array) -> tuple[Array, Array, Array]:
        """Cholesky factor of the features' Gram matrix, ``W Sigma Z^T``, and gain of each rank."""
        cross = contracted(self._weighted.T, basis, self._b).T
        if self._metric is None:
            gram = np.kron(basis @ basis.T, np.eye(self._b))
        else:
            gram = self._metric.gram(basis)
        factor = cholesky(gram)
        gains = lapack.trtrs(factor, cross.T)
        return factor, cross, np.sum(gains**2, axis=1).reshape(len(basis), self._b).sum(axis=1)

    def _shaped(self, basis: Array, last: Array, error: float, rank: int) -> Factors:
        short = rank - len(basis)
        basis = np.pad(basis, [(0, short), (0, 0)])
        last = np.pad(last.reshape(-1, rank - short, self._b), [(0, 0), (0, short), (0, 0)])
        return Factors(
            basis.reshape(rank, *self._first), last.reshape(-1, rank, *self._rest), error
        )


def _solved(factor: Array, cross: Array) -> Array:
    return lapack.potrs(factor, cross.T).T


def _unit_rows(rows: Array) -> Array:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Array = rows / np.where(norms > 0, norms, 1.0)
    return unit


def _reduced_rank(
    weight: Array, sigma: Covariance | None, weighted: Array, max_rank: int | None
) -> tuple[Array, Array, Array]:
    """Compute the maps of all ranks where the basis contracts the whole patch.

    Args:
        weight: ``W (N, a)``.
        sigma: covariance ``(a, a)``; None is the identity.
        weighted: ``W Sigma (N, a)``.
        max_rank: largest rank; by default the numerical rank.

    Returns:
        Basis ``(R, a)`` with unit rows, last map ``(N, R)``, and gain ``(R,)`` of each rank.
    """
    outputs, a = weight.shape
    if outputs <= a:
        values, vectors = np.linalg.eigh(weight @ weighted.T)
        leading = vectors[:, ::-1][:, : _rank(values, weight.shape, max_rank)]
    else:
        rotated = weight if sigma is None else weight @ cholesky(np.asarray(sigma))
        values, vectors = np.linalg.eigh(rotated.T @ rotated)
        leading = rotated @ vectors[:, ::-1][:, : _rank(values, weight.shape, max_rank)]
        leading = np.linalg.qr(leading)[0]  # weak directions are orthogonal only up to rounding
    rows: Array = leading.T @ weight
    gains: Array = np.sum((leading.T @ weighted) * rows, axis=1)
    norms = np.linalg.norm(rows, axis=1)
    return _unit_rows(rows), leading * norms, gains


def _basis(tensor: Array, metric: PatchMetric | None, max_rank: int | None) -> Array:
    """Compute the basis ``V (R, a)`` with unit rows."""
    outputs, a, b = tensor.shape
    stacked = tensor.transpose(1, 0, 2).reshape(a, outputs * b)
    marginal = None if metric is None else metric.marginal()
    if outputs * b <= a:
        weighted = stacked if marginal is None else marginal @ stacked
        values, vectors = np.linalg.eigh(stacked.T @ weighted)
        directions = stacked @ vectors
    else:
        root = None if marginal is None else cholesky(marginal)
        rotated = stacked if root is None else root.T @ stacked
        values, vectors = np.linalg.eigh(rotated @ rotated.T)
        directions = stacked @ (rotated.T @ vectors)
    return _unit_rows(directions[:, ::-1][:, : _rank(values, stacked.shape, max_rank)].T)


def _rank(values: Array, shape: Sequence[int], most: int | None) -> int:
    """Number of rising eigenvalues of the Gram matrix of ``shape`` above its errors of rounding."""
    floor = max(values[-1], 0.0) * max(shape) * np.finfo(np.float64).eps
    rank = max(int(np.sum(values > floor)), 1)
    return rank if most is None else min(rank, most)
