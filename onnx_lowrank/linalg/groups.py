"""Consecutive groups of columns, sums over them, and linear maps that read the same groups."""

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
    """Moments of one of the linear maps that read the groups, each with inputs of its own.

    Attributes:
        R: second moments ``E[x x^T] (d, d)`` of its inputs.
        B: cross moments ``E[y x^T] (N, d)``.
        widths: number of columns of each group ``(G,)``, side by side; they add up to d.
        weight: weight of its error in the sum over consumers, positive; for instance 1 over its
            energy.
    """

    R: Array
    B: Array
    widths: Sequence[int] | Indices
    weight: float = 1.0

    def columns(self, which: Indices) -> Indices:
        """Numbers of the columns of some groups."""
        return Groups.of(self.widths).columns(which)


@dataclass(frozen=True)
class Groups:
    """Consecutive blocks of columns, of one matrix or of several with the same groups.

    The columns of several matrices are numbered one matrix after the other.

    Attributes:
        widths: number of columns of each group in each of C matrices, ``(C, G)``.
        starts: number of the first column of each, ``(C, G)``.
    """

    widths: Indices
    starts: Indices

    @classmethod
    def of(cls, *widths: Sequence[int] | Indices) -> Groups:
        """Make groups of the given widths, side by side; one sequence for each matrix.

        Raises:
            ValueError: there is no group, a group has no columns, or the matrices have different
                numbers of groups.
        """
        arrays = [np.asarray(given, dtype=np.intp) for given in widths]
        for array in arrays:
            if array.ndim != 1 or array.size == 0 or array.min() < 1:
                raise ValueError(
                    f"widths {list(array.flat)[:8]} must be 1 or more, for 1 group or more"
                )
        counts = sorted({array.size for array in arrays})
        if len(counts) != 1:
            raise ValueError(f"widths of {counts} groups; they must be of the same groups")
        stacked = np.stack(arrays)
        return cls(stacked, (np.cumsum(stacked) - stacked.ravel()).reshape(stacked.shape))

    @property
    def count(self) -> int:
        """Number of groups G."""
        return int(self.widths.shape[1])

    @property
    def rows(self) -> list[slice]:
        """Range of each matrix among the columns of all."""
        ends = np.cumsum(self.widths.sum(axis=1))
        return [
            slice(int(start), int(end)) for start, end in zip(self.starts[:, 0], ends, strict=True)
        ]

    def sums(self, values: Array) -> Array:
        """Sum ``(G,)`` of the values ``(d,)`` of each group's columns, over all matrices."""
        parts: Array = np.add.reduceat(values, self.starts.ravel())
        added: Array = parts.reshape(self.starts.shape).sum(axis=0)
        return added

    def norms(self, rows: Array) -> Array:
        """Frobenius norm ``(G,)`` of each group's rows of ``(d, k)``."""
        return np.sqrt(self.inner(rows, rows))

    def inner(self, rows: Array, others: Array) -> Array:
        """Inner product ``(G,)`` of each group's rows of two ``(d, k)``."""
        return self.sums(np.einsum("ij,ij->i", rows, others))

    def spread(self, values: Array) -> Array:
        """Value of each group at all its columns, ``(d, 1)``."""
        return np.repeat(np.tile(values, len(self.widths)), self.widths.ravel())[:, None]

    def columns(self, which: Indices) -> Indices:
        """Numbers of the columns of some groups, one matrix after the other."""
        widths = self.widths[:, which].ravel()
        shifts = self.starts[:, which].ravel() - (np.cumsum(widths) - widths)
        return np.repeat(shifts, widths) + np.arange(widths.sum())

    def restricted(self, which: Indices) -> Groups:
        """Some of the groups, with their columns moved together."""
        return Groups.of(*self.widths[:, which])
