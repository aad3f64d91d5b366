"""Conjugate gradients on the normal equations of a least-squares problem, matrix-free.

Where a matrix ``X (k, a)`` is asked for, and the operator is near ``G X S``, the inverses of ``G``
and ``S`` precondition it: the steps that are left to do are those in which it differs from that.

Reference:
    Hestenes & Stiefel 1952, Methods of conjugate gradients for solving linear systems;
    Saad 2003, Iterative methods for sparse linear systems, 9.2 (preconditioned).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.linalg.cholesky import cholesky, inverse_of

__all__ = [
    "STEPS",
    "Single",
    "conjugate_gradients",
    "damped_inverse",
    "near_product",
    "single_of",
]

Array = npt.NDArray[np.floating[Any]]

#: steps with :func:`near_product` for a factor of a layer. On layers of ResNet-20 three left as
#: much of the error as 24 without, where eight had been taken
STEPS = 3

#: part of the mean diagonal that is added to both factors of a preconditioner
_DAMPING = 1e-3


def single_of(matrix: Array) -> tuple[Array, float]:
    """A matrix in float32, divided by its largest element, and that."""
    largest = float(max(np.max(matrix, initial=0.0), -np.min(matrix, initial=0.0)))
    return (matrix / (largest or 1.0)).astype(np.float32), largest


def _unchanged(residual: Array) -> Array:
    return residual


@dataclass(frozen=True)
class Single:
    """A normal operator in float32.

    A few steps of conjugate gradients leave more of a residual than float32 does, and take half the
    time in it; the residual that they begin at must be known in float64.

    Attributes:
        normal: the operator, divided by ``unit``, on float32 arrays.
        unit: what it is divided by, so that nothing overflows.
        inverse: symmetric positive definite operator that is near the inverse of a multiple of it.
    """

    normal: Callable[[Array], Array]
    unit: float
    inverse: Callable[[Array], Array] = _unchanged


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
    change = _descended(single.normal, np.zeros_like(unit), unit, steps, single.inverse)
    return start + change * (size / single.unit)


def near_product(gram: Array, right: Array) -> Callable[[Array], Array]:
    """The inverse of ``X -> G X S`` in float32, up to a factor, with both a little damped.

    Args:
        gram: ``G (k, k)``, positive semi-definite.
        right: :func:`damped_inverse` of ``S (a, a)``.
    """
    left = damped_inverse(gram)

    def inverse(residual: Array) -> Array:
        found: Array = left @ residual @ right
        return found

    return inverse


def damped_inverse(matrix: Array) -> Array:
    """The inverse of a positive semi-definite matrix, damped, in float32 and up to a factor."""
    unit = float(np.trace(matrix)) / len(matrix) or 1.0
    damped = matrix / unit
    damped[np.diag_indices(len(damped))] += _DAMPING
    return inverse_of(cholesky(damped)).astype(np.float32)


def _descended(
    normal: Callable[[Array], Array],
    point: Array,
    residual: Array,
    steps: int,
    inverse: Callable[[Array], Array] = _unchanged,
) -> Array:
    """Lower the quadratic from ``point``, where ``residual`` is left of the right-hand side."""
    direction = ahead = inverse(residual)
    square = float(np.sum(residual * ahead))
    for _ in range(steps):
        moved = normal(direction)
        curvature = float(np.sum(direction * moved))
        if curvature <= 0 or square <= 0:
            break
        point = point + (square / curvature) * direction
        residual = residual - (square / curvature) * moved
        ahead = inverse(residual)
        square, before = float(np.sum(residual * ahead)), square
        direction = ahead + (square / before) * direction
    return point
