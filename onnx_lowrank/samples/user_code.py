"""The user's own code: functions named by file, feeds, and errors with their file and line."""

from __future__ import annotations

import inspect
import os
import re
import runpy
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from onnx_lowrank.errors import DataError

__all__ = ["python_function", "read_all", "takes", "user_code", "user_feeds"]


def python_function(text: str) -> Callable[..., Any] | None:
    """Load the function that ``file.py:function`` names; None if ``text`` has another form.

    Raises:
        DataError: the file or the function does not exist, or the file fails.
    """
    found = re.fullmatch(r"(.+\.py):([^\W\d]\w*)", text)
    if found is None:
        return None
    file, name = found.groups()
    if not os.path.isfile(file):
        raise DataError(f"{file}: no such file")
    with user_code(file, file):
        function: Callable[..., Any] | None = runpy.run_path(file).get(name)
    if not callable(function):
        raise DataError(f"{file}: defines no function {name!r}; name one that it defines")
    return function


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a function has a parameter of the given name."""
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):  # some functions written in C have no signature
        return False


def user_feeds(where: str, source: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Yield the feeds of ``source``, each with a name for messages.

    Raises:
        DataError: the source fails.
    """
    with user_code(where):
        feeds = iter(source)
    count = 0
    while True:
        with user_code(where):
            try:
                feed = next(feeds)
            except StopIteration:
                return
        yield f"item {count} of {where}", feed
        count += 1


def read_all(reader: Any) -> Iterator[Any]:
    """Yield the feeds of a calibration data reader, rewound first where it can be."""
    if callable(getattr(reader, "rewind", None)):
        reader.rewind()
    while (feed := reader.get_next()) is not None:
        yield feed


@contextmanager
def user_code(where: str, file: str | None = None) -> Iterator[None]:
    """Run the user's code and turn any error of it into one that names its place.

    Args:
        where: name of the code, for messages.
        file: file whose line the message names; None for the innermost.

    Raises:
        DataError: the code fails, or ends the process.
    """
    try:
        yield
    # SystemExit: a script that ends itself
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        places = [frame for frame in frames if file in (None, frame.filename)]
        place = f" (line {places[-1].lineno} of {places[-1].filename})" if places else ""
        raise DataError(f"{where} failed with {type(error).__name__}: {error}{place}") from error
