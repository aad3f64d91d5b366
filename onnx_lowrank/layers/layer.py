"""Layer: a linear map of a model as a value, without the graph that it stands in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.chains.chain import Stage
from onnx_lowrank.chains.geometry import ConvGeometry, LinearGeometry

__all__ = ["LOOKUP", "RECURRENT", "Layer"]

Array = npt.NDArray[np.floating[Any]]

RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
LOOKUP = "Gather"


@dataclass(frozen=True)
class _Loaded:
    """Gives out a weight and a bias that are in memory."""

    weight: Array
    bias: Array | None

    def __call__(self) -> tuple[Array, Array | None]:
        return self.weight, self.bias


@dataclass(frozen=True)
class Layer:
    """A linear map ``y = W x + b`` with its geometry: all that a pass sees of a model.

    Only :class:`~onnx_lowrank.layers.placed.PlacedLayer` knows its place in a graph, and how it is
    stored in the file.

    Attributes:
        name: name that is unique in the model: the node's, or that of its output.
        op: ``Conv | ConvTranspose | Gemm | MatMul | LSTM | GRU | RNN | Gather``. Of a recurrent
            node the layer is the product with the input weights alone,
            ``y (directions * gates * hidden)``. A Gather looks rows of a table ``(V, d)`` up, which
            is a product of the weight ``(d, V)`` with one-hot patches.
        dtype: element type of the weight in the file.
        shape: shape of the weight as a stage has it, ``(N, C / groups, *kernel)``.
        geometry: geometry of its patches.
        biased: whether it adds a bias ``(N,)``.
        directions: number of directions of a recurrent node, whose rows are (direction, gate,
            hidden); else 1.
        given: mask ``(N,)`` of the rows that do not read the patches alone, and so are never solved
            again; None where all do.
    """

    name: str
    op: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    geometry: ConvGeometry | LinearGeometry
    biased: bool
    _load: Callable[[], tuple[Array, Array | None]]
    directions: int = 1
    given: npt.NDArray[np.bool_] | None = None

    @property
    def stage(self) -> Stage:
        """Weight and bias in float64, read from the model at each call; a table as it is stored.

        Tables are large, and what is reckoned with them is taken to float64 block by block.
        """
        weight, bias = self._load()
        return Stage(
            weight if self.lookup else weight.astype(np.float64),
            None if bias is None else bias.astype(np.float64),
            self.geometry,
        )

    @property
    def weight(self) -> Array:
        """The weight as it is in the file, read at each call; not to be changed."""
        return self._load()[0]

    @property
    def outline(self) -> Stage:
        """A stage of the same shapes with zeros, for counting; no weight is read."""
        zero = np.zeros(())
        bias = np.broadcast_to(zero, self.shape[:1]) if self.biased else None
        return Stage(np.broadcast_to(zero, self.shape), bias, self.geometry)

    def with_stage(self, stage: Stage) -> Layer:
        """The same layer with the weight and bias of ``stage``."""
        biased = stage.bias is not None
        return replace(self, biased=biased, _load=lambda: (stage.weight, stage.bias))

    @property
    def portable(self) -> Layer:
        """The layer with its weight and bias in memory, which other processes can be sent."""
        weight, bias = self._load()
        arrays = np.asarray(weight), None if bias is None else np.asarray(bias)
        return replace(self, _load=_Loaded(*arrays))

    @property
    def groups(self) -> int:
        """Number of groups."""
        return self.geometry.groups

    @property
    def recurrent(self) -> bool:
        """Whether its response stays inside a recurrent node."""
        return self.op in RECURRENT

    @property
    def lookup(self) -> bool:
        """Whether it looks rows of a table up, and multiplies nothing."""
        return self.op == LOOKUP

    @property
    def depthwise(self) -> bool:
        """Whether each group reads a single channel."""
        return self.groups > 1 and self.shape[1] == 1

    @property
    def patch(self) -> int:
        """Length ``d`` of one group's input patch."""
        return int(np.prod(self.shape[1:]))
