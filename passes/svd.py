"""svd: a matrix product through r features.

Before:      Gemm | MatMul | Conv 1x1     W (N, C)
After:       the same operator twice      V (r, C), then U (N, r)
Conditions:  no spatial extent; not depthwise; saves when r < N C / (N + C)

Formula:     P = the r leading eigenvectors of W Sigma W^T,   What = P (P^T W)
             (reduced-rank regression, optimal at each rank; eps(r) is the tail of the
             eigenvalues); with Sigma = I the truncated SVD.
             metric=elementwise: min ||Omega o (W - U V)||^2 + ridge (||U||^2 + ||V||^2) with
             Omega[n, c]^2 = E[(y_n x_c)^2] of centred Gaussian x, y = W x, that is
             (W Sigma W^T)_nn Sigma_cc + 2 (W Sigma)_nc^2 (Isserlis): the empirical Fisher
             information of each weight. ridge is in units of the largest singular value of
             Omega o W, Omega of mean square 1.
             Of a last layer under a softmax M^(1/2) W is taken apart, with a metric M of its
             outputs: What from the SVD of M^(1/2) W Sigma^(1/2), optimal at each rank.

Reference:   Eckart & Young 1936; Izenman 1975; Denton et al. 2014; Zhang et al. 2015; Srebro &
             Jaakkola 2003, Weighted low-rank approximations; Hua et al. 2022, Numerical
             optimizations for weighted low-rank estimation on language models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.layers import Layer
from onnx_lowrank.linalg.patch_projection import Factors
from onnx_lowrank.linalg.weighted_lowrank import weighted_low_rank
from onnx_lowrank.passkit.base import Decomposition, Factorization, Skip
from onnx_lowrank.passkit.two_stage import TWO_STAGE_METRICS, two_stage

__all__ = ["Svd"]

Array = npt.NDArray[np.floating[Any]]


@dataclass
class _Elementwise:
    """One group at every rank, with a weight for the error of each element."""

    weight: Array
    sigma: Array | None
    ridge: float
    most: int | None
    _found: dict[int, Factors] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._shape = self.weight.shape[1:]
        self.weight = self.weight.reshape(len(self.weight), -1)
        seen = self.weight if self.sigma is None else self.weight @ self.sigma
        inputs = np.ones(len(seen[0])) if self.sigma is None else np.diag(self.sigma)
        variances = np.sum(seen * self.weight, axis=1)
        self.energy = float(variances.sum())
        square = np.multiply.outer(variances, inputs) + 2 * seen**2
        self._omega = np.sqrt(square / (square.mean() or 1.0))

    @property
    def max_rank(self) -> int:
        """Largest rank of the matrix, within the limit given."""
        limit = min(self.weight.shape)
        return int(limit if self.most is None else min(self.most, limit))

    def factors(self, rank: int) -> Factors:
        """Factors of ``rank`` by alternating ridge regressions."""
        rank = min(rank, self.max_rank)
        if rank not in self._found:
            unit = float(np.linalg.norm(self._omega * self.weight, 2))
            solved = weighted_low_rank(self.weight, self._omega, rank, ridge=self.ridge * unit)
            difference = self.weight - solved.left @ solved.right
            seen = difference if self.sigma is None else difference @ self.sigma
            error = float(np.sum(seen * difference))
            self._found[rank] = Factors(solved.right.reshape(-1, *self._shape), solved.left, error)
        return self._found[rank]

    def error(self, rank: int) -> float:
        """Response error at ``rank``, which is not the error that the factors minimise."""
        return self.factors(rank).error

    def refined(self, rank: int, rounds: int) -> Factors:
        """Factors of ``rank`` without refinement, which would minimise another error."""
        return self.factors(rank)


@dataclass(frozen=True)
class Svd(Factorization):
    """A matrix product through r features."""

    name: ClassVar[str] = "svd"

    metric: str = "covariance"
    ridge: float = 0.0

    choices: ClassVar[dict[str, tuple[str, ...]]] = {"metric": (*TWO_STAGE_METRICS, "elementwise")}

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

        def weighted(
            kernel: Array, sigma: Array | None, _: Sequence[int], most: int | None
        ) -> _Elementwise:
            return _Elementwise(kernel, sigma, self.ridge, most)

        solve = weighted if self.metric == "elementwise" else None
        return [two_stage(layer, moments, axes, roles, self.metric, max_parameters, solve=solve)]
