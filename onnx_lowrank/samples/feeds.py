"""Feeds: arrays as inputs of a model, by one rule for all sources.

    array with as many axes as the input   axis 0 counts samples; a feed is one of them, or as
                                           many as the model's fixed batch
    array with one axis more               stacked: each a[i] is a complete input

An input whose shape is fixed may be given once, as it is, and is then fed with every sample.
Whether axis 0 does count samples, where the input's axis 0 is dynamic, is found out in
rows_or_runs.py.

Float types are cast to the model's type, integers where their values fit, other types never.
Strings are kept in NumPy's string type, and become objects when they are fed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from onnx_lowrank.errors import DataError

__all__ = [
    "Column",
    "InputSpec",
    "Rows",
    "UnequalCountsError",
    "assemble",
    "check_complete",
    "is_float",
]

Array = npt.NDArray[Any]

REMEDY = "axis 0 counts samples; with one axis more, each a[i] is a complete input"


class UnequalCountsError(DataError):
    """Data that does not have the same number of samples for all inputs."""


@dataclass(frozen=True)
class InputSpec:
    """Description of a graph input that a caller must feed.

    Attributes:
        name: name of the graph input.
        dtype: element type.
        shape: sizes of the axes, None for a dynamic one; None where the rank is unknown.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...] | None

    @property
    def free_batch(self) -> bool:
        """Whether axis 0 exists and is dynamic."""
        return self.shape is not None and self.shape[:1] == (None,)

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of ``shape`` is one complete input."""
        return self.shape is None or (
            len(shape) == len(self.shape)
            and all(w in (None, f) for w, f in zip(self.shape, shape, strict=True))
        )

    @property
    def batch(self) -> int:
        """Number of rows in one feed, where axis 0 counts samples."""
        return (self.shape[0] or 1) if self.shape else 1


class Rows(Protocol):
    """The part of an array's interface that a column needs; pictures are decoded behind it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array; axis 0 counts rows."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""

    def __getitem__(self, rows: slice, /) -> Array:
        """Return some rows of axis 0."""


@dataclass(frozen=True)
class Column:
    """All samples of one input, in consecutive parts.

    Attributes:
        spec: the input.
        parts: arrays that follow each other along axis 0.
        stacked: whether axis 0 of the parts is an axis that the input does not have.
        shared: whether the input has one value for all samples.
    """

    spec: InputSpec
    parts: Sequence[Rows]
    stacked: bool
    shared: bool = False

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """Number of each part's first row, and the number of all rows."""
        return np.cumsum([0, *(part.shape[0] for part in self.parts)], dtype=np.int64)

    @property
    def rows(self) -> int:
        """Number of rows in all parts."""
        return int(self.starts[-1])

    @property
    def step(self) -> int:
        """Number of rows in one feed."""
        return 1 if self.stacked else self.spec.batch

    @cached_property
    def uniform(self) -> bool:
        """Whether all rows have the same shape."""
        return len({part.shape[1:] for part in self.parts}) == 1

    @property
    def batchable(self) -> bool:
        """Whether feeds can be concatenated along axis 0."""
        return self.spec.free_batch and not self.stacked and self.uniform

    def __len__(self) -> int:
        return self.rows // self.step

    def feed(self, i: int) -> Array:
        """The input of feed ``i``."""
        return _cast(self._raw(i), self.spec.dtype)

    def problem(self, i: int) -> str:
        """The reason why the values of feed ``i`` cannot be used; empty if they can."""
        values, wanted = self._raw(i), self.spec.dtype
        if is_float(wanted):
            if not np.isfinite(_cast(values, wanted)).all():
                return f"NaN or infinity as {wanted.name}; repair the sample or leave it out"
        elif wanted.kind != "O" and values.dtype != wanted and values.size:
            limits = np.iinfo(wanted)
            low, high = int(values.min()), int(values.max())
            if low < limits.min or high > limits.max:
                return (
                    f"expected {wanted.name}, found values {low}..{high}; map them into the range "
                    "of the type"
                )
        return ""

    def _raw(self, i: int) -> Array:
        start, stop = i * self.step, (i + 1) * self.step
        k = int(np.searchsorted(self.starts, start, side="right")) - 1
        pieces = []
        while start < stop:
            offset = int(self.starts[k])
            pieces.append(self.parts[k][start - offset : stop - offset])
            start, k = int(self.starts[k + 1]), k + 1
        rows = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        return np.asarray(rows[0] if self.stacked else rows)


def assemble(
    where: str,
    specs: Sequence[InputSpec],
    items: Sequence[tuple[str, Mapping[str, Rows]]],
    *,
    stacked: bool | None = None,
    remedy: str = REMEDY,
) -> list[Column]:
    """Make a column of samples for each input.

    Args:
        where: name of the source, for messages.
        specs: the inputs of the model.
        items: files or feeds in order: a name for messages, and arrays by input name.
        stacked: whether all arrays have one axis more than the inputs; None decides by their
            rank.
        remedy: advice for the message about a shape that does not fit.

    Raises:
        DataError: a rank, shape, type or number of samples does not fit, or there are no samples.
    """
    parts: dict[str, list[Rows]] = {spec.name: [] for spec in specs}
    stacks: dict[str, bool] = {}
    shared = _shared(specs, items) if stacked is None else frozenset()
    for place, arrays in items:
        feeds: dict[str, float] = {}
        for spec in specs:
            part = arrays[spec.name]
            once = spec.name in shared or (stacked is None and not (part.shape or spec.shape))
            stack = (once or _is_stacked(spec, part)) if stacked is None else stacked
            if stacks.setdefault(spec.name, stack) != stack:
                raise DataError(
                    f"{place}: input {spec.name!r} has the shape {part.shape}, and another number "
                    f"of axes than before; {remedy}"
                )
            _check_type(place, spec, part)
            if once:
                continue  # one value for all samples; the other inputs give their number
            _check_shape(place, spec, part, stack, remedy)
            feeds[spec.name] = part.shape[0] / (1 if stack else spec.batch)
        if len(items) > 1:
            _check_counts(place, feeds)
        count = int(next(iter(feeds.values()), 1))
        for spec in specs:
            part = arrays[spec.name]
            if spec.name not in feeds:
                part = np.broadcast_to(np.asarray(part), (count, *part.shape))
            parts[spec.name].append(part)
    columns = [Column(s, parts[s.name], stacks[s.name], s.name in shared) for s in specs]
    for column in columns:
        _check_batches(where, column)
    _check_counts(where, {column.spec.name: len(column) for column in columns})
    return columns


def _shared(
    specs: Sequence[InputSpec], items: Sequence[tuple[str, Mapping[str, Rows]]]
) -> frozenset[str]:
    """Names of the inputs of fixed shape that are given once, where others have several rows."""
    fixed = [s for s in specs if s.shape and None not in s.shape]
    whole = {s.name for s in fixed if all(a[s.name].shape == s.shape for _, a in items)}
    several = any(
        arrays[s.name].shape[:1] > (1 if _is_stacked(s, arrays[s.name]) else s.batch,)
        for _, arrays in items
        for s in specs
        if s.name not in whole
    )
    return frozenset(whole if several else ())


def _is_stacked(spec: InputSpec, part: Rows) -> bool:
    return spec.shape is not None and len(part.shape) == len(spec.shape) + 1


def _check_shape(where: str, spec: InputSpec, part: Rows, stacked: bool, remedy: str) -> None:
    if spec.shape is None:
        return
    wanted: tuple[int | None, ...] = (None, *(spec.shape if stacked else spec.shape[1:]))
    if len(wanted) != len(part.shape) or any(
        w not in (None, f) for w, f in zip(wanted, part.shape, strict=True)
    ):
        raise DataError(
            f"{where}: input {spec.name!r} expects the shape {_shape_of(spec)}, found "
            f"{part.shape}; {remedy}"
        )


def _shape_of(spec: InputSpec) -> str:
    return f"({', '.join('N' if d is None else str(d) for d in spec.shape or ())})"


def check_complete(where: str, spec: InputSpec, part: Rows) -> None:
    """Refuse an array that is not a complete input of the model.

    Raises:
        DataError: the shape or the type does not fit.
    """
    _check_type(where, spec, part)
    if not spec.takes(part.shape):
        raise DataError(
            f"{where}: input {spec.name!r} expects the shape {_shape_of(spec)}, found "
            f"{part.shape}; a feed has every input as the model takes it, its batch included"
        )


def _check_type(where: str, spec: InputSpec, part: Rows) -> None:
    found, wanted = part.dtype, spec.dtype
    if (
        found == wanted
        or (is_float(found) and is_float(wanted))
        or (found.kind in "iu" and wanted.kind in "iu")
        or (found.kind in "US" and wanted.kind == "O")
    ):
        return
    remedy = "convert it with .astype, if its values mean the same"
    if found == np.uint8:
        remedy = "scale it as in training, then convert it with .astype"
    name = "strings" if wanted.kind == "O" else wanted.name
    raise DataError(f"{where}: input {spec.name!r} expects {name}, found {found.name}; {remedy}")


def _check_batches(where: str, column: Column) -> None:
    name, step = column.spec.name, column.step
    if column.rows == 0:
        raise DataError(f"{where}: input {name!r} has no samples; give at least one")
    if len(column) == 0:
        raise DataError(
            f"{where}: input {name!r} expects a batch of {step}, found {column.rows} samples; "
            f"give at least {step}"
        )
    if step > 1 and not column.uniform:
        raise DataError(
            f"{where}: input {name!r} expects batches of {step}, found samples of different "
            "shapes, which cannot be in one batch; give samples of one shape"
        )


def _check_counts(where: str, feeds: Mapping[str, float]) -> None:
    for (first, count), (other, found) in pairwise(feeds.items()):
        if found != count:
            raise UnequalCountsError(
                f"{where}: input {first!r} has {count:g} samples, input {other!r} has "
                f"{found:g}; give the same number ({REMEDY})"
            )


def _cast(values: Array, dtype: np.dtype[Any]) -> Array:
    if values.dtype.kind == "S":
        values = np.strings.decode(values, "utf-8", "replace")
    with np.errstate(over="ignore"):  # becomes infinity, which problem() reports
        return np.asarray(values, dtype=dtype, order="C")


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether ``dtype`` is a floating-point type, including the types of ml_dtypes."""
    # bfloat16 and float8 come from ml_dtypes, whose kind is not "f"
    return "float" in dtype.name
