"""What the numbers of an output, or of a part of it, mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["KINDS", "UNKNOWN", "Reading", "Structure", "rows_along", "wide"]

Array = npt.NDArray[Any]

#: kinds that a user may give an output
KINDS = ("kl", "bernoulli", "cosine", "l2", "equal", "none")


@dataclass(frozen=True)
class Structure:
    """What the graph tells of an output.

    Attributes:
        features: number of outputs of the linear layer that it comes from; 0 where it comes from
            something else.
        product: whether that layer is a matrix product, whose outputs lie on the last axis; else
            it is a convolution.
        maps: parts ``(axis, start, stop, sigmoid)`` along one axis, counted from the end, of which
            some are behind a Sigmoid; empty where none is. A part with ``stop`` 0 is the whole.
    """

    features: int = 0
    product: bool = False
    maps: tuple[tuple[int, int, int, bool], ...] = ()


#: nothing that the graph could tell
UNKNOWN = Structure()


@dataclass(frozen=True)
class Reading:
    """What a part of an output means.

    Attributes:
        output: name of the tensor.
        kind: of :data:`KINDS`.
        axis: axis of the classes, of a vector, or of the coordinates, counted from the end.
        form: for ``kl``: ``probabilities``, ``logarithms`` of them, or ``scores`` in front of a
            softmax; for ``boxes``: ``corners`` or ``middle``, followed by the size.
        index: number of the array, where an output has several.
        part: ``(axis, start, stop)`` where only a part of the array is read.
        scores: the part, likewise, of a detector's scores, which its positions weigh by; None where
            all positions count alike.
        objectness: whether the first of these scores says that anything is there, and the others
            what it would be, so that they count together alone.
        background: of class scores at the places of a detector, the class that says that nothing is
            there, by which they weigh; None for all others.
        why: reason of the choice, as a clause.
    """

    output: str
    kind: str
    axis: int = -1
    form: str = ""
    index: int = 0
    part: tuple[int, int, int] | None = None
    scores: tuple[int, int, int] | None = None
    objectness: bool = False
    background: int | None = None
    why: str = ""

    @property
    def weighed(self) -> bool:
        """Whether positions weigh by what the original sees there."""
        return self.scores is not None or self.background is not None

    @property
    def label(self) -> str:
        """Name for people: the output's, and which part of it."""
        array = f"[{self.index}]" if self.index else ""
        if self.part is None:
            return self.output + array
        axis, start, stop = self.part
        rest = ", :" * (-axis - 1)
        return f"{self.output}{array}[..., {start}:{stop}{rest}]"

    def of(self, array: Array) -> Array:
        """Its part of an array of the output."""
        if self.part is None:
            return array
        axis, start, stop = self.part
        index: list[Any] = [slice(None)] * array.ndim
        index[axis] = slice(start, stop)
        found: Array = array[tuple(index)]
        return found


def rows_along(array: Array, axis: int) -> Array:
    """All positions of an array as rows ``(positions, width)`` along an axis."""
    moved = np.moveaxis(array, axis, -1)
    return moved.reshape(-1, moved.shape[-1])


def wide(array: Array) -> Array:
    """Numbers in float32 or wider."""
    return array if array.dtype.kind == "f" and array.dtype.itemsize > 2 else array.astype("f4")
