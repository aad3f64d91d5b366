"""Counts of the rows that lookups read: all that the data says of the table's input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.linalg.row_shares import row_shares

__all__ = ["RowCounts"]


class RowCounts:
    """Counts how often each row of a table is read.

    Args:
        rows: number of rows of the table.
    """

    def __init__(self, rows: int) -> None:
        self._counts = np.zeros(rows, np.int64)

    @property
    def count(self) -> int:
        """Number of readings."""
        return int(self._counts.sum())

    def update(self, numbers: npt.NDArray[Any]) -> None:
        """Add the numbers of rows that were read; negative ones count from the end."""
        rows = len(self._counts)
        flat = np.ravel(numbers).astype(np.int64, copy=False)
        flat = np.where(flat < 0, flat + rows, flat)
        inside = flat[(flat >= 0) & (flat < rows)]  # the runtime refuses others
        self._counts += np.bincount(inside, minlength=rows)

    def end_shard(self) -> None:
        """End a shard; counts are the same however they are cut."""

    def shard(self) -> dict[str, npt.NDArray[Any]]:
        """All that was read, for :meth:`add_shard`."""
        return {"counts": self._counts}

    def add_shard(self, shard: Mapping[str, npt.NDArray[Any]]) -> None:
        """Add what was read elsewhere."""
        self._counts += shard["counts"]

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """All there is to it, to be written down."""
        return {"counts": self._counts}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from a :meth:`state`.

        Raises:
            KeyError, ValueError: it is of another table.
        """
        counts = state["counts"]
        if counts.shape != self._counts.shape:
            raise ValueError(f"counts {counts.shape} for {self._counts.shape}")
        self._counts = counts.astype(np.int64)

    def moments(self) -> Moments:
        """The moments of the one-hot rows, by smoothed shares."""
        return Moments(self.count, row_shares(self._counts)[None], None, one_hot=True)
