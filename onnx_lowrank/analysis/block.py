"""Blocks of rows: their products in float32, each about its own mean.

The product ``x^T x`` of all but small blocks is made of three: those of both halves of the columns
with themselves, and of one half with the other. These take equally long, so that two cores share
the work, and the bits are the same with one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.linalg.blas_threads import WIDE, in_two

__all__ = ["Block", "block_of"]

Array = npt.NDArray[np.floating[Any]]

#: multiply-adds of a product of rows from which on it is made of three
_WORK = 3e7


@dataclass(frozen=True)
class Block:
    """Products of rows about their own mean, which is rounded to float32 before.

    Attributes:
        count: number of rows.
        mean: ``(groups, d + n)`` in float64.
        scatter: ``(groups, d, d)`` of the inputs in float32.
        cross: ``(groups, n, d)`` of responses and inputs in float32.
        squares: ``(groups, n)`` of the responses in float64.
    """

    count: int
    mean: Array
    scatter: Array
    cross: Array
    squares: Array


def block_of(rows: Array, width: int) -> Block | None:
    """The products of rows ``(groups, n, d + n)``, which are written over; None without a row.

    Args:
        rows: inputs, and responses beside them.
        width: number of inputs ``d``.
    """
    rows, mean = _finite(rows)
    if not rows.shape[1]:
        return None
    with _quiet():
        rows -= mean.astype(np.float32)[:, None]
        inputs, outputs = rows[:, :, :width], rows[:, :, width:]
        products = _in_halves if inputs.size * width >= _WORK and width < WIDE else _at_once
        scatter, cross = products(inputs, outputs)
        squares = np.einsum("gnc,gnc->gc", outputs, outputs, dtype=np.float64)
    return Block(rows.shape[1], mean, scatter, cross, squares)


def _quiet() -> np.errstate:
    """Squares of very large rows are not finite; see `Accumulator.says_nothing`."""
    return np.errstate(over="ignore", invalid="ignore")


def _at_once(inputs: Array, outputs: Array) -> tuple[Array, Array]:
    """Products ``x^T x (groups, d, d)`` and ``y^T x (groups, n, d)`` of rows."""
    return inputs.swapaxes(1, 2) @ inputs, outputs.swapaxes(1, 2) @ inputs


def _in_halves(inputs: Array, outputs: Array) -> tuple[Array, Array]:
    """The same, half of it on another core."""
    groups, _, width = inputs.shape
    half = width // 2
    left, right, seen = inputs[:, :, :half], inputs[:, :, half:], outputs.swapaxes(1, 2)
    scatter = np.empty((groups, width, width), np.float32)
    cross = np.empty((groups, outputs.shape[2], width), np.float32)

    def apart() -> None:
        with _quiet():
            scatter[:, :half, :half] = left.swapaxes(1, 2) @ left
            scatter[:, half:, half:] = right.swapaxes(1, 2) @ right
            cross[:, :, :half] = seen @ left

    def between() -> None:
        with _quiet():
            mixed = right.swapaxes(1, 2) @ left
            scatter[:, half:, :half] = mixed
            scatter[:, :half, half:] = mixed.swapaxes(1, 2)
            cross[:, :, half:] = seen @ right

    in_two(apart, between)
    return scatter, cross


def _finite(rows: Array) -> tuple[Array, Array]:
    """The rows ``(groups, n, d)`` that hold neither NaN nor Inf in any group, and their means."""
    with np.errstate(invalid="ignore"):
        mean = rows.mean(axis=1, dtype=np.float64)
    if np.isfinite(mean).all():
        return rows, mean
    rows = rows[:, np.isfinite(rows).all(axis=(0, 2))]
    return rows, rows.sum(axis=1, dtype=np.float64) / max(rows.shape[1], 1)
