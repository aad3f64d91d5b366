"""tensor_train: a matrix product as a train of small cores.

Before:      Gemm | MatMul                            W (N, C)
After:       Reshape to factors of C; MatMul with one core after the other, Reshape between them;
             Reshape to N. Pad before and Slice behind where N or C is not a product of balanced
             factors
Conditions:  contracts the last axis; at least 4 inputs and outputs

Formula:     W[(a1 .. ad), (b1 .. bd)] = G1[a1, b1] .. Gd[ad, bd], all ranks r: the better of the
             TT-SVD of W and of W in coordinates of unit marginal covariance, then alternating
             least squares under Sigma. It saves parameters above all, and MACs with two cores.

Reference:   Novikov, Podoprikhin, Osokin & Vetrov 2015, Tensorizing neural networks; Oseledets
             2011, Tensor-train decomposition.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from onnx_lowrank.analysis.moments import Moments, corrected, relative_error
from onnx_lowrank.chains.chain import Chain, Rank, Stage, one_rank
from onnx_lowrank.chains.geometry import LinearGeometry
from onnx_lowrank.chains.special_stages import TensorTrainStep
from onnx_lowrank.layers import Layer
from onnx_lowrank.linalg.tensor_train import TensorTrain, TensorTrains
from onnx_lowrank.linalg.tensor_train_shapes import capped_ranks, core_shapes, factor_shapes
from onnx_lowrank.passkit.base import Decomposition, Factorization, Skip
from onnx_lowrank.passkit.rank_grid import aligned_ranks
from onnx_lowrank.passkit.two_stage import METRICS

__all__ = ["TensorTrainPass"]

Array = npt.NDArray[np.floating[Any]]

#: rounds of alternation for a train that is written; plans take one
_ROUNDS = 4

#: largest number of ranks that a plan is offered for one form
_RANKS = 16


@dataclass(frozen=True)
class _Form:
    """A matrix as a train of a fixed number of cores, at every rank."""

    variant: str
    _stage: Stage
    _geometry: LinearGeometry
    _moments: Moments
    _metric: Moments
    _trains: TensorTrains
    _modes: tuple[tuple[int, ...], tuple[int, ...]]
    _limit: int
    _errors: dict[int, float] = field(default_factory=dict)

    @property
    def max_rank(self) -> int:
        """Rank at which the train equals the matrix."""
        return max(capped_ranks(*self._modes, self._stage.outputs * self._stage.inputs))

    def ranks(self) -> Iterator[Rank]:
        """Aligned ranks that save parameters, and the smallest ones."""
        ranks = sorted({1, 2, 3, *aligned_ranks(self.max_rank)})
        saving = [r for r in ranks if self.outline(r).parameters < self._limit]
        while len(saving) > _RANKS:
            saving = saving[::-2][::-1]
        return iter(saving)

    def error(self, rank: Rank) -> float:
        """Relative response error at ``rank``; :meth:`cut` makes it a little smaller."""
        rank = one_rank(rank)
        if rank not in self._errors:
            if self._metric is self._moments:
                energy = self._trains.energy
                found = self._trains.cut(rank, 1).error / energy if energy > 0 else 0.0
            else:
                found = relative_error(self._stage, self._chain(self._cut(rank)), self._moments)
            self._errors[rank] = found
        return self._errors[rank]

    def outline(self, rank: Rank) -> Chain:
        """Cores of the right shapes, all zero."""
        shapes = core_shapes(*self._modes, one_rank(rank))
        cores = tuple(np.broadcast_to(np.zeros(()), s) for s in shapes)
        bias = np.broadcast_to(np.zeros(()), (self._stage.outputs,))
        return Chain((self._step(cores).with_bias(bias),))

    def cut(self, rank: Rank) -> Chain:
        """The chain of the train of ``rank``."""
        return corrected(self._stage, self._chain(self._cut(one_rank(rank))), self._metric)

    def _cut(self, rank: int) -> TensorTrain:
        return self._trains.cut(rank, _ROUNDS)

    def _chain(self, train: TensorTrain) -> Chain:
        return Chain((self._step(train.cores),))

    def _step(self, cores: tuple[Array, ...]) -> TensorTrainStep:
        return TensorTrainStep(cores, self._stage.inputs, self._stage.outputs, self._geometry)


@dataclass(frozen=True)
class TensorTrainPass(Factorization):
    """A matrix product as a train of small cores."""

    name: ClassVar[str] = "tensor_train"
    slow: ClassVar[bool] = True
    ops: ClassVar[frozenset[str]] = frozenset({"Gemm", "MatMul"})

    metric: str = "covariance"
    cores: str = "both"

    choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "metric": METRICS,
        "cores": ("both", "2", "3", "4"),
    }

    def refuses(self, layer: Layer) -> Skip | None:
        """See the module."""
        geometry = layer.geometry
        if isinstance(geometry, LinearGeometry) and geometry.input_axis != -1:
            return Skip("contracts the second last axis of its input")
        if min(layer.shape) < 4:
            return Skip(f"a matrix of {layer.shape} is too small for a train")
        return None

    def propose(
        self, layer: Layer, moments: Moments, max_parameters: int | None = None
    ) -> Sequence[Decomposition]:
        """See the module."""
        stage, geometry = layer.stage, layer.geometry
        assert isinstance(geometry, LinearGeometry)
        metric = moments if self.metric == "covariance" else moments.identity
        limit = max_parameters or stage.parameters
        forms = []
        for order in (2, 3) if self.cores == "both" else (int(self.cores),):
            rows = factor_shapes(stage.outputs, order).modes
            columns = factor_shapes(stage.inputs, order).modes[::-1]
            trains = TensorTrains(stage.weight, rows, columns, metric.sigma(0))
            forms.append(
                _Form(str(order), stage, geometry, moments, metric, trains, (rows, columns), limit)
            )
        return forms
