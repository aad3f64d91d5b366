"""The greedy step that all plans are mended and filled by: the most gain for its price."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["best_step"]

Array = npt.NDArray[np.floating[Any]]


def best_step(gains: Array, prices: Array, allowed: npt.NDArray[np.bool_]) -> int | None:
    """Choose the step of most gain for its price, and among equals the first.

    Args:
        gains: gain of each step, ``(steps,)``; negative for a loss.
        prices: price of each step, ``(steps,)``; positive where the step is allowed.
        allowed: mask of the steps to choose from, ``(steps,)``.

    Returns:
        Number of the step; None where no step is allowed.
    """
    places = np.flatnonzero(allowed)
    if not len(places):
        return None
    return int(places[np.argmax(gains[places] / prices[places])])
