"""cp: a convolution as a sum of R rank-one kernels.

Before:      Conv k1 x k2 x ...                              W (N, C, *k)
After:       Conv 1x1, C -> R; depthwise k1 x 1; depthwise 1 x k2; ...; Conv 1x1, R -> N
                                                             (form = four)
             Conv 1x1, C -> R; depthwise k1 x k2 x ...; Conv 1x1, R -> N
                                                             (form = three)
             the depthwise stages take stride, pad and dilation of their own axes
Conditions:  some kernel axis > 1, two for form = four; not depthwise; saves when
             R < N C k1 k2 ... / (C + k1 + k2 + ... + N); of both forms, four is offered only
             where kernels are large for the channels (not 3 x 3)

Formula:     W[n, c, i, j] ~ sum_r B[n, r] A[c, r] H[i, r] V[j, r]  by alternating least squares;
             then B by least squares on the responses of the R features
             z_r = <a_r (x) h_r (x) v_r, x>:   B = W Sigma Z^T (Z Sigma Z^T)^-1.
             Response metric: A, H, V once from the kernel as it is and once with its input
             channels under S^(1/2), S = sum_s Sigma[(., s), (., s)], the better of them improved
             under the full Sigma. Ranks are not nested: each is a decomposition of its own.
             Plans use estimates: the second start only, with fewer sweeps, at some ranks only,
             with log(error) interpolated monotonically. A chain that is written is
             solved in full, and its true error is reported.

Reference:   Lebedev, Ganin, Rakhuba, Oseledets & Lempitsky 2015, Speeding-up convolutional neural
             networks using fine-tuned CP-decomposition.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from onnx_lowrank.analysis.moments import Moments, corrected_bias, response_error
from onnx_lowrank.chains.chain import Chain, Rank, Stage, one_rank
from onnx_lowrank.chains.geometry import ConvGeometry
from onnx_lowrank.layers import Layer
from onnx_lowrank.lazily import lazy
from onnx_lowrank.linalg.cp_regression import (
    CpProblem,
    CpRegression,
    Refinement,
    Search,
    Terms,
    outer_rows,
)
from onnx_lowrank.linalg.error_interpolation import interpolated_errors
from onnx_lowrank.passkit.base import Decomposition, Factorization, Skip
from onnx_lowrank.passkit.rank_grid import aligned_ranks, spread
from onnx_lowrank.passkit.two_stage import METRICS

__all__ = ["Cp"]

Array = npt.NDArray[np.floating[Any]]

#: number of ranks of a layer that are tried, and the smallest as a part of the largest
_RANKS, _LEAST = 8, 1 / 12

#: rounds of refinement of terms that were found for a similar layer, or sweeps where refinement is
#: much work
_ROUNDS_FROM, _SWEEPS_FROM = 2, 24

#: elements of a term in three stages, for one in four, from which on four are offered too: with
#: less to save they are not taken, as the terms fit worse and a node more takes time
_FOUR_SAVES = 1.2

#: multiply-adds that the alternating least squares of one rank may take
_WORK = 2e9

#: powers of the channels' covariance that terms are looked for under, and those of estimates and
#: of terms from a similar layer, where the second alone is as good
_BOTH, _ESTIMATING = (0.0, 0.5), (0.5,)

#: smallest and largest number of sweeps, and the largest for an estimate
_SWEEPS, _ESTIMATED = (10, 100), 50

#: elements of a kernel times the sum of its ranks up to which a plan solves every rank in full
_SMALL = 1e5

#: number of ranks of a larger layer at which errors are estimated, the others being interpolated;
#: the number of a wide layer, for which that product is above the last figure
_NODES, _FEWER, _WIDE = 5, 4, 2e7

#: the number of a very wide layer, up to this part of the largest rank: ranks beyond take minutes
#: and save little, and what is told of them is too cautious
_FEWEST, _UP_TO, _VERY_WIDE = 3, 0.6, 2e9

#: once its error is below this, errors at larger ranks, which are the slowest to compute, are
#: extrapolated
_ENOUGH = 3e-3

#: largest rank times squared patch length at which the terms are improved under the full Sigma
_REFINABLE = 400_000_000


@dataclass(frozen=True)
class Cp(Factorization):
    """A convolution as a sum of R rank-one kernels."""

    name: ClassVar[str] = "cp"
    slow: ClassVar[bool] = True

    metric: str = "covariance"
    form: str = "both"
    starts: int = 1
    seed: int = 0

    choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "metric": METRICS,
        "form": ("both", "three", "four"),
    }

    def refuses(self, layer: Layer) -> Skip | None:
        """See the module."""
        if not _wide(layer):
            return Skip("has no spatial kernel")
        if self.form == "four" and len(_wide(layer)) < 2:
            return Skip("has fewer than two kernel axes to split")
        if layer.depthwise:
            return Skip("is depthwise: each group reads one channel")
        return None

    def propose(
        self, layer: Layer, moments: Moments, max_parameters: int | None = None
    ) -> Sequence[Decomposition]:
        """See the module."""
        wide = _wide(layer)
        narrow = [a for a in range(len(layer.geometry.kernel)) if a not in wide]
        # an axis of kernel 1 may still have a stride or a pad
        forms = {"three": [[*wide, *narrow]]}
        if len(wide) > 1:
            forms["four"] = [[wide[0], *narrow], *([a] for a in wide[1:])]
        found = {
            variant: _Terms(variant, layer, layer.stage, moments, parts, self, max_parameters)
            for variant, parts in forms.items()
        }
        if self.form != "both":
            return [terms for variant, terms in found.items() if variant == self.form]
        three, *four = found.values()
        return [three, *(f for f in four if three.term >= _FOUR_SAVES * f.term)]


@dataclass(frozen=True)
class _Terms:
    """A layer as sums of rank-one terms, one sum for each group, at any rank.

    ``_parts`` has the kernel axes of each depthwise stage.
    """

    variant: str
    _layer: Layer
    _stage: Stage
    _moments: Moments
    _parts: list[list[int]]
    _options: Cp
    _max_parameters: int | None
    _found: dict[int, tuple[list[Array], Array]] = field(default_factory=dict)

    @property
    def _geometry(self) -> ConvGeometry:
        assert isinstance(self._layer.geometry, ConvGeometry)
        return self._layer.geometry

    @property
    def _modes(self) -> tuple[int, ...]:
        """Extents of one group's kernel as a tensor: outputs, channels, each part."""
        outputs, inputs = self._layer.shape[0] // self._layer.groups, self._layer.shape[1]
        kernel = self._geometry.kernel
        return outputs, inputs, *(math.prod(kernel[a] for a in part) for part in self._parts)

    @property
    def max_rank(self) -> int:
        """Number of terms with which any kernel of this shape can be written."""
        return math.prod(self._modes) // max(self._modes)

    @property
    def term(self) -> int:
        """Number of elements of one term of a group."""
        return sum(self._modes)

    def ranks(self) -> Iterator[int]:
        """A few aligned ranks, within the parameters of the layer and the limit given."""
        groups, whole = self._layer.groups, math.prod(self._layer.shape)
        most = whole if self._max_parameters is None else min(self._max_parameters, whole)
        limit = min(most // (groups * self.term), self.max_rank)
        found = [r for r in aligned_ranks(limit, groups) if r >= limit * _LEAST]
        yield from spread(found, _RANKS)

    def error(self, rank: Rank) -> float:
        """Relative response error at ``rank``; estimated for a large layer at the ranks offered.

        Estimates never rise with the rank.
        """
        rank = self._one(rank)
        if rank in self._grid_errors:
            return self._grid_errors[rank]
        energy = self._energy
        left = response_error(self._stage.matrices - self._composed(rank), self._moments)
        return left / energy if energy > 0 else 0.0

    @lazy
    def _energy(self) -> float:
        return response_error(self._stage.matrices, self._moments)

    @lazy
    def _grid_errors(self) -> Mapping[int, float]:
        """Estimates by rank; empty for a small layer, whose ranks are all solved in full."""
        ranks, energy = list(self.ranks()), self._energy
        work = math.prod(self._modes) * sum(ranks)
        if work <= _SMALL or energy == 0:
            return {}
        nodes = spread(ranks, _FEWER if work > _WIDE else _NODES)
        if work > _VERY_WIDE:
            nodes = spread([r for r in ranks if r <= _UP_TO * ranks[-1]], _FEWEST)
        errors: list[float] = []
        for rank in nodes:
            found = self._left(self._groups(rank, final=False)) / energy
            errors.append(max(min([found, *errors[-1:]]), np.finfo(np.float64).tiny))
            if len(errors) > 1 and errors[-1] < _ENOUGH:
                break
        figures = interpolated_errors(nodes[: len(errors)], errors, ranks)
        return dict(zip(ranks, figures.tolist(), strict=True))

    def _left(self, groups: Sequence[CpRegression]) -> float:
        """Absolute response error of the terms of all groups."""
        if self._options.metric == "covariance":
            return sum(x.error for x in groups)
        composed = np.stack([x.last @ outer_rows(x.rows) for x in groups])
        return response_error(self._stage.matrices - composed, self._moments)

    def outline(self, rank: Rank) -> Chain:
        """The stages of the right shapes, all zero."""
        rank, zero = self._one(rank), np.zeros(())
        groups, (outputs, *inputs) = self._layer.groups, self._modes
        rows = [np.broadcast_to(zero, (groups, rank, n)) for n in inputs]
        last = np.broadcast_to(zero, (groups, outputs, rank))
        return self._chain(rows, last, np.broadcast_to(zero, (groups * outputs,)))

    def cut(self, rank: Rank) -> Chain:
        """The stages with ``rank`` channels of a group between them, and equal norms."""
        rank = self._one(rank)
        rows, last = self._solved(rank)
        return self._balanced(rank, rows, last)

    def cut_from(self, rank: Rank, near: Chain) -> Chain:
        """The same, from the terms of a similar layer."""
        rank = self._one(rank)
        if rank not in self._found:
            *modes, last = [s.weight for s in near.stages if isinstance(s, Stage)]
            shape = self._layer.groups, rank, -1
            rows = [m.astype(np.float64).reshape(shape) for m in modes]
            out = last.astype(np.float64).reshape(self._layer.groups, -1, rank)
            terms = [Terms(tuple(r[g] for r in rows), o) for g, o in enumerate(out)]
            self._found[rank] = _stacked(self._near(rank, terms))
        return self._balanced(rank, *self._found[rank])

    def _near(self, rank: int, similar: Sequence[Terms]) -> list[CpRegression]:
        """Terms of every group from those of a similar layer."""
        pairs = list(zip(self._problems, similar, strict=True))
        if self._refinable(rank):
            refinement = Refinement(_ROUNDS_FROM)
            return [problem.solve_from(terms.rows, refinement) for problem, terms in pairs]
        search = Search(1, self._options.seed, _SWEEPS_FROM, _ESTIMATING)
        return [problem.solve(rank, search, near=terms) for problem, terms in pairs]

    def _refinable(self, rank: int) -> bool:
        """Whether refinement under the covariance is little work."""
        return rank * self._layer.patch**2 <= _REFINABLE

    def _balanced(self, rank: int, rows: Sequence[Array], last: Array) -> Chain:
        design = self._moments if self._options.metric == "covariance" else Moments()
        bias = corrected_bias(self._stage, self._composed(rank), design)
        norms = np.linalg.norm(last, axis=1)
        share = norms ** (1 / (len(rows) + 1))
        rest = share / np.where(norms > 0, norms, 1.0)
        return self._chain([r * share[..., None] for r in rows], last * rest[:, None], bias)

    def _one(self, rank: Rank) -> int:
        return min(one_rank(rank), self.max_rank)

    def _solved(self, rank: int) -> tuple[list[Array], Array]:
        """Unit rows of each input mode ``(g, R, I)``, and the last map ``(g, N, R)``, solved once.

        They are stored, since a plan asks for an error and then for the chain.
        """
        if rank not in self._found:
            self._found[rank] = _stacked(self._groups(rank, final=True))
        return self._found[rank]

    @lazy
    def _problems(self) -> list[CpProblem]:
        """The kernel of every group, with what its terms are fitted under."""
        own = self._options.metric == "covariance"
        kernels = self._stage.weight.reshape(self._layer.groups, *self._modes)
        sigmas = [self._moments.of_group(g) if own else None for g in range(len(kernels))]
        return [CpProblem(k, sigma) for k, sigma in zip(kernels, sigmas, strict=True)]

    def _groups(self, rank: int, final: bool) -> list[CpRegression]:
        """Solve the terms of every group, for a chain (``final``) or for an estimate."""
        least, most = _SWEEPS
        sweeps = min(_WORK / (math.prod(self._modes) * rank * len(self._modes)), most)
        search = Search(
            self._options.starts,
            self._options.seed,
            sweeps=int(max(sweeps if final else min(sweeps, _ESTIMATED), least)),
            powers=_BOTH if final else _ESTIMATING,
        )
        refinement = Refinement(1 if self._refinable(rank) else 0)
        return [problem.solve(rank, search, refinement) for problem in self._problems]

    def _composed(self, rank: int) -> Array:
        """The kernel that the terms compose to, ``(groups, N / groups, d)``."""
        rows, last = self._solved(rank)
        return np.stack([b @ outer_rows([r[g] for r in rows]) for g, b in enumerate(last)])

    def _chain(self, rows: Sequence[Array], last: Array, bias: Array | None) -> Chain:
        groups, _, rank = last.shape
        geometry, one = self._geometry, ConvGeometry.pointwise(self._geometry.axes, groups)
        reduce = Stage(_kernels(rows[0], one), None, one, "reduce")
        stages = [reduce]
        for number, (part, values) in enumerate(zip(self._parts, rows[1:], strict=True)):
            own = replace(geometry.restrict(part), groups=groups * rank)
            role = "depthwise" if len(self._parts) == 1 else self._role(number)
            stages.append(Stage(_kernels(values[:, :, None], own), None, own, role))
        return Chain((*stages, Stage(_kernels(last, one), bias, one, "expand")))

    def _role(self, number: int) -> str:
        if len(self._parts) == 2:
            return ("vertical", "horizontal")[number]
        return f"axis{self._parts[number][0]}"


def _stacked(groups: Sequence[CpRegression]) -> tuple[list[Array], Array]:
    """Rows of each input mode ``(g, R, I)``, and the last map ``(g, N, R)``."""
    rows = [np.stack(mode) for mode in zip(*(x.rows for x in groups), strict=True)]
    return rows, np.stack([x.last for x in groups])


def _wide(layer: Layer) -> list[int]:
    return [a for a, k in enumerate(layer.geometry.kernel) if k > 1]


def _kernels(values: Array, geometry: ConvGeometry) -> Array:
    """Reshape ``(groups, a, b, [kernel])`` to ``(groups * a, b, *kernel)``."""
    return values.reshape(values.shape[0] * values.shape[1], -1, *geometry.kernel)
