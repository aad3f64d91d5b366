"""channel_svd: a convolution with r filters, then a 1x1 to all outputs; or the other way round.

Before:      Conv k1 x k2 x ...                 W (N, C, *k)
After:       Conv k, C -> r; Conv 1x1, r -> N   (order = spatial_first)
             Conv 1x1, C -> r; Conv k, r -> N   (order = pointwise_first)
Conditions:  some kernel axis > 1; not depthwise; saves when r < N C k / (C k + N), mirrored when
             r < N C k / (C + N k)

Formula:     spatial_first: the responses lie near a subspace; P = the r leading eigenvectors of
             W Sigma W^T, What = P (P^T W), optimal at each rank.
             pointwise_first: basis over the input channels under the marginal covariance, then
             the k x k stage by least squares under the full Sigma.

Reference:   Denil et al. 2013; Zhang, Zou, He & Sun 2015, Accelerating very deep convolutional
             networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.layers import Layer
from onnx_lowrank.passkit.base import Decomposition, Factorization, Skip, no_dense_kernel
from onnx_lowrank.passkit.two_stage import TWO_STAGE_METRICS, two_stage

__all__ = ["ChannelSvd"]


@dataclass(frozen=True)
class ChannelSvd(Factorization):
    """A convolution with r filters, then a 1x1 to all outputs; or the other way round."""

    name: ClassVar[str] = "channel_svd"

    metric: str = "covariance"
    order: str = "both"

    choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "metric": TWO_STAGE_METRICS,
        "order": ("both", "spatial_first", "pointwise_first"),
    }

    def refuses(self, layer: Layer) -> Skip | None:
        """See the module."""
        return no_dense_kernel(layer)

    def propose(
        self, layer: Layer, moments: Moments, max_parameters: int | None = None
    ) -> Sequence[Decomposition]:
        """See the module."""
        all_axes = tuple(range(len(layer.geometry.kernel)))
        forms = {
            "spatial_first": (all_axes, ("spatial", "expand")),
            "pointwise_first": ((), ("reduce", "spatial")),
        }
        return [
            two_stage(layer, moments, axes, roles, self.metric, max_parameters, variant)
            for variant, (axes, roles) in forms.items()
            if self.order in ("both", variant)
        ]
