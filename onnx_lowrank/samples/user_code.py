"""The user's own code: functions named by file, feeds, and errors told with their place."""

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
    """The function that ``file.py:function`` names; None where ``text`` is not of that form.

    Raises:
        DataError: there is no such file or function, or the file fails.
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
        raise DataError(f"{file}: defines no function {name!r}")
    return function


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a function has a parameter of that name."""
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):  # some that are written in C do not tell
        return False


def user_feeds(where: str, source: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """The feeds of ``source``, each with what to call it.

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
    """The feeds of a calibration data reader, from its beginning where it can go back."""
    if callable(getattr(reader, "rewind", None)):
        reader.rewind()
    while (feed := reader.get_next()) is not None:
        yield feed


@contextmanager
def user_code(where: str, file: str | None = None) -> Iterator[None]:
    """Call what is the user's.

    Args:
        where: what to call it.
        file: the file whose line to tell; None for the innermost.

    Raises:
        DataError: it fails, in whatever way.
    """
    try:
        yield
    # whatever it is, it is the user's, who is told its place; SystemExit: a script that ends itself
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        places = [frame for frame in frames if file in (None, frame.filename)]
        place = f" (line {places[-1].lineno} of {places[-1].filename})" if places else ""
        raise DataError(f"{where} failed with {type(error).__name__}: {error}{place}") from error
