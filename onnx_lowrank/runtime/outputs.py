"""Outputs of a session as arrays, and their comparison.

ONNX has tensors of numbers and of strings, sequences, maps and optionals. All become lists of
arrays here:

    tensor              itself
    sequence            the arrays of its elements, in order
    sequence of maps    one array (elements, keys), then the keys; ZipMap makes these
    map                 its values by ascending key, then the keys
    empty optional      nothing

Numbers are compared by their differences where both are finite; strings by equality. NaN and Inf
must stand at the same places, Inf with the same sign; places where they do not are counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = [
    "Array",
    "Difference",
    "Values",
    "arrays_of",
    "difference",
    "finite_classes",
    "is_float",
    "looks_like_scores",
    "scores_in",
]

#: numbers that are compared at a time
_BLOCK = 1 << 18

Array: TypeAlias = npt.NDArray[Any]
#: arrays of each output, by name
Values: TypeAlias = Mapping[str, Sequence[Array]]


def arrays_of(value: Any) -> list[Array]:
    """List the arrays in a value of any ONNX type, as in the module's table."""
    if value is None:
        return []
    if isinstance(value, Mapping):
        keys = sorted(value)
        return [*_stacked([value[k] for k in keys]), np.array(keys)]
    if isinstance(value, list | tuple):
        if value and all(isinstance(v, Mapping) for v in value):
            return _table(value)
        return [array for element in value for array in arrays_of(element)]
    if isinstance(value, np.ndarray | np.generic | bool | int | float | str):
        return [np.asarray(value)]
    return []


def is_float(array: Array) -> bool:
    """Whether the array has floating-point (bfloat16 and float8 too) or complex numbers."""
    return array.dtype.kind in "fc" or "float" in array.dtype.name


def scores_in(arrays: Sequence[Array]) -> Array | None:
    """The array of class scores among the arrays of an output; None unless there is exactly one."""
    floats = [a for a in arrays if is_float(a)]
    return floats[0] if len(floats) == 1 and looks_like_scores(floats[0]) else None


def looks_like_scores(array: Array) -> bool:
    """Whether an array could be one vector of class scores for each sample.

    Its shape is then ``(samples, classes, 1, ...)`` with two classes or more.
    """
    return (
        is_float(array)
        and array.dtype.kind != "c"
        and array.ndim >= 2
        and array.shape[1] > 1
        and math.prod(array.shape[2:]) == 1
    )


def finite_classes(scores: Array) -> npt.NDArray[np.intp]:
    """Return the class of the largest score of each sample; NaN counts as the smallest.

    Args:
        scores: ``(samples, classes, 1, ...)``.

    Returns:
        ``(samples,)``; -1 where no score of a sample is finite.
    """
    rows = scores.reshape(len(scores), -1)
    if rows.dtype.kind != "f":
        rows = rows.astype(np.float32)
    known = np.isfinite(rows)
    if known.all():
        best: npt.NDArray[np.intp] = rows.argmax(axis=1)
        return best
    best = np.where(np.isnan(rows), -np.inf, rows).argmax(axis=1)
    return np.where(known.any(axis=1), best, -1)


@dataclass(frozen=True)
class Difference:
    """Difference of two arrays of one shape, row by row; each field is ``(rows,)``.

    Attributes:
        signal: sum of squares of the reference where both are finite.
        noise: sum of squared differences where both are finite.
        lost: sum of squares of the reference where only the reference is finite.
        product: sum of the products of both where both are finite.
        power: sum of squares of the new values where both are finite.
        largest: largest absolute difference where both are finite.
        places: number of values compared: finite in both, or strings.
        finite: number of finite values, or strings, of the reference.
        mismatches: number of places where one has NaN or Inf and the other has not, or has Inf of
            the other sign.
        equal: whether all values of the row are equal; NaN is equal to itself.
    """

    signal: npt.NDArray[np.float64]
    noise: npt.NDArray[np.float64]
    lost: npt.NDArray[np.float64]
    product: npt.NDArray[np.float64]
    power: npt.NDArray[np.float64]
    largest: npt.NDArray[np.float64]
    places: npt.NDArray[np.int64]
    finite: npt.NDArray[np.int64]
    mismatches: npt.NDArray[np.int64]
    equal: npt.NDArray[np.bool_]


def difference(reference: Array, new: Array, rows: int) -> Difference:
    """Compare two arrays of one shape.

    Args:
        reference: output of the original.
        new: output of the other model, of the same shape.
        rows: number of samples along axis 0, or 1 to compare the arrays as a whole.
    """
    shape = (rows, reference.size // rows if rows else 0)
    old, now = reference.reshape(shape), new.reshape(shape)
    step = max(_BLOCK // max(shape[1], 1), 1)
    if rows <= step:
        return _difference(old, now)
    # some rows at a time, so that what is computed of them stays in the processor's caches
    parts = [_difference(old[i : i + step], now[i : i + step]) for i in range(0, rows, step)]
    return Difference(
        *(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Difference))
    )


def _difference(old: Array, now: Array) -> Difference:
    """The difference of two arrays ``(rows, values)``."""
    rows, width = old.shape
    if not (_is_numeric(old) and _is_numeric(now)):
        same = np.array(np.asarray(old == now, dtype=bool).reshape(rows, width).all(axis=1))
        zero, count = np.zeros(rows), np.full(rows, width)
        return Difference(
            zero, zero, zero, zero, zero, zero, count, count, np.zeros(rows, np.int64), same
        )
    a, b = _real(old), _real(now)
    known, new_known = np.isfinite(a), np.isfinite(b)
    if known.all() and new_known.all():
        both, mismatches = known, np.zeros(rows, np.int64)
        lost = np.zeros(rows)
    else:
        both = known & new_known
        mismatches = np.sum(~both & ~((a == b) | (np.isnan(a) & np.isnan(b))), axis=1)
        lost = np.sum(np.where(known & ~new_known, a, 0.0) ** 2, axis=1)
        a, b = np.where(both, a, 0.0), np.where(both, b, 0.0)
    with np.errstate(over="ignore"):  # a square that overflows counts as infinite
        apart = b - a
        return Difference(
            np.sum(a * a, axis=1),
            np.sum(apart**2, axis=1),
            lost,
            np.sum(a * b, axis=1),
            np.sum(b * b, axis=1),
            np.max(np.abs(apart), axis=1, initial=0.0),
            both.sum(axis=1),
            known.sum(axis=1),
            mismatches,
            (mismatches == 0) & np.all(a == b, axis=1),
        )


def _is_numeric(array: Array) -> bool:
    return array.dtype.kind in "fciub" or is_float(array)


def _real(values: Array) -> npt.NDArray[np.float64]:
    """Numbers as float64; complex ones become pairs."""
    if values.dtype.kind == "c":
        return np.concatenate([values.real, values.imag], axis=1).astype(np.float64)
    return values.astype(np.float64)


def _table(maps: Sequence[Mapping[Any, Any]]) -> list[Array]:
    """Maps with the same keys as one array ``(maps, keys)`` and the keys; others one by one."""
    keys = sorted(maps[0])
    if any(sorted(m) != keys for m in maps[1:]):
        return [array for m in maps for array in arrays_of(m)]
    stacked = _stacked([[m[k] for k in keys] for m in maps])
    return [*stacked, np.broadcast_to(np.array(keys), (len(maps), len(keys)))]


def _stacked(values: Sequence[Any]) -> list[Array]:
    """Values as one array, or as several where they have different shapes."""
    try:
        return [np.array(values)]
    except ValueError:
        return arrays_of(list(values))
