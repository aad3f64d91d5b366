"""Geometry of a lookup: rows of a table by their numbers, which is a product with one-hot rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.chains.geometry import LinearGeometry

__all__ = ["LookupGeometry"]

Array = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class LookupGeometry(LinearGeometry):
    """Numbers of rows in, rows of a table out, one axis behind those of the numbers.

    The table ``(V, d)`` is the weight ``(d, V)`` of a linear map of one-hot rows, which nobody ever
    writes out: nothing is multiplied, and the moments of its input are the shares of the rows.
    """

    def positions(self, shape: Sequence[int]) -> int:
        """Number of rows that are looked up for a sample."""
        return math.prod(shape[1:])

    def output_shape(self, shape: Sequence[int], outputs: int) -> tuple[int, ...]:
        """Shape of the output for numbers of ``shape``."""
        return (*shape, outputs)

    def rows(self, shape: Sequence[int]) -> int:
        """Number of rows that are looked up, over the whole batch."""
        return math.prod(shape)

    def applications(self, shape: Sequence[int]) -> int:
        """Number of products with each number of the table: none."""
        return 0

    def patches(self, x: Array, index: npt.NDArray[np.intp] | None = None) -> Array:
        """One-hot rows, which would not fit in memory: the table is to be read instead."""
        raise NotImplementedError("a lookup has no patches; count the rows that it reads")
