"""recurrent_svd: an LSTM, GRU or RNN reads its input through r features.

Before:      LSTM | GRU | RNN        W (directions, gates * hidden, I)
After:       MatMul x V^T (I -> r), then the same node with W := U (directions, gates * hidden, r)
Conditions:  saves when r < directions gates hidden I / (directions gates hidden + I); for all
             directions, layouts, activations, biases, peepholes, initial states, sequence
             lengths and linear_before_reset: none of them changes the product with the input

Formula:     all gates of all directions stacked to W (N, I); P = the r leading eigenvectors of
             W Sigma W^T, U = P, V = P^T W: reduced-rank regression of the gates' inputs, optimal
             at each rank. Errors of gates are weighed by how much they move the next state
             (:mod:`onnx_lowrank.linalg.gate_metric`). The half of B that belongs to W corrects the
             mean. Tucker of the tensor (directions, gates, hidden, I) on its last side is the
             same, as the node needs a dense W. V is a matrix product that tensor_train may
             factorize in turn.

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
    """An LSTM, GRU or RNN that reads its input through r features."""

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
