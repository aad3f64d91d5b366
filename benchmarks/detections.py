"""Boxes that a detector finds, and how many of them another one finds too."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.nets import Array

__all__ = ["Detections", "detections", "matches", "overlaps"]


class Detections(NamedTuple):
    """Boxes of one picture, the surest first.

    Attributes:
        boxes: left, top, right and bottom, (found, 4).
        classes: the class of each, (found,).
    """

    boxes: Array
    classes: npt.NDArray[np.integer]


def detections(output: Array, least: float = 0.25, most: float = 0.45) -> Detections:
    """Boxes in the output of a YOLOv8 export, after suppression within each class.

    Args:
        output: of one picture, (4 + classes, places): middle, width and height of a box in pixels,
            then a score for each class.
        least: boxes with a lower score are left out.
        most: intersection over union above which the less sure of two boxes goes.
    """
    scores = output[4:].max(axis=0)
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] > least]
    middle, size = output[:2, order].T, output[2:4, order].T
    boxes = np.concatenate([middle - size / 2, middle + size / 2], axis=1)
    classes = output[4:, order].argmax(axis=0)
    rivals = (overlaps(boxes, boxes) > most) & (classes[:, None] == classes)
    kept: list[int] = []
    for i in range(len(order)):
        if not rivals[i, kept].any():
            kept.append(i)
    return Detections(boxes[kept], classes[kept])


def overlaps(one: Array, other: Array) -> Array:
    """Intersection over union of each box of one list with each of the other, (n, m)."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=-1)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (one, other)]
    united = areas[0][:, None] + areas[1] - shared
    ratios: Array = np.divide(shared, united, out=np.zeros_like(shared), where=united > 0)
    return ratios


def matches(reference: Detections, new: Detections, least: float = 0.9) -> int:
    """How many boxes of the reference have one of their own in ``new``.

    Each box takes the closest one of its class that is left, the surest box first.

    Args:
        reference: boxes to be found.
        new: boxes that were found.
        least: intersection over union of a match.
    """
    close = overlaps(reference.boxes, new.boxes)
    close[reference.classes[:, None] != new.classes] = 0
    found = 0
    for i in range(len(close)):
        j = int(np.argmax(close[i])) if close.shape[1] else -1
        if j >= 0 and close[i, j] >= least:
            close[:, j] = 0
            found += 1
    return found
