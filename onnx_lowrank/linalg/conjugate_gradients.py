"""Conjugate gradients on the normal equations of a least-squares problem, matrix-free.

Reference:
    Hestenes & Stiefel 1952, Methods of conjugate gradients for solving linear systems.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Single", "conjugate_gradients", "single_of"]

Array = npt.NDArray[np.floating[Any]]


def single_of(matrix: Array) -> tuple[Array, float]:
    """A matrix in float32, divided by its largest element, and that."""
    largest = float(np.max(np.abs(matrix), initial=0.0))
    return (matrix / (largest or 1.0)).astype(np.float32), largest


@dataclass(frozen=True)
class Single:
    """A normal operator in float32.

    A few steps of conjugate gradients leave more of a residual than float32 does, and take half the
    time in it; the residual that they begin at must be known in float64.

    Attributes:
        normal: the operator, divided by ``unit``, on float32 arrays.
        unit: what it is divided by, so that nothing overflows.
    """

    normal: Callable[[Array], Array]
    unit: float


def conjugate_gradients(
    normal: Callable[[Array], Array],
    target: Array,
    start: Array,
    steps: int,
    single: Single | None = None,
) -> Array:
    """Solve ``normal(x) = target`` approximately, by at most ``steps`` steps.

    Args:
        normal: symmetric positive semi-definite operator on arrays of the shape of ``start``.
        target: right-hand side.
        start: first ``x``.
        steps: largest number of steps; each lowers the quadratic.
        single: the same operator in float32, to find the change of ``x`` by.
    """
    residual = target - normal(start)
    if single is None:
        return _descended(normal, start, residual, steps)
    size = float(np.linalg.norm(residual))
    if not (np.isfinite(size) and size > 0 and single.unit > 0):
        return start
    unit = (residual / size).astype(np.float32)
    change = _descended(single.normal, np.zeros_like(unit), unit, steps)
    return start + change * (size / single.unit)


def _descended(
    normal: Callable[[Array], Array], point: Array, residual: Array, steps: int
) -> Array:
    """Lower the quadratic from ``point``, where ``residual`` is left of the right-hand side."""
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
