"""A linear map fitted behind a ReLU, or behind one with a ceiling.

    min_{W, b}  1/(2n) sum_i ||y_i - r(W x_i + b + s_i)||^2 + rho/2 tr((W - W0) Sigma (W - W0)^T)

with ``r(u) = min(max(u, 0), ceiling)`` and a part ``s_i`` of the argument that is given, the skip
branch of a residual sum. Errors below zero on both sides cost nothing, so the map is free to make
them for less error above. With ``u_i = W x_i + b + s_i`` split off as ``z_i``, in turn,

    z      = argmin 1/2 (y - r(z))^2 + tau/2 (z - u)^2, element by element, see below
    W, b   = least squares of z - s on x beside the penalty: one Cholesky factor for all rounds

Each ``z`` has a branch for each straight piece of ``r``: ``(y + tau u) / (1 + tau)`` between 0 and
the ceiling, ``min(u, 0)`` below and ``max(u, ceiling)`` above. With ``k^2 = tau / (1 + tau)`` the
costs ``k^2 (y - u)^2`` of the first and ``y^2`` of the second, where ``u < 0``, are equal at
``k u + (1 - k) y = 0``; likewise at the ceiling. So that mean says which branch is the best.

The penalty holds what few rows say nothing about: ``W0`` is the linear solution and ``Sigma`` the
covariance of far more rows than these. The problem is not convex; the best round is returned.

Reference:
    Zhang, Zou, He & Sun 2015, Accelerating very deep convolutional networks for classification and
    detection, 3.2 (the branches, the growing penalty).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg

from onnx_lowrank.linalg.cholesky import cholesky

__all__ = ["SCHEDULE", "ReluFit", "ReluProblem", "nearest_before_relu", "rectified"]

Array = npt.NDArray[np.floating[Any]]

#: ``tau`` of each round: Zhang et al. take 0.01, then 1
SCHEDULE = (0.01,) * 6 + (1.0,) * 2


class ReluProblem:
    """Rows, and the factor that all rounds share.

    Args:
        rows: ``x (n, d)``.
        target: ``y (n, N)``, between 0 and the ceiling.
        weight: ``W0 (N, d)``.
        bias: ``b (N,)`` that goes with it.
        given: ``s (n, N)``.
        sigma: ``(d, d)``, of the penalty.
        ridge: ``rho``, its weight beside the rows.
        ceiling: of ``r``.

    Raises:
        ValueError: shapes do not fit.
    """

    def __init__(
        self,
        rows: Array,
        target: Array,
        weight: Array,
        bias: Array,
        *,
        given: Array,
        sigma: Array,
        ridge: float = 1.0,
        ceiling: float = math.inf,
    ) -> None:
        if target.shape != (len(rows), len(weight)) or weight.shape[1:] != rows.shape[1:]:
            raise ValueError(
                f"rows {rows.shape}, target {target.shape} and weight {weight.shape} do not fit"
            )
        self._target, self._given, self._ceiling = target, given, ceiling
        self._weight, self._bias, self._mean = weight, bias, rows.mean(axis=0)
        self._rows = rows - self._mean
        gram = (self._rows.T @ self._rows).astype(np.float64) / len(rows)
        self._factor = cholesky(gram + ridge * sigma), True
        self._exact = self._rows @ weight.T.astype(rows.dtype)

    def response(self, weight: Array, bias: Array) -> Array:
        """``W x + b + s (n, N)``."""
        level = (bias + weight @ self._mean).astype(self._rows.dtype)
        made: Array = self._rows @ weight.T.astype(self._rows.dtype) + level + self._given
        return made

    def loss(self, response: Array) -> float:
        """``1/(2n) sum ||y - r(u)||^2`` of ``u (n, N)``."""
        left = np.square(self._target - rectified(response, self._ceiling))
        return float(np.sum(left, dtype=np.float64)) / (2 * len(left))

    def step(self, response: Array, tau: float) -> tuple[Array, Array]:
        """``W (N, d)`` and ``b (N,)`` after one round from ``u (n, N)``."""
        wanted = nearest_before_relu(self._target, response, tau, self._ceiling) - self._given
        level = wanted.mean(axis=0, dtype=np.float64)
        left = wanted - self._exact - level.astype(wanted.dtype)
        cross = (left.T @ self._rows).astype(np.float64) / len(left)
        change = linalg.cho_solve(self._factor, cross.T, check_finite=False).T
        weight = self._weight + change
        return weight, level - weight @ self._mean

    def solve(self, schedule: Sequence[float] = SCHEDULE) -> ReluFit:
        """The best of the rounds, each at its ``tau``."""
        weight, bias = self._weight, self._bias
        response = self.response(weight, bias)
        first = self.loss(response)
        best = ReluFit(weight, bias, first, first, 0)
        for number, tau in enumerate(schedule, 1):
            weight, bias = self.step(response, tau)
            response = self.response(weight, bias)
            loss = self.loss(response)
            if loss < best.loss:
                best = ReluFit(weight, bias, loss, first, number)
        return best


@dataclass(frozen=True)
class ReluFit:
    """A map behind a ReLU.

    Attributes:
        weight: ``W (N, d)``.
        bias: ``b (N,)``.
        loss: ``1/(2n) sum ||y - r(W x + b + s)||^2`` on the rows.
        linear: the same at the start, which is never less.
        best: the round that the result is from; 0 is the start.
    """

    weight: Array
    bias: Array
    loss: float
    linear: float
    best: int


def rectified(response: Array, ceiling: float = math.inf) -> Array:
    """``r`` of a response, element by element."""
    made: Array = np.clip(response, 0.0, ceiling)
    return made


def nearest_before_relu(
    target: Array, point: Array, tau: float, ceiling: float = math.inf
) -> Array:
    """The ``z`` of least ``1/2 (y - r(z))^2 + tau/2 (z - u)^2``, element by element.

    Args:
        target: ``y``, of any shape, between 0 and the ceiling.
        point: ``u``, of that shape.
        tau: positive.
        ceiling: of ``r``.
    """
    share = math.sqrt(tau / (1 + tau))
    pull = share * point + (1 - share) * target
    nearest: Array = np.where(pull > 0, (target + tau * point) / (1 + tau), np.minimum(point, 0.0))
    if math.isfinite(ceiling):
        nearest = np.where(pull < ceiling, nearest, np.maximum(point, ceiling))
    return nearest
