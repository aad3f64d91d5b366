"""Divergences of detections: boxes and their scores, where most positions see nothing.

A detector answers at thousands of positions, of which a few hold an object. So each position weighs
by the original's largest score there, ``w = max_c p_c``:

    boxes     sum_w (1 - IoU(b, b'))                       / sum_w 1
    scores    sum_w mean_c KL(p_c || q_c)                  / (sum_w mean_c (H(mean_w p_c) - H(p_c)))

where ``mean_w p`` is the best constant answer. Sums are over the positions of all samples, so that
a sample without objects hardly counts. IoU, the intersection of two boxes over their union, is what
users match boxes by: an error of a pixel is much for a small box and little for a large one, which
no scale of a coordinate can tell.

Reference:
    Everingham et al. 2010, The Pascal visual object classes challenge (IoU of boxes).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.judge.measures import Scale, entropy, inside
from onnx_lowrank.judge.readings import Reading

__all__ = ["DetectionScale", "overlaps"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.floating[Any]]

#: smallest weight of all positions of a sample, and smallest denominator of scores
_LEAST = 1e-6


@dataclass
class DetectionScale(Scale):
    """Sums over the original's detections that losses are measured by.

    Attributes:
        samples: number of samples seen.
    """

    samples: int = 0

    def add(self, array: Array) -> None:
        """Add the original's values, samples along axis 0."""
        self.samples += len(array)
        for rows, weights in zip(*_rows_and_weights(self.reading, array), strict=True):
            self.count = self.count + float(weights.sum())
            if self.reading.kind == "bernoulli":
                chances, counts = inside(rows[weights > 0]), weights[weights > 0]
                self.total = self.total + counts @ chances
                self.square = self.square + counts @ entropy(chances)

    @property
    def unit(self) -> float:
        """The denominator for a sample, which has the mean weight of all."""
        weight = max(float(self.count) / max(self.samples, 1), _LEAST)
        if self.reading.kind != "bernoulli" or not self.count:
            return weight
        mean = inside(np.asarray(self.total / self.count))
        apart = float(np.mean(entropy(mean) - self.square / self.count))
        return weight * max(apart, _LEAST)

    def divergences(self, old: Array, new: Array) -> npt.NDArray[np.float64]:
        """See :meth:`Scale.divergences`."""
        rows, weights = _rows_and_weights(self.reading, old)
        found, _ = _rows_and_weights(self.reading, new)
        losses = np.full(len(old), np.inf)
        for sample, (a, b, weight) in enumerate(zip(rows, found, weights, strict=True)):
            counts = weight > 0
            if np.isfinite(b[counts]).all():
                apart = self._apart(a[counts], b[counts])
                losses[sample] = float(weight[counts] @ apart) / self.unit
        return losses

    def _apart(self, old: Floats, new: Floats) -> Floats:
        """Divergence at each position, ``(positions,)``."""
        if self.reading.kind == "boxes":
            return 1 - overlaps(old, new, self.reading.form)
        p, q = inside(old), inside(new)
        apart = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
        return np.asarray(apart.mean(axis=1))


def overlaps(one: Floats, other: Floats, form: str) -> Floats:
    """Intersection over union of boxes, pair by pair.

    Args:
        one: boxes ``(n, 4)``.
        other: boxes ``(n, 4)``.
        form: ``corners`` (left, top, right, bottom) or ``middle`` (x and y of the middle, width,
            height).

    Returns:
        Overlaps ``(n,)``, from 0 to 1; 1 for two empty boxes at one place.
    """
    lows, highs = zip(*(_corners(boxes, form) for boxes in (one, other)), strict=True)
    shared = np.prod(np.clip(np.minimum(*highs) - np.maximum(*lows), 0, None), axis=1)
    areas = [np.prod(np.clip(h - w, 0, None), axis=1) for w, h in zip(lows, highs, strict=True)]
    united = areas[0] + areas[1] - shared
    same = np.all((lows[0] == lows[1]) & (highs[0] == highs[1]), axis=1)
    ratios: Floats = np.divide(shared, united, out=same.astype(np.float64), where=united > 0)
    return ratios


def _corners(boxes: Floats, form: str) -> tuple[Floats, Floats]:
    """The lower and the upper corner of each box, each ``(n, 2)``."""
    first, second = boxes[:, :2], boxes[:, 2:]
    if form == "corners":
        return first, second
    return first - second / 2, first + second / 2


def _rows_and_weights(reading: Reading, array: Array) -> tuple[Floats, Floats]:
    """Values ``(samples, positions, width)`` and weights ``(samples, positions)`` of positions.

    A position where a number of the original is not finite weighs nothing.
    """
    assert reading.scores is not None
    values, scores = (
        _positions(reading.part_of(array, part), reading.axis)
        for part in (reading.part, reading.scores)
    )
    weights = np.where(np.isfinite(scores), scores, 0.0).max(axis=2)
    return values, np.where(np.isfinite(values).all(axis=2), weights, 0.0)


def _positions(part: Array, axis: int) -> Floats:
    moved = np.moveaxis(part.astype(np.float64), axis, -1)
    return moved.reshape(len(moved), -1, moved.shape[-1])
