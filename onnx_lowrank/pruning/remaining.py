"""Moments of the layers of a model after a cut, from those before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from onnx_lowrank.analysis.moment_store import MomentStore
from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.layers import Layer, PlacedLayer
from onnx_lowrank.linalg.gate_metric import GateMetric
from onnx_lowrank.linalg.output_metric import ResponseMetric
from onnx_lowrank.linalg.phase_covariance import PhaseCovariance
from onnx_lowrank.pruning.turns import Turn, turned_moments

__all__ = ["RemainingMoments", "remaining_moments"]

Labels = npt.NDArray[np.intp]


@dataclass(frozen=True)
class RemainingMoments(Mapping[str, Moments]):
    """Moments of layers that some of their inputs are left of."""

    _whole: MomentStore
    _layers: Mapping[str, PlacedLayer]
    _positions: Mapping[str, Labels]
    _rows: Mapping[str, npt.NDArray[np.bool_]]
    _turns: Sequence[Turn]

    def __getitem__(self, name: str) -> Moments:
        layer = self._layers[name].value
        if layer.depthwise:
            return Moments()
        moments = turned_moments(name, self._whole[name], self._turns)
        moments = replace(moments, outputs=self.metric(name))
        return _restricted(moments, layer, self._positions.get(name))

    def metric(self, name: str) -> ResponseMetric | None:
        """The metric of the outputs of a layer that stay; None where all count alike."""
        metric, rows = self._whole.metric(name), self._rows.get(name)
        if isinstance(metric, GateMetric) and rows is not None:
            return metric.taken(rows)
        return metric

    def __contains__(self, name: object) -> bool:
        return name in self._layers

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


def remaining_moments(
    whole: MomentStore, left: RemainingMoments, layers: Sequence[PlacedLayer]
) -> MomentStore:
    """A store of the moments of a model after a cut, which are made when they are read.

    Args:
        whole: of the model before it.
        left: of the layers after it.
        layers: layers after the cut.
    """
    store = MomentStore()
    store.totals |= whole.totals
    store.outputs |= whole.outputs
    names = {layer.name for layer in layers}
    store.silent |= whole.silent & names
    for name in (layer.name for layer in layers if layer.name in left):
        store.add_made(partial(left.__getitem__, name), name)
        if isinstance(metric := left.metric(name), GateMetric):
            store.gates[name] = metric
    return store


def _restricted(moments: Moments, layer: Layer, positions: Labels | None) -> Moments:
    if positions is None or moments.mean is None:
        return moments
    taps = int(np.prod(layer.shape[2:], dtype=int))
    patch = (positions[:, None] * taps + np.arange(taps)).reshape(-1)
    covariance = moments.covariance
    if isinstance(covariance, PhaseCovariance):
        covariance = covariance.taken(patch)
    elif covariance is not None:
        covariance = covariance[:, patch[:, None], patch]
    return replace(moments, mean=moments.mean[:, patch], covariance=covariance)
