"""svd: a matrix product through r features.

Before:      Gemm | MatMul | Conv 1x1     W (N, C)
After:       the same operator twice      V (r, C), then U (N, r)
Conditions:  no spatial extent; not depthwise; saves when r < N C / (N + C)

Formula:     P = the r leading eigenvectors of W Sigma W^T,   What = P (P^T W)
             (reduced-rank regression, optimal at each rank; eps(r) is the tail of the
             eigenvalues); with Sigma = I the truncated SVD.

Reference:   Eckart & Young 1936; Izenman 1975; Denton et al. 2014; Zhang et al. 2015.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from onnx_lowrank.base import Decomposition, Factorization, Skip
from onnx_lowrank.layers import Layer
from onnx_lowrank.moments import Moments
from onnx_lowrank.two_stage import TWO_STAGE_METRICS, two_stage

__all__ = ["Svd"]


@dataclass(frozen=True)
class Svd(Factorization):
    """A matrix product through r features."""

    name: ClassVar[str] = "svd"

    metric: str = "covariance"

    choices: ClassVar[dict[str, tuple[str, ...]]] = {"metric": TWO_STAGE_METRICS}

    def refuses(self, layer: Layer) -> Skip | None:
        """See the module."""
        if any(k > 1 for k in layer.geometry.kernel):
            return Skip("has a spatial kernel")
        if layer.depthwise:
            return Skip("is depthwise: each group reads one channel")
        return None

    def propose(
        self, layer: Layer, moments: Moments, max_parameters: int | None = None
    ) -> Sequence[Decomposition]:
        """See the module."""
        axes = tuple(range(len(layer.geometry.kernel)))
        roles = ("reduce", "expand")
        return [two_stage(layer, moments, axes, roles, self.metric, max_parameters)]
