"""spatial_svd: a convolution along some kernel axes, then one along the others.

Before:      Conv kh x kw                               W (N, C, kh, kw)
After:       Conv kh x 1, C -> r; Conv 1 x kw, r -> N   (split = vh)
             Conv 1 x kw, C -> r; Conv kh x 1, r -> N   (split = hv)
             each takes stride, pad and dilation of its own axes; of a 3-D kernel any axes
Conditions:  two kernel axes > 1; not depthwise; saves when r < kh kw N C / (kh C + kw N)

Formula:     M[(c, i), (n, j)] = W[n, c, i, j] = U D Q^T;  V = U sqrt(D),  H = Q sqrt(D)
             (optimal in weight space). Response metric: the basis V under
             S = sum_j Sigma[(., ., j), (., ., j)], then H by least squares under the full Sigma.

Reference:   Jaderberg, Vedaldi & Zisserman 2014; Tai, Xiao, Wang & E 2015, Convolutional neural
             networks with low-rank regularization; Zhang et al. 2015 for the response metric.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.layers import Layer
from onnx_lowrank.passkit.base import Decomposition, Factorization, Skip
from onnx_lowrank.passkit.two_stage import TWO_STAGE_METRICS, two_stage

__all__ = ["SpatialSvd"]


@dataclass(frozen=True)
class SpatialSvd(Factorization):
    """A convolution along some kernel axes, then one along the others."""

    name: ClassVar[str] = "spatial_svd"

    metric: str = "covariance"
    split: str = "both"

    choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "metric": TWO_STAGE_METRICS,
        "split": ("both", "vh", "hv"),
    }

    def refuses(self, layer: Layer) -> Skip | None:
        """See the module."""
        if len(_wide(layer)) < 2:
            return Skip("has fewer than two kernel axes to split")
        if self.split != "both" and len(_wide(layer)) > 2:
            return Skip(f"split={self.split} is for two kernel axes; there are {len(_wide(layer))}")
        if layer.depthwise:
            return Skip("is depthwise: each group reads one channel")
        return None

    def propose(
        self, layer: Layer, moments: Moments, max_parameters: int | None = None
    ) -> Sequence[Decomposition]:
        """See the module."""
        return [
            two_stage(layer, moments, axes, roles, self.metric, max_parameters, variant)
            for axes, variant, roles in _splits(_wide(layer))
            if self.split in ("both", variant)
        ]


def _wide(layer: Layer) -> list[int]:
    return [a for a, k in enumerate(layer.geometry.kernel) if k > 1]


def _splits(wide: Sequence[int]) -> Iterator[tuple[tuple[int, ...], str, tuple[str, str]]]:
    """Axes of the first stage, name of the split, roles of the stages."""
    for count in range(1, len(wide)):
        for axes in combinations(wide, count):
            rest = [a for a in wide if a not in axes]
            if len(wide) == 2:
                vertical = axes[0] < rest[0]
                roles = ("vertical", "horizontal") if vertical else ("horizontal", "vertical")
                yield axes, "vh" if vertical else "hv", roles
            else:
                first, last = ("".join(map(str, part)) for part in (axes, rest))
                yield axes, f"{first}-{last}", (f"axes{first}", f"axes{last}")
