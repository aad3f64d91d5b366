"""One model in a process of its own, within limits of time and memory.

A fresh interpreter for each model costs a second and gives what nothing else does: a crash in
native code, an endless loop or a leak ends with that process, nothing that a library holds
(threads, locks, arenas) comes along by a fork, and all memory goes back. It is a session of its
own, so that Ctrl-C reaches whoever started it alone, who then ends it.

Memory is measured (resident, less the pages of mapped files, of the process and its children), and
not limited by ``RLIMIT_AS``: that counts what is reserved, which ONNX Runtime and linear algebra do
by gigabytes and mapped weights by their size; it counts each process alone, does not exist
everywhere, and lets allocations fail in code that cannot say so. The price is that a short peak may
stay unseen for a tenth of a second.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from onnx_lowrank.fleet.options import Limits
from onnx_lowrank.fleet.outcome import CRASH, Outcome, ended_by, over_memory, over_time
from onnx_lowrank.fleet.worker import OUTCOME, Order

__all__ = ["LOG", "run_limited"]

#: name of the file with what a process printed
LOG = "log.txt"
#: seconds between two looks at a process
_STEP = 0.1
#: bytes of a log that its last line is looked for in
_TAIL = 4096

#: imports from where its parent does, never from the folder that it happens to run in
_PROGRAM = (
    "import sys; sys.path = [p for p in sys.path if p]; import json; "
    "sys.path = json.loads(sys.stdin.buffer.readline()); "
    "from onnx_lowrank.fleet.worker import main; main()"
)
#: how many threads libraries of linear algebra start with
_THREADS = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
)  # fmt: skip


def run_limited(
    order: Order, limits: Limits, called_off: Callable[[], bool] = lambda: False
) -> Outcome | None:
    """Carry out an order in a process of its own.

    Args:
        order: what is to be done; its folder exists.
        limits: that the process is ended at.
        called_off: asked every tenth of a second; True ends the process.

    Returns:
        The outcome; None where it was called off.
    """
    begun = time.monotonic()
    try:
        process = _started(order)
    except OSError as error:  # too many processes or files, or a disk that is full
        reason = f"its process could not be started ({error}); give --retry-failed to try it again"
        return Outcome("failed", CRASH, type(error).__name__, 1, reason)
    assert process.stdin is not None
    peak = 0
    try:
        with suppress(OSError):  # it has ended already, and its exit code says more
            # the pipe stays open: its end tells the process that nobody waits for it any more
            paths = [p or os.getcwd() for p in sys.path]
            process.stdin.write(f"{json.dumps(paths)}\n{order.to_json()}\n".encode())
            process.stdin.flush()
        while process.poll() is None:
            used = _resident(process.pid)
            peak = max(peak, used)
            elapsed = time.monotonic() - begun
            if called_off():
                return None
            if limits.bytes is not None and used > limits.bytes:
                return _timed(over_memory(limits, used), elapsed, peak)
            if limits.seconds is not None and elapsed > limits.seconds:
                return _timed(over_time(limits), elapsed, peak)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_STEP)
    finally:
        _end(process)
        with suppress(OSError):
            process.stdin.close()
    found = _outcome(order.folder) if process.returncode == 0 else None
    if found is None:
        found = ended_by(process.returncode, _last_line(Path(order.folder, LOG)))
    return _timed(found, time.monotonic() - begun, peak)


def _started(order: Order) -> subprocess.Popen[bytes]:
    with Path(order.folder, LOG).open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **dict.fromkeys(_THREADS, str(order.threads))},
            start_new_session=True,
        )


def _timed(outcome: Outcome, seconds: float, peak: int) -> Outcome:
    return replace(outcome, seconds=seconds, peak_bytes=peak or None)


def _outcome(folder: str) -> Outcome | None:
    """What the process wrote; None where it wrote nothing."""
    try:
        data: dict[str, Any] = json.loads(Path(folder, OUTCOME).read_bytes())
        return Outcome.of(data)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _tree(pid: int) -> list[Any]:
    with suppress(psutil.Error):
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    return []


def _resident(pid: int) -> int:
    """Bytes that a process and its children hold; pages of mapped files can be taken back."""
    total = 0
    for process in _tree(pid):
        with suppress(psutil.Error):
            memory = process.memory_info()
            total += max(0, memory.rss - getattr(memory, "shared", 0))
    return total


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process with its children, at once: nothing that it has written is in place yet."""
    if process.poll() is None:
        if sys.platform != "win32":  # its session, with children that have left it
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
        for one in reversed(_tree(process.pid)):
            with suppress(psutil.Error):
                one.kill()
        with suppress(OSError):
            process.kill()
    process.wait()


def _last_line(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL))
            lines = file.read().decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1].strip()[:300] if lines else ""
