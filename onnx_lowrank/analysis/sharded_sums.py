"""Sums of rows whose shards are added up apart, so that those read elsewhere add up to the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["ShardedSums", "below"]

Array = npt.NDArray[Any]


class ShardedSums:
    """Sums over rows of all shards of the samples, and the number of the rows.

    Args:
        sums: shape of the sums.
        rows: shape of the numbers of rows.
    """

    def __init__(self, sums: tuple[int, ...], rows: tuple[int, ...] = ()) -> None:
        self._sums, self._rows = np.zeros(sums), np.zeros(rows, np.int64)
        self._part = self._empty()

    def _empty(self) -> dict[str, Array]:
        """The sums and rows of a shard of which nothing has been read."""
        return {"sums": np.zeros_like(self._sums), "rows": np.zeros_like(self._rows)}

    def add(self, sums: Array, at: Any) -> None:
        """Add sums over rows of the present shard to those at an index."""
        self._part["sums"][at] += sums

    def count(self, rows: int, at: Any = ()) -> None:
        """Count rows of the present shard, at an index of the numbers."""
        self._part["rows"][at] += rows

    def total(self) -> tuple[Array, Array]:
        """All sums, and the numbers of rows; the shard that was read ends."""
        self.end_shard()
        return self._sums, self._rows

    def end_shard(self) -> None:
        """Add what was read of a shard to the rest."""
        part, self._part = self._part, self._empty()
        self.add_shard(part)

    def shard(self) -> dict[str, Array]:
        """All that was read, for :meth:`add_shard`; the shard has ended before."""
        return {"sums": self._sums, "rows": self._rows}

    def add_shard(self, shard: Mapping[str, Array]) -> None:
        """Add what was read of a shard, here or elsewhere."""
        self._sums = self._sums + shard["sums"]
        self._rows = self._rows + shard["rows"]

    def state(self) -> dict[str, Array]:
        """The sums so far, to be written down."""
        part = {f"part.{name}": values for name, values in self._part.items()}
        return {"sums": self._sums, "rows": self._rows, **part}

    def restore(self, state: Mapping[str, Array]) -> None:
        """Go on from a :meth:`state`.

        Raises:
            KeyError, ValueError: the state is of other sums.
        """
        for name, present in self.state().items():
            if state[name].shape != present.shape:
                raise ValueError(f"{name} {state[name].shape} for {present.shape}")
        self._sums, self._rows = state["sums"].copy(), state["rows"].copy()
        self._part = {name: state[f"part.{name}"].copy() for name in self._part}


def below(arrays: Mapping[str, Array], start: str) -> dict[str, Array]:
    """The arrays whose names begin so, by the rest of their names."""
    return {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}
