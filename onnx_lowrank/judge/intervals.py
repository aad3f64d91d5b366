"""Confidence intervals (95 %) of parts and means of a number of samples.

A part of ``n`` samples has Wilson's interval. A difference, with ``b`` of ``n`` samples lost and
``c`` won, has Agresti and Min's, which is not empty even where nothing changed:

    (b - c) / m  -+  1.96 sqrt(b + c + 1 - (b - c)^2 / m) / m,    m = n + 2

Reference:
    Wilson 1927, Probable inference; Agresti & Min 2005, Simple improved confidence intervals for
    comparing matched proportions.
"""

from __future__ import annotations

import math
from typing import Any

import numpy.typing as npt

__all__ = ["mean", "paired", "wilson"]

#: quantile of the standard normal distribution at 97.5 %
_NORMAL = 1.959963984540054


def wilson(part: float, count: int) -> tuple[float, float]:
    """Interval of a part of ``count`` samples."""
    n, z = count, _NORMAL
    centre = (part + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(part * (1 - part) / n + z * z / (4 * n * n))
    return centre - half, centre + half


def paired(lost: int, won: int, count: int) -> tuple[float, float]:
    """Interval of the part of ``count`` samples that is lost, minus the part that is won."""
    m = count + 2
    half = _NORMAL * math.sqrt(lost + won + 1 - (lost - won) ** 2 / m) / m
    return (lost - won) / m - half, (lost - won) / m + half


def mean(values: npt.NDArray[Any]) -> tuple[float, float]:
    """Interval of the mean of the distribution of ``values``, by the normal approximation."""
    centre, half = float(values.mean()), _NORMAL * float(values.std()) / math.sqrt(len(values))
    return centre - half, centre + half
