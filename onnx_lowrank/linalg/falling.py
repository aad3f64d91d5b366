"""A curve of errors that fall, from a few of its points.

    log e(x) = monotone piecewise cubic through (x_i, log e_i),   beyond the last a straight line

It never rises, and between two points stays between their figures. The line falls half as steeply
as the last two points do: some curves flatten there, and a plan should not be promised too much.

Reference:
    Fritsch & Butland 1984, A method for constructing local monotone piecewise cubic interpolants.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.interpolate import PchipInterpolator

__all__ = ["falling"]

Array = npt.NDArray[np.floating[Any]]

#: part of the last slope that is believed beyond the last point
_CAUTION = 0.5


def falling(at: Sequence[float], errors: Sequence[float], wanted: Sequence[float]) -> Array:
    """Errors at ``wanted``; of one point alone nothing can be said but that it is a bound.

    Args:
        at: where the errors are known, rising.
        errors: positive, none above the one before it.
        wanted: where they are asked for, none of it before ``at[0]``.

    Raises:
        ValueError: errors that rise or are not positive, or a place before the first.
    """
    e, x = np.asarray(errors, np.float64), np.asarray(wanted, np.float64)
    if np.any(e <= 0) or np.any(np.diff(e) > 0):
        raise ValueError("errors that fall, and are above zero, are wanted")
    if np.any(x < at[0]):
        raise ValueError(f"nothing is known before {at[0]}")
    if len(e) == 1:
        return np.full(x.shape, e[0])
    known, logs = np.asarray(at, np.float64), np.log(e)
    inside: Array = PchipInterpolator(known, logs)(np.minimum(x, known[-1]))
    slope = _CAUTION * (logs[-1] - logs[-2]) / (known[-1] - known[-2])
    curve: Array = np.exp(inside + slope * np.maximum(x - known[-1], 0.0))
    return curve
