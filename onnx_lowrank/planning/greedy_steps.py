"""The greedy step that all plans are mended and filled by: the most gain for its price."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["best_step"]

Array = npt.NDArray[np.floating[Any]]


def best_step(gains: Array, prices: Array, allowed: npt.NDArray[np.bool_]) -> int | None:
    """Choose the step of most gain for its price; of equal ones the first.

    Args:
        gains: what each step wins, ``(steps,)``; below 0 where it loses.
        prices: what it takes for that, ``(steps,)``, above 0 where it is allowed.
        allowed: the steps to choose from, ``(steps,)``.

    Returns:
        Its number, or None where no step is allowed.
    """
    places = np.flatnonzero(allowed)
    if not len(places):
        return None
    return int(places[np.argmax(gains[places] / prices[places])])
