"""The factors of a kernel's blocks, all together, under the covariance of the whole patch.

    What_h = E_h Z_h,      Z_h the features of the G blocks of output cluster h

``E`` is their exact regression, ``E_h = W_h Sigma Z_h^T (Z_h Sigma Z_h^T)^-1``. What a feature
reads, ``V`` first and ``A`` after it (see :mod:`onnx_lowrank.linalg.bicluster`), moves by conjugate
gradients on the same error, the other two factors at rest: with ``Q_h = E_h^T E_h`` the normal
operator takes the features ``Z`` of a trial factor to ``Q Z Sigma``, cut to their own channels, and
back to the factor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.linalg import lapack
from onnx_lowrank.linalg.block_clusters import Clusters
from onnx_lowrank.linalg.conjugate_gradients import conjugate_gradients

__all__ = ["BlockRegression", "Blocks"]

Array = npt.NDArray[np.floating[Any]]

#: ridges of the regressions on features of unit variance; the smallest that works is taken, as
#: features of a block may be linearly dependent
_RIDGES = (1e-13, 1e-12, 1e-11, 1e-10, 1e-9, 1e-8)


@dataclass(frozen=True)
class Blocks:
    """Factors of all blocks.

    Attributes:
        reduce: factors ``V (H, G, K1, C / G)``.
        core: factors ``A (H, G, K2, K1, t)``, or ``(H, G, K, t)`` for outer products.
    """

    reduce: Array
    core: Array

    def features(self) -> Array:
        """Kernels of the features on the channels of their own cluster, ``(H, G, K2, C t / G)``."""
        if self.core.ndim == 4:
            features: Array = self.reduce[..., None] * self.core[..., None, :]
        else:
            features = self.reduce.swapaxes(2, 3)[:, :, None] @ self.core
        return features.reshape(*features.shape[:3], -1)

    def pulled(self, gradient: Array) -> tuple[Array, Array]:
        """Gradients in ``reduce`` and in ``core`` for a gradient in the features."""
        h, g, q, inputs = self.reduce.shape
        gradient = gradient.reshape(*gradient.shape[:3], inputs, -1)
        if self.core.ndim == 4:
            to_reduce = (gradient @ self.core[..., None])[..., 0]
            return to_reduce, (self.reduce[..., None, :] @ gradient)[..., 0, :]
        flat = self.core.transpose(0, 1, 3, 2, 4).reshape(h, g, q, -1)
        to_reduce = flat @ gradient.swapaxes(3, 4).reshape(h, g, -1, inputs)
        return to_reduce, self.reduce[:, :, None] @ gradient


class BlockRegression:
    """The least-squares problems of one kernel with its channels in clustered order.

    Args:
        kernel: ``(N, C, taps)``.
        sigma: covariance ``(C taps, C taps)`` of the patch, positive definite; None is the
            identity.
        clusters: clusters of its channels.

    Attributes:
        energy: variance of the response, ``tr(W Sigma W^T)``.
        shape: sizes ``(H, G, N / H, C / G, taps)``.
    """

    def __init__(self, kernel: Array, sigma: Array | None, clusters: Clusters) -> None:
        g, h = clusters.groups
        outputs, inputs, taps = kernel.shape
        self._width = inputs // g * taps
        placed = kernel[np.ix_(clusters.outputs, clusters.inputs)]
        self._blocks = placed.reshape(h, outputs // h, g, inputs // g, taps).swapaxes(1, 2)
        self.shape = self._blocks.shape
        flat = placed.reshape(outputs, -1)
        self._metric: Array | None = None
        weighted = flat
        if sigma is not None:
            columns = (clusters.inputs[:, None] * taps + np.arange(taps)).reshape(-1)
            arranged = sigma[np.ix_(columns, columns)]
            self._metric = arranged.reshape(g, self._width, -1)
            weighted = flat @ arranged
        self.energy = float(np.sum(weighted * flat))
        self._weighted = weighted.reshape(h, outputs // h, g, self._width)  # W Sigma

    def solved(self, blocks: Blocks) -> tuple[Array, float]:
        """Solve for the last factor ``E (N, G K2)``; return it, and ``tr(D Sigma D^T)``."""
        features = blocks.features()
        h, g, p, _ = features.shape
        gram, cross = self._normal(self._read(features), features)
        scale = np.sqrt(np.maximum(np.einsum("hii->hi", gram), 0.0))
        scale = 1 / np.where(scale > 0, scale, 1.0)
        gram = gram * scale[:, :, None] * scale[:, None]
        scaled = cross * scale[:, None]
        expand = np.empty_like(scaled)
        for i in range(h):
            root = _root(gram[i])
            expand[i] = lapack.potrs(root, scaled[i].T).T
        fitted = np.sum(expand @ gram * expand) - 2 * np.sum(expand * scaled)
        expand = (expand * scale[:, None]).reshape(-1, g * p)
        return expand, max(self.energy + float(fitted), 0.0)

    def improved(self, blocks: Blocks, expand: Array, steps: int) -> Blocks:
        """Lower the error by conjugate gradients in ``V``, then in ``A``, of all blocks at once."""
        h, g = self._blocks.shape[:2]
        last = expand.reshape(h, expand.shape[0] // h, g, -1)
        count = g * last.shape[3]
        gram = last.reshape(h, -1, count).swapaxes(1, 2) @ last.reshape(h, -1, count)
        target = last.transpose(0, 2, 3, 1) @ self._weighted.swapaxes(1, 2)
        outer = blocks.core.ndim == 4

        def spread(moved: Blocks) -> Array:
            read = self._read(moved.features())
            mixed = np.empty((h, g, last.shape[3], self._width))
            for j in range(g):
                rows = gram[:, j * last.shape[3] : (j + 1) * last.shape[3]]
                mixed[:, j] = rows @ read[:, :, :, j].reshape(h, count, -1)
            return mixed

        reduce = conjugate_gradients(
            lambda v: blocks.pulled(spread(Blocks(v, blocks.core)))[0],
            blocks.pulled(target)[0],
            blocks.reduce,
            steps,
        )
        norms = np.linalg.norm(reduce, axis=3, keepdims=True)
        reduce = reduce / np.where(norms > 0, norms, 1.0)
        grown = blocks.core * (norms if outer else norms[:, :, None])
        moved = Blocks(reduce, grown)
        core = conjugate_gradients(
            lambda a: moved.pulled(spread(Blocks(reduce, a)))[1],
            moved.pulled(target)[1],
            grown,
            steps,
        )
        return Blocks(reduce, core)

    def block(self, i: int, j: int, measured: bool) -> tuple[Array, Array | None]:
        """Block of output cluster ``i`` and input cluster ``j``, with its part of ``Sigma``."""
        own = None
        if measured and self._metric is not None:
            own = self._metric[j][:, j * self._width : (j + 1) * self._width]
        block: Array = self._blocks[i, j]
        return block, own

    def _read(self, features: Array) -> Array:
        """The product ``Z Sigma``, ``(H, G, K2, G, C t / G)``."""
        h, g, p, width = features.shape
        if self._metric is None:
            read = np.zeros((h, g, p, g, width))
            each = np.arange(g)
            read[:, each, :, each] = features.swapaxes(0, 1)
            return read
        seen = features.swapaxes(0, 1).reshape(g, h * p, width) @ self._metric
        return seen.reshape(g, h, p, g, width).swapaxes(0, 1)

    def _normal(self, read: Array, features: Array) -> tuple[Array, Array]:
        """The products ``Z Sigma Z^T (H, G K2, G K2)`` and ``W Sigma Z^T (H, N / H, G K2)``."""
        h, g, p, _ = features.shape
        columns = features.swapaxes(2, 3)
        gram = read.transpose(0, 3, 1, 2, 4).reshape(h, g, g * p, -1) @ columns
        cross = self._weighted.swapaxes(1, 2) @ columns
        gram, cross = gram.swapaxes(1, 2), cross.swapaxes(1, 2)
        return gram.reshape(h, g * p, g * p), cross.reshape(h, -1, g * p)


def _root(correlations: Array) -> Array:
    """Lower Cholesky factor of a correlation matrix; a zero feature gets a one on the diagonal."""
    filled = correlations + np.diag((np.diag(correlations) < 0.5).astype(np.float64))
    for ridge in _RIDGES:
        try:
            return lapack.potrf(filled + ridge * np.eye(len(filled)), clean=True)
        except np.linalg.LinAlgError:
            continue
    raise np.linalg.LinAlgError("a covariance is far from positive semi-definite")
