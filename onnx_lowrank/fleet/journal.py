"""The journal of a batch: one line of JSON for each model that was tried, on disk before the next.

An entry counts once its line is whole. What a process that was killed left unfinished is cut off,
and that model is done again.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from onnx_lowrank.errors import OptionError
from onnx_lowrank.fleet.outcome import Outcome

if sys.platform != "win32":
    import fcntl

__all__ = ["JOURNAL", "Entry", "Journal"]

#: name of the file in the folder of results
JOURNAL = "journal.jsonl"
#: number of the form of entries
_FORM = 1


@dataclass(frozen=True)
class Entry:
    """A model that was tried.

    Attributes:
        key: digest of the model, its data, its options and the name of its result.
        model: path of the model.
        output: name of the result, relative to the folder of results.
        digests: of the model with its values (``model``) and of the data (``data``).
        calibration: data; None without.
        outcome: what became of it.
        finished: time, in UTC, as ISO 8601 has it.
        attempts: how often this key has been tried, this time included.
        log: name of the log beside the result; empty where there is none.
    """

    key: str
    model: str
    output: str
    digests: dict[str, str]
    calibration: str | None
    outcome: Outcome
    finished: str
    attempts: int = 1
    log: str = ""

    @property
    def files(self) -> list[str]:
        """What is in the folder of results for it, relative to that."""
        folder = self.output.rpartition("/")[0]
        named = [*self.outcome.files, *([self.log] if self.log else [])]
        return [f"{folder}/{name}" if folder else name for name in named]

    def to_json(self) -> str:
        """The entry in one line."""
        data = asdict(self) | {"form": _FORM, "outcome": self.outcome.to_dict()}
        return json.dumps(data, allow_nan=False)

    @staticmethod
    def of(line: str) -> Entry:
        """The entry that a line holds.

        Raises:
            ValueError, KeyError, TypeError: it holds another thing.
        """
        data: dict[str, Any] = json.loads(line)
        if data.pop("form") != _FORM:
            raise ValueError("of another version")
        return Entry(**{**data, "outcome": Outcome.of(data["outcome"])})


class Journal:
    """The journal in a folder of results, open and locked.

    Args:
        folder: of results; it exists.

    Raises:
        OptionError: another batch works there, or the journal cannot be read or written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL
        self._latest: dict[str, Entry] = {}
        try:
            self._file: IO[bytes] = self.path.open("a+b")
        except OSError as error:
            raise OptionError(
                f"{self.path}: cannot be written ({error.strerror}); name another folder"
            ) from error
        try:
            self._lock()
            self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._file.close()

    def latest(self, output: str) -> Entry | None:
        """The last entry of a result: what lies in its place is by that one, or is not there."""
        return self._latest.get(output)

    def append(self, entry: Entry) -> None:
        """Add an entry; it is on disk when this returns.

        Raises:
            OptionError: the disk is full, or the folder gone.
        """
        try:
            # one call to the system: a line is whole, or recognised as torn
            self._file.write(entry.to_json().encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OptionError(
                f"{self.path}: cannot be written ({error.strerror}); make room, and give the same "
                "command again"
            ) from error
        self._latest[entry.output] = entry

    def _lock(self) -> None:
        if sys.platform == "win32":
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OptionError(
                f"another batch writes into {self.path.parent}; wait for its end, or name another "
                "folder"
            ) from None
        except OSError:  # a file system without locks
            return

    def _read(self) -> None:
        self._file.seek(0)
        lines = self._file.read().split(b"\n")
        torn = lines.pop()
        for number, line in enumerate(lines, 1):
            with suppress(ValueError, KeyError, TypeError):
                entry = Entry.of(line.decode())
                self._latest[entry.output] = entry
                continue
            raise OptionError(
                f"{self.path}, line {number}: not an entry of this version; remove that line, and "
                "its model is done again"
            )
        if torn:
            self._file.truncate(self._file.tell() - len(torn))
        self._file.seek(0, os.SEEK_END)
