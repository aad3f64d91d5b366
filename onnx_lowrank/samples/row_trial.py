"""Trials that show, by running the model, whether the rows of an input are separate samples.

Axis 0 of an input may count samples, or be a part of one sample: time steps, points, nodes. The
original model is run on a few rows one at a time, and on the same rows together. Where the outputs
of the run together are those of the single runs, one below the other, rows may be cut apart and
merged into batches at will. Where they are not, a run stays as it was given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from onnx_lowrank.errors import ModelError
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import find_layers
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.runtime.outputs import Array, arrays_of
from onnx_lowrank.runtime.runtime import Runtime
from onnx_lowrank.runtime.session import Feed, Session
from onnx_lowrank.samples.feeds import is_float

__all__ = ["Finding", "RowTrial"]

#: Outputs by name; sequences and maps come as they are.
Outputs = Mapping[str, Any]

#: Number of rows in one trial, and of rows that are read to find so many that differ.
ROWS, LOOKED_AT = 3, 8
#: The largest batch that is tried where a model does not run on single rows.
LARGEST_BATCH = 64
#: Part of an output's norm by which merging rows may change it and still count as no change.
#: Rounding is a tenth of it; in half precision it is ten times more.
TOLERANCE, HALF_TOLERANCE = 1e-3, 1e-2
#: A change of more than this part of an output's norm shows that rows change each other's results.
#: A smaller one may come from quantization whose scale is measured over the whole batch.
MIXED = 0.1


@dataclass(frozen=True)
class Finding:
    """Result of a trial about the rows along axis 0 of the inputs.

    Attributes:
        merge: whether a run on several rows gives the outputs of the single rows.
        apart: whether rows may be taken for samples where the user's arrays have them along axis
            0: they run, and nothing shows that they change each other's results.
        reason: clause after "because" that says why rows are not merged; empty if they are.
        batch: smallest number of rows that the model runs on.
    """

    merge: bool
    apart: bool
    reason: str = ""
    batch: int = 1


class RowTrial:
    """Trials of one model.

    Args:
        model: the original model.
        runtime: runs the model.
    """

    def __init__(self, model: Model, runtime: Runtime) -> None:
        self._model, self._runtime = model, runtime

    def rows(self, feed: Callable[[int], Feed], count: int, free: Sequence[str]) -> Finding:
        """Find out whether the rows of inputs with a dynamic axis 0 are separate samples.

        Args:
            feed: returns the feed of row ``i``, with one row of each free input.
            count: number of rows.
            free: names of the inputs with one row for each feed; the others are the same for all
                rows of a trial.
        """
        if self._session is None:  # a later step needs the session, and reports the error
            return Finding(False, True, "the model does not run")
        rows = _different([feed(i) for i in _spread(count)], free)
        if not self.runs(rows[0]):
            return self._least_batch(feed, count, free)
        singles = self._each(rows)
        if singles is None or len(rows) < 2:
            return Finding(False, True, "all samples are alike")
        together = self._run(_merged(rows, free))
        if together is None:
            return Finding(False, True, "the model runs on one row only along axis 0")
        outputs = _compared(singles, together, self._run(rows[0]))
        if outputs.same:
            return Finding(True, True)
        if outputs.mixed:
            return Finding(False, False, _MIXED)
        if outputs.rows:
            return Finding(False, True, outputs.why)
        inside = self._compared_inside(rows, free)
        mixed = inside is not None and (inside.mixed or inside.reduced)
        return Finding(False, not (mixed or outputs.reduced), _MIXED if mixed else outputs.why)

    def runs(self, feed: Feed) -> bool:
        """Whether ONNX Runtime runs the model on ``feed``."""
        return self._run(feed) is not None

    def fixed(self, one: Feed, other: Feed, names: Sequence[str]) -> bool:
        """Whether the rows of a fixed batch are samples: exchanging some changes only theirs.

        Args:
            one: a feed.
            other: another feed.
            names: names of the inputs with the batch on axis 0.
        """
        feeds = _different([one, other], names)
        if len(feeds) < 2:
            return False
        half = len(feeds[0][names[0]]) // 2
        both = dict(feeds[0])
        for name in names:
            both[name] = np.concatenate([feeds[0][name][:half], feeds[1][name][half:]])
        singles, together = self._each(feeds), self._run(both)
        if singles is None or together is None:
            return False
        rows = len(both[names[0]])
        parts = [
            _sliced(singles[0], rows, slice(half)),
            _sliced(singles[1], rows, slice(half, rows)),
        ]
        return _compared(parts, together).same

    def _least_batch(self, feed: Callable[[int], Feed], count: int, free: Sequence[str]) -> Finding:
        """Find the smallest batch of a model that does not run on one row."""
        limit = min(count, LARGEST_BATCH)
        rows = [feed(i) for i in range(limit)]
        if len({_shapes(r) for r in rows}) > 1:
            return Finding(False, False, "the model does not run on one row along axis 0")
        for batch in range(2, limit + 1):
            first = self._run(_merged(rows[:batch], free))
            if first is None:
                continue
            if count >= 2 * batch:
                rows = [feed(i) for i in range(2 * batch)]
                second = self._run(_merged(rows[batch:], free))
                together = self._run(_merged(rows, free))
                if second is not None and together is not None:
                    if not _compared([first, second], together).same:
                        break
                    return Finding(False, True, f"the model runs on multiples of {batch} rows only",
                                   batch)  # fmt: skip
            return Finding(False, True, f"the model runs on {batch} rows only", batch)
        return Finding(False, False, "the model does not run on one row along axis 0")

    def _compared_inside(self, rows: Sequence[Feed], free: Sequence[str]) -> _Compared | None:
        """Compare the inputs of the layers of a merged run; None where they cannot be computed."""
        graph = Graph(self._model)
        tensors = list(dict.fromkeys(a.input for a in find_layers(graph)[0] if not a.value.lookup))
        part = graph.extract(graph.input_types(), tensors)
        if not part.proto.graph.node:
            return None
        try:
            session = self._runtime.session(part, lean=True)
            parts, again = [session.run(r) for r in rows], session.run(rows[0])
            return _compared(parts, session.run(_merged(rows, free)), again)
        except ModelError:
            return None

    @cached_property
    def _session(self) -> Session | None:
        try:
            return self._runtime.session(self._model, lean=True)
        except ModelError:
            return None

    def _run(self, feed: Feed) -> Outputs | None:
        try:
            return None if self._session is None else self._session.run(feed)
        except ModelError:
            return None

    def _each(self, feeds: Sequence[Feed]) -> list[Outputs] | None:
        found = [self._run(feed) for feed in feeds]
        return None if any(f is None for f in found) else [f for f in found if f is not None]


_MIXED = "rows along axis 0 change each other's results"


@dataclass(frozen=True)
class _Compared:
    """Comparison of the outputs of a merged run with those of its parts.

    Attributes:
        rows: number of outputs whose rows are those of the parts, at least roughly.
        exact: number of outputs whose rows are those of the parts within the tolerance.
        mixed: number of outputs whose rows the other rows change.
        reduced: number of outputs that have one shape however many rows there are.
        other: number of outputs that cannot be compared.
    """

    rows: int = 0
    exact: int = 0
    mixed: int = 0
    reduced: int = 0
    other: int = 0

    @property
    def same(self) -> bool:
        """Whether all outputs are those of the parts, one below the other."""
        return 0 < self.exact == self.rows + self.mixed + self.reduced + self.other

    @property
    def why(self) -> str:
        """The reason why the parts may not be merged, where nothing is mixed."""
        if self.reduced:
            return "an output has no axis for several rows"
        if self.other:
            return (
                "the outputs of several rows are not the outputs of each row, one below the other"
            )
        if self.rows:
            return "a batch changes the outputs of its rows slightly"
        return "no output depends on the input alone"


def _compared(parts: Sequence[Outputs], whole: Outputs, again: Outputs | None = None) -> _Compared:
    """Compare the outputs of parts with those of the whole.

    Args:
        parts: outputs of the runs on parts.
        whole: outputs of the run on all parts together.
        again: outputs of another run on the first part; outputs that differ in it, as those of
            random nodes do, are left out.
    """
    found = dict.fromkeys(("rows", "exact", "mixed", "reduced", "other"), 0)
    for name, value in whole.items():
        together, each = arrays_of(value), [arrays_of(part[name]) for part in parts]
        if again is not None and not _repeated(each[0], arrays_of(again[name])):
            continue
        if any(len(arrays) != len(together) for arrays in each):
            found["other"] += 1
            continue
        for array, *pieces in zip(together, *each, strict=True):
            for kind in _kinds(pieces, array):
                found[kind] += 1
    return _Compared(**found)


def _repeated(one: Sequence[Array], other: Sequence[Array]) -> bool:
    return len(one) == len(other) and all(
        relative_distance(a, b) <= HALF_TOLERANCE for a, b in zip(one, other, strict=True)
    )


def _kinds(parts: Sequence[Array], together: Array) -> Iterator[str]:
    """Yield the attributes of :class:`_Compared` that an array counts for; none if constant."""
    if all(relative_distance(v, together) == 0 for v in parts):
        return
    stacked = None
    if together.ndim and len({v.shape[1:] for v in parts}) == 1:
        stacked = np.concatenate(parts)
    if stacked is None or stacked.shape != together.shape:
        yield "reduced" if all(v.shape == together.shape for v in parts) else "other"
        return
    error = relative_distance(stacked, together)
    if error <= (HALF_TOLERANCE if together.dtype.itemsize == 2 else TOLERANCE):
        yield from ("rows", "exact")
    elif not is_float(together.dtype) or any(len(v) != len(parts[0]) for v in parts):
        yield "other"
    elif error <= MIXED:
        yield "rows"
    else:
        yield "mixed" if len(parts[0]) == 1 else "other"


def relative_distance(wanted: Array, found: Array) -> float:
    """Relative distance of two arrays; infinite where shapes, NaN or Inf differ."""
    if wanted.shape != found.shape:
        return np.inf
    if not is_float(wanted.dtype):
        return 0.0 if np.array_equal(wanted, found) else np.inf
    a, b = wanted.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(a)
    if (
        not np.array_equal(a[~finite], b[~finite], equal_nan=True)
        or not np.isfinite(b[finite]).all()
    ):
        return np.inf
    distance, norm = np.linalg.norm(a[finite] - b[finite]), np.linalg.norm(a[finite])
    return float(distance / norm) if norm else float(distance)


def _spread(count: int) -> list[int]:
    """A few numbers of ``range(count)``, spread from its beginning to its end."""
    return sorted({round(i) for i in np.linspace(0, count - 1, LOOKED_AT)})


def _shapes(feed: Feed) -> tuple[tuple[int, ...], ...]:
    return tuple(value.shape for value in feed.values())


def _different(feeds: Sequence[Feed], names: Sequence[str]) -> list[Feed]:
    """Choose up to ``ROWS`` feeds of one shape that differ in ``names``.

    Where all are equal, another is made from the first: equal rows would show nothing.
    """
    alike = [f for f in feeds if _shapes(f) == _shapes(feeds[0])]
    chosen: dict[tuple[bytes, ...], Feed] = {}
    for feed in alike:
        chosen.setdefault(tuple(_bytes(feed[n]) for n in names), feed)
    found = list(chosen.values())[:ROWS]
    rng = np.random.default_rng(0)
    if len(found) < 2:
        other = {n: _disturbed(v, rng) if n in names else v for n, v in feeds[0].items()}
        if any((other[n] != feeds[0][n]).any() for n in names):
            found.append(other)
    return found


def _bytes(values: Array) -> bytes:
    # object arrays hold strings, and their bytes are addresses
    return (values.astype(np.str_) if values.dtype.kind == "O" else values).tobytes()


def _disturbed(values: Array, rng: np.random.Generator) -> Array:
    """Other values of the same kind, for an input with one sample only."""
    if values.dtype.kind == "b":
        return ~values
    if values.dtype.kind in "iu":
        # an index must stay valid: take the same values in another order
        other = np.roll(values, 1, axis=-1)
        return other if (other != values).any() else values ^ 1
    if not is_float(values.dtype):
        return values
    finite = values[np.isfinite(values)]  # values that are not finite are refused later
    scale = float(np.std(finite.astype(np.float64))) if finite.size else 0.0
    return (values + (scale or 1.0) * rng.standard_normal(values.shape)).astype(values.dtype)


def _merged(feeds: Sequence[Feed], free: Sequence[str]) -> dict[str, Array]:
    return {
        n: np.concatenate([f[n] for f in feeds]) if n in free else v for n, v in feeds[0].items()
    }


def _sliced(outputs: Outputs, rows: int, part: slice) -> dict[str, Any]:
    return {
        n: v[part] if isinstance(v, np.ndarray) and v.ndim and len(v) == rows else v
        for n, v in outputs.items()
    }
