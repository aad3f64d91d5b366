"""The decomposition of svd, spatial_svd and channel_svd: a basis, then a regression on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from onnx_lowrank.analysis.moments import Moments, corrected, relative_error
from onnx_lowrank.chains.chain import Chain, Rank, Stage, one_rank
from onnx_lowrank.chains.geometry import ConvGeometry, Geometry
from onnx_lowrank.layers import Layer
from onnx_lowrank.lazily import lazy
from onnx_lowrank.linalg.error_interpolation import interpolated_gain
from onnx_lowrank.linalg.patch_projection import Factors, PatchProjection
from onnx_lowrank.linalg.phase_covariance import Covariance
from onnx_lowrank.passkit.rank_grid import aligned_ranks, spread

__all__ = [
    "METRICS",
    "TWO_STAGE_METRICS",
    "Projection",
    "TwoStage",
    "split_geometry",
    "two_stage",
    "unfolded",
    "worth_refining",
]

Array = npt.NDArray[np.floating[Any]]

#: ``covariance`` fits the response on the data, ``identity`` the weights.
METRICS = ("covariance", "identity")

#: ``diagonal`` knows of the data how much each input varies, not how inputs vary together.
TWO_STAGE_METRICS = (*METRICS, "diagonal")

#: rounds of alternating least squares for a chain that is written
_ROUNDS = 4

#: number of ranks at which a plan refines, and the largest rank times squared patch length there
_REFINED, _AFFORDABLE = 5, 400_000_000
#: number of columns up to which a plan refines at every rank, as that takes no time
_NARROW = 64


class Projection(Protocol):
    """One group of a layer as two maps, at every rank."""

    @property
    def energy(self) -> float:
        """``tr(W Sigma W^T)``."""

    @property
    def max_rank(self) -> int:
        """Rank beyond which nothing is gained."""

    def error(self, rank: int) -> float:
        """``tr(D Sigma D^T)`` of :meth:`factors`."""

    def factors(self, rank: int) -> Factors:
        """The maps of ``rank``, in closed form."""

    def refined(self, rank: int, rounds: int) -> Factors:
        """The maps of ``rank`` after so many rounds more."""


@dataclass(frozen=True)
class TwoStage:
    """A layer projected onto a basis over some of its patch axes, at every rank.

    Each group is taken apart alone; all at one rank, so that the chain is one of grouped layers.
    """

    variant: str
    _stage: Stage
    _moments: Moments
    _solve: Callable[[], tuple[Projection, ...]]
    _geometries: tuple[Geometry, Geometry]
    _roles: tuple[str, str]
    _metric: str

    @lazy
    def _groups(self) -> tuple[Projection, ...]:
        """The groups, taken apart; an outline does without."""
        return self._solve()

    @property
    def _own_metric(self) -> bool:
        """Whether the chain is made under the metric that errors are reported in."""
        return self._metric == "covariance"

    @property
    def max_rank(self) -> int:
        """The largest of the groups' numerical ranks."""
        return max(g.max_rank for g in self._groups)

    def ranks(self) -> Iterator[int]:
        """Aligned ranks up to :attr:`max_rank`."""
        return aligned_ranks(self.max_rank, len(self._groups))

    def unfoldings(self) -> Sequence[Sequence[Array]]:
        """Unfold each group: the first stage's patch by outputs with the other taps."""
        kernel = self._geometries[0].kernel
        first = [1, *(a + 2 for a, k in enumerate(kernel) if k > 1)]
        return [[unfolded(k, first)] for k in self._kernels]

    @property
    def _kernels(self) -> Array:
        weight: Array = self._stage.weight
        return weight.reshape(self._stage.groups, -1, *weight.shape[1:])

    def error(self, rank: Rank) -> float:
        """Relative response error at ``rank``; :meth:`cut` takes it a little lower."""
        rank = one_rank(rank)
        if not self._own_metric:
            chain = self._chain([g.factors(rank) for g in self._groups])
            return relative_error(self._stage, chain, self._moments)
        plain = self._plain(rank)
        if not worth_refining(plain):
            return plain
        if self._stage.matrices.shape[2] <= _NARROW:
            return plain * self._gain(rank)
        return plain * interpolated_gain(*self._gains, rank)

    @lazy
    def _gains(self) -> tuple[list[int], list[float]]:
        """Ranks that a plan refines, and what that leaves of the error there.

        To refine at every rank would take minutes. In the layers of ResNet-20 errors told so are
        0.2 % off those of a round at every rank, and 2 % at the most.
        """
        most = self._affordable
        ranks = [r for r in self.ranks() if r <= most and worth_refining(self._plain(r))]
        tried = spread(ranks, _REFINED) or [most]
        return tried, [self._gain(r) for r in tried]

    def _gain(self, rank: int) -> float:
        plain, refined = self._plain(rank), self._refined(rank)
        return min(refined / plain, 1.0) if refined > 0 and plain > 0 else 1.0

    @property
    def _affordable(self) -> int:
        width = int(self._stage.matrices.shape[2])
        return max(min(_AFFORDABLE // width**2, self.max_rank), 1)

    @property
    def _energy(self) -> float:
        return sum(g.energy for g in self._groups)

    def _plain(self, rank: int) -> float:
        energy = self._energy
        return sum(g.error(rank) for g in self._groups) / energy if energy > 0 else 0.0

    def _refined(self, rank: int) -> float:
        return sum(g.refined(rank, rounds=1).error for g in self._groups) / self._energy

    def outline(self, rank: Rank) -> Chain:
        """Two stages of the right shapes, all zero."""
        rank = one_rank(rank)
        groups, zero = self._stage.groups, np.zeros(())
        one, two = self._geometries
        inputs = self._stage.weight.shape[1]
        first = np.broadcast_to(zero, (groups * rank, inputs, *one.kernel))
        last = np.broadcast_to(zero, (self._stage.outputs, rank, *two.kernel))
        bias = np.broadcast_to(zero, (self._stage.outputs,))
        return Chain(
            (Stage(first, None, one, self._roles[0]), Stage(last, bias, two, self._roles[1]))
        )

    def cut(self, rank: Rank) -> Chain:
        """Two stages with ``rank`` channels a group between them."""
        rank = min(one_rank(rank), self.max_rank)
        rounds = _ROUNDS if self._own_metric else 0
        chain = self._chain([g.refined(rank, rounds) for g in self._groups])
        design = self._moments if self._metric != "identity" else Moments()
        return corrected(self._stage, chain.balanced(), design)

    def _chain(self, groups: Sequence[Factors]) -> Chain:
        first = np.concatenate([g.basis for g in groups])
        last = np.concatenate([g.last for g in groups])
        one, two = self._geometries
        return Chain(
            (
                Stage(first.reshape(*first.shape[:2], *one.kernel), None, one, self._roles[0]),
                Stage(last.reshape(*last.shape[:2], *two.kernel), None, two, self._roles[1]),
            )
        )


def two_stage(
    layer: Layer,
    moments: Moments,
    axes: tuple[int, ...],
    roles: tuple[str, str],
    metric: str = "covariance",
    max_parameters: int | None = None,
    variant: str = "",
    solve: Callable[[Array, Array | None, tuple[int, ...], int | None], Projection] | None = None,
) -> TwoStage:
    """Take ``layer`` apart over the spatial ``axes`` that its first stage keeps.

    Args:
        layer: the layer.
        moments: of its input.
        axes: spatial axes of the first stage; the last stage has the others.
        roles: words for the names of the two nodes.
        metric: one of :data:`TWO_STAGE_METRICS`, to fit; errors are those of the response.
        max_parameters: largest chain worth computing.
        variant: name of this form of the method.
        solve: takes kernel, covariance, kernel axes of the first stage and largest rank; None is
            :class:`PatchProjection`, the best basis.
    """
    stage = layer.stage
    geometries = split_geometry(layer.geometry, axes)
    groups = layer.groups
    first = (0, *(a + 1 for a in axes))
    per_rank = groups * (
        layer.shape[1] * int(np.prod(geometries[0].kernel, dtype=int))
        + layer.shape[0] // groups * int(np.prod(geometries[1].kernel, dtype=int))
    )
    max_rank = None if max_parameters is None else max(max_parameters // per_rank, 1)
    kernels = stage.weight.reshape(groups, layer.shape[0] // groups, *layer.shape[1:])

    def solved(kernel: Array, sigma: Covariance | None) -> Projection:
        if solve is None:
            return PatchProjection(kernel, sigma, first, max_rank)
        return solve(kernel, None if sigma is None else np.asarray(sigma), first, max_rank)

    def every() -> tuple[Projection, ...]:
        return tuple(
            solved(kernel, _design(moments.of_group(g), metric)) for g, kernel in enumerate(kernels)
        )

    return TwoStage(
        variant,
        stage,
        moments,
        every,
        geometries,
        roles,
        metric,
    )


def unfolded(kernel: Array, rows: Sequence[int]) -> Array:
    """``kernel (N, C, *k)`` as a matrix, the axes of one side named (the first axis being N)."""
    front = np.moveaxis(kernel, list(rows), list(range(len(rows))))
    return front.reshape(int(np.prod(front.shape[: len(rows)])), -1)


def worth_refining(error: float) -> bool:
    """Whether a plan wants the refined figure; larger errors are never taken, smaller ones are."""
    return 1e-4 < error < 0.6


def _design(sigma: Covariance | None, metric: str) -> Covariance | None:
    """The matrix ``(d, d)`` that the chain is fitted under; None is the identity."""
    if sigma is None or metric == "identity":
        return None
    return np.diag(np.diag(np.asarray(sigma))) if metric == "diagonal" else sigma


def split_geometry(geometry: Geometry, axes: tuple[int, ...]) -> tuple[Geometry, Geometry]:
    """Geometries of two stages that share a kernel, the first with the spatial ``axes``."""
    if isinstance(geometry, ConvGeometry):
        rest = [a for a in range(geometry.axes) if a not in axes]
        return geometry.restrict(axes), geometry.restrict(rest)
    return geometry, replace(geometry, input_axis=geometry.output_axis)
