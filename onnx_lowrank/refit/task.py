"""A task of the refit: a chain to solve again, and what it should answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.chains.chain import Chain, Stage
from onnx_lowrank.layers import PlacedLayer
from onnx_lowrank.layers.writer import Written
from onnx_lowrank.linalg.output_metric import ResponseMetric

__all__ = ["LazyStage", "Task"]

Array = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class LazyStage:
    """A stage that is read at each use: those of all layers in float64 are twice the model.

    Attributes:
        outline: a stage of the same shapes, of zeros.
        read: returns the stage.
    """

    outline: Stage
    read: Callable[[], Stage]

    @classmethod
    def of(cls, source: Stage | PlacedLayer) -> LazyStage:
        """The stage of a layer, or one that is in memory in any case."""
        if isinstance(source, Stage):
            return cls(source, lambda: source)
        return cls(source.value.outline, lambda: source.stage)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape ``(groups, n, d)`` of its map."""
        groups, outputs, width = self.outline.matrices.shape
        return groups, outputs, width


@dataclass(frozen=True)
class Task:
    """A chain to solve again.

    Attributes:
        written: the chain in the compressed graph.
        stage: the stage to solve: the layer before it was replaced, or the chain's last stage.
        cut: makes the chain from the solved stage and the moments of its input.
        reads: name of the tensor that ``stage`` reads in the compressed graph.
        original: the layer of the original model, with all its channels.
        source: name of the tensor that the layer reads in the original model.
        rows: mask of the outputs that stay; None for all.
        outputs: metric that errors of the outputs are compared under; None where all count alike.
        turned: whether ``original`` answers in another basis than the original model.
        first: makes the chain of the layer as it was, where ``written`` has no numbers yet.
    """

    written: Written
    stage: LazyStage
    cut: Callable[[Stage, Moments], Chain]
    reads: str
    original: LazyStage
    source: str
    rows: npt.NDArray[np.bool_] | None = None
    outputs: ResponseMetric | None = None
    turned: bool = False
    first: Callable[[], Chain] | None = None

    @property
    def name(self) -> str:
        """Name of the layer."""
        return self.written.layer.name

    def weighed(self, values: Array, axis: int = 1) -> Array:
        """Values of the outputs along an axis, such that their plain errors count."""
        return values if self.outputs is None else self.outputs.weighed(values, axis)

    def plain(self, values: Array, axis: int = 1) -> Array:
        """The inverse of :meth:`weighed`."""
        return values if self.outputs is None else self.outputs.plain(values, axis)
