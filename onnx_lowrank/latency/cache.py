"""Measured times on disk, one file for each machine, ONNX Runtime, provider and number of threads.

A cache is never a reason to fail: what cannot be read, or was written by others or for others,
counts as absent, and what cannot be written is measured again the next time.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import platformdirs

from onnx_lowrank.errors import ModelError
from onnx_lowrank.modelfile.atomic_files import atomic_write
from onnx_lowrank.runtime.runtime import Runtime

__all__ = ["LatencyCache", "cache_folder", "machine"]

#: how times are taken; another number makes all older files foreign
_SCHEMA = 1

#: lines of /proc/cpuinfo that tell processors apart; a virtual one may have no name of its own
_CPU_FIELDS = (
    "model name", "cpu family", "model", "stepping", "flags",
    "CPU implementer", "CPU part", "CPU variant", "Features", "Hardware",
)  # fmt: skip


class LatencyCache:
    """Seconds by key.

    Args:
        folder: where the files are; made when something is saved.
        about: what the times depend on (:func:`machine`).
    """

    def __init__(self, folder: Path, about: Mapping[str, str]) -> None:
        self._about = dict(about)
        digest = hashlib.sha256(json.dumps(self._about, sort_keys=True).encode()).hexdigest()
        self.path = folder / f"{digest[:20]}.json"
        self._seconds = self._read()
        self._new: dict[str, float] = {}

    def get(self, key: str) -> float | None:
        """The seconds of ``key``, if they are known."""
        return self._seconds.get(key)

    def put(self, key: str, seconds: float) -> None:
        """Remember the seconds of ``key``; they are on disk after :meth:`save`."""
        self._seconds[key] = self._new[key] = seconds

    def save(self) -> None:
        """Write what is new, beside what others have written in the meantime."""
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


def cache_folder(named: Path | str | None, kind: str) -> Path | None:
    """The folder of one kind of cache.

    Args:
        named: by the user; None for the user's own, empty for no cache.
        kind: ``latency`` or ``moments``.
    """
    if named == "":
        return None
    root = platformdirs.user_cache_path("onnx-lowrank", appauthor=False) if named is None else named
    return Path(root) / kind


def machine(runtime: Runtime) -> dict[str, str]:
    """All that the time of a probe depends on beside the probe."""
    return {
        "processor": _processor(),
        "cores": str(_cores()),
        "device": "" if runtime.provider == "CPUExecutionProvider" else _devices(),
        "runtime": _runtime_version(),
        "provider": runtime.provider,
        "threads": str(runtime.threads),
    }


def _is_time(value: Any) -> bool:
    return type(value) is float and math.isfinite(value) and value > 0


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@lru_cache
def _processor() -> str:
    try:
        first = Path("/proc/cpuinfo").read_text(errors="replace").split("\n\n")[0]
    except OSError:
        first = ""
    lines = (line.partition(":") for line in first.splitlines())
    fields = {key.strip(): value.strip() for key, _, value in lines}
    known = {f: fields[f] for f in _CPU_FIELDS if f in fields}
    name = known.get("model name") or platform.processor() or platform.machine()
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
    return f"{name} {digest[:12]}" if known else name


@lru_cache
def _devices() -> str:
    """Names of the graphics processors, where the system tells them."""
    found = []
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        with suppress(OSError):
            lines = file.read_text(errors="replace").splitlines()
            found += [line.partition(":")[2].strip() for line in lines if line.startswith("Model")]
    return ", ".join(found)


@lru_cache
def _runtime_version() -> str:
    names = sorted(set(metadata.packages_distributions().get("onnxruntime", [])))
    return ", ".join(f"{name} {metadata.version(name)}" for name in names)
