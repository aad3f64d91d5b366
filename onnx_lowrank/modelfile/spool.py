"""A list of named arrays that stays in memory up to a limit and goes on in a temporary file."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Mapping
from typing import IO, Any

import numpy as np
import numpy.typing as npt

__all__ = ["Spool"]

#: offset in the file, and type
_Place = tuple[int, np.dtype[Any]]


class Spool:
    """Appended once, read many times, in any order.

    Args:
        memory: bytes to hold before the file is begun.
    """

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._items: list[dict[str, npt.NDArray[Any] | _Place]] = []
        self._file: IO[bytes] | None = None

    def append(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Add one item."""
        size = sum(a.nbytes for a in arrays.values())
        if size <= self._memory:
            self._memory -= size
            self._items.append(dict(arrays))
            return
        self._memory = 0
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the spool
            weakref.finalize(self, self._file.close)
        self._file.seek(0, 2)
        offsets: dict[str, npt.NDArray[Any] | _Place] = {}
        for name, values in arrays.items():
            offsets[name] = self._file.tell(), values.dtype
            np.save(self._file, values, allow_pickle=False)
        self._items.append(offsets)

    def __getitem__(self, index: int) -> dict[str, npt.NDArray[Any]]:
        return {
            k: self._read(*v) if isinstance(v, tuple) else v for k, v in self._items[index].items()
        }

    def __len__(self) -> int:
        return len(self._items)

    def _read(self, offset: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        assert self._file is not None
        self._file.seek(offset)
        values: npt.NDArray[Any] = np.load(self._file, allow_pickle=False)
        return values.view(dtype)  # numpy's format does not know bfloat16 by name
