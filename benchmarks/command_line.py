"""``onnx-lowrank compress`` as a user starts it: in a process of its own, by the clock."""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.nets import ROOT, Samples
from benchmarks.rows import Cell, Row

__all__ = ["Ended", "compress", "failure", "parts_left", "resident_bytes", "write_samples"]

#: how the message of an error begins
_ERROR = "error: "

#: exit codes that come with a message for the user
_SAID = (2, 3, 4, 5, 6)

#: seconds between two looks at the memory of the process
_INTERVAL = 0.05


class Ended(NamedTuple):
    """How the command ended.

    Attributes:
        code: its exit code.
        message: what it said of an error; empty where all went well.
        seconds: wall time, from the start of the process to its end.
        cpu_seconds: time of all its threads and children, in the system too.
        peak_bytes: largest resident memory of the process and its children together, looked at 20
            times a second; not a number where the system does not tell.
        report: as it was written; empty where it was not.
    """

    code: int
    message: str
    seconds: float
    cpu_seconds: float
    peak_bytes: float
    report: dict[str, Any]


def compress(
    model: Path, output: Path, options: Sequence[str], *, profile: Path | None = None
) -> Ended:
    """Compress a model with a cache that is empty, and wait for the end.

    Args:
        model: path of the model.
        output: path of the compressed model; other files are written beside it.
        options: of the command line, without those that name the cache and the report.
        profile: file for what cProfile finds of the main thread; None for none.
    """
    report, errors = output.with_suffix(".json"), output.with_suffix(".txt")
    report.unlink(missing_ok=True)
    profiler = [] if profile is None else ["-m", "cProfile", "-o", str(profile)]
    files = [str(model), str(output), "--cache", "", "--report", str(report), "--quiet"]
    command = [sys.executable, *profiler, "-m", "onnx_lowrank", "compress", *files, *options]
    before, start, peak = _cpu_seconds(), time.perf_counter(), 0
    with errors.open("wb") as said, subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said
    ) as process:  # fmt: skip
        while process.poll() is None:
            peak = max(peak, resident_bytes(process.pid))
            time.sleep(_INTERVAL)
    seconds = time.perf_counter() - start
    return Ended(
        process.returncode,
        _error(errors.read_text(encoding="utf-8")) if process.returncode else "",
        seconds,
        _cpu_seconds() - before,
        peak or math.nan,
        json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {},
    )


def failure(cell: Cell, ended: Ended) -> Row:
    """The row of a command that wrote no model."""
    if ended.code in _SAID:
        return cell.ended("refused", ended.message)
    return cell.ended("broken", ended.message or f"exit code {ended.code} without a message")


def parts_left(ended: Ended) -> dict[str, float]:
    """MACs, parameters and bytes left, as the report counts them."""
    before, after = (ended.report["model"][when] for when in ("before", "after"))
    return {k: after[k] / before[k] for k in ("macs", "params", "bytes") if before[k]}


def write_samples(archive: Path, samples: Samples, *, tested: bool = False) -> int:
    """Write what calibrates, without labels, and return how many samples it is.

    Args:
        archive: file to write.
        samples: inputs by name, those of the test part as ``test.<input>``.
        tested: write the inputs of the test part too.
    """
    inputs = {k: v for k, v in samples.items() if k.rpartition(".")[2] != "labels"}
    calibration = {k: v for k, v in inputs.items() if not k.startswith("test.")}
    np.savez(archive, **(inputs if tested else calibration))  # type: ignore[arg-type]
    return min(len(values) for values in calibration.values())


def resident_bytes(process: int) -> int:
    """Resident memory of a process and its children; 0 where the system does not tell.

    It is no less than the largest that the process itself has had.
    """
    everyone = [_memory(one) for one in _family(process)]
    return max(everyone[0].get("VmHWM", 0), sum(memory.get("VmRSS", 0) for memory in everyone))


def _error(said: str) -> str:
    """The message of an error without the warnings before it, or all that was said."""
    messages = [line for line in said.splitlines() if line.startswith(_ERROR)]
    return messages[-1].removeprefix(_ERROR) if messages else said.strip()


def _family(process: int) -> list[int]:
    """A process, its children, and theirs."""
    found = [process]
    for one in found:
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found += map(int, task.read_text().split())
            except OSError:  # it has ended meanwhile
                continue
    return found


def _memory(process: int) -> dict[str, int]:
    """Bytes by name, as Linux tells of a process; empty where it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return {}
    sizes = (line.split() for line in lines if line.startswith(("VmHWM:", "VmRSS:")))
    return {name.rstrip(":"): 1024 * int(size) for name, size, _ in sizes}


def _cpu_seconds() -> float:
    """Time of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
