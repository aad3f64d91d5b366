"""Columns in consecutive groups, the sums over them, and maps that read the same groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Consumer", "Groups"]

Array = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Consumer:
    """Moments of one of the linear maps that read the groups, each through inputs of its own.

    Attributes:
        R: ``E[x x^T] (d, d)``.
        B: ``E[y x^T] (N, d)``.
        widths: ``(G,)``, columns of each group, side by side; they add up to d.
        weight: of its error in the sum over consumers, positive; one over its energy, say.
    """

    R: Array
    B: Array
    widths: Sequence[int] | Indices
    weight: float = 1.0

    def columns(self, which: Indices) -> Indices:
        """The columns of these groups."""
        return Groups.of(self.widths).columns(which)


@dataclass(frozen=True)
class Groups:
    """Consecutive blocks of columns, of one matrix or of several with the same groups.

    The columns of several stand one matrix after the other.

    Attributes:
        widths: ``(C, G)``, columns of each group in each of C matrices.
        starts: ``(C, G)``, first column of each.
    """

    widths: Indices
    starts: Indices

    @classmethod
    def of(cls, *widths: Sequence[int] | Indices) -> Groups:
        """Groups of these widths, side by side; one sequence for each matrix.

        Raises:
            ValueError: no group, one without columns, or matrices of different numbers of groups.
        """
        arrays = [np.asarray(given, dtype=np.intp) for given in widths]
        for array in arrays:
            if array.ndim != 1 or array.size == 0 or array.min() < 1:
                raise ValueError(
                    f"widths {list(array.flat)[:8]} must be 1 at least, of 1 group or more"
                )
        counts = sorted({array.size for array in arrays})
        if len(counts) != 1:
            raise ValueError(f"widths of {counts} groups; they must be of the same groups")
        stacked = np.stack(arrays)
        return cls(stacked, (np.cumsum(stacked) - stacked.ravel()).reshape(stacked.shape))

    @property
    def count(self) -> int:
        """G."""
        return int(self.widths.shape[1])

    @property
    def rows(self) -> list[slice]:
        """Where each matrix stands among the columns of all."""
        ends = np.cumsum(self.widths.sum(axis=1))
        return [
            slice(int(start), int(end)) for start, end in zip(self.starts[:, 0], ends, strict=True)
        ]

    def sums(self, values: Array) -> Array:
        """``(G,)``: sum of the values ``(d,)`` of each group's columns, in all matrices."""
        parts: Array = np.add.reduceat(values, self.starts.ravel())
        added: Array = parts.reshape(self.starts.shape).sum(axis=0)
        return added

    def norms(self, rows: Array) -> Array:
        """``(G,)``: Frobenius norm of each group's rows of ``(d, k)``."""
        return np.sqrt(self.inner(rows, rows))

    def inner(self, rows: Array, others: Array) -> Array:
        """``(G,)``: inner product of each group's rows of two ``(d, k)``."""
        return self.sums(np.einsum("ij,ij->i", rows, others))

    def spread(self, values: Array) -> Array:
        """``(d, 1)``: each group's value at all its columns."""
        return np.repeat(np.tile(values, len(self.widths)), self.widths.ravel())[:, None]

    def columns(self, which: Indices) -> Indices:
        """The columns of these groups, one matrix after the other."""
        widths = self.widths[:, which].ravel()
        shifts = self.starts[:, which].ravel() - (np.cumsum(widths) - widths)
        return np.repeat(shifts, widths) + np.arange(widths.sum())

    def restricted(self, which: Indices) -> Groups:
        """These groups alone, their columns moved together."""
        return Groups.of(*self.widths[:, which])
