"""Conjugate gradients on the normal equations of a least-squares problem, matrix-free.

Reference:
    Hestenes & Stiefel 1952, Methods of conjugate gradients for solving linear systems.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["conjugate_gradients"]

Array = npt.NDArray[np.floating[Any]]


def conjugate_gradients(
    normal: Callable[[Array], Array], target: Array, start: Array, steps: int
) -> Array:
    """Solve ``normal(x) = target`` approximately, by at most ``steps`` steps.

    Args:
        normal: symmetric positive semi-definite operator on arrays of the shape of ``start``.
        target: right-hand side.
        start: first ``x``.
        steps: largest number of steps; each lowers the quadratic.
    """
    point = start
    residual = target - normal(point)
    direction, square = residual, float(np.sum(residual**2))
    for _ in range(steps):
        moved = normal(direction)
        curvature = float(np.sum(direction * moved))
        if curvature <= 0 or square == 0:
            break
        point = point + (square / curvature) * direction
        residual = residual - (square / curvature) * moved
        square, before = float(np.sum(residual**2)), square
        direction = residual + (square / before) * direction
    return point
