"""lowrank_sparse: a few channels are read in full, the others through a few features.

Before:      Conv | Gemm | MatMul                     W (N, C, *k)
After:       Gather of s channels -> the kernel on them             A
             Gather of the others -> the kernel with r filters -> 1x1 to N (or a product)    B
             Add
Conditions:  not depthwise; saves when N s k + r (C - s) k + r N < N C k

Formula:     min ||W x - (A + B) x||^2 + l1 ||A||_{2,1} + l2 ||B||_*, by ADMM, orders the channels;
             and so does forward selection; then A and B of wanted sizes in closed form: A can undo
             what B does with its columns, so B reads only the other channels.
             response=relu: both parts are then fitted to relu(W x + b), on rows drawn from a
             normal distribution with the moments at hand, by the method of auxiliary variables:
             for layers behind which a ReLU stands.

Reference:   Robin et al. 2019; Zhang et al. 2015 (through ReLU); Boyd et al. 2011 (ADMM); Cai,
             Candès & Shen 2010 (singular value thresholding); Izenman 1975.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from onnx_lowrank.analysis.moments import Moments, corrected, relative_error
from onnx_lowrank.chains.chain import Chain, Rank, Stage, two_ranks
from onnx_lowrank.chains.geometry import ConvGeometry, Geometry
from onnx_lowrank.chains.special_stages import Branches, Select
from onnx_lowrank.layers import Layer
from onnx_lowrank.linalg.cholesky import cholesky
from onnx_lowrank.linalg.lowrank_sparse_relu import ReluSample, refit_relu
from onnx_lowrank.linalg.lowrank_sparse_sizes import LowRankSparseParts, LowRankSparseSizes
from onnx_lowrank.passkit.base import Decomposition, Factorization, Skip
from onnx_lowrank.passkit.rank_grid import aligned_ranks
from onnx_lowrank.passkit.two_stage import METRICS, split_geometry

__all__ = ["LowrankSparse"]

Array = npt.NDArray[np.floating[Any]]

#: number of rows drawn for a fit behind the ReLU, and their random seed
_ROWS, _SEED = 4000, 0

#: largest number of pairs of sizes that a plan is offered for one layer
_PAIRS = 60


@dataclass(frozen=True)
class _Form:
    """A layer at every pair ``(s, r)``; groups are solved separately, all at the same pair."""

    _stage: Stage
    _geometry: Geometry
    _moments: Moments
    _metric: Moments
    _groups: tuple[LowRankSparseSizes, ...]
    _limit: int
    _relu: bool
    variant: str = ""

    @property
    def max_rank(self) -> tuple[int, int]:
        """Largest pair: all channels but one, and as many features as outputs; it is exact."""
        return self._groups[0].channels - 1, self._groups[0].outputs

    def ranks(self) -> Iterator[Rank]:
        """Pairs ``(s, r)`` that save parameters."""
        groups = len(self._groups)
        axes = [list(aligned_ranks(most, groups)) for most in self.max_rank]
        while len(axes[0]) * len(axes[1]) > 2 * _PAIRS:
            longer = max(axes, key=len)
            longer[:] = longer[1::2]  # the better aligned half
        pairs = [p for p in product(*axes) if self.outline(p).parameters < self._limit]
        return iter(pairs)

    def error(self, rank: Rank) -> float:
        """Relative response error with ``s`` channels and ``r`` features in each group."""
        keep, inner = self._sizes(rank)
        if self._metric is not self._moments:
            return relative_error(self._stage, self.cut(rank), self._moments)
        energy = sum(g.energy for g in self._groups)
        return sum(g.error(keep, inner) for g in self._groups) / energy if energy > 0 else 0.0

    def outline(self, rank: Rank) -> Chain:
        """Two branches of the right shapes, all zero."""
        keep, inner = self._sizes(rank)
        outputs, channels = self._stage.weight.shape[:2]
        groups, kernel, zero = len(self._groups), self._geometry.kernel, np.zeros(())
        supports = np.broadcast_to(np.arange(keep), (groups, keep))
        columns = np.broadcast_to(zero, (outputs, keep, *kernel))
        basis = np.broadcast_to(zero, (groups * inner, channels - keep, *kernel))
        last = np.broadcast_to(zero, (outputs, inner))
        bias = np.broadcast_to(zero, (outputs,))
        return self._chain(supports, columns, basis, last).with_bias(bias)

    def cut(self, rank: Rank) -> Chain:
        """Two branches, one of ``s`` channels and one of ``r`` features in each group."""
        keep, inner = self._sizes(rank)
        parts, biases = [], []
        for g, sizes in enumerate(self._groups):
            part, bias = sizes.cut(keep, inner), None
            if self._relu and self._metric.mean is not None:
                part, bias = self._behind_relu(g, part, inner)
            parts.append(part)
            biases.append(bias)
        channels, kernel = self._groups[0].channels, self._geometry.kernel
        columns, bases = [], []
        for part in parts:
            others = np.setdiff1d(np.arange(channels), part.support)
            columns.append(part.columns.reshape(len(part.columns), keep, *kernel))
            bases.append(part.basis.reshape(len(part.basis), channels, *kernel)[:, others])
        chain = self._chain(
            np.stack([p.support for p in parts]),
            np.concatenate(columns),
            np.concatenate(bases),
            np.concatenate([p.last for p in parts]),
        )
        known = [b for b in biases if b is not None]
        if known:
            return chain.with_bias(np.concatenate(known))
        return corrected(self._stage, chain, self._metric)

    def _sizes(self, rank: Rank) -> tuple[int, int]:
        """Numbers of channels and features of ``rank``, limited to :attr:`max_rank`."""
        keep, inner = two_ranks(rank)
        return min(keep, self.max_rank[0]), min(inner, self.max_rank[1])

    def _behind_relu(
        self, group: int, part: LowRankSparseParts, rank: int
    ) -> tuple[LowRankSparseParts, Array]:
        """Fit parts of the same sizes behind the ReLU, to rows with the moments of one group."""
        sigma, mean = self._metric.sigma(group), self._metric.mean
        assert sigma is not None
        assert mean is not None
        random = np.random.default_rng([_SEED, group])
        noise = random.standard_normal((_ROWS, len(sigma)))
        rows = mean[group] + noise @ cholesky(sigma).T
        weight = self._stage.matrices[group]
        bias = self._stage.bias
        own = np.zeros(len(weight)) if bias is None else bias.reshape(len(self._groups), -1)[group]
        target = np.maximum(rows @ weight.T + own, 0.0)
        width = math.prod(self._geometry.kernel)
        sample = ReluSample(rows, target, weight, own)
        found = refit_relu(sample, part.support, rank, width=width, sigma=sigma)
        return found.parts, found.bias

    def _chain(
        self, supports: npt.NDArray[np.intp], columns: Array, basis: Array, last: Array
    ) -> Chain:
        """Make the chain from the sparse branch's channels ``(g, s)`` and the stages' weights."""
        groups, channels = len(supports), self._groups[0].channels
        every = np.arange(channels)
        rest = [np.setdiff1d(every, s) for s in supports]
        first, back = split_geometry(self._geometry, tuple(range(len(self._geometry.kernel))))

        def pick(index: Sequence[npt.NDArray[np.intp]], role: str) -> Select:
            flat = np.concatenate([i + g * channels for g, i in enumerate(index)])
            return Select(tuple(flat.tolist()), groups * channels, self._geometry, role, groups)

        one = (1,) * (len(self._geometry.kernel) if isinstance(back, ConvGeometry) else 0)
        sparse = Chain((pick(list(supports), "few"), Stage(columns, None, self._geometry, "whole")))
        low_rank = Chain(
            (
                pick(rest, "others"),
                Stage(basis, None, first, "reduce"),
                Stage(last.reshape(*last.shape, *one), None, back, "expand"),
            )
        )
        return Chain((Branches((sparse, low_rank)),))


@dataclass(frozen=True)
class LowrankSparse(Factorization):
    """A few channels are read in full, the others through a few features."""

    name: ClassVar[str] = "lowrank_sparse"
    slow: ClassVar[bool] = True

    metric: str = "covariance"
    response: str = "linear"

    choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "metric": METRICS,
        "response": ("linear", "relu"),
    }

    def refuses(self, layer: Layer) -> Skip | None:
        """See the module."""
        if layer.depthwise:
            return Skip("is depthwise: each group reads one channel")
        if layer.shape[1] < 2:
            return Skip("reads a single channel")
        return None

    def propose(
        self, layer: Layer, moments: Moments, max_parameters: int | None = None
    ) -> Sequence[Decomposition]:
        """See the module."""
        stage = layer.stage
        metric = moments if self.metric == "covariance" else moments.identity
        width = math.prod(layer.geometry.kernel)
        most = layer.shape[1] - 1
        groups = tuple(
            LowRankSparseSizes(matrix, metric.sigma(g), width, max_keep=most)
            for g, matrix in enumerate(stage.matrices)
        )
        limit = max_parameters or stage.parameters
        return [
            _Form(stage, layer.geometry, moments, metric, groups, limit, self.response == "relu")
        ]
