"""Arrays that are put aside in a temporary file, where they are too many for memory.

Samples, weights, moments and tensors between layers are all put aside here, as bytes without
pickle. The file has no name and is gone with the last array that refers to it.
"""

from __future__ import annotations

import errno
import math
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from onnx_lowrank.errors import DataError, LowRankError

__all__ = ["ArrayStore", "Slot"]

Array = npt.NDArray[Any]

#: bytes that every array of the file begins at a multiple of
ALIGNMENT = 64
#: bytes that are copied at a time
_PIECE = 1 << 20


class Slot(NamedTuple):
    """Place of an array in the file of an :class:`ArrayStore`.

    Attributes:
        offset: position of its first byte.
        dtype: element type.
        shape: shape of the array.
        fortran: whether the first axis runs fastest, as it may in a .npy file.
    """

    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool = False

    @property
    def bytes(self) -> int:
        """Size of the array, in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class ArrayStore:
    """Arrays that are added once and read many times, in any order, until they are released.

    Threads may read at once, also while one of them adds.

    Args:
        what: name of the arrays, for the message if the disk is full.
        memory: largest size of arrays stored in memory, in bytes; the rest goes to a file.
        error: type of the error if the disk is full.
    """

    def __init__(self, what: str, memory: int = 0, error: type[LowRankError] = DataError) -> None:
        self._what, self._memory, self._error = what, memory, error
        self._file: IO[bytes] | None = None
        self._end = 0
        #: places of arrays that were released, by their size
        self._free: dict[int, list[int]] = {}
        self._mapped: npt.NDArray[np.uint8] = np.zeros(0, np.uint8)
        #: whose turn it is to move the position in the file
        self._turn = Lock()

    def add(self, values: Array) -> Array | Slot:
        """Put an array aside: it is held where there is memory left, else written to the file.

        Returns:
            What :meth:`read` and :meth:`view` take to give the array back. Python objects (texts)
            are always held, as only pickle could write them.

        Raises:
            LowRankError: the disk is full; of the type that the store was made with.
        """
        if values.dtype.hasobject or values.nbytes <= self._memory:
            self._memory -= values.nbytes
            return values
        return self.write(values)

    def write(self, values: Array) -> Slot:
        """Write an array to the file, whatever its size.

        Raises:
            TypeError: the array holds Python objects.
            LowRankError: the disk is full.
        """
        if values.dtype.hasobject:
            raise TypeError("Python objects cannot be written without pickle")
        free = self._free.get(values.nbytes)
        with self._writing(0 if free else values.nbytes) as file:
            slot = Slot(free.pop() if free else self._end, values.dtype, values.shape)
            if values.nbytes:
                file.seek(slot.offset)
                file.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
            self._end = max(self._end, slot.offset + values.nbytes)
        return slot

    def release(self, stored: Array | Slot) -> None:
        """Let go of an array, in whose place another one of its size may be written.

        Views of it may not be read any more.
        """
        if not isinstance(stored, Slot):
            self._memory += stored.nbytes
        elif stored.bytes:
            self._free.setdefault(stored.bytes, []).append(stored.offset)

    def copy(
        self, stream: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...], fortran: bool
    ) -> Slot:
        """Copy the bytes of one array from ``stream``, a few at a time.

        Raises:
            ValueError: the stream holds fewer or more bytes than such an array has.
            LowRankError: the disk is full.
        """
        left = math.prod(shape) * dtype.itemsize
        with self._writing(left):
            slot = Slot(self._end, dtype, shape, fortran)
        while piece := stream.read(min(left + 1, _PIECE)):
            left -= len(piece)
            if left < 0:
                break
            with self._writing(0, aligned=False) as file:
                file.write(piece)
                self._end += len(piece)
        if left:
            raise ValueError(f"{'truncated' if left > 0 else 'longer than its header declares'}")
        return slot

    def read(self, stored: Array | Slot) -> Array:
        """Return an array as it was added; one from the file is a copy in memory."""
        if not isinstance(stored, Slot):
            return stored
        values = np.empty(stored.shape, stored.dtype, "F" if stored.fortran else "C")
        if stored.bytes:  # not by way of the map, whose pages would stay
            assert self._file is not None
            flat = values.reshape(-1, order="A").view(np.uint8)
            with self._turn:
                self._file.seek(stored.offset)
                self._file.readinto(flat.data)  # type: ignore[attr-defined]
        return values

    def view(self, stored: Array | Slot) -> Array:
        """Return an array as it was added; one from the file is mapped, read-only."""
        if not isinstance(stored, Slot):
            return stored
        if not stored.bytes:
            return np.zeros(stored.shape, stored.dtype)
        values = self._bytes(stored.offset, stored.bytes).view(stored.dtype)
        return values.reshape(stored.shape, order="F" if stored.fortran else "C")

    def pieces(self, offset: int, length: int) -> Iterator[bytes]:
        """Yield a range of the file's bytes, a few at a time."""
        flat = self._bytes(offset, length)
        for start in range(0, length, _PIECE):
            yield flat[start : start + _PIECE].tobytes()

    def _bytes(self, offset: int, length: int) -> npt.NDArray[np.uint8]:
        if offset + length > len(self._mapped):  # not mapped yet, or written since
            assert self._file is not None
            self._mapped = np.asarray(np.memmap(self._file, np.uint8, "r"))
        return self._mapped[offset : offset + length]

    @contextmanager
    def _writing(self, size: int, *, aligned: bool = True) -> Iterator[IO[bytes]]:
        """The file, open at its end, where ``size`` bytes more fit on the disk."""
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as we do
                weakref.finalize(self, self._file.close)
            # an archive may unpack to a thousand times its size: ask before the disk is full
            free = shutil.disk_usage(tempfile.gettempdir()).free
            if size > free:
                raise OSError(errno.ENOSPC, f"{size:,} bytes are needed, {free:,} are free")
            with self._turn:
                self._file.seek(self._end)
                if aligned:
                    self._file.write(bytes(-self._end % ALIGNMENT))
                    self._end += -self._end % ALIGNMENT
                yield self._file
                self._file.flush()
        except OSError as error:
            raise self._error(
                f"{self._what} do not fit into {tempfile.gettempdir()} ({error.strerror}); "
                "name a larger folder in the environment variable TMPDIR"
            ) from error
