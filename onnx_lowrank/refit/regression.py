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

from onnx_lowrank.linalg.conjugate_gradients import single_of
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

#: those from here on make up for the rounding of float32
_SINGLE = 1e-3


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

    def solved(self, start: Array, ridge: float) -> Array:
        """Weights ``W* (groups, n, d)`` under a ridge.

        Args:
            start: present weights, ``(groups, n, d)``.
            ridge: in units of the mean variance of ``x``; infinite keeps the present weights.
        """
        if not np.isfinite(ridge):
            return start
        parts = zip(start, by_group(self.inputs), self.left(start), strict=True)
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
    step = _step(inputs, left, ridge)
    return start if step is None else start + step


def _step(inputs: Covariance, left: Array, ridge: float) -> Array | None:
    """The step ``(n, d)`` of one group under a ridge; None where there is none to be found."""
    unit = mean_variance(inputs)
    if unit <= 0:
        return None
    try:
        return solved(inputs, ridge * unit, left.copy().T).T
    except np.linalg.LinAlgError:  # the ridge is smaller than the rounding of the sums
        return None


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
    before = held.error(start, fit.bias(start))
    if not any_change:
        return np.inf, before, before
    change = cache(_Steps(fit, held, start).change)
    ridge = _least(change)
    return ridge, before, before + change(ridge)


class _Steps:
    """What steps from the present weights change of the error on held-out rows.

    Steps under all but small ridges are solved in float32, in half the time, as they decide nothing
    but the ridge. The change is exact enough so, since its terms are no larger than itself.

    Args:
        fit: rows to solve with.
        held: rows that are held out.
        start: present weights, ``(groups, n, d)``.
    """

    def __init__(self, fit: Regression, held: Regression, start: Array) -> None:
        self._fit, self._held = fit, held
        self._left, self._seen = fit.left(start), held.left(start)
        self._offset = held.bias(start) - fit.bias(start)

    def change(self, ridge: float) -> float:
        """What the step under a ridge adds to ``E ||y - W x - b||^2`` of the held-out rows."""
        if not np.isfinite(ridge):
            return 0.0
        fit, held = self._fit, self._held
        kind = np.float32 if ridge >= _SINGLE else np.float64
        step = np.zeros(self._left.shape, kind)
        for own, inputs, left in zip(step, by_group(fit.inputs), self._left, strict=True):
            small, unit = _in(kind, inputs)
            found = _step(small, (left / unit).astype(kind), ridge)
            if found is not None:
                own[:] = found
        seen, unit = _in(kind, held.inputs)
        squares = float(np.vdot(step @ seen, step)) * unit
        mean = np.einsum("gnd,gd->gn", step, held.input_mean - fit.input_mean)
        rows = (squares - 2 * float(np.vdot(self._seen, step))) / held.count
        added = rows + float(np.vdot(mean, mean - 2 * self._offset))
        return added if np.isfinite(added) else np.inf


def _in(kind: type, inputs: Array | PhaseCovariance) -> tuple[Array | PhaseCovariance, float]:
    """Covariances in single precision if asked for, and what they are divided by then.

    Those of phases stay as they are, as what they leave of a small block may be rounding.
    """
    if kind is np.float64 or isinstance(inputs, PhaseCovariance):
        return inputs, 1.0
    small, unit = single_of(inputs)
    return small, unit or 1.0


def _least(error: Callable[[float], float]) -> float:
    """Find the ridge of least error, downhill from a large one, as each one costs a solve.

    Most layers keep their weights, or move little. Of 429 layers of five nets (residual, depthwise,
    and one with attention) every one had its least error where this finds it.
    """
    best = len(RIDGES) - 2
    for step in (-1, 1):
        while 0 <= best + step < len(RIDGES) and error(RIDGES[best + step]) < error(RIDGES[best]):
            best += step
    return min(RIDGES[best], np.inf, key=error)
