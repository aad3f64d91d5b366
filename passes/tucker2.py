"""tucker2: a 1x1 to few channels, a small k x k core, a 1x1 to all outputs.

Before:      Conv k1 x k2 x ...                                   W (N, C, *k)
After:       Conv 1x1, C -> q; Conv k, q -> p; Conv 1x1, p -> N   core (p, q, *k)
             the core has the strides, pads and dilations
Conditions:  some kernel axis > 1; not depthwise; q < C and p < N in each group (one side alone,
             Tucker-1, is channel_svd); saves when C q + q p k + p N < N C k

Formula:     What[n, c, s] = sum_pq U[n, p] G[p, q, s] V[q, c].  V: basis over the input channels
             under the marginal covariance; U, G: reduced-rank regression of the response on V x
             under the full Sigma, all p of one q at once; then V by conjugate gradients and U, G
             exactly, in turn. With Sigma = I: higher-order orthogonal iteration.

Reference:   Kim et al. 2015, Compression of deep convolutional neural networks for fast and low
             power mobile applications.
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
from onnx_lowrank.chains.geometry import ConvGeometry
from onnx_lowrank.layers import Layer
from onnx_lowrank.lazily import lazy
from onnx_lowrank.linalg.tucker import Tucker
from onnx_lowrank.passkit.base import Decomposition, Factorization, Skip, no_dense_kernel
from onnx_lowrank.passkit.rank_grid import aligned_ranks
from onnx_lowrank.passkit.two_stage import METRICS, unfolded, worth_refining

__all__ = ["Tucker2"]

Array = npt.NDArray[np.floating[Any]]

#: largest number of pairs of ranks that a plan is offered for one layer
_PAIRS = 60

#: rounds of alternation for a chain that is written; plans take one
_ROUNDS = 4

#: largest squared patch length times q at which every pair is refined in a plan
_AFFORDABLE = 100_000_000


@dataclass(frozen=True)
class _Form:
    """A layer at every pair of ranks; groups are solved separately, all at the same pair."""

    _stage: Stage
    _geometry: ConvGeometry
    _moments: Moments
    _groups: tuple[Tucker, ...]
    _own_metric: bool
    _limit: int
    variant: str = ""

    @property
    def max_rank(self) -> tuple[int, int]:
        """Largest numerical ranks ``(q, p)`` of the groups' kernels."""
        q, p = zip(*(g.max_ranks for g in self._groups), strict=True)
        return max(q), max(p)

    def ranks(self) -> Iterator[Rank]:
        """Aligned pairs ``(q, p)`` that save parameters; the most balanced ones of many."""
        groups, most = len(self._groups), self.max_rank
        full = (self._stage.weight.shape[1], self._stage.outputs // groups)
        axes = [
            [r for r in aligned_ranks(limit, groups) if r < whole]
            for limit, whole in zip(most, full, strict=True)
        ]
        while len(axes[0]) * len(axes[1]) > 2 * _PAIRS:
            longer = max(axes, key=len)
            longer[:] = longer[1::2]  # of 4, 8, 12, 16 ... keep 8, 16 ...
        taps = math.prod(self._geometry.kernel)  # bounds the rank of one side by the other's
        pairs = [(q, p) for q, p in product(*axes) if q <= p * taps and p <= q * taps]
        pairs = [r for r in pairs if self.outline(r).parameters < self._limit]
        pairs.sort(key=lambda r: abs(math.log(r[0] * most[1] / (r[1] * most[0]))))
        return iter(sorted(pairs[:_PAIRS]))

    def unfoldings(self) -> Sequence[Sequence[Array]]:
        """Unfoldings of each group's kernel: along its inputs, then along its outputs."""
        kernels = self._stage.weight.reshape(len(self._groups), -1, *self._stage.weight.shape[1:])
        return [[unfolded(k, [1]), unfolded(k, [0])] for k in kernels]

    def error(self, rank: Rank) -> float:
        """Relative response error at ``rank``; :meth:`cut` makes it a little smaller."""
        q, p = two_ranks(rank)
        if not self._own_metric:
            return relative_error(self._stage, self._chain(q, p), self._moments)
        plain = self._fitted(q, p, 0)
        if not worth_refining(plain):
            return plain
        if q <= self._affordable:
            return self._fitted(q, p, 1)
        # refining a wide layer at every pair would take minutes: use the gain at one pair
        return plain * self._gain

    @property
    def _affordable(self) -> int:
        width = int(self._stage.matrices.shape[2])
        return max(min(_AFFORDABLE // width**2, self.max_rank[0]), 1)

    @lazy
    def _gain(self) -> float:
        """Factor on the error by one round, at the widest pair where a round is affordable."""
        q, most = self._affordable, self.max_rank
        p = max(q * most[1] // most[0], 1)
        plain = self._fitted(q, p, 0)
        return min(self._fitted(q, p, 1) / plain, 1.0) if plain > 0 else 1.0

    def _fitted(self, q: int, p: int, rounds: int) -> float:
        energy = sum(g.energy for g in self._groups)
        parts = (g.pair(q, p, rounds).error if rounds else g.pair_error(q, p) for g in self._groups)
        return sum(parts) / energy if energy > 0 else 0.0

    def outline(self, rank: Rank) -> Chain:
        """Three stages of the right shapes, all zero."""
        q, p = two_ranks(rank)
        outputs, inputs, *kernel = self._stage.weight.shape
        groups, one, zero = len(self._groups), [1] * len(kernel), np.zeros(())
        shapes = [(groups * q, inputs, *one), (groups * p, q, *kernel), (outputs, p, *one)]
        reduce, core, expand, bias = (np.broadcast_to(zero, s) for s in (*shapes, (outputs,)))
        return self._stages((reduce, core, expand), bias)

    def cut(self, rank: Rank) -> Chain:
        """Three stages with ``q`` and ``p`` channels of a group between them."""
        q, p = (min(r, most) for r, most in zip(two_ranks(rank), self.max_rank, strict=True))
        chain = self._chain(q, p)
        design = self._moments if self._own_metric else Moments()
        return corrected(self._stage, chain.balanced(), design)

    def _chain(self, q: int, p: int) -> Chain:
        # in weight space every pair is cut for its error, so wide layers get no rounds
        rounds = _ROUNDS if self._own_metric or q <= self._affordable else 0
        groups = [g.pair(q, p, rounds) for g in self._groups]
        one = (1,) * self._geometry.axes
        weights = [
            np.concatenate([g.reduce.reshape(*g.reduce.shape, *one) for g in groups]),
            np.concatenate([g.core for g in groups]),
            np.concatenate([g.expand.reshape(*g.expand.shape, *one) for g in groups]),
        ]
        return self._stages(weights, None)

    def _stages(self, weights: Sequence[Array], bias: Array | None) -> Chain:
        one = ConvGeometry.pointwise(self._geometry.axes, len(self._groups))
        reduce, core, expand = weights
        first, middle = (
            Stage(reduce, None, one, "reduce"),
            Stage(core, None, self._geometry, "core"),
        )
        return Chain((first, middle, Stage(expand, bias, one, "expand")))


@dataclass(frozen=True)
class Tucker2(Factorization):
    """A 1x1 to few channels, a small k x k core, a 1x1 to all outputs."""

    name: ClassVar[str] = "tucker2"
    slow: ClassVar[bool] = True

    metric: str = "covariance"

    choices: ClassVar[dict[str, tuple[str, ...]]] = {"metric": METRICS}

    def refuses(self, layer: Layer) -> Skip | None:
        """See the module."""
        return no_dense_kernel(layer)

    def propose(
        self, layer: Layer, moments: Moments, max_parameters: int | None = None
    ) -> Sequence[Decomposition]:
        """See the module."""
        stage, geometry, groups = layer.stage, layer.geometry, layer.groups
        assert isinstance(geometry, ConvGeometry)  # only a convolution has a kernel
        kernels = stage.weight.reshape(groups, -1, *layer.shape[1:])
        a_rank = groups * (layer.shape[1] + math.prod(geometry.kernel))  # with p = 1
        most = None if max_parameters is None else max(max_parameters // a_rank, 1)
        design = moments.identity if self.metric == "identity" else moments
        solved = tuple(Tucker(k, design.of_group(g), most) for g, k in enumerate(kernels))
        own, limit = self.metric == "covariance", max_parameters or stage.parameters
        return [_Form(stage, geometry, moments, solved, own, limit)]
