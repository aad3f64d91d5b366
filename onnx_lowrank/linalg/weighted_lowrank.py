"""Low-rank approximation with a weight for every element.

    min over U (N, r), V (r, C)   f = ||Omega o (W - U V)||_F^2 + ridge (||U||_F^2 + ||V||_F^2)

``Omega >= 0``; an element of weight zero is missing and may have any value. There is a closed form
only for ``Omega = a b^T`` without ridge: the truncated SVD of ``a o W o b``, divided by a and b.
From there, with a and b the root mean squares of rows and columns,

    u_n = (V diag(Omega_n)^2 V^T + ridge I)^-1 V diag(Omega_n)^2 w_n      for each row n,

then the same for the columns of V: alternating ridge regressions, each exact, so f never rises.
After each round U and V are balanced: with ``U V = P D Q^T``, ``U = P D^(1/2)`` and ``V = D^(1/2)
Q^T`` have the least norms of all with this product, twice the sum of D together. So the ridge is a
penalty on the nuclear norm: with ``Omega = 1`` the solution has the singular values
``max(d - ridge, 0)``.

Reference:
    Srebro & Jaakkola 2003, Weighted low-rank approximations; Hastie, Mazumder, Lee & Zadeh 2015,
    Matrix completion and low-rank SVD via fast alternating least squares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["WeightedLowRank", "weighted_low_rank"]

Array = npt.NDArray[np.floating[Any]]

#: largest number of elements of the Gram matrices that are stored at a time
_ELEMENTS = 2**23


@dataclass(frozen=True)
class WeightedLowRank:
    """A weighted low-rank approximation.

    Attributes:
        left: factor ``U (N, r)``.
        right: factor ``V (r, C)``.
        error: error of the reconstruction, ``||Omega o (W - U V)||_F^2``.
        objective: value of ``f``: the error and the penalty.
        iterations: number of rounds that were run.
        converged: whether the last round changed ``f`` by less than the tolerance.
        history: values of ``f`` at the start and after each round.
    """

    left: Array
    right: Array
    error: float
    objective: float
    iterations: int
    converged: bool
    history: tuple[float, ...]


def weighted_low_rank(
    weight: Array,
    omega: Array,
    rank: int,
    *,
    ridge: float = 0.0,
    tolerance: float = 1e-3,
    max_iterations: int = 50,
) -> WeightedLowRank:
    """Approximate ``weight`` by ``rank`` columns and rows under element weights.

    Args:
        weight: matrix ``W (N, C)``; where ``omega`` is zero it may have any value, also NaN.
        omega: weights ``Omega (N, C)``, not negative.
        rank: number of columns of U; it is capped at ``min(N, C)``.
        ridge: penalty on the squared norms of the factors.
        tolerance: relative change of the objective by one round at which to stop.
        max_iterations: largest number of rounds.

    Raises:
        ValueError: shapes differ, a weight or the ridge is negative, or ``rank`` is below 1.
    """
    if weight.ndim != 2 or weight.shape != omega.shape:
        raise ValueError(f"weights {omega.shape} do not fit a matrix {weight.shape}")
    if rank < 1 or ridge < 0 or not np.all(omega >= 0):
        raise ValueError(
            "the rank must be 1 or more, and element weights and the ridge must not be negative"
        )
    squares = omega.astype(np.float64) ** 2
    target = np.where(squares > 0, weight, 0.0).astype(np.float64)

    def judged(left: Array, right: Array) -> tuple[float, float]:
        error = float(np.sum(squares * (target - left @ right) ** 2))
        return error, error + ridge * float(np.sum(left**2) + np.sum(right**2))

    rank = min(rank, *weight.shape)
    left, right = _start(target, squares, rank)
    error, objective = judged(left, right)
    floor = np.finfo(np.float64).eps * float(np.sum(squares * target**2))
    history, converged = [objective], bool(objective <= floor)
    while len(history) <= max_iterations and not converged:
        new = _solved(target, squares, left, right, ridge)
        new, other = _balanced(new, _solved(target.T, squares.T, right.T, new.T, ridge).T)
        now = judged(new, other)
        converged = bool(objective - now[1] <= max(tolerance * objective, floor))
        if now[1] <= objective:
            left, right, error, objective = new, other, *now
        history.append(objective)
    return WeightedLowRank(
        left, right, error, objective, len(history) - 1, converged, tuple(history)
    )


def _start(target: Array, squares: Array, rank: int) -> tuple[Array, Array]:
    """Truncated SVD of the matrix scaled by the weights of rows and columns, scaled back."""
    a, b = np.sqrt(squares.mean(axis=1)), np.sqrt(squares.mean(axis=0))
    u, s, vt = np.linalg.svd(a[:, None] * target * b, full_matrices=False)
    root = np.sqrt(s[:rank])
    back_a, back_b = (np.divide(1.0, v, out=np.zeros_like(v), where=v > 0) for v in (a, b))
    return back_a[:, None] * u[:, :rank] * root, root[:, None] * vt[:rank] * back_b


def _solved(target: Array, squares: Array, left: Array, right: Array, ridge: float) -> Array:
    """Solve for ``left (N, r)``, given ``right (r, C)``."""
    rank, solved = len(right), np.empty_like(left)
    block = max(_ELEMENTS // rank**2, 1)
    for at in range(0, len(left), block):
        rows = slice(at, at + block)
        grams = np.empty((len(left[rows]), rank, rank))
        for k in range(rank):  # one triangle of all Gram matrices, column by column
            column = squares[rows] @ (right[k:] * right[k]).T
            grams[:, k, k:] = column
            grams[:, k:, k] = column
        # solve for the change, so that directions without weight stay as they are
        residual = (squares[rows] * (target[rows] - left[rows] @ right)) @ right.T
        residual -= ridge * left[rows]
        diagonal = np.einsum("nkk->nk", grams)
        diagonal += ridge + 1e-12 * diagonal.mean(axis=1, keepdims=True)
        diagonal += np.finfo(np.float64).tiny
        solved[rows] = left[rows] + np.linalg.solve(grams, residual[:, :, None])[:, :, 0]
    return solved


def _balanced(left: Array, right: Array) -> tuple[Array, Array]:
    """Factors of least norm with the same product."""
    q, r = np.linalg.qr(left)
    p, t = np.linalg.qr(right.T)
    u, s, vt = np.linalg.svd(r @ t.T)
    root = np.sqrt(s)
    return q @ (u * root), (root[:, None] * vt) @ p.T
