"""The moments of a model's layers, of which those that memory does not hold wait on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import numpy.typing as npt

from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.linalg.gate_metric import GateMetric
from onnx_lowrank.linalg.output_metric import OutputMetric, ResponseMetric
from onnx_lowrank.linalg.phase_covariance import PhaseCovariance
from onnx_lowrank.modelfile.array_store import ArrayStore, Slot

__all__ = ["MomentStore"]

Array = npt.NDArray[Any]
#: an array of moments, as its store gave it out
_Stored: TypeAlias = Array | Slot


class _Held(NamedTuple):
    """Moments whose arrays are stored: the blocks of phases, or one covariance or none."""

    rest: Moments
    mean: _Stored | None
    blocks: tuple[_Stored, ...]
    phases: PhaseCovariance | None


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
        self._found: dict[str, _Held | Callable[[], Moments]] = {}

    def add(self, moments: Moments, *names: str) -> None:
        """Take the moments of layers that read the same patches.

        Raises:
            DataError: they have to wait on disk, and it is full.
        """
        mean = None if moments.mean is None else self._arrays.add(moments.mean)
        blocks: tuple[Array, ...] = ()
        phases = None
        if isinstance(moments.covariance, PhaseCovariance):
            blocks, phases = moments.covariance.blocks, replace(moments.covariance, blocks=())
        elif moments.covariance is not None:
            blocks = (moments.covariance,)
        rest = replace(moments, mean=None, covariance=None)
        held = _Held(rest, mean, tuple(map(self._arrays.add, blocks)), phases)
        self._found |= dict.fromkeys(names, held)

    def add_made(self, make: Callable[[], Moments], name: str) -> None:
        """Take the moments of a layer that are made from others each time they are read."""
        self._found[name] = make

    def __getitem__(self, name: str) -> Moments:
        found = self._found[name]
        if callable(found):
            return found()
        mean = None if found.mean is None else self._arrays.read(found.mean)
        blocks = tuple(map(self._arrays.read, found.blocks))
        covariance: Array | PhaseCovariance | None = blocks[0] if blocks else None
        if found.phases is not None:
            covariance = replace(found.phases, blocks=blocks)
        metric = self.metric(name)
        return replace(found.rest, mean=mean, covariance=covariance, outputs=metric)

    def metric(self, name: str) -> ResponseMetric | None:
        """The metric of a layer's outputs; None where all count alike."""
        return self.outputs.get(name) or self.gates.get(name)

    def __contains__(self, name: object) -> bool:
        return name in self._found

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)
