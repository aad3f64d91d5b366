"""recurrent_svd: the input of an LSTM, GRU or RNN through r features.

Before:      LSTM | GRU | RNN        W (directions, gates * hidden, I)
After:       MatMul x V^T (I -> r), then the same node with W := U (directions, gates * hidden, r)
Conditions:  saves when r < directions gates hidden I / (directions gates hidden + I); for all
             directions, layouts, activations, biases, peepholes, initial states, sequence
             lengths and linear_before_reset: none of them touches the product with the input

Formula:     all gates of all directions stacked to W (N, I); P = the r leading eigenvectors of
             W Sigma W^T, U = P, V = P^T W: reduced-rank regression of what the gates get, optimal
             at each rank. The bias takes up the mean, in the half of B that belongs to W. Keeping
             other sides of the tensor (directions, gates, hidden, I) whole, Tucker is the same:
             the node wants its W dense. V is a matrix product that tensor_train may take in turn.

Reference:   Eckart & Young 1936; Izenman 1975; Novikov et al. 2015 for the tensor view; for
             recurrent nets Sak, Senior & Beaufays 2014, Prabhavalkar et al. 2016.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.layers import Layer
from onnx_lowrank.passkit.base import Decomposition, Factorization, Skip
from onnx_lowrank.passkit.two_stage import TWO_STAGE_METRICS, two_stage

__all__ = ["RecurrentSvd"]


@dataclass(frozen=True)
class RecurrentSvd(Factorization):
    """The input of an LSTM, GRU or RNN through r features."""

    name: ClassVar[str] = "recurrent_svd"
    ops: ClassVar[frozenset[str]] = frozenset({"LSTM", "GRU", "RNN"})

    metric: str = "covariance"

    choices: ClassVar[dict[str, tuple[str, ...]]] = {"metric": TWO_STAGE_METRICS}

    def refuses(self, layer: Layer) -> Skip | None:
        """See the module."""
        return None

    def propose(
        self, layer: Layer, moments: Moments, max_parameters: int | None = None
    ) -> Sequence[Decomposition]:
        """See the module."""
        return [two_stage(layer, moments, (), ("reduce", "gates"), self.metric, max_parameters)]
