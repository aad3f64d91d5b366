"""Turns: changes of the basis that layers write or read the channels of heads in.

    rows       W_h' = T_h W_h,  b_h' = T_h b_h      the layer makes turned channels
    columns    W_h' = W_h T_h^-1,  x_h' = T_h x_h   the layer reads them

Turns of all layers around one product leave what the model computes as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.channels.atoms import IntArray
from onnx_lowrank.layers import Layer
from onnx_lowrank.linalg.phase_covariance import by_group

__all__ = ["Turn", "turned_layer", "turned_moments"]

Array = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Turn:
    """A change of basis of the channels of all heads, on one side of one layer.

    Attributes:
        layer: its name.
        places: rows or columns of its weight, ``(heads, n, width)``.
        bases: ``T (heads, width, width)``.
        columns: whether the layer reads the channels.
    """

    layer: str
    places: IntArray
    bases: Array
    columns: bool = False

    def rows_of(self, values: Array) -> Array:
        """``T_h x_h`` of values ``(N, ...)`` along their first axis."""
        result = values.copy()
        for places, basis in zip(self.places, self.bases, strict=True):
            for own in places:
                result[own] = np.tensordot(basis, values[own], 1)
        return result

    def columns_of(self, weight: Array) -> Array:
        """``W_h T_h^-1`` of a weight ``(N, C, *kernel)``."""
        result = weight.copy()
        for places, basis in zip(self.places, self.bases, strict=True):
            inverse = np.linalg.inv(basis)
            for own in places:
                result[:, own] = np.moveaxis(np.tensordot(weight[:, own], inverse, (1, 0)), -1, 1)
        return result


def turned_layer(layer: Layer, turns: Iterable[Turn]) -> Layer:
    """A layer with all turns that are its own."""
    stage = layer.stage
    own = [turn for turn in turns if turn.layer == layer.name]
    for turn in own:
        if turn.columns:
            stage = replace(stage, weight=turn.columns_of(stage.weight))
        else:
            bias = None if stage.bias is None else turn.rows_of(stage.bias)
            stage = replace(stage, weight=turn.rows_of(stage.weight), bias=bias)
    return layer.with_stage(stage) if own else layer


def turned_moments(layer: str, moments: Moments, turns: Iterable[Turn]) -> Moments:
    """Moments of the input of a layer of one group, in the basis that it reads."""
    for turn in turns:
        if turn.layer != layer or not turn.columns:
            continue
        mean, covariance = moments.mean, moments.covariance
        if mean is not None:
            mean = turn.rows_of(mean[0])[None]
        if covariance is not None:
            covariance = turn.rows_of(turn.rows_of(np.asarray(by_group(covariance)[0])).T)[None]
        moments = replace(moments, mean=mean, covariance=covariance)
    return moments
