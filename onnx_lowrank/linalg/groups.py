"""Columns of a matrix in consecutive groups, and the sums over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Groups"]

Array = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Groups:
    """Consecutive blocks of columns.

    Attributes:
        widths: ``(G,)``, columns of each group.
        starts: ``(G,)``, first column of each.
    """

    widths: Indices
    starts: Indices

    @classmethod
    def of(cls, widths: Sequence[int] | Indices) -> Groups:
        """Groups of these widths, side by side.

        Raises:
            ValueError: no group, or one without columns.
        """
        array = np.asarray(widths, dtype=np.intp)
        if array.ndim != 1 or array.size == 0 or array.min() < 1:
            raise ValueError(
                f"widths {list(array.flat)[:8]} must be 1 at least, of 1 group or more"
            )
        return cls(array, np.cumsum(array) - array)

    def norms(self, rows: Array) -> Array:
        """``(G,)``: Frobenius norm of each group's rows of ``(d, k)``."""
        return np.sqrt(self.inner(rows, rows))

    def inner(self, rows: Array, others: Array) -> Array:
        """``(G,)``: inner product of each group's rows of two ``(d, k)``."""
        sums: Array = np.add.reduceat(np.einsum("ij,ij->i", rows, others), self.starts)
        return sums

    def spread(self, values: Array) -> Array:
        """``(d, 1)``: each group's value at all its columns."""
        return np.repeat(values, self.widths)[:, None]

    def columns(self, which: Indices) -> Indices:
        """The columns of these groups."""
        ranges = [np.arange(self.starts[j], self.starts[j] + self.widths[j]) for j in which]
        return np.concatenate(ranges) if ranges else np.empty(0, np.intp)
