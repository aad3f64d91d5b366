"""The machine's identity."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from contextlib import suppress
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from onnx_lowrank.runtime.runtime import Runtime

__all__ = ["machine", "surroundings"]

#: lines of /proc/cpuinfo that tell processors apart, as a virtual one may have no name
_CPU_FIELDS = (
    "model name", "cpu family", "model", "stepping", "flags",
    "CPU implementer", "CPU part", "CPU variant", "Features", "Hardware",
)  # fmt: skip


def machine(runtime: Runtime) -> dict[str, str]:
    """Return what times and the last bits of results depend on, apart from the model."""
    return {
        "processor": _processor(),
        "cores": str(_cores()),
        "device": "" if runtime.provider == "CPUExecutionProvider" else _devices(),
        "runtime": _runtime_version(),
        "provider": runtime.provider,
        "threads": str(runtime.threads),
    }


def surroundings(runtime: Runtime) -> dict[str, str]:
    """What a result was made and measured with, for people: machine, system and versions."""
    found = machine(runtime)
    found["processor"] = _processor().rpartition(" ")[0] or _processor()
    found["system"] = platform.platform(terse=True)
    found["python"] = platform.python_version()
    found |= {name: metadata.version(name) for name in ("onnx", "numpy", "scipy")}
    return {key: value for key, value in found.items() if value}


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
    """Return the names of the graphics processors, where the system tells them."""
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
