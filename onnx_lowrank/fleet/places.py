"""The folder of results: where processes write, and how what they wrote comes to its place."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from onnx_lowrank.errors import OptionError
from onnx_lowrank.fleet.process import LOG
from onnx_lowrank.fleet.worker import MADE

__all__ = ["Places"]

#: hidden folder in that of results, for what is not whole yet
_WORK = ".work"


class Places:
    """A folder of results, which exists from now on.

    Args:
        out: path of the folder.

    Raises:
        OptionError: it is a file, or cannot be made.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self._work = out / _WORK
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OptionError(
                f"{out}: cannot be made a folder ({error.strerror}); name another"
            ) from error

    def clear(self) -> None:
        """Remove what unfinished processes left; a process that still writes there then ends."""
        shutil.rmtree(self._work, ignore_errors=True)

    def folder(self) -> Path:
        """A new folder for one process.

        Raises:
            OptionError: it cannot be made.
        """
        made = self._work / secrets.token_hex(8)
        try:
            made.mkdir(parents=True)
        except OSError as error:
            raise OptionError(
                f"{made}: cannot be made ({error.strerror}); name another folder of results"
            ) from error
        return made

    def drop(self, folder: Path) -> None:
        """Remove the folder of a process that has ended."""
        shutil.rmtree(folder, ignore_errors=True)

    def whole(self, files: Iterable[str]) -> bool:
        """Whether all of these files are in the folder of results."""
        return all((self.out / name).is_file() for name in files)

    def remove(self, files: Iterable[str]) -> None:
        """Remove files of an older result, the last first: it refers to the others."""
        for name in reversed(list(files)):
            with suppress(OSError):
                (self.out / name).unlink()

    def put(self, folder: Path, output: str, files: Iterable[str]) -> None:
        """Move what a process made to its place; the model comes last, and is absent meanwhile.

        Args:
            folder: of the process.
            output: name of the result, relative to the folder of results.
            files: names of what is moved, the model last.

        Raises:
            OptionError: it cannot be moved.
        """
        target = (self.out / output).parent
        try:
            target.mkdir(parents=True, exist_ok=True)
            (self.out / output).unlink(missing_ok=True)
            for name in files:
                os.replace(folder / MADE / name, target / name)
        except OSError as error:
            raise OptionError(
                f"{target}: cannot be written ({error.strerror}); make room, and give the same "
                "command again"
            ) from error

    def keep_log(self, folder: Path, output: str) -> str:
        """Keep what a process printed beside where its result would be.

        Returns:
            Its name; empty where it printed nothing.
        """
        log = folder / LOG
        name = f"{Path(output).name}.log"
        with suppress(OSError):
            if log.stat().st_size:
                target = (self.out / output).parent
                target.mkdir(parents=True, exist_ok=True)
                os.replace(log, target / name)
                return name
        return ""
