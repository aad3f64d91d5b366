"""The moments of a model's layers, of which those that memory does not hold wait on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy.typing as npt

from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.linalg.gate_metric import GateMetric
from onnx_lowrank.linalg.output_metric import OutputMetric, ResponseMetric
from onnx_lowrank.modelfile.array_store import ArrayStore, Slot

__all__ = ["MomentStore"]

#: an array of moments, as its store gave it out
_Stored: TypeAlias = npt.NDArray[Any] | Slot | None


class MomentStore(Mapping[str, Moments]):
    """Moments by layer name; beyond ``memory`` bytes they wait on disk.

    Args:
        memory: bytes to hold.
    """

    def __init__(self, memory: int = 0) -> None:
        #: variance, summed over channels, of the residual sum that a layer's response enters
        self.totals: dict[str, float] = {}
        #: metrics of the outputs of layers that make class scores
        self.outputs: dict[str, OutputMetric] = {}
        #: metrics of the gates of recurrent nodes, by name of a product that they are made by
        self.gates: dict[str, GateMetric] = {}
        #: layers that the data says nothing of
        self.silent: set[str] = set()
        self._arrays = ArrayStore("the moments of the layers", memory)
        self._found: dict[str, tuple[int, _Stored, _Stored, bool] | Callable[[], Moments]] = {}

    def add(self, moments: Moments, *names: str) -> None:
        """Take the moments of layers that read the same patches.

        Raises:
            DataError: they have to wait on disk, and it is full.
        """
        mean, covariance = (
            None if a is None else self._arrays.add(a) for a in (moments.mean, moments.covariance)
        )
        found = moments.count, mean, covariance, moments.one_hot
        self._found |= dict.fromkeys(names, found)

    def add_made(self, make: Callable[[], Moments], name: str) -> None:
        """Take the moments of a layer that are made from others each time they are read."""
        self._found[name] = make

    def __getitem__(self, name: str) -> Moments:
        found = self._found[name]
        if callable(found):
            return found()
        count, *stored, one_hot = found
        mean, covariance = (None if s is None else self._arrays.read(s) for s in stored)
        return Moments(count, mean, covariance, self.metric(name), one_hot)

    def metric(self, name: str) -> ResponseMetric | None:
        """The metric of a layer's outputs; None where all count alike."""
        return self.outputs.get(name) or self.gates.get(name)

    def __contains__(self, name: object) -> bool:
        return name in self._found

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)
