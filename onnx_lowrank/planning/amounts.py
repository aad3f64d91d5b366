"""Amounts: targets in units of their own, such as ``macs=300M``, ``size=2MiB`` or ``latency=8ms``.

MACs and parameters are counted in thousands (``k``), millions (``M``) and milliards (``G``); bytes
in decimal (``kB``) and binary units (``KiB``); a latency is one of an inference at the batch that
counts. A number without a unit is a part of the original, never an amount.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from onnx_lowrank.option_values import BYTES

__all__ = ["Amount", "in_reach", "read_amount", "said"]

_COUNTS = {"k": 1e3, "M": 1e6, "G": 1e9}
_MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}

#: size of each unit: in MACs, parameters, bytes and milliseconds
_UNITS: Mapping[str, Mapping[str, float]] = {
    "macs": _COUNTS,
    "params": _COUNTS,
    "size": BYTES,
    "latency": _MILLISECONDS,
}
#: the units that messages use, the smallest first
_SAID = {
    "macs": ("k", "M", "G"),
    "params": ("k", "M", "G"),
    "size": ("B", "KiB", "MiB", "GiB"),
    "latency": ("us", "ms", "s"),
}


@dataclass(frozen=True)
class Amount:
    """The largest amount of a quantity that a model may have.

    Attributes:
        metric: the quantity, ``macs | params | size | latency``.
        text: number and unit as the user wrote them, without spaces.
    """

    metric: str
    text: str

    @property
    def value(self) -> float:
        """MACs, parameters, bytes or milliseconds."""
        value = read_amount(self.metric, self.text)
        assert value is not None
        return value

    def __str__(self) -> str:
        return f"{self.metric}={self.text}"


def read_amount(metric: str, text: str) -> float | None:
    """MACs, parameters, bytes or milliseconds from a number with a unit.

    Args:
        metric: the quantity, ``macs | params | size | latency``.
        text: such as ``300M``, ``2MiB`` or ``8ms``.

    Returns:
        None where the text does not end with letters, so that it is a part of the original.

    Raises:
        ValueError: there is no such unit, or no such amount; the message has the remedy.
    """
    number, unit = re.fullmatch(r"(.*?)\s*([A-Za-z]*)", text.strip(), re.DOTALL).groups()  # type: ignore[union-attr]
    units = _UNITS[metric]
    try:
        value = float(number)
    except ValueError:
        return None
    if not unit:
        return None
    if unit not in units:
        raise ValueError(f"there is no unit {unit!r} for it; its units are {', '.join(units)}")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{text!r} leaves nothing of the model; give more than 0")
    return value * units[unit]


def said(metric: str, value: float, *, up: bool = False) -> str:
    """An amount as a target could ask for it: ``macs=37.3M``, ``size=1.91MiB``.

    Args:
        metric: the quantity, ``macs | params | size | latency``.
        value: MACs, parameters, bytes or milliseconds.
        up: whether the last digit is rounded up, so that the amount may be asked for.
    """
    units = _UNITS[metric]
    unit = next((u for u in reversed(_SAID[metric]) if value >= units[u]), _SAID[metric][0])
    number = value / units[unit]
    if up and number:
        step = 10.0 ** (math.floor(math.log10(number)) - 2)
        number = math.ceil(round(number / step, 6)) * step
    shown = f"{number:.3g}" if number < 999.5 else f"{number:.0f}"
    return f"{metric}={shown}{unit}"


def in_reach(metric: str, least: float, whole: float) -> str:
    """The smallest cost in reach, as a part of the original and as an amount, rounded up.

    Args:
        metric: the quantity, ``macs | params | size | latency``.
        least: its smallest value, in MACs, parameters, bytes or milliseconds.
        whole: value of the original.
    """
    part = math.ceil(1000 * least / max(whole, 1e-12)) / 1000
    return f"{part:.3f} of the original ({said(metric, least, up=True)})"
