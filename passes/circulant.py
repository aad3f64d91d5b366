"""circulant: responses or inputs projected on Fourier directions of the channels.

Before:      Conv | Gemm | MatMul                W (N, C, *k)
After:       side=outputs: the kernel with r filters F^T W, then F (N, r) back to all outputs
             side=inputs:  F^T (r, C) over the channels, then the kernel on r channels
Conditions:  not depthwise; saves as svd and channel_svd do

Formula:     F: the r strongest Fourier directions over the channel index, their order, signs and
             phases chosen such that the covariance is nearly circulant; they decorrelate a
             circulant one exactly. What = F F^T W, or the regression of W x on F^T x.
             basis=orthogonal: F = principal components, no better basis exists.

ONNX has no operator for a circulant product, so F is stored dense and costs as much as any basis:
this pass is for comparison, and for runtimes that multiply by F through an FFT.

Reference:   Wang, Xu, Xu, Xu & Tao 2017, Beyond filters: compact feature map for portable deep
             model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.layers import Layer
from onnx_lowrank.linalg.circulant import CirculantProjection
from onnx_lowrank.linalg.patch_projection import Factors, PatchProjection
from onnx_lowrank.passkit.base import Decomposition, Factorization, Skip
from onnx_lowrank.passkit.two_stage import METRICS, two_stage

__all__ = ["Circulant"]

Array = npt.NDArray[np.floating[Any]]


class _Fixed:
    """A projection on a given basis, which refinement does not change."""

    def __init__(self, inner: CirculantProjection, max_rank: int | None) -> None:
        self._inner, self.energy = inner, inner.energy
        self.max_rank = min(max_rank or inner.max_rank, inner.max_rank)

    def error(self, rank: int) -> float:
        """See the solver."""
        return self._inner.error(min(rank, self.max_rank))

    def factors(self, rank: int) -> Factors:
        """See the solver."""
        return self._inner.factors(min(rank, self.max_rank))

    def refined(self, rank: int, rounds: int) -> Factors:
        """Factors of ``rank`` without refinement, as the method prescribes the basis."""
        return self.factors(rank)


def _outputs(kernel: Array, sigma: Array | None, _: Sequence[int], most: int | None) -> _Fixed:
    return _Fixed(CirculantProjection(kernel, sigma, "outputs"), most)


def _inputs(kernel: Array, sigma: Array | None, _: Sequence[int], most: int | None) -> _Fixed:
    return _Fixed(CirculantProjection(kernel, sigma, "inputs"), most)


@dataclass(frozen=True)
class Circulant(Factorization):
    """Responses or inputs projected on Fourier directions of the channels."""

    name: ClassVar[str] = "circulant"

    metric: str = "covariance"
    side: str = "both"
    basis: str = "circulant"

    choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "metric": METRICS,
        "side": ("both", "outputs", "inputs"),
        "basis": ("circulant", "orthogonal"),
    }

    def refuses(self, layer: Layer) -> Skip | None:
        """See the module."""
        if layer.depthwise:
            return Skip("is depthwise: each group reads one channel")
        return None

    def propose(
        self, layer: Layer, moments: Moments, max_parameters: int | None = None
    ) -> Sequence[Decomposition]:
        """See the module."""
        every = tuple(range(len(layer.geometry.kernel)))
        forms = {
            "outputs": (every, ("filters", "expand"), _outputs),
            "inputs": ((), ("reduce", "filters"), _inputs),
        }
        return [
            two_stage(
                layer, moments, axes, roles, self.metric, max_parameters, side,
                PatchProjection if self.basis == "orthogonal" else solve,
            )
            for side, (axes, roles, solve) in forms.items()
            if self.side in ("both", side)
        ]  # fmt: skip
