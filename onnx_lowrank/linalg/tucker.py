"""Partial Tucker decomposition of a kernel over its output and input channels.

    What[n, c, s] = sum_pq U[n, p] G[p, q, s] V[q, c]        U^T U = I

``s`` runs over the kernel positions. Everything is measured by the response: the error is
``tr((W - What) Sigma (W - What)^T)``.

Start: ``V`` is the basis of :class:`PatchProjection` over the channels alone. Its features ``z``
are nested in q, so one Cholesky factor of their covariance whitens them for every q: with
``Y = Sigma_z^(-1/2) Sigma_zx W^T`` the best ``U`` of p columns are the p leading eigenvectors of
``Y_q^T Y_q`` over the features of q, and ``G = U^T B`` with ``B`` the unconstrained regression
(reduced-rank regression, exact). ``error(q, p)`` is the energy less the p leading eigenvalues, all
p of one q from one eigendecomposition. With ``Sigma = I`` this is a sequentially truncated
higher-order SVD.

Then in turn, neither ever raising the error: ``V`` for given ``U, G``, by conjugate gradients from
where it stands; ``U, G`` for given ``V``, as above. With ``Sigma = I`` the best ``V`` for given
``U`` is known too, the leading singular vectors of ``U^T W``: higher-order orthogonal iteration.

Reference:
    De Lathauwer, De Moor & Vandewalle 2000, On the best rank-1 and rank-(R1, ..., RN)
    approximation; Vannieuwenhoven et al. 2012; Izenman 1975; Kim et al. 2015.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.linalg import lapack
from onnx_lowrank.linalg.conjugate_gradients import STEPS
from onnx_lowrank.linalg.patch_projection import PatchProjection
from onnx_lowrank.linalg.phase_covariance import Covariance

__all__ = ["Tucker", "TuckerFactors"]

Array = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class TuckerFactors:
    """Factors at one pair of ranks.

    Attributes:
        reduce: factor ``V (q, C)``.
        core: core ``G (p, q, *kernel)``.
        expand: factor ``U (N, p)`` with orthonormal columns.
        error: error ``tr(D Sigma D^T)``.
        iterations: number of rounds that were run.
        converged: whether the last round changed the error by less than the tolerance.
    """

    reduce: Array
    core: Array
    expand: Array
    error: float
    iterations: int
    converged: bool


class Tucker(PatchProjection):
    """Tucker decompositions of one kernel at all pairs of ranks.

    Args:
        kernel: kernel ``(N, C, *kernel)`` of one group.
        sigma: covariance ``(d, d)`` of the patch, positive definite; None is the identity.
        max_inputs: largest q; by default the numerical rank.
    """

    def __init__(
        self, kernel: Array, sigma: Covariance | None, max_inputs: int | None = None
    ) -> None:
        super().__init__(kernel, sigma, (0,), max_inputs)
        self._kernel = kernel.reshape(len(kernel), self._a, self._b)
        self._factor, self._cross, _ = self._features
        self._whitened = _whitened(self._factor, self._cross)
        self._spectra: dict[int, Array] = {}

    @property
    def max_ranks(self) -> tuple[int, int]:
        """Largest q and p: the numerical ranks of the two unfoldings."""
        values = self._spectrum(self.max_rank)
        floor = max(self.energy, 0.0) * len(self._whitened) * np.finfo(np.float64).eps
        return self.max_rank, max(int(np.sum(values > floor)), 1)

    def pair_error(self, q: int, p: int) -> float:
        """Error ``tr((W - What) Sigma (W - What)^T)`` of the start at ranks ``q, p``."""
        return max(self.energy - float(self._spectrum(q)[:p].sum()), 0.0)

    def pair(
        self, q: int, p: int, iterations: int = 0, tolerance: float = 1e-4, steps: int = STEPS
    ) -> TuckerFactors:
        """Compute factors of ranks ``q, p``, with zeros beyond :attr:`max_ranks`.

        Args:
            q: number of input channels of the core.
            p: number of output channels of the core.
            iterations: largest number of rounds of alternation.
            tolerance: relative change of the error at which to stop.
            steps: number of conjugate-gradient steps in a round.
        """
        basis = self._basis[:q]
        width = len(basis) * self._b
        expand, core, error = self._best(
            self._factor[:width, :width], self._cross[:, :width], self._whitened[:width], p
        )
        done, converged = 0, bool(error <= np.finfo(np.float64).eps * self.energy)
        while done < iterations and not converged:
            done += 1
            moved = self._moved(basis, core, expand, steps)
            factor, cross, _ = self._regression(moved)
            found = self._best(factor, cross, _whitened(factor, cross), p)
            converged = bool(error - found[2] <= tolerance * error)
            if found[2] < error:
                basis, (expand, core, error) = moved, found
        short = (q - len(basis), p - expand.shape[1])
        return TuckerFactors(
            np.pad(basis, [(0, short[0]), (0, 0)]),
            np.pad(core, [(0, short[1]), (0, short[0]), (0, 0)]).reshape(p, q, *self._rest),
            np.pad(expand, [(0, 0), (0, short[1])]),
            error,
            done,
            converged,
        )

    def _spectrum(self, q: int) -> Array:
        """Eigenvalues of ``Y_q^T Y_q``, falling, ``(min(N, q s),)``."""
        q = min(q, self.max_rank)
        if q not in self._spectra:
            y = self._whitened[: q * self._b]
            gram = y.T @ y if y.shape[1] <= len(y) else y @ y.T
            self._spectra[q] = np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0)
        return self._spectra[q]

    def _best(
        self, factor: Array, cross: Array, whitened: Array, p: int
    ) -> tuple[Array, Array, float]:
        """Solve for ``U (N, p)`` and ``G (p, q, s)``; return them and their error."""
        vectors, values, _ = np.linalg.svd(whitened.T, full_matrices=False)
        expand = vectors[:, :p]
        core = lapack.potrs(factor, cross.T @ expand).T
        error = max(self.energy - float(np.sum(values[:p] ** 2)), 0.0)
        return expand, core.reshape(expand.shape[1], -1, self._b), error

    def _moved(self, basis: Array, core: Array, expand: Array, steps: int) -> Array:
        """Improve ``V`` for given ``U, G``; return it with orthonormal rows."""
        if self._metric is not None:
            basis = self._improved(basis, np.tensordot(expand, core, 1), steps)
            orthonormal: Array = np.linalg.qr(basis.T)[0].T
            return orthonormal
        projected = np.tensordot(expand, self._kernel, (0, 0)).transpose(1, 0, 2)
        vectors = np.linalg.svd(projected.reshape(self._a, -1), full_matrices=False)[0]
        leading: Array = vectors[:, : len(basis)].T
        return leading


def _whitened(factor: Array, cross: Array) -> Array:
    """Regression ``Y (q s, N)`` of the responses on features with unit covariance."""
    return lapack.trtrs(factor, cross.T)
