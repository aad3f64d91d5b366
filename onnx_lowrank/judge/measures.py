"""Divergences of outputs, each in units of what the original's outputs tell apart.

A divergence is divided by its own value for a model that gives every sample the same, best answer
(the mean of the original's). So a *loss* of 0 is the original, and 1 tells no sample from another,
for class scores as for boxes:

    kl, bernoulli    mean KL(p || q) / (H(mean p) - mean H(p))
    cosine           mean (1 - cos(v, w)) / (1 - |mean of v|),  v of length one
    l2               mean over coordinates of  mean (w - v)^2 / variance of v
    equal            part that differs

A :class:`Scale` has the denominators, from the original's outputs alone, and gives the quotient for
each sample. What a detector answers is in :mod:`onnx_lowrank.judge.detections`.

The loss of class scores has the answers that change beside it (:mod:`onnx_lowrank.judge.answers`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.judge.reading import Reading, rows_along, wide

__all__ = [
    "Scale",
    "bernoulli_divergence",
    "directions",
    "entropy",
    "finite_rows",
    "inside",
    "kl_divergence",
    "log_probabilities",
    "rows_where",
    "samples_of",
]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.floating[Any]]
#: one number for each sample
Losses = npt.NDArray[np.float64]

#: smallest probability of a model, so that divergences stay finite
_FLOOR = 1e-10
#: smallest denominators: nats, and 1 - cos
_LEAST = 1e-3
#: the same for one of many maps, which may be nearly empty
_LEAST_MAP = 1e-6
#: a coordinate whose variance is less than this part of its squared mean is constant but for the
#: rounding of float32
_CONSTANT = 1e-12
#: numbers that are worked on at a time, so that they stay in the processor's caches
_CHUNK = 1 << 18


@dataclass
class Scale:
    """Sums over the original's outputs that one reading's losses are measured by.

    Attributes:
        reading: what the outputs mean.
        count: positions, or values of a coordinate, seen.
        total: sum of the distributions, of the vectors of length one, or of the numbers less
            ``origin``; ``(classes,)``, ``(width,)`` or ``(coordinates,)``.
        square: sum of entropies, or of squares less ``origin``; likewise.
        origin: numbers that squares are taken around, ``(coordinates,)``.
    """

    reading: Reading
    count: Floats | float = 0.0
    total: Floats | float = 0.0
    square: Floats | float = 0.0
    origin: Floats | None = None

    def add(self, array: Array) -> None:
        """Add the original's values, samples along axis 0."""
        if self.reading.kind == "equal":
            return
        for rows in _chunks(self.reading, array):
            self._add(rows)

    def _add(self, rows: Floats) -> None:
        kind = self.reading.kind
        if kind == "l2":
            if self.origin is None:
                self.origin = np.nan_to_num(rows[0], posinf=0.0, neginf=0.0)
            known = np.isfinite(rows)
            apart = np.where(known, rows - self.origin, 0.0)
            apart = apart.astype(np.float64)
            self.count = self.count + known.sum(axis=0)
            self.total = self.total + apart.sum(axis=0)
            self.square = self.square + np.square(apart).sum(axis=0)
            return
        rows = rows_where(rows, finite_rows(rows))
        if not len(rows):
            return
        self.count = self.count + len(rows)
        if kind == "kl":
            logs = log_probabilities(rows, self.reading.form)
            chances = np.exp(logs)
            self.total = self.total + chances.sum(axis=0, dtype=np.float64)
            self.square = self.square - float(np.sum(chances * logs, dtype=np.float64))
        elif kind == "bernoulli":
            rows = rows.astype(np.float64)
            self.total = self.total + inside(rows).sum(axis=0)
            self.square = self.square + entropy(inside(rows)).sum(axis=0)
        elif kind == "cosine":
            self.total = self.total + directions(rows).sum(axis=0, dtype=np.float64)

    @property
    def unit(self) -> Floats | float:
        """The denominator; one for each coordinate for ``l2``."""
        kind = self.reading.kind
        count = np.where(np.asarray(self.count) > 0, self.count, 1.0)
        mean = np.asarray(self.total / count)
        if kind == "l2":
            variance = np.maximum(self.square / count - np.square(mean), 0.0)
            energy = np.square(mean + (self.origin if self.origin is not None else 0.0))
            varied = variance > _CONSTANT * energy
            if not varied.any():  # a constant answer: relative to its size
                return np.full(np.shape(variance), float(np.mean(energy)) or 1.0)
            # what is constant in the original counts in the unit of the others
            return np.asarray(np.where(varied, variance, float(variance[varied].mean())))
        if kind == "kl":
            kept = mean[mean > 0]
            apart = -float(np.sum(kept * np.log(kept))) - float(np.mean(self.square / count))
            return max(apart, _LEAST)
        if kind == "bernoulli":
            apart = float(np.mean(entropy(mean))) - float(np.mean(self.square / count))
            return max(apart, _LEAST_MAP)
        if kind == "cosine":
            return max(1 - float(np.linalg.norm(mean)), _LEAST)
        return 1.0

    def divergences(self, old: Array, new: Array) -> Losses:
        """Divergence of each sample, ``(samples,)``.

        Args:
            old: values of the original, samples along axis 0.
            new: values of the other model, of the same shape.

        Returns:
            Infinite where a number is NaN or infinite that is not in the original; 0 where nothing
            of the original is finite.
        """
        reading, unit = self.reading, self.unit
        if reading.kind == "equal":
            same = np.reshape(np.asarray(old == new), (len(old), -1)).astype(np.float64)
            return np.asarray(1.0 - same.mean(axis=1) if same.shape[1] else np.zeros(len(old)))
        found = np.zeros(len(old))
        for sample, (a, b) in enumerate(
            zip(samples_of(reading, old), samples_of(reading, new), strict=True)
        ):
            with np.errstate(over="ignore", invalid="ignore"):
                found[sample] = _loss(reading, a, b, unit)
        return np.where(np.isnan(found), np.inf, found)


def finite_rows(rows: Floats) -> npt.NDArray[np.bool_]:
    """Whether all numbers of each row ``(n, width)`` are finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        sums = rows.sum(axis=1)  # one pass without a mask; it may overflow, but hides nothing
    known = np.isfinite(sums)
    if not known.all():
        known[~known] = np.isfinite(rows[~known]).all(axis=1)
    return np.asarray(known)


def rows_where(rows: Floats, known: npt.NDArray[np.bool_]) -> Floats:
    """Some of the rows; the same array where these are all."""
    return rows if known.all() else rows[known]


def _loss(reading: Reading, old: Array, new: Array, unit: Floats | float) -> float:
    """Loss of one sample, ``(positions, width)``."""
    if reading.kind == "l2":
        known = np.isfinite(old)
        if not known.any():
            return 0.0
        apart = np.where(known, new.astype(np.float64) - old, 0.0)
        share = known.sum(axis=0)
        errors = np.square(apart).sum(axis=0) / np.maximum(share, 1)
        return float(np.mean((errors / unit)[share > 0]))
    known = finite_rows(old)
    old, new = rows_where(old, known), rows_where(new, known)
    if not len(old):
        return 0.0
    if not finite_rows(new).all():
        return np.inf
    if reading.kind == "kl":
        step = max(_CHUNK // max(old.shape[1], 1), 1)
        parts = (slice(start, start + step) for start in range(0, len(old), step))
        total = math.fsum(
            float(kl_divergence(old[at], new[at], reading.form).sum()) for at in parts
        )
        return float(total / len(old) / unit)
    if reading.kind == "bernoulli":
        apart = bernoulli_divergence(old.astype(np.float64), new.astype(np.float64))
        return float(np.mean(apart) / unit)
    apart = 1 - np.sum(
        directions(old.astype(np.float64)) * directions(new.astype(np.float64)), axis=1
    )
    return float(np.mean(apart) / unit)


def samples_of(reading: Reading, array: Array) -> Iterator[Floats]:
    """Each sample as ``(positions, width)``, in float32 or wider."""
    moved = np.moveaxis(reading.of(array), reading.axis, -1)
    positions = moved[0].size // max(moved.shape[-1], 1) if len(moved) else 0
    for sample in moved:
        yield wide(sample.reshape(positions, moved.shape[-1]))


def _chunks(reading: Reading, array: Array) -> Iterator[Floats]:
    """All positions of all samples, some at a time, ``(positions, width)``, as in `samples_of`."""
    part = reading.of(array)
    if not part.size:
        return
    rows = rows_along(part, reading.axis)
    step = max(_CHUNK // max(rows.shape[1], 1), 1)
    for start in range(0, len(rows), step):
        yield wide(rows[start : start + step])


def kl_divergence(old: Floats, new: Floats, form: str) -> npt.NDArray[np.float64]:
    """KL divergence of two distributions in each row, ``(n,)``, of finite numbers.

    With a logarithm, or two exponentials, for each number: there may be thousands in a row.
    """
    if form == "probabilities":
        p, q = np.maximum(old, _FLOOR), np.maximum(new, _FLOOR)
        mass, other = (c.sum(axis=1, dtype=np.float64) for c in (p, q))
        np.divide(p, q, out=q)
        np.log(q, out=q)
        return np.asarray(np.einsum("nc,nc->n", p, q) / mass + np.log(other / mass))
    logs, others = (log_probabilities(rows, form) for rows in (old, new))
    others -= logs
    return np.asarray(-np.einsum("nc,nc->n", np.exp(logs, out=logs), others), dtype=np.float64)


def log_probabilities(rows: Floats, form: str) -> Floats:
    """Logarithms of the distribution in each row ``(n, classes)``, no less than a floor.

    Args:
        rows: class scores, finite.
        form: what they are, as :attr:`Reading.form` has it.
    """
    if form == "probabilities":
        rows = np.maximum(rows, _FLOOR)
        logs: Floats = np.log(rows / rows.sum(axis=1, keepdims=True))
        return logs
    shifted = rows - rows.max(axis=1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return np.maximum(logs, np.log(_FLOOR))


def inside(chances: Floats) -> Floats:
    """Probabilities that have a logarithm, as has what they leave."""
    return np.clip(chances, _FLOOR, 1 - _FLOOR)


def bernoulli_divergence(old: Floats, new: Floats) -> Floats:
    """Kullback-Leibler divergence of each of some yes-or-no answers from another, in nats."""
    p, q = inside(old), inside(new)
    return np.asarray(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))


def entropy(chances: Floats) -> Floats:
    """Entropy of each of some yes-or-no answers, in nats."""
    p = inside(chances)
    return np.asarray(-p * np.log(p) - (1 - p) * np.log(1 - p))


def directions(rows: Floats) -> Floats:
    """The rows at length one; zeros stay."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(norms > 0, norms, 1.0))
