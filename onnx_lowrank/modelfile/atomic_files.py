"""Atomic writing: a file is whole or absent, however the process ends.

A file is written under a temporary name and renamed once it is on disk. The writer holds a lock on
the unfinished file: a file without a lock was left by a process that was killed, and the next
process that writes there removes it.
"""

from __future__ import annotations

import os
import re
import secrets
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from onnx_lowrank.errors import ModelError

if sys.platform != "win32":  # Windows does not let open files be removed
    import fcntl

__all__ = ["atomic_write", "atomic_writes"]


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that takes the name ``path`` once it is whole and on disk.

    Raises:
        ModelError: the file cannot be written.
    """
    with atomic_writes(path) as (file,):
        yield file


@contextmanager
def atomic_writes(*paths: Path) -> Iterator[tuple[IO[bytes], ...]]:
    """Open files of one folder that are exchanged together; the last refers to the others.

    The last file is absent while they are exchanged: no reader finds it beside files of another
    run.

    Raises:
        ModelError: one of them cannot be written.
    """
    place = paths[-1]
    try:
        with ExitStack() as stack:
            parts = []
            for path in paths:
                place = path
                parts.append(stack.enter_context(_unfinished(path)))
            yield tuple(file for _, file in parts)
            for _, file in parts:
                file.flush()
                os.fsync(file.fileno())
            with _alone(place.parent):
                if len(paths) > 1:
                    place.unlink(missing_ok=True)
                for (temporary, _), path in zip(parts, paths, strict=True):
                    temporary.replace(path)
    except OSError as error:
        raise ModelError(
            f"{place}: cannot be written ({error.strerror or error}); "
            "make room, or name another output"
        ) from error


@contextmanager
def _unfinished(path: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    _sweep(path)
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
        file = temporary.open("xb")
        if _lock(file) and temporary.exists():
            break
        file.close()  # another process removed it before it was locked
    try:
        with file:
            yield temporary, file
    finally:
        temporary.unlink(missing_ok=True)


def _sweep(path: Path) -> None:
    """Remove unfinished files of ``path`` that killed processes left."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{12}}\.tmp")
    with suppress(OSError):
        for name in filter(pattern.fullmatch, os.listdir(path.parent)):
            with suppress(OSError):
                _remove_unlocked(path.with_name(name))


def _remove_unlocked(path: Path) -> None:
    if sys.platform == "win32":
        path.unlink()
        return
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()


def _lock(file: IO[bytes]) -> bool:
    """Lock ``file`` where the system can; return False if another process holds the lock."""
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time exchange files in ``folder``, and sync the folder to disk."""
    handle = None
    if sys.platform != "win32":
        with suppress(OSError):  # a folder may be writable but not readable
            handle = os.open(folder, os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
        if handle is not None:
            with suppress(OSError):
                os.fsync(handle)
    finally:
        if handle is not None:
            os.close(handle)
