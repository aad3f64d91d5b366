"""Moments on disk while they are being collected: an interrupted run goes on where it was.

What is kept is the sums so far and the state of the generator that draws positions, so that a run
that goes on computes the same bits as one that was never interrupted. It is gone once the run has
come to its end; what nobody came back to goes after some days, or where room is wanted. A cache is
never a reason to fail: what cannot be read counts as absent, what cannot be written is left out.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank._version import __version__
from onnx_lowrank.errors import ModelError
from onnx_lowrank.modelfile.atomic_files import atomic_write

__all__ = ["MomentCache"]

Arrays = dict[str, npt.NDArray[Any]]

#: seconds after which what nobody came back to is removed
STALE = 3 * 86400.0
#: what a folder of ours is named: no other is ever removed
_NAME_LENGTH = 40


class MomentCache:
    """The unfinished sums of one collection.

    Args:
        folder: of all such caches; made when something is written.
        about: what the sums depend on.
        clock: seconds.
        worth: seconds of work that are worth a file.
        share: how many times longer than the last writing the work since must have been.
        largest: bytes that all such caches may take together.

    Attributes:
        resumed: samples that need not be read again.
    """

    def __init__(
        self,
        folder: Path,
        about: Mapping[str, Any],
        clock: Callable[[], float] = time.monotonic,
        *,
        worth: float = 5.0,
        share: float = 20.0,
        largest: int = 4 << 30,
    ) -> None:
        text = json.dumps({**about, "version": __version__}, sort_keys=True)
        self.path = folder / hashlib.sha256(text.encode()).hexdigest()[:_NAME_LENGTH]
        self._clock = clock
        self._worth, self._share, self._largest = worth, share, largest
        self._due = clock() + worth
        self.resumed = 0

    def read(self, group: int) -> Arrays | None:
        """What was written last for a group of layers."""
        with (
            suppress(OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile),
            self._file(group).open("rb") as file,  # numpy leaves a broken one open
            np.load(file, allow_pickle=False) as archive,
        ):
            return dict(archive)
        return None

    def write(self, group: int, state: Callable[[], Mapping[str, npt.NDArray[Any]]]) -> None:
        """Write what ``state`` returns for a group, if that much work has been done since."""
        start = self._clock()
        if start < self._due:
            return
        with suppress(OSError, ModelError):
            arrays = state()
            self._make_room(sum(a.nbytes for a in arrays.values()))
            self.path.mkdir(parents=True, exist_ok=True)
            with atomic_write(self._file(group)) as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
        now = self._clock()
        self._due = now + max(self._worth, self._share * (now - start))

    def clear(self) -> None:
        """Remove it: the run is done."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _file(self, group: int) -> Path:
        return self.path / f"{group}.npz"

    def _make_room(self, size: int) -> None:
        """Remove what is old, then the oldest, until there is room; ours stays."""
        others = []
        for folder in self.path.parent.iterdir() if self.path.parent.is_dir() else ():
            if folder != self.path and len(folder.name) == _NAME_LENGTH and folder.is_dir():
                files = [f.stat() for f in folder.glob("*.npz")]
                newest = max((f.st_mtime for f in files), default=folder.stat().st_mtime)
                others.append((newest, sum(f.st_size for f in files), folder))
        held = size + sum(bytes_ for _, bytes_, _ in others)
        for newest, bytes_, folder in sorted(others):
            if time.time() - newest > STALE or held > self._largest:
                shutil.rmtree(folder, ignore_errors=True)
                held -= bytes_
