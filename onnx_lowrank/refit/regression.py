"""Regression of a layer's responses on its inputs, from their covariances alone.

    W* = W + (E[y x^T] - W E[x x^T]) (E[x x^T] + lambda I)^-1,     b* = E[y] - W* E[x]

``lambda`` shrinks towards the present weights ``W``. It is the one of least error on rows that the
fit did not see; keeping the weights is among the choices.

Reference:
    Zhang et al. 2015, section 3.2 (asymmetric reconstruction).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.linalg.phase_covariance import (
    Covariance,
    PhaseCovariance,
    by_group,
    mean_variance,
    solved,
)

__all__ = ["RIDGES", "Regression", "best_ridge", "solution"]

Array = npt.NDArray[np.floating[Any]]

#: ridges tried, in units of the mean variance of the inputs
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, np.inf)


@dataclass(frozen=True)
class Regression:
    """Sums over rows of inputs ``x`` and responses ``y``, centred.

    Attributes:
        count: number of rows.
        inputs: sum of ``x x^T``, ``(groups, d, d)``, or that of the phases of one group.
        cross: sum of ``y x^T``, ``(groups, n, d)``.
        energy: sum of ``||y||^2``.
        input_mean: ``E[x]``, ``(groups, d)``.
        output_mean: ``E[y]``, ``(groups, n)``.
    """

    count: int
    inputs: Array | PhaseCovariance
    cross: Array
    energy: float
    input_mean: Array
    output_mean: Array

    def solved(self, start: Array, ridge: float, left: Array | None = None) -> Array:
        """Weights ``W* (groups, n, d)`` under a ridge.

        Args:
            start: present weights, ``(groups, n, d)``.
            ridge: in units of the mean variance of ``x``; infinite keeps the present weights.
            left: what :meth:`left` gives for ``start``, where it is known.
        """
        if not np.isfinite(ridge):
            return start
        left = self.left(start) if left is None else left
        parts = zip(start, by_group(self.inputs), left, strict=True)
        return np.stack([_moved(w, inputs, own, ridge) for w, inputs, own in parts])

    def left(self, start: Array) -> Array:
        """What weights ``(groups, n, d)`` leave of the cross sums, ``(groups, n, d)``."""
        parts = zip(start, by_group(self.inputs), self.cross, strict=True)
        return np.stack([cross - w @ inputs for w, inputs, cross in parts])

    def bias(self, weights: Array) -> Array:
        """Bias ``E[y] - W E[x]``, ``(groups, n)``."""
        made: Array = np.einsum("gnd,gd->gn", weights, self.input_mean)
        return self.output_mean - made

    def error(self, weights: Array, bias: Array) -> float:
        """Mean squared error ``E ||y - W x - b||^2``.

        Args:
            weights: ``W (groups, n, d)``.
            bias: ``b (groups, n)``.
        """
        offset = self.bias(weights) - bias
        left = weights @ self.inputs
        left -= 2 * self.cross
        total = self.energy + float(np.vdot(left, weights))
        return total / self.count + float(np.vdot(offset, offset))


def solution(start: Array, inputs: Covariance, cross: Array, ridge: float) -> Array:
    """Weights ``W*`` of one group under a ridge, by the module's formula.

    Args:
        start: present weights, ``(n, d)``.
        inputs: covariance of ``x``, or a multiple of it, ``(d, d)``.
        cross: covariance of ``y`` with ``x``, or the same multiple, ``(n, d)``.
        ridge: ridge in units of the mean variance of ``x``; infinite keeps the present weights.
    """
    return _moved(start, inputs, cross - start @ inputs, ridge) if np.isfinite(ridge) else start


def _moved(start: Array, inputs: Covariance, left: Array, ridge: float) -> Array:
    """Weights of one group that take out as much of what is left of the cross sums as they can."""
    unit = mean_variance(inputs)
    if unit <= 0:
        return start
    try:
        step = solved(inputs, ridge * unit, left.copy().T)
    except np.linalg.LinAlgError:  # the ridge is smaller than the rounding of the sums
        return start
    return start + step.T


def best_ridge(
    fit: Regression, held: Regression, start: Array, any_change: bool = True
) -> tuple[float, float, float]:
    """Choose the ridge by the error on held-out rows.

    Args:
        fit: rows to solve with.
        held: rows that are held out.
        start: present weights, ``(groups, n, d)``.
        any_change: whether the weights may change.

    Returns:
        The ridge, and the errors on the held-out rows with the present weights and with it.
    """
    left = fit.left(start)  # once for all ridges

    @cache
    def error(ridge: float) -> float:
        weights = fit.solved(start, ridge, left)
        return held.error(weights, fit.bias(weights))

    ridge = _least(error) if any_change else np.inf
    return ridge, error(np.inf), error(ridge)


def _least(error: Callable[[float], float]) -> float:
    """Find the ridge of least error, downhill from the middle, as each one costs a solve."""
    best = len(RIDGES) // 2
    for step in (-1, 1):
        while 0 <= best + step < len(RIDGES) and error(RIDGES[best + step]) < error(RIDGES[best]):
            best += step
    return min(RIDGES[best], np.inf, key=error)
