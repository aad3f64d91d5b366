"""Errors of ONNX Runtime: which exceptions it raises, and what their messages say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from onnxruntime.capi import onnxruntime_pybind11_state as _state

__all__ = ["ORT_ERRORS", "RUN_ERRORS", "first_line", "index_out_of_range"]

ORT_ERRORS: tuple[type[Exception], ...] = tuple(
    error
    for error in vars(_state).values()
    if isinstance(error, type) and issubclass(error, Exception)
)
#: errors of a run: ValueError and TypeError come from checks of the feeds in Python; exceptions of
#: C++ arrive as RuntimeError, MemoryError, or ValueError (if the message is not valid text)
RUN_ERRORS: tuple[type[Exception], ...] = (
    *ORT_ERRORS,
    ValueError,
    TypeError,
    RuntimeError,
    MemoryError,
)

#: messages of Gather and similar operators about an index out of range
_BEYOND = re.compile(r"out of data bounds|invalid index|out of range value in index", re.IGNORECASE)
_INDEX = re.compile(r"\b(?:idx|index)\s*=\s*(-?\d+)")
_RANGE = re.compile(r"range \[(-?\d+),\s*(-?\d+)\]")


def first_line(error: Exception) -> str:
    """The first line of the message, or the name of the error where it has no message."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def index_out_of_range(message: str, feed: Mapping[str, npt.NDArray[Any]]) -> str | None:
    """Write the message about a feed with an index out of range.

    Args:
        message: message of ONNX Runtime.
        feed: inputs that were given, by name.

    Returns:
        A message that names the input; None where ONNX Runtime failed for another reason, or the
        index is in no input.
    """
    if _BEYOND.search(message) is None:
        return None
    index, bounds = _INDEX.search(message), _RANGE.search(message)
    whole = {n: v for n, v in feed.items() if v.dtype.kind in "iu" and v.any()}
    if index is not None:
        whole = {n: v for n, v in whole.items() if bool(np.any(v == int(index[1])))}
    if not whole:
        return None
    found = f"index {index[1]}" if index is not None else "an index"
    allowed = f", which must be from {bounds[1]} to {bounds[2]}" if bounds is not None else ""
    return (
        f"input {' or '.join(map(repr, whole))} holds {found} out of range{allowed}; give data "
        "that was made for this model, for instance by its own tokenizer or vocabulary"
    )
