"""Divergences of detections: boxes and their scores, where most positions see nothing.

A detector answers at thousands of positions, of which a few hold an object. So each position weighs
by the original's largest score there, ``w = max_c p_c``, times its objectness where it has one:

    boxes     sum_w (1 - IoU(b, b'))                       / sum_w 1
    scores    sum_w mean_c KL(p_c || q_c)                  / (sum_w mean_c (H(mean_w p_c) - H(p_c)))
    classes   sum_w KL(p || q)                             / (sum_w (H(mean_w p) - H(p)))

where ``mean_w p`` is the best constant answer. Class scores that sum to one have a class for places
where nothing is, and ``w`` is what they leave to the others. Sums are over the positions of all
samples, so that a sample without objects hardly counts. IoU, the intersection of two boxes over
their union, is what users match boxes by: an error of a pixel is much for a small box and little
for a large one, which no scale of a coordinate can tell.

Reference:
    Everingham et al. 2010, The Pascal visual object classes challenge (IoU of boxes).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.judge.measures import (
    Scale,
    bernoulli_divergence,
    entropy,
    inside,
    kl_divergence,
    log_probabilities,
    samples_of,
)

__all__ = ["DetectionScale", "overlaps"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.floating[Any]]

#: smallest weight of all positions of a sample
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
        for rows, weights in self._weighed(array):
            self.count = self.count + float(weights.sum())
            rows, counts = rows[weights > 0], weights[weights > 0]
            if self.reading.kind == "bernoulli":
                chances = inside(rows)
                self.total = self.total + counts @ chances
                self.square = self.square + counts @ entropy(chances)
            elif self.reading.kind == "kl":
                logs = log_probabilities(rows, self.reading.form)
                chances = np.exp(logs)
                self.total = self.total + counts @ chances
                self.square = self.square - counts @ np.sum(chances * logs, axis=1)

    @property
    def unit(self) -> Floats | float:
        """The denominator for a sample, which has the mean weight of all."""
        return max(float(self.count) / max(self.samples, 1), _LEAST) * super().unit

    def divergences(self, old: Array, new: Array) -> npt.NDArray[np.float64]:
        """See :meth:`Scale.divergences`."""
        losses, unit = np.full(len(old), np.inf), self.unit
        both = zip(self._weighed(old), samples_of(self.reading, new), strict=True)
        for sample, ((rows, weights), found) in enumerate(both):
            counts = weights > 0
            if np.isfinite(found[counts]).all():
                apart = self._apart(rows[counts], found[counts].astype(np.float64))
                losses[sample] = float(weights[counts] @ apart) / unit
        return losses

    def _weighed(self, array: Array) -> Iterator[tuple[Floats, Floats]]:
        """Values ``(positions, width)`` and weights ``(positions,)`` of each sample.

        A position where a number of the original is not finite weighs nothing.
        """
        if self.reading.background is not None:
            yield from map(self._something, samples_of(self.reading, array))
            return
        beside = replace(self.reading, part=self.reading.scores)
        both = zip(samples_of(self.reading, array), samples_of(beside, array), strict=True)
        for rows, scores in both:
            told = np.where(np.isfinite(scores), scores, 0.0).astype(np.float64)
            first = 1 if self.reading.objectness else 0
            weights = told[:, first:].max(axis=1)
            if first:
                weights = weights * told[:, 0]
            known = np.isfinite(rows).all(axis=1)
            yield rows.astype(np.float64), np.where(known, weights, 0.0)

    def _something(self, rows: Floats) -> tuple[Floats, Floats]:
        """Class scores and weights of one sample: the chance that something is there."""
        rows = rows.astype(np.float64)
        known = np.asarray(np.isfinite(rows).all(axis=1))
        chances = np.exp(log_probabilities(np.where(known[:, None], rows, 0.0), self.reading.form))
        return rows, np.where(known, 1 - chances[:, self.reading.background], 0.0)

    def _apart(self, old: Floats, new: Floats) -> Floats:
        """Divergence at each position, ``(positions,)``."""
        if self.reading.kind == "boxes":
            return 1 - overlaps(old, new, self.reading.form)
        if self.reading.kind == "kl":
            return kl_divergence(old, new, self.reading.form)
        return np.asarray(bernoulli_divergence(old, new).mean(axis=1))


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
