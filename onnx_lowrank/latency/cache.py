"""Measured times on disk, one file for each machine, ONNX Runtime, provider and number of threads.

A cache is never a reason to fail: a file that cannot be read, or that was written by another
version or for another machine, counts as absent; times that cannot be written are measured again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from onnx_lowrank.errors import ModelError
from onnx_lowrank.modelfile.atomic_files import atomic_write

__all__ = ["LatencyCache"]

#: version of how times are measured; files of another version are ignored
_SCHEMA = 1


class LatencyCache:
    """Measured times in seconds, by key.

    Args:
        folder: folder of the files; made when something is saved.
        about: properties that the times depend on, from
            :func:`onnx_lowrank.runtime.machine.machine`.
    """

    def __init__(self, folder: Path, about: Mapping[str, str]) -> None:
        self._about = dict(about)
        digest = hashlib.sha256(json.dumps(self._about, sort_keys=True).encode()).hexdigest()
        self.path = folder / f"{digest[:20]}.json"
        self._seconds = self._read()
        self._new: dict[str, float] = {}

    def get(self, key: str) -> float | None:
        """Look up the seconds of ``key``; None if they are not known."""
        return self._seconds.get(key)

    def put(self, key: str, seconds: float) -> None:
        """Remember the seconds of ``key``; they are on disk after :meth:`save`."""
        self._seconds[key] = self._new[key] = seconds

    def save(self) -> None:
        """Write the new times, and keep those that other processes have written meanwhile."""
        if not self._new:
            return
        seconds = {**self._read(), **self._new}
        text = json.dumps({"schema": _SCHEMA, "about": self._about, "seconds": seconds})
        with suppress(OSError, ModelError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.path) as file:
                file.write(text.encode())
            self._new = {}

    def _read(self) -> dict[str, float]:
        try:
            found: Any = json.loads(self.path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(found, dict) or found.get("schema") != _SCHEMA:
            return {}
        seconds = found.get("seconds")
        if found.get("about") != self._about or not isinstance(seconds, dict):
            return {}
        return {k: v for k, v in seconds.items() if _is_time(v)}


def _is_time(value: Any) -> bool:
    return type(value) is float and math.isfinite(value) and value > 0
