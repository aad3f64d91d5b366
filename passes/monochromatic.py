"""monochromatic: every filter reads one of few colours.

Before:      Conv                                              W (N, C, *k), few input channels
After:       form=free:   Conv 1x1, C -> K; Gather of K to N channels; depthwise Conv, N
             form=equal:  Conv 1x1, C -> K; Conv of K groups, each 1 -> N / K; Gather of N
Conditions:  some kernel axis > 1; not depthwise; at most 64 input channels a group; K < N;
             equal: K divides N (the Gather then undoes the order by colours, at the output's
             size instead of the input's)

Formula:     What[n, c, t] = V[k(n), c] S[n, t], V and S by least squares under Sigma and the
             assignment k by least error, in turn, from several starts.

Reference:   Denton, Zaremba, Bruna, LeCun & Fergus 2014, Exploiting linear structure within
             convolutional networks for efficient evaluation, section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from onnx_lowrank.analysis.moments import Moments, corrected, relative_error
from onnx_lowrank.chains.chain import Chain, Rank, Stage, one_rank
from onnx_lowrank.chains.geometry import ConvGeometry
from onnx_lowrank.chains.protocol import Step
from onnx_lowrank.chains.special_stages import Select
from onnx_lowrank.layers import Layer
from onnx_lowrank.linalg.monochromatic import Monochromatic, monochromatic
from onnx_lowrank.passkit.base import Decomposition, Factorization, Skip, no_dense_kernel
from onnx_lowrank.passkit.rank_grid import aligned_ranks
from onnx_lowrank.passkit.two_stage import METRICS

__all__ = ["MonochromaticPass"]

Array = npt.NDArray[np.floating[Any]]

#: largest number of input channels; the method is for images with a few colour channels
_CHANNELS = 64


@dataclass(frozen=True)
class _Form:
    """A convolution at every number of colours; groups are solved separately."""

    variant: str
    _stage: Stage
    _geometry: ConvGeometry
    _moments: Moments
    _metric: Moments
    _seed: int
    _found: dict[int, Chain] = field(default_factory=dict)

    @property
    def max_rank(self) -> int:
        """Largest number of colours: one for each filter, whose kernel then has rank one."""
        return self._stage.outputs // self._stage.groups

    def ranks(self) -> Iterator[Rank]:
        """Aligned numbers of colours below the number of filters."""
        for rank in aligned_ranks(self.max_rank - 1, self._stage.groups):
            if self.variant == "free" or self.max_rank % rank == 0:
                yield rank

    def error(self, rank: Rank) -> float:
        """Relative response error with ``rank`` colours in each group."""
        return relative_error(self._stage, self.cut(rank), self._moments)

    def outline(self, rank: Rank) -> Chain:
        """The steps of the right shapes for ``rank`` colours, all zero."""
        rank = one_rank(rank)
        outputs, inputs, *kernel = self._stage.weight.shape
        zero = np.zeros(())
        colours = np.broadcast_to(zero, (self._stage.groups * rank, inputs))
        spatial = np.broadcast_to(zero, (outputs, *kernel))
        group, place = np.divmod(np.arange(outputs), self.max_rank)
        order = group * rank + place % rank
        bias = np.broadcast_to(zero, (outputs,))
        return self._chain(colours, spatial, order).with_bias(bias)

    def cut(self, rank: Rank) -> Chain:
        """The steps with ``rank`` colours in each group."""
        rank = one_rank(rank)
        if rank not in self._found:
            groups = [self._solved(g, rank) for g in range(self._stage.groups)]
            offsets = rank * np.arange(len(groups))
            chain = self._chain(
                np.concatenate([m.directions for m in groups]),
                np.concatenate([m.spatial for m in groups]),
                np.concatenate([m.assignment + o for m, o in zip(groups, offsets, strict=True)]),
            )
            self._found[rank] = corrected(self._stage, chain, self._metric)
        return self._found[rank]

    def _solved(self, group: int, rank: int) -> Monochromatic:
        weight = self._stage.weight
        kernels = weight.reshape(self._stage.groups, self.max_rank, weight.shape[1], -1)
        return monochromatic(
            kernels[group],
            self._metric.sigma(group),
            rank,
            balanced=self.variant == "equal",
            seed=self._seed,
        )

    def _chain(self, colours: Array, spatial: Array, assignment: npt.NDArray[Any]) -> Chain:
        """Make the chain from colours ``(g K, C / g)``, kernels, and the colour of each output."""
        axes, groups = self._geometry.axes, self._stage.groups
        point = ConvGeometry.pointwise(axes, groups)
        first = Stage(colours.reshape(*colours.shape, *(1,) * axes), None, point, "colours")
        outputs, kernel = len(spatial), self._geometry.kernel
        second: tuple[Step, ...]
        if self.variant == "free":
            pick = Select(tuple(assignment.tolist()), len(colours), point, "pick", groups)
            depthwise = replace(self._geometry, groups=outputs)
            taps = Stage(spatial.reshape(outputs, 1, *kernel), None, depthwise, "spatial")
            return Chain((first, pick, taps))
        order = np.argsort(assignment, kind="stable")
        back = tuple(np.argsort(order, kind="stable").tolist())
        grouped = replace(self._geometry, groups=len(colours))
        taps = Stage(spatial[order].reshape(outputs, 1, *kernel), None, grouped, "spatial")
        second = (taps, Select(back, outputs, point, "order", groups))
        return Chain((first, *second))


@dataclass(frozen=True)
class MonochromaticPass(Factorization):
    """Every filter reads one of few colours."""

    name: ClassVar[str] = "monochromatic"
    slow: ClassVar[bool] = True

    metric: str = "covariance"
    form: str = "both"
    seed: int = 0

    choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "metric": METRICS,
        "form": ("both", "free", "equal"),
    }

    def refuses(self, layer: Layer) -> Skip | None:
        """See the module."""
        refusal = no_dense_kernel(layer)
        if refusal is not None:
            return refusal
        if layer.shape[1] > _CHANNELS:
            return Skip(f"reads {layer.shape[1]} channels, and colours are {_CHANNELS} at most")
        return None

    def propose(
        self, layer: Layer, moments: Moments, max_parameters: int | None = None
    ) -> Sequence[Decomposition]:
        """See the module."""
        geometry = layer.geometry
        assert isinstance(geometry, ConvGeometry)  # only a convolution has a kernel
        metric = moments if self.metric == "covariance" else moments.identity
        return [
            _Form(form, layer.stage, geometry, moments, metric, self.seed)
            for form in ("free", "equal")
            if self.form in ("both", form)
        ]
