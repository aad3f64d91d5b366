"""Compact feature maps: outputs or inputs of a kernel on few Fourier directions of its channels.

With the columns of ``F (n, r)`` the strongest of :mod:`onnx_lowrank.linalg.fourier_basis`,

    outputs:   What = F F^T W,                       R = W Sigma W^T,   error tr R - tr F^T R F
    inputs:    What[n] = sum_k B[n, k] F[., k],      B by least squares under the full Sigma

Both are nested in r, so one pass gives the error of all ranks. No projection of rank r leaves less
of the outputs than principal components do (Eckart & Young 1936): those, stored as ``n r``
numbers, are the method svd or channel_svd. Here the directions are ``n`` places, ``n`` signs and
``2 r`` numbers, and where no pair of a frequency is parted ``F F^T`` is circulant in that order,
``n`` numbers in all (``FourierBasis.generator``). A model that writes ``F`` out as the weight of a
layer saves the MACs, not these numbers.

Reference:
    Wang, Xu, Xu & Tao 2017, Beyond filters: compact feature map for portable deep model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.linalg import lapack
from onnx_lowrank.linalg.cholesky import cholesky
from onnx_lowrank.linalg.fourier_basis import fourier_basis
from onnx_lowrank.linalg.patch_projection import Factors

__all__ = ["CirculantProjection"]

Array = npt.NDArray[np.floating[Any]]


class CirculantProjection:
    """Projection of one kernel's outputs or input channels on Fourier directions, at all ranks.

    The order and signs of the inputs are sought in ``S^(1/2) (sum_t W_t^T W_t) S^(1/2)``, ``S`` the
    covariance of the channels summed over the taps; the regression is under the full ``Sigma``.

    Args:
        kernel: kernel ``(N, C, *kernel)``.
        sigma: covariance ``(d, d)`` of the patch, positive definite; None is the identity.
        side: side to project: ``outputs`` or ``inputs``.
        seriate: whether to search for an order and signs of the channels.

    Attributes:
        basis: directions of that side's channels.
        energy: variance of the response, ``tr(W Sigma W^T)``.

    Raises:
        ValueError: ``side`` has another value.
    """

    def __init__(
        self, kernel: Array, sigma: Array | None, side: str = "outputs", seriate: bool = True
    ) -> None:
        if side not in ("outputs", "inputs"):
            raise ValueError(f"side is outputs or inputs, not {side!r}")
        self._kernel, self._side = kernel.astype(np.float64, copy=False), side
        flat = self._kernel.reshape(len(kernel), -1)
        if side == "outputs":
            covariance = flat @ (flat.T if sigma is None else sigma @ flat.T)
            self.energy = float(np.trace(covariance))
            self.basis = fourier_basis(covariance, seriate)
            gains = self.basis.energies
        else:
            self.basis = fourier_basis(_input_energies(self._kernel, sigma), seriate)
            gains = self._regress(sigma)
            self.energy = float(gains.sum())
        self._explained = np.concatenate([[0.0], np.cumsum(gains)])

    @property
    def max_rank(self) -> int:
        """Number of channels on the side that is projected."""
        return len(self.basis.columns)

    def error(self, rank: int) -> float:
        """Error ``tr((W - What) Sigma (W - What)^T)`` at ``rank``."""
        return max(self.energy - float(self._explained[rank]), 0.0)

    def factors(self, rank: int) -> Factors:
        """Both maps of ``rank``.

        For outputs they are ``basis (r, C, *kernel)`` and ``last (N, r)``; for inputs
        ``basis (r, C)`` and ``last (N, r, *kernel)``.
        """
        kept, patch = self.basis.columns[:, :rank], self._kernel.shape[1:]
        if self._side == "outputs":
            return Factors(np.tensordot(kept, self._kernel, (0, 0)), kept, self.error(rank))
        width = rank * int(np.prod(patch[1:], dtype=int))
        root, rotated = self._root[:width, :width], self._rotated[:width]
        last = lapack.trtrs(root, rotated, transposed=True).T
        return Factors(kept.T, last.reshape(-1, rank, *patch[1:]), self.error(rank))

    def _regress(self, sigma: Array | None) -> Array:
        """Energy that each direction explains after those before it, ``(C,)``."""
        outputs, channels = self._kernel.shape[:2]
        columns = self.basis.columns
        turned = np.tensordot(self._kernel.reshape(outputs, channels, -1), columns, (1, 0))
        taps = turned.shape[1]
        flat = turned.swapaxes(1, 2).reshape(outputs, -1)
        if sigma is None:
            self._root: Array = np.eye(channels * taps)
        else:
            rows = np.tensordot(columns, sigma.reshape(channels, taps, -1), (0, 0))
            rows = rows.reshape(channels * taps, channels, taps)
            metric = np.tensordot(rows, columns, (1, 0)).swapaxes(1, 2)
            self._root = cholesky(metric.reshape(channels * taps, -1))
        self._rotated: Array = self._root.T @ flat.T
        gains: Array = np.sum(self._rotated**2, axis=1).reshape(channels, taps).sum(axis=1)
        return gains


def _input_energies(kernel: Array, sigma: Array | None) -> Array:
    """The matrix ``S^(1/2) (sum_t W_t^T W_t) S^(1/2)``, ``(C, C)``."""
    channels = kernel.shape[1]
    stacked = np.moveaxis(kernel, 1, 0).reshape(channels, -1)
    energies: Array = stacked @ stacked.T
    if sigma is None:
        return energies
    taps = len(sigma) // channels
    marginal = np.einsum("asbs->ab", sigma.reshape(channels, taps, channels, taps))
    values, vectors = np.linalg.eigh(marginal)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    symmetric: Array = root @ energies @ root
    return symmetric
