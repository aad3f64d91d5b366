"""Blocks of rows: their products in float32, each about its own mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Block", "block_of"]

Array = npt.NDArray[np.floating[Any]]


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
    with np.errstate(over="ignore", invalid="ignore"):  # see `Accumulator.says_nothing`
        rows -= mean.astype(np.float32)[:, None]
        inputs, outputs = rows[:, :, :width], rows[:, :, width:]
        return Block(
            rows.shape[1],
            mean,
            inputs.swapaxes(1, 2) @ inputs,
            outputs.swapaxes(1, 2) @ inputs,
            np.einsum("gnc,gnc->gc", outputs, outputs, dtype=np.float64),
        )


def _finite(rows: Array) -> tuple[Array, Array]:
    """The rows ``(groups, n, d)`` that hold neither NaN nor Inf in any group, and their means."""
    with np.errstate(invalid="ignore"):
        mean = rows.mean(axis=1, dtype=np.float64)
    if np.isfinite(mean).all():
        return rows, mean
    rows = rows[:, np.isfinite(rows).all(axis=(0, 2))]
    return rows, rows.sum(axis=1, dtype=np.float64) / max(rows.shape[1], 1)
