"""Readings of detectors: boxes and scores in one output, or class scores with boxes in another."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.judge.reading import Reading, rows_along

__all__ = ["at_places", "detections"]

Array = npt.NDArray[Any]

#: fewest places of boxes, and part of the places at which the numbers must make a box
_PLACES, _BOXES = 16, 0.99
#: part of a detector's places at which nothing is
_EMPTY = 0.5
#: score above which something is seen at a place, and part of the places at which one score is seen
#: with another that make it say that anything is there
_SEEN, _TOGETHER = 0.25, 0.75


def detections(parts: Sequence[Reading], array: Array) -> list[Reading]:
    """Boxes and their scores, where an output has just these parts; empty for anything else."""
    if len(parts) != 2 or {part.kind for part in parts} != {"bernoulli", "l2"}:
        return []
    scores = next(part for part in parts if part.kind == "bernoulli")
    first = _says_anything(rows_along(scores.of(array), scores.axis))
    found = []
    for part in parts:
        made = replace(part, scores=scores.part, objectness=first)
        if part.kind == "l2":
            boxes = rows_along(part.of(array), part.axis)
            form = _form_of_boxes(boxes[np.isfinite(boxes).all(axis=1)])
            if not form:
                return []
            why = "four numbers at each place, beside scores"
            made = replace(made, kind="boxes", form=form, why=why)
        found.append(made)
    return found


def at_places(reading: Reading, array: Array, beside: Collection[tuple[int, ...]]) -> Reading:
    """The same, or that of a detector's places where an output has four numbers for each."""
    if reading.kind != "kl" or array.ndim != 3:
        return reading
    boxes = list(array.shape)
    classes, boxes[reading.axis] = boxes[reading.axis], 4
    if tuple(boxes) not in beside or array.size < _PLACES * classes * len(array):
        return reading
    first = np.bincount(rows_along(array, reading.axis).argmax(axis=1))
    if first.max() < _EMPTY * first.sum():
        return reading
    why = f"{reading.why}, and each place has four numbers in another output"
    return replace(reading, background=int(first.argmax()), why=why)


def _says_anything(rows: Array) -> bool:
    """Whether the first score ``(n, scores)`` says that anything is there, as YOLOv5's does.

    Another score is high then wherever it is high, and high where it is low too. A first class
    excludes the others.
    """
    rows = rows[np.isfinite(rows).all(axis=1)]
    if rows.shape[1] < 2:
        return False
    seen, best = rows[:, 0] > _SEEN, rows[:, 1:].max(axis=1) > _SEEN
    together = int(np.sum(seen & best))
    return together >= _TOGETHER * max(int(seen.sum()), 1) and together < _TOGETHER * best.sum()


def _form_of_boxes(rows: Array) -> str:
    """How four numbers ``(n, 4)`` are a box: ``corners``, ``middle``, or empty for not at all."""
    if rows.shape[1] != 4 or len(rows) < _PLACES:
        return ""
    if np.mean(np.all(rows[:, 2:] >= rows[:, :2], axis=1)) >= _BOXES:
        return "corners"
    return "middle" if np.mean(np.all(rows[:, 2:] > 0, axis=1)) >= _BOXES else ""
