"""Regression of a linear map behind a ReLU, with or without a ceiling.

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

The penalty determines the directions that few rows do not: ``W0`` is the linear solution and
``Sigma`` the covariance of far more rows. The problem is not convex; the best round is returned.

Reference:
    Zhang, Zou, He & Sun 2015, Accelerating very deep convolutional networks for classification and
    detection, 3.2 (the branches, the growing penalty).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.linalg import lapack
from onnx_lowrank.linalg.cholesky import JITTERS, factored
from onnx_lowrank.linalg.phase_covariance import Covariance, PhaseCovariance, mean_variance

__all__ = ["SCHEDULE", "ReluFit", "ReluProblem", "nearest_before_relu", "rectified"]

Array = npt.NDArray[np.floating[Any]]

#: ``tau`` of each round: Zhang et al. take 0.01, then 1
SCHEDULE = (0.01,) * 6 + (1.0,) * 2


class ReluProblem:
    """The problem of one map, with the Cholesky factor that all rounds share.

    Args:
        rows: inputs ``x (n, d)``.
        target: responses ``y (n, N)``, between 0 and the ceiling.
        weight: ``W0 (N, d)`` of the linear solution.
        bias: ``b (N,)`` of the linear solution.
        given: given part ``s (n, N)`` of the argument.
        sigma: covariance ``(d, d)`` of the penalty.
        ridge: weight ``rho`` of the penalty against the rows.
        ceiling: upper bound of ``r``; infinite for none.

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
        sigma: Covariance,
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
        self._solved = (
            _by_phases(rows, sigma, ridge)
            if isinstance(sigma, PhaseCovariance)
            else _at_once(self._rows, sigma, ridge)
        )
        self._exact = self._rows @ weight.T.astype(rows.dtype)

    def response(self, weight: Array, bias: Array) -> Array:
        """Argument ``W x + b + s (n, N)`` of the ReLU."""
        level = (bias + weight @ self._mean).astype(self._rows.dtype)
        made: Array = self._rows @ weight.T.astype(self._rows.dtype)
        made += level
        made += self._given
        return made

    def loss(self, response: Array) -> float:
        """Loss ``1/(2n) sum ||y - r(u)||^2`` of an argument ``u (n, N)``."""
        left = rectified(response, self._ceiling)
        left -= self._target
        # products are summed in float32 row by row, and rows in float64
        squares = np.einsum("ij,ij->i", left, left)
        return float(np.sum(squares, dtype=np.float64)) / (2 * len(left))

    def step(self, response: Array, tau: float) -> tuple[Array, Array]:
        """Compute ``W (N, d)`` and ``b (N,)`` by one round from the argument ``u (n, N)``."""
        left = nearest_before_relu(self._target, response, tau, self._ceiling)
        left -= self._given
        level = left.mean(axis=0, dtype=np.float64)
        left -= self._exact
        left -= level.astype(left.dtype)
        cross = (left.T @ self._rows).astype(np.float64) / len(left)
        weight = self._weight + self._solved(cross.T).T
        return weight, level - weight @ self._mean

    def solve(self, schedule: Sequence[float] = SCHEDULE) -> ReluFit:
        """Run all rounds, each at its ``tau``; return the best one."""
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


def _at_once(rows: Array, sigma: Array, ridge: float) -> Callable[[Array], Array]:
    """Solves with the covariance of centred rows and the penalty's, factored once."""
    gram = rows.T @ rows
    gram /= len(rows)
    # in place: thousands of columns are hundreds of megabytes a matrix
    system = np.array(sigma, np.float64)
    system *= ridge
    system += gram
    del gram
    factor = factored(system)

    def solved(right: Array) -> Array:
        return lapack.potrs(factor, right)

    return solved


def _by_phases(rows: Array, sigma: PhaseCovariance, ridge: float) -> Callable[[Array], Array]:
    """The same where each row is zero outside the columns of its phase.

    Blocks ``rows^T rows / n`` of the phases less ``m m^T`` are the covariance of the rows.
    """
    blocks, mean = [], rows.mean(axis=0, dtype=np.float64)
    for block, at in zip(sigma.blocks, sigma.columns, strict=True):
        own = rows[:, at]
        blocks.append(ridge * block + own.T @ own / len(rows))
    system = PhaseCovariance(tuple(blocks), sigma.columns, math.sqrt(ridge) * sigma.shift)

    def solved(right: Array) -> Array:
        for jitter in JITTERS:
            try:
                made = system.solve(np.column_stack([right, mean]), jitter * mean_variance(system))
            except np.linalg.LinAlgError:
                continue
            found, z = made[:, :-1], made[:, -1]
            if (left := 1 - float(mean @ z)) > 0:
                return found + np.outer(z / left, mean @ found)
        raise np.linalg.LinAlgError("the covariance is not positive semi-definite")

    return solved


@dataclass(frozen=True)
class ReluFit:
    """A linear map that was fitted behind a ReLU.

    Attributes:
        weight: map ``W (N, d)``.
        bias: bias ``b (N,)``.
        loss: loss ``1/(2n) sum ||y - r(W x + b + s)||^2`` on the rows.
        linear: loss at the start, which is never smaller.
        best: number of the round that the result is from; 0 is the start.
    """

    weight: Array
    bias: Array
    loss: float
    linear: float
    best: int


def rectified(response: Array, ceiling: float = math.inf) -> Array:
    """Apply ``r`` to a response, element by element."""
    made: Array = np.clip(response, 0.0, ceiling)
    return made


def nearest_before_relu(
    target: Array, point: Array, tau: float, ceiling: float = math.inf
) -> Array:
    """Minimise ``1/2 (y - r(z))^2 + tau/2 (z - u)^2`` over ``z``, element by element.

    Args:
        target: responses ``y`` of any shape, between 0 and the ceiling.
        point: arguments ``u`` of the same shape.
        tau: weight of the distance to ``u``, positive.
        ceiling: upper bound of ``r``; infinite for none.
    """
    share = math.sqrt(tau / (1 + tau))
    pull = share * point
    pull += (1 - share) * target
    between = tau * point
    between += target
    between /= 1 + tau
    nearest: Array = np.minimum(point, 0.0)
    np.copyto(nearest, between, where=pull > 0)
    if math.isfinite(ceiling):
        nearest = np.where(pull < ceiling, nearest, np.maximum(point, ceiling))
    return nearest
