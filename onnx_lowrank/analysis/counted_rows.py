"""Rows of patches that are cut out of positions that count, and not out of padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from onnx_lowrank.chains.geometry import Geometry

__all__ = ["Counted", "counted_rows", "only"]

#: positions that count, ``(samples, positions)``; None where all do
Counted: TypeAlias = npt.NDArray[np.bool_] | None


def counted_rows(
    counted: Counted,
    geometry: Geometry,
    shape: Sequence[int],
    index: npt.NDArray[np.intp] | None = None,
) -> npt.NDArray[np.bool_] | None:
    """Which rows count; None where all do, or where rows are not the positions of the mask.

    Args:
        counted: the positions that count.
        geometry: how patches are cut out of the tensor.
        shape: of the tensor; samples lie along axis 0, or samples and positions together.
        index: positions that are read in each sample; all of them if None.

    Returns:
        A value for each row of :meth:`Geometry.patches`.
    """
    if counted is None:
        return None
    samples, positions = counted.shape
    if len(shape) == 2 and shape[0] == counted.size:
        return counted.reshape(-1)
    if shape[0] != samples or geometry.positions(tuple(shape)) != positions:
        return None
    found: npt.NDArray[Any] = counted if index is None else counted[:, index]
    return found.reshape(-1)


def only(patches: npt.NDArray[Any], rows: npt.NDArray[np.bool_] | None) -> npt.NDArray[Any]:
    """Patches ``(groups, rows, d)`` of the rows that count; all of them where that is None."""
    return patches if rows is None else patches[:, rows]
