"""interpolative: some outputs as they are, the others interpolated from them.

Before:      Conv | Gemm | MatMul            W (N, C, *k)
After:       the same with r outputs W[S], then a product or 1x1 with T (N, r)
Conditions:  not depthwise; saves as svd and channel_svd do

Formula:     QR with column pivoting of the responses, (W Sigma^(1/2))^T[:, p] = Q R: the first r
             pivots are S, the rows of T are [I; (R11^-1 R12)^T], and ||R22||^2 is what is lost,
             at each rank, of the variance of the responses.

Reference:   Cheng, Gimbutas, Martinsson & Rokhlin 2005, On the compression of low rank matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from scipy import linalg

from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.layers import Layer
from onnx_lowrank.linalg.patch_projection import Factors
from onnx_lowrank.passkit.base import Decomposition, Factorization, Skip
from onnx_lowrank.passkit.two_stage import METRICS, two_stage

__all__ = ["Interpolative"]

Array = npt.NDArray[np.floating[Any]]


class _Rows:
    """One group at every rank; see the module.

    Args:
        kernel: ``(N, C, *kernel)``.
        sigma: covariance ``(d, d)`` of the patch; None is the identity.
        most: largest rank that is wanted.
    """

    def __init__(
        self, kernel: Array, sigma: Array | None, _: Sequence[int], most: int | None
    ) -> None:
        self._kernel = kernel.astype(np.float64)
        flat = self._kernel.reshape(len(kernel), -1)
        responses = flat if sigma is None else flat @ np.linalg.cholesky(sigma)
        self._upper, self._order = linalg.qr(responses.T, mode="r", pivoting=True)
        self._upper = self._upper[: len(kernel)]
        self.energy = float(np.sum(responses**2))
        diagonal = np.abs(np.diag(self._upper))
        rank = max(int(np.sum(diagonal > 1e-10 * diagonal[0])), 1)
        self.max_rank = rank if most is None else min(rank, most)

    def error(self, rank: int) -> float:
        """``tr(D Sigma D^T)``."""
        return float(np.sum(self._upper[rank:, rank:] ** 2))

    def factors(self, rank: int) -> Factors:
        """``W[S]`` and ``T``."""
        rank = min(rank, self.max_rank)
        weights = linalg.solve_triangular(self._upper[:rank, :rank], self._upper[:rank, rank:])
        last = np.zeros((len(self._kernel), rank))
        last[self._order[:rank]] = np.eye(rank)
        last[self._order[rank:]] = weights.T
        return Factors(self._kernel[self._order[:rank]], last, self.error(rank))

    def refined(self, rank: int, rounds: int) -> Factors:
        """The same: other outputs would be another method."""
        return self.factors(rank)


@dataclass(frozen=True)
class Interpolative(Factorization):
    """Some outputs as they are, the others interpolated from them."""

    name: ClassVar[str] = "interpolative"

    metric: str = "covariance"

    choices: ClassVar[dict[str, tuple[str, ...]]] = {"metric": METRICS}

    def refuses(self, layer: Layer) -> Skip | None:
        """See the module."""
        if layer.depthwise:
            return Skip("is depthwise: each group reads one channel")
        return None

    def propose(
        self, layer: Layer, moments: Moments, max_parameters: int | None = None
    ) -> Sequence[Decomposition]:
        """See the module."""
        axes = tuple(range(len(layer.geometry.kernel)))
        roles = ("outputs", "interpolate")
        return [two_stage(layer, moments, axes, roles, self.metric, max_parameters, solve=_Rows)]
