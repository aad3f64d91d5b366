"""bicluster: channels in equal clusters, with a small map for each pair of clusters.

Before:      Conv                                   W (N, C, *k)
After:       Gather in clusters; 1x1 of G groups, K1 channels for each of H clusters of outputs;
             Gather (a channel shuffle); the kernel with G H groups, K1 -> K2, or depthwise;
             1x1 of H groups; Gather in the old order
Conditions:  some kernel axis > 1; not depthwise; G divides C and H divides N in each group

Formula:     form=core:  each block (g, h) of the kernel is a Tucker form of ranks (K1, K2)
             form=outer: each block is a sum of K outer products of channels, taps and outputs
             Clusters by alternating equal assignment; the last factors by regression on all
             features of an output cluster under Sigma; then all in turn.

Reference:   Denton, Zaremba, Bruna, LeCun & Fergus 2014, Exploiting linear structure within
             convolutional networks for efficient evaluation, sections 3.2.2 and 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from onnx_lowrank.analysis.moments import Moments, corrected, relative_error
from onnx_lowrank.chains.chain import Chain, Rank, Stage, two_ranks
from onnx_lowrank.chains.geometry import ConvGeometry
from onnx_lowrank.chains.special_stages import Select
from onnx_lowrank.layers import Layer
from onnx_lowrank.linalg.bicluster import BlockSearch, bicluster
from onnx_lowrank.linalg.block_clusters import Clusters, find_clusters
from onnx_lowrank.passkit.base import Decomposition, Factorization, Skip, no_dense_kernel
from onnx_lowrank.passkit.rank_grid import aligned_ranks
from onnx_lowrank.passkit.two_stage import METRICS

__all__ = ["BiclusterPass"]

Array = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.intp]

#: numbers of clusters on either side that are tried by default
_BLOCKS = (2, 4)

#: largest number of ranks that a plan is offered for one form, as each is solved separately
_RANKS = 6


@dataclass(frozen=True)
class _Form:
    """A convolution in ``_blocks`` x ``_blocks`` blocks, at every rank."""

    variant: str
    _stage: Stage
    _geometry: ConvGeometry
    _moments: Moments
    _metric: Moments
    _blocks: int
    _outer: bool
    _limit: int
    _seed: int
    _found: dict[Rank, Chain] = field(default_factory=dict)

    @property
    def max_rank(self) -> tuple[int, int]:
        """Numbers of channels in a cluster; a core of these ranks is exact."""
        groups = self._stage.groups
        outputs, inputs = self._stage.outputs // groups, self._stage.weight.shape[1]
        return inputs // self._blocks, outputs // self._blocks

    def ranks(self) -> Iterator[Rank]:
        """Aligned ranks that save parameters, the same on either side of a core."""
        limit = math.prod(self.max_rank) if self._outer else min(self.max_rank)
        pairs = ((r, r) for r in aligned_ranks(limit, self._blocks**2))
        saving = [p for p in pairs if self.outline(p).parameters < self._limit]
        while len(saving) > _RANKS:
            saving = saving[::-2][::-1]
        return iter(saving)

    def error(self, rank: Rank) -> float:
        """Relative response error at ``rank``."""
        return relative_error(self._stage, self.cut(rank), self._moments)

    def outline(self, rank: Rank) -> Chain:
        """Stages of the right shapes, all zero."""
        k1, k2 = two_ranks(rank)
        outputs, inputs, *kernel = self._stage.weight.shape
        blocks, groups, zero = self._blocks, self._stage.groups, np.zeros(())
        between = groups * blocks * blocks
        core = (between * k1, 1) if self._outer else (between * k2, k1)
        return self._chain(
            (np.arange(groups * inputs), np.arange(between * k1), np.arange(outputs)),
            np.broadcast_to(zero, (between * k1, inputs // blocks)),
            np.broadcast_to(zero, (*core, *kernel)),
            np.broadcast_to(zero, (outputs, blocks * (k1 if self._outer else k2))),
        ).with_bias(np.broadcast_to(zero, (outputs,)))

    def cut(self, rank: Rank) -> Chain:
        """The chain of ranks ``(K1, K2)``, equal ones for outer products."""
        if rank not in self._found:
            pair = two_ranks(rank)
            if self._outer and pair[0] != pair[1]:
                raise ValueError(f"the ranks {pair} of a sum of outer products must be equal")
            self._found[rank] = corrected(self._stage, self._solved(pair), self._metric)
        return self._found[rank]

    def _solved(self, pair: tuple[int, int]) -> Chain:
        groups, blocks = self._stage.groups, (self._blocks, self._blocks)
        weight = self._stage.weight
        kernels = weight.reshape(groups, -1, weight.shape[1], math.prod(self._geometry.kernel))
        parts = []
        for g, kernel in enumerate(kernels):
            sigma = self._metric.sigma(g)
            searched = find_clusters(kernel, sigma, blocks, pair, seed=self._seed)
            wanted = pair[0] if self._outer else pair
            found = [
                bicluster(kernel, sigma, blocks, wanted, BlockSearch(seed=self._seed), clusters)
                for clusters in (searched, self._natural(kernel))
            ]
            parts.append(min(found, key=lambda f: f.error))
        first = [p.clusters.inputs for p in parts]
        return self._chain(
            (
                _offset(first),
                _offset([p.shuffle for p in parts]),
                _offset([p.inverse for p in parts]),
            ),
            np.concatenate([p.reduce for p in parts]),
            np.concatenate([p.core for p in parts]).reshape(
                -1, parts[0].core.shape[1], *self._geometry.kernel
            ),
            np.concatenate([p.expand for p in parts]),
        )

    def _natural(self, kernel: Array) -> Clusters:
        """Clusters of channels in their present order."""
        outputs, inputs = (np.arange(n) for n in kernel.shape[:2])
        return Clusters(inputs, outputs, (self._blocks, self._blocks))

    def _chain(
        self, orders: tuple[Labels, Labels, Labels], reduce: Array, core: Array, expand: Array
    ) -> Chain:
        """Make the chain from the orders of its Gathers and the weights of its three stages."""
        groups, axes, blocks = self._stage.groups, self._geometry.axes, self._blocks
        one = (1,) * axes

        def point(count: int) -> ConvGeometry:
            return ConvGeometry.pointwise(axes, count)

        def order(index: Labels, role: str) -> Select:
            return Select(tuple(index.tolist()), len(index), point(1), role, groups)

        count = len(core) if self._outer else groups * blocks * blocks
        return Chain(
            (
                order(orders[0], "cluster"),
                Stage(reduce.reshape(*reduce.shape, *one), None, point(groups * blocks), "reduce"),
                order(orders[1], "shuffle"),
                Stage(core, None, replace(self._geometry, groups=count), "core"),
                Stage(expand.reshape(*expand.shape, *one), None, point(groups * blocks), "expand"),
                order(orders[2], "order"),
            )
        )


def _offset(orders: Sequence[Labels]) -> Labels:
    """Join the orders of single groups to one order of all channels."""
    return np.concatenate([o + g * len(o) for g, o in enumerate(orders)])


@dataclass(frozen=True)
class BiclusterPass(Factorization):
    """Channels in equal clusters, with a small map for each pair of clusters."""

    name: ClassVar[str] = "bicluster"
    slow: ClassVar[bool] = True

    metric: str = "covariance"
    form: str = "both"
    blocks: int = 0
    seed: int = 0

    choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "metric": METRICS,
        "form": ("both", "core", "outer"),
    }

    def refuses(self, layer: Layer) -> Skip | None:
        """See the module."""
        refusal = no_dense_kernel(layer)
        if refusal is not None:
            return refusal
        if not self._counts(layer):
            sides = f"{layer.shape[1]} inputs and {layer.shape[0] // layer.groups} outputs"
            return Skip(f"{sides} cannot be divided into equal clusters")
        return None

    def propose(
        self, layer: Layer, moments: Moments, max_parameters: int | None = None
    ) -> Sequence[Decomposition]:
        """See the module."""
        stage, geometry = layer.stage, layer.geometry
        assert isinstance(geometry, ConvGeometry)  # only a convolution has a kernel
        metric = moments if self.metric == "covariance" else moments.identity
        limit = max_parameters or stage.parameters
        return [
            _Form(
                f"{form} {count}x{count}", stage, geometry, moments, metric, count,
                form == "outer", limit, self.seed,
            )
            for form in ("core", "outer")
            if self.form in ("both", form)
            for count in self._counts(layer)
        ]  # fmt: skip

    def _counts(self, layer: Layer) -> list[int]:
        inputs, outputs = layer.shape[1], layer.shape[0] // layer.groups
        wanted = (self.blocks,) if self.blocks else _BLOCKS
        return [b for b in wanted if b > 1 and inputs % b == 0 and outputs % b == 0]
