"""Readings: what the numbers of an output mean, and so how a difference of them counts.

========== ============================================ ======================================
kind       found where                                  divergence of a new output
========== ============================================ ======================================
kl         probabilities: numbers that sum to one along Kullback-Leibler, at each position,
           an axis (Softmax, LogSoftmax); scores: the    or weighed where boxes lie beside
           last layer is linear, and its softmax is
           decided and differs between samples
bernoulli  behind a Sigmoid                             Kullback-Leibler of each number
boxes      four numbers beside maps behind a Sigmoid    1 less intersection over union,
                                                        weighed by the scores
cosine     vectors of length one                        1 - cos of each vector
l2         any other numbers of floating point          squared error of each coordinate,
                                                        scaled by its variance
equal      integers, booleans, strings                  part that differs
none       by the user alone                            not judged
========== ============================================ ======================================

An output that concatenates maps behind a Sigmoid with other numbers, as a detector's scores with
its boxes, is read in parts. Axes are counted from the end, so that they hold with and without an
axis of samples.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.errors import OptionError
from onnx_lowrank.judge.detector_readings import at_places, detections
from onnx_lowrank.judge.reading import KINDS, UNKNOWN, Reading, Structure, rows_along, wide
from onnx_lowrank.runtime.outputs import is_float

__all__ = ["kinds_for", "parse_kinds", "readings_of"]

Array = npt.NDArray[Any]

#: largest difference from one of a sum of probabilities, or of a length, in float32 and float16
_UNIT = 5e-3
#: smallest mean of the largest probability for numbers behind a linear layer to be class scores:
#: embeddings of unit spread stay far below it, trained classifiers above; so many times the
#: probability of guessing where classes are few
_DECIDED, _GUESSES = 0.25, 1.5
#: the same in maps, where features of a backbone may have a large spread
_DECIDED_MAP = 0.5
#: fewest channels of a map of class scores: pictures have up to four
_MAP_CLASSES = 5


def readings_of(
    name: str,
    arrays: Sequence[Array],
    structure: Structure = UNKNOWN,
    *,
    given: str = "",
    labelled: bool = False,
    inputs: Sequence[tuple[int, ...]] = (),
    beside: Collection[tuple[int, ...]] = (),
) -> list[Reading]:
    """How the arrays of one output are read.

    Args:
        name: name of the output.
        arrays: its values on some samples, which lie along axis 0.
        structure: what the graph tells of it.
        given: kind that the user gave it, as ``kl`` or ``kl@1``; empty for none.
        labelled: whether the samples have class numbers.
        inputs: shapes of the model's inputs at the same samples.
        beside: shapes of its outputs there.

    Raises:
        OptionError: the kind that the user gave does not fit.
    """
    if given.startswith("none"):
        return []
    found = []
    for index, array in enumerate(arrays):
        if given:
            found.append(_as_given(replace(Reading(name, ""), index=index), array, given))
        elif not is_float(array) or array.dtype.kind == "c":
            kind = "l2" if array.dtype.kind == "c" else "equal"
            found.append(Reading(name, kind, index=index, why="its type"))
        else:
            reading = Reading(name, "", index=index)
            values = wide(array)
            own = _found(reading, values, structure, labelled, inputs)
            found += [at_places(r, values, beside) for r in own]
    floats = [r for r in found if r.kind != "equal"]
    return floats or found


def parse_kinds(text: str) -> dict[str, str]:
    """Read ``OUTPUT=KIND,OUTPUT=KIND``, where a kind may have an axis: ``scores=kl@1``.

    Raises:
        OptionError: the text has another form, or names no kind.
    """
    found = {}
    for pair in text.split(","):
        name, equals, kind = (part.strip() for part in pair.rpartition("="))
        plain, at, axis = kind.partition("@")
        if not equals or not name or plain not in KINDS:
            raise OptionError(
                f"judge {pair!r}; write OUTPUT=KIND with a kind of {', '.join(KINDS)} (an axis may "
                "follow, as kl@1), or file.py:function"
            )
        if at and not axis.lstrip("-").isdigit():
            raise OptionError(f"judge {pair!r}: axis {axis!r} is not a whole number")
        found[name] = kind
    return found


def _as_given(reading: Reading, array: Array, given: str) -> Reading:
    kind, at, text = given.partition("@")
    if kind != "equal" and not is_float(array):
        raise OptionError(
            f"judge {reading.output}={given}: the output has no floating-point numbers; write "
            f"{reading.output}=equal or {reading.output}=none"
        )
    if at:
        axis = int(text)
        if not -array.ndim <= axis < array.ndim:
            raise OptionError(
                f"judge {reading.output}={given}: the output has {array.ndim} axes only"
            )
        axis -= array.ndim if axis >= 0 else 0
    else:
        found = _probable(wide(array), "probabilities") if kind == "kl" else None
        axis = _channel_axis(array) if found is None else found
    form = ""
    if kind == "kl":
        form = _form(wide(array), axis)
    return replace(reading, kind=kind, axis=axis, form=form, why="as asked for")


def _found(
    reading: Reading,
    array: Array,
    structure: Structure,
    labelled: bool,
    inputs: Sequence[tuple[int, ...]],
) -> list[Reading]:
    if structure.maps:
        parts = [
            _map_or_values(replace(reading, part=(axis, start, stop) if stop else None),
                           array, sigmoid)
            for axis, start, stop, sigmoid in structure.maps
        ]  # fmt: skip
        return detections(parts, array) or parts
    for form in ("probabilities", "logarithms"):
        axis = _probable(array, form)
        if axis is not None:
            why = "they sum to one" if form == "probabilities" else "their exponentials sum to one"
            return [replace(reading, kind="kl", axis=axis, form=form, why=why)]
    axis = _summing(array, lambda v, a: np.square(v, dtype=np.float64).sum(axis=a))
    if axis is not None and array.shape[axis] > 2:
        return [replace(reading, kind="cosine", axis=axis, why="they have length one")]
    axis, why = _scores(array, structure, labelled, inputs)
    if axis is not None:
        return [replace(reading, kind="kl", axis=axis, form="scores", why=why)]
    return [_map_or_values(reading, array, False)]


def _map_or_values(reading: Reading, array: Array, sigmoid: bool) -> Reading:
    if sigmoid:
        axis = reading.part[0] if reading.part else _channel_axis(array)
        return replace(reading, kind="bernoulli", axis=axis, why="behind a Sigmoid")
    axis = reading.part[0] if reading.part else _channel_axis(array)
    return replace(reading, kind="l2", axis=axis, why="numbers of no known meaning")


def _channel_axis(array: Array) -> int:
    """The axis of coordinates: the channels of maps, else the last."""
    return 1 - array.ndim if array.ndim >= 4 else -1


def _probable(array: Array, form: str) -> int | None:
    """The axis along which numbers are probabilities, or logarithms of them."""
    known = array[np.isfinite(array)]
    if not known.size:
        return None
    if form == "probabilities":
        if known.min() < -1e-6 or known.max() > 1 + _UNIT:
            return None
        return _summing(array, lambda v, a: v.sum(axis=a, dtype=np.float64))
    if known.max() > _UNIT:
        return None
    return _summing(array, lambda v, a: np.exp(v, dtype=np.float64).sum(axis=a))


def _summing(array: Array, total: Any) -> int | None:
    """The last axis behind the samples along which all totals are one, but for rounding."""
    if not np.isfinite(array).all():
        array = array[np.isfinite(array).reshape(len(array), -1).all(axis=1)]
    if array.ndim < 2 or not len(array):
        return None
    for axis in range(-1, -array.ndim, -1):
        if array.shape[axis] > 1 and bool(np.all(np.abs(total(array, axis) - 1) < _UNIT)):
            return axis
    return None


def _scores(
    array: Array, structure: Structure, labelled: bool, inputs: Sequence[tuple[int, ...]]
) -> tuple[int | None, str]:
    """The axis of class scores in front of a softmax, and how it was found; None for none."""
    vector = array.ndim >= 2 and array.shape[1] > 1 and math.prod(array.shape[2:]) == 1
    if vector and labelled:
        return 1 - array.ndim, "one vector for each sample, which has a class number"
    if not structure.features or array.shape in inputs:
        return None, ""
    behind = range(1, array.ndim)
    axes = [a - array.ndim for a in behind if array.shape[a] == structure.features > 1]
    if not axes:
        return None, ""
    axis = axes[-1] if structure.product else axes[0]
    maps = sum(array.shape[a] > 1 for a in behind) > 2
    if maps and structure.features < _MAP_CLASSES:
        return None, ""
    rows = rows_along(array, axis)
    rows = rows[np.isfinite(rows).all(axis=1)]
    if not len(rows):
        return None, ""
    best = rows.argmax(axis=1)
    shifted = np.exp(rows - rows.max(axis=1, keepdims=True), dtype=np.float64)
    decided = float(np.mean(1 / shifted.sum(axis=1)))
    limit = max(_DECIDED_MAP if maps else _DECIDED, _GUESSES / structure.features)
    if decided < limit or (len(best) > 1 and len(np.unique(best)) == 1):
        return None, ""
    return axis, f"behind a linear layer, mean largest probability {decided:.2f}"


def _form(array: Array, axis: int) -> str:
    """What the numbers along an axis are that the user called class scores."""
    if _probable(array, "probabilities") == axis:
        return "probabilities"
    return "logarithms" if _probable(array, "logarithms") == axis else "scores"


def kinds_for(names: Sequence[str], kinds: Mapping[str, str]) -> Mapping[str, str]:
    """Refuse kinds of outputs that the model does not have.

    Raises:
        OptionError: no output has such a name.
    """
    for name in kinds:
        if name not in names:
            raise OptionError(
                f"judge {name}={kinds[name]}: no output of the model is called {name!r}; it has "
                f"{', '.join(map(repr, names))}"
            )
    return kinds
