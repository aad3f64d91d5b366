"""Passes on layers whose outputs have a metric.

With ``M = L^T L`` the errors of ``W`` under ``M`` are the plain errors of ``L W``. So a pass takes
``L W`` apart, without knowing of ``M``, and ``L^-1`` goes into the last stage of its chain. A chain
with another kind of end (a tensor train, a permutation) cannot take it up: there the pass sees the
layer as it is, and only the errors are those under ``M``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.analysis.moments import Moments, relative_error
from onnx_lowrank.chains.chain import Chain, Rank, Stage
from onnx_lowrank.chains.protocol import Step
from onnx_lowrank.chains.special_stages import Branches
from onnx_lowrank.layers import Layer
from onnx_lowrank.linalg.output_metric import ResponseMetric
from onnx_lowrank.passkit.base import Decomposition, Factorization, Unfolded

__all__ = ["taken_apart"]

Array = npt.NDArray[np.floating[Any]]


def taken_apart(
    factorization: Factorization, layer: Layer, moments: Moments, max_parameters: int | None = None
) -> Sequence[Decomposition]:
    """Ask a pass to take ``layer`` apart under the metric of its outputs, where it has one.

    Args:
        factorization: the pass, which does not refuse the layer.
        layer: the layer; it is not changed.
        moments: moments of its input, with the metric of its outputs.
        max_parameters: largest number of parameters of a chain worth computing.
    """
    metric = moments.outputs
    if metric is None:
        return factorization.propose(layer, moments, max_parameters)
    stage, inputs = layer.stage, replace(moments, outputs=None)
    bias = None if stage.bias is None else metric.weighed(stage.bias, 0)
    weighed = layer.with_stage(replace(stage, weight=metric.weighed(stage.weight, 0), bias=bias))
    found = factorization.propose(weighed, inputs, max_parameters)
    if all(_takes_up(d) for d in found):
        return [
            (_WeighedUnfolded if isinstance(d, Unfolded) else _Weighed)(d, metric) for d in found
        ]
    plain = factorization.propose(layer, inputs, max_parameters)
    return [_Measured(d, stage, moments) for d in plain]


@dataclass(frozen=True)
class _Other:
    """A decomposition that has the forms and ranks of another."""

    whole: Decomposition

    @property
    def variant(self) -> str:
        return self.whole.variant

    def ranks(self) -> Iterable[Rank]:
        return self.whole.ranks()

    def error(self, rank: Rank) -> float:
        return self.whole.error(rank)

    def outline(self, rank: Rank) -> Chain:
        return self.whole.outline(rank)

    def cut(self, rank: Rank) -> Chain:
        return self.whole.cut(rank)


@dataclass(frozen=True)
class _Weighed(_Other):
    """A decomposition of ``L W`` as one of ``W``."""

    metric: ResponseMetric

    def cut(self, rank: Rank) -> Chain:
        return _plain(self.whole.cut(rank), self.metric)


@dataclass(frozen=True)
class _WeighedUnfolded(_Weighed):
    """The same of a decomposition whose ranks are those of matrices."""

    def unfoldings(self) -> Sequence[Sequence[Array]]:
        assert isinstance(self.whole, Unfolded)
        return self.whole.unfoldings()


@dataclass(frozen=True)
class _Measured(_Other):
    """A decomposition of ``W`` whose errors are those of its chains under the metric."""

    stage: Stage
    moments: Moments
    known: dict[Rank, float] = field(default_factory=dict)

    def error(self, rank: Rank) -> float:
        if rank not in self.known:
            self.known[rank] = relative_error(self.stage, self.whole.cut(rank), self.moments)
        return self.known[rank]


def _takes_up(decomposition: Decomposition) -> bool:
    """Whether the chains of a decomposition end in stages that a map of the outputs fits into."""
    rank = next(iter(decomposition.ranks()), None)
    return rank is None or _dense_end(decomposition.outline(rank).last)


def _dense_end(step: Step) -> bool:
    if isinstance(step, Branches):
        return all(_dense_end(chain.last) for chain in step.chains)
    return isinstance(step, Stage) and step.groups == 1


def _plain(chain: Chain, metric: ResponseMetric) -> Chain:
    """The chain with ``L^-1`` behind it."""
    *before, last = chain.stages
    end: Step
    if isinstance(last, Branches):
        end = replace(last, chains=tuple(_plain(branch, metric) for branch in last.chains))
    else:
        assert isinstance(last, Stage)
        bias = None if last.bias is None else metric.plain(last.bias, 0)
        end = replace(last, weight=metric.plain(last.weight, 0), bias=bias)
    return Chain((*before, end)).balanced()
