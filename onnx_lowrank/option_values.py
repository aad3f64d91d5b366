"""Numbers that options take: one parser of fractions, and one set of checks, for all of them.

A fraction is written ``5%`` or ``0.05``. A bare ``5`` is refused, for nobody who writes it means
500 %; a bare ``1`` is taken where an option is a part of the original, as in ``macs=1``, and
refused where people think in percent.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any

from onnx_lowrank.errors import OptionError

__all__ = [
    "BYTES",
    "check_count",
    "check_seconds",
    "fraction",
    "percent",
    "read_bytes",
    "read_duration",
    "read_numbers",
    "read_shapes",
    "read_size",
]


#: size of each unit of memory and files, in bytes
BYTES: Mapping[str, float] = {
    "B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9,
    "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30,
}  # fmt: skip
#: length of each unit of time, in seconds
_SECONDS: Mapping[str, float] = {"s": 1.0, "min": 60.0, "h": 3600.0}


def fraction(text: str, *, bare_one: bool = True) -> float:
    """The number between 0 and 1 that ``text`` writes.

    Args:
        text: ``5%`` or ``0.05``.
        bare_one: whether ``1`` without a sign stands for the whole.

    Raises:
        ValueError: no number, a negative one, more than the whole, or one that may well have been
            meant in percent; the message has the remedy.
    """
    number, percents = re.fullmatch(r"(.*?)\s*(%?)", text.strip(), re.DOTALL).groups()  # type: ignore[union-attr]
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is no fraction; write 1% or 0.01")
    if value < 0:
        raise ValueError(f"{text!r} is negative; write a fraction such as 1% or 0.01")
    if percents:
        if value > 100:
            raise ValueError(f"{text!r} is more than the whole; write 100% at most")
        return value / 100
    if value > 100:
        raise ValueError(f"{text!r} is more than the whole; write a fraction such as 1% or 0.01")
    if value > 1 or (value == 1 and not bare_one):
        raise ValueError(
            f"{text!r} without a sign would mean {100 * value:g} %; write {value:g}% or "
            f"{value / 100:g}"
        )
    return value


def percent(value: float) -> str:
    """A fraction as people and as programs write it: ``1 % (0.01)``."""
    return f"{100 * value:.10g} % ({value:.10g})"


def check_count(name: str, value: Any, least: int = 1) -> int:
    """Refuse what is no whole number of ``least`` or more.

    Raises:
        OptionError: as said; it names the option.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise OptionError(f"{name} must be a whole number, not {value!r}") from None
    if number < least:
        raise OptionError(f"{name} must be {least} or more, not {value}")
    return number


def check_seconds(name: str, value: float) -> None:
    """Refuse what is no time.

    Raises:
        OptionError: zero, negative, infinite or NaN.
    """
    if not (math.isfinite(value) and value > 0):
        raise OptionError(f"{name} must be more than 0 seconds, and finite, not {value:g}")


def read_duration(text: str) -> float:
    """Seconds from ``90``, ``90s``, ``10min`` or ``2h``.

    Raises:
        ValueError: it is no time, or none at all.
    """
    return _measured(text, {"": 1.0, **_SECONDS}, "a time as 90s, 10min or 2h")


def read_bytes(text: str) -> int:
    """Bytes from ``2GiB``, ``500MB`` or a bare number of bytes.

    Raises:
        ValueError: it is no amount, or nothing.
    """
    return max(1, int(_measured(text, {"": 1.0, **BYTES}, "an amount as 500MB or 2GiB")))


def _measured(text: str, units: Mapping[str, float], form: str) -> float:
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)\s*", text)
    if found is None or found[2] not in units:
        raise ValueError(f"{text!r}; write {form}")
    value = float(found[1]) * units[found[2]]
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{text!r} is nothing; write {form}")
    return value


def read_numbers(text: str) -> tuple[float, ...]:
    """Numbers from ``0.5,0.5,0.5``.

    Raises:
        ValueError: they are not numbers.
    """
    try:
        return tuple(float(t) for t in text.split(","))
    except ValueError:
        raise ValueError(f"{text!r}; write numbers as 0.5,0.5,0.5") from None


def read_size(text: str) -> int | tuple[int, int]:
    """A size in pixels from ``256`` or ``224x320``, height first.

    Raises:
        ValueError: it is not a size.
    """
    match = re.fullmatch(r"(\d+)(?:[x,](\d+))?", text)
    if match is None:
        raise ValueError(f"{text!r}; write a size as 256 or 224x320")
    return int(match[1]) if match[2] is None else (int(match[1]), int(match[2]))


def read_shapes(texts: Sequence[str]) -> Mapping[str, tuple[int, ...]]:
    """Shapes of inputs by name, from texts such as ``name:1,3,224,224``.

    Raises:
        ValueError: one is not of that form, or an input comes twice.
    """
    found: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, _, dims = text.rpartition(":")
        numbers = dims.strip("[]").split(",")
        if not name or not all(n.strip().isdigit() for n in numbers):
            raise ValueError(f"{text!r}; write name:1,3,224,224")
        if name in found:
            raise ValueError(f"{text!r}: {name} has a shape already; give one")
        found[name] = tuple(int(n) for n in numbers)
    return found
