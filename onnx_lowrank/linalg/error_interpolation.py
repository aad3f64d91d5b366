"""Interpolation of errors that fall with the rank, from a few known ones.

    log e(x) = monotone piecewise cubic through (x_i, log e_i),   beyond the last a straight line

The curve never rises, and between two points it stays between their errors. The line falls half as
steeply as the last two points do: some curves flatten there, and a plan should not expect too much.

Reference:
    Fritsch & Butland 1984, A method for constructing local monotone piecewise cubic interpolants.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.interpolate import PchipInterpolator

__all__ = ["interpolated_errors", "interpolated_gain"]

Array = npt.NDArray[np.floating[Any]]

#: part of the last slope that the curve has beyond the last point
_CAUTION = 0.5


def interpolated_errors(
    at: Sequence[float], errors: Sequence[float], wanted: Sequence[float]
) -> Array:
    """Interpolate errors at ``wanted``; if only one is known, it is returned everywhere as a bound.

    Args:
        at: ranks at which the errors are known, rising.
        errors: known errors, positive and not rising.
        wanted: ranks at which errors are wanted, not below ``at[0]``.

    Raises:
        ValueError: the errors rise or are not positive, or a rank is below the first known one.
    """
    e, x = np.asarray(errors, np.float64), np.asarray(wanted, np.float64)
    if np.any(e <= 0) or np.any(np.diff(e) > 0):
        raise ValueError("the errors must be positive and must not rise")
    if np.any(x < at[0]):
        raise ValueError(f"errors cannot be interpolated below {at[0]}")
    if len(e) == 1:
        return np.full(x.shape, e[0])
    known, logs = np.asarray(at, np.float64), np.log(e)
    inside: Array = PchipInterpolator(known, logs)(np.minimum(x, known[-1]))
    slope = _CAUTION * (logs[-1] - logs[-2]) / (known[-1] - known[-2])
    curve: Array = np.exp(inside + slope * np.maximum(x - known[-1], 0.0))
    return curve


def interpolated_gain(at: Sequence[float], gains: Sequence[float], wanted: float) -> float:
    """Interpolate what refinement leaves of an error: its logarithm, straight in that of the rank.

    Refinement leaves nearly the same part at all ranks.

    Args:
        at: positive ranks at which it is known, rising; one or more.
        gains: refined error over that in closed form, positive.
        wanted: positive rank at which it is wanted; beyond the known ones the nearest counts.
    """
    return float(np.exp(np.interp(math.log(wanted), np.log(at), np.log(gains))))
