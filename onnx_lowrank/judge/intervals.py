"""Confidence intervals (95 %) of parts, means and other statistics of a number of samples.

A part of ``n`` samples has Wilson's interval. A difference, with ``b`` of ``n`` samples lost and
``c`` won, has Agresti and Min's, which is not empty even where nothing changed:

    (b - c) / m  -+  1.96 sqrt(b + c + 1 - (b - c)^2 / m) / m,    m = n + 2

Any other statistic has the interval of the bootstrap.

Reference:
    Efron 1979, Bootstrap methods; Wilson 1927, Probable inference; Agresti & Min 2005, Simple
    improved confidence intervals for comparing matched proportions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["bootstrap", "mean", "paired", "wilson"]

#: quantile of the standard normal distribution at 97.5 %
_NORMAL = 1.959963984540054
#: number of resamplings of the bootstrap
_DRAWS = 200


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


def bootstrap(
    statistic: Callable[[npt.NDArray[np.intp]], float], value: float, count: int
) -> tuple[float, float]:
    """Interval of a statistic of ``count`` samples, by drawing them again.

    Args:
        statistic: computes it for the samples of these numbers, which may repeat.
        value: what it is for all samples.
        count: number of samples.
    """
    random = np.random.default_rng(0)
    drawn = [statistic(random.integers(0, count, count)) for _ in range(_DRAWS)]
    # take draws themselves: nothing can be interpolated beside an infinite one
    ranked = sorted(v for v in drawn if not math.isnan(v)) or [value]
    low, high = (ranked[round(part * (len(ranked) - 1))] for part in (0.025, 0.975))
    return low, high
