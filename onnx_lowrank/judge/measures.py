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

Divergences of class scores do not tell a line that is read otherwise from one whose letters only
begin a step earlier. So the loss of a sample of class scores is half its divergence and half the
part of its answers that change (:func:`changes`): its class, its sequence of classes with repeats
taken for one, or, in maps, its positions (of a detector, those where either model sees something).
On one recogniser two models of nearly one divergence (9.8 and 9.0 %) read 77 and 98 % of the lines.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.judge.reading import Reading, rows_along, wide

__all__ = [
    "Figures",
    "Scale",
    "bernoulli_divergence",
    "changes",
    "entropy",
    "figures_of",
    "inside",
    "kl_divergence",
    "log_probabilities",
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
        rows = _where(rows, _finite(rows))
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
            self.total = self.total + _directions(rows).sum(axis=0, dtype=np.float64)

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


def changes(reading: Reading, old: Array, new: Array) -> Losses | None:
    """Part of the answers of each sample that change, ``(samples,)``; None without class scores.

    Args:
        reading: what the outputs mean.
        old: values of the original, samples along axis 0.
        new: values of the other model, of the same shape.
    """
    if reading.kind != "kl":
        return None
    axes = _position_axes(reading, old)
    found = np.zeros(len(old))
    for sample, (a, b) in enumerate(
        zip(samples_of(reading, old), samples_of(reading, new), strict=True)
    ):
        first, now = (rows.argmax(axis=1) for rows in _known(a, b))
        if len(first):
            found[sample] = _changed(reading, first, now, axes)
    return found


def _changed(reading: Reading, first: Array, now: Array, axes: int) -> float:
    """Part of the answers of a sample that change, by its first classes."""
    if reading.background is not None:
        seen = _seen(reading.background, first, now)
        return float(np.mean(first[seen] != now[seen])) if seen.any() else 0.0
    return float(np.mean(first != now)) if axes > 1 else float(not _reads_same(first, now))


def _seen(background: int, first: Array, now: Array) -> npt.NDArray[np.bool_]:
    """Where one of two models sees something."""
    found: npt.NDArray[np.bool_] = (first != background) | (now != background)
    return found


def _known(old: Floats, new: Floats) -> tuple[Floats, Floats]:
    """The positions of a sample where the original is finite; NaN of the new model is least."""
    known = _finite(old)
    old, new = _where(old, known), _where(new, known)
    return old, new if _finite(new).all() else np.where(np.isnan(new), -np.inf, new)


def _finite(rows: Floats) -> npt.NDArray[np.bool_]:
    """Whether all numbers of each row ``(n, width)`` are finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        sums = rows.sum(axis=1)  # one pass without a mask; it may overflow, but hides nothing
    known = np.isfinite(sums)
    if not known.all():
        known[~known] = np.isfinite(rows[~known]).all(axis=1)
    return np.asarray(known)


def _where(rows: Floats, known: npt.NDArray[np.bool_]) -> Floats:
    """Some of the rows; the same array where these are all."""
    return rows if known.all() else rows[known]


def _reads_same(first: Array, now: Array) -> bool:
    """Whether two sequences of classes are the same, repeats being one."""
    return np.array_equal(_without_repeats(first), _without_repeats(now))


def _position_axes(reading: Reading, array: Array) -> int:
    """Number of axes of positions longer than one."""
    extents = [n for a, n in enumerate(array.shape[1:], 1) if a - array.ndim != reading.axis]
    return sum(n > 1 for n in extents)


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
    known = _finite(old)
    old, new = _where(old, known), _where(new, known)
    if not len(old):
        return 0.0
    if not _finite(new).all():
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
        _directions(old.astype(np.float64)) * _directions(new.astype(np.float64)), axis=1
    )
    return float(np.mean(apart) / unit)


@dataclass
class Figures:
    """What people ask of a new output, sample by sample.

    Attributes:
        same: part of the positions with the same first class, or of the numbers on the same side
            of one half; ``(samples,)``.
        all_same: whether all positions have the same first class.
        reads_same: whether the first classes are the same sequence, repeats being one.
        seen_same: of a detector, part of the places where either model sees something, with the
            same first class.
        overlap: intersection over union of what is above one half; NaN where nothing is.
        cosine: mean cosine of the vectors.
        vectors: directions of the original and of the new model, mean over positions; each
            ``(samples, width)``.
        positions: positions of a sample, over all its axes.
        axes: axes of positions longer than one.
    """

    same: list[float] = field(default_factory=list)
    all_same: list[bool] = field(default_factory=list)
    reads_same: list[bool] = field(default_factory=list)
    seen_same: list[float] = field(default_factory=list)
    overlap: list[float] = field(default_factory=list)
    cosine: list[float] = field(default_factory=list)
    vectors: tuple[list[Array], list[Array]] = field(default_factory=lambda: ([], []))
    positions: int = 0
    axes: int = 0


def figures_of(reading: Reading, old: Array, new: Array, into: Figures) -> None:
    """Add the figures of some samples to ``into``.

    Args:
        reading: what the outputs mean.
        old: values of the original, samples along axis 0.
        new: values of the other model, of the same shape.
        into: takes the figures.
    """
    if reading.kind not in ("kl", "bernoulli", "cosine"):
        return
    into.axes = max(into.axes, _position_axes(reading, old))
    for a, b in zip(samples_of(reading, old), samples_of(reading, new), strict=True):
        a, b = _known(a, b)
        if not len(a):
            continue
        into.positions = max(into.positions, len(a))
        if reading.kind == "kl":
            _add_classes(reading, a.argmax(axis=1), b.argmax(axis=1), into)
        elif reading.kind == "bernoulli":
            above, now = a > 0.5, b > 0.5
            into.same.append(float(np.mean(above == now)))
            either = int(np.sum(above | now))
            into.overlap.append(float(np.sum(above & now)) / either if either else np.nan)
        else:
            b = np.where(np.isfinite(b), b, 0.0)
            one, other = _directions(a), _directions(b)
            into.cosine.append(float(np.mean(np.sum(one * other, axis=1))))
            into.vectors[0].append(one.mean(axis=0))
            into.vectors[1].append(other.mean(axis=0))


def _add_classes(reading: Reading, first: Array, now: Array, into: Figures) -> None:
    into.same.append(float(np.mean(first == now)))
    if reading.background is not None:
        seen = _seen(reading.background, first, now)
        if seen.any():
            into.seen_same.append(float(np.mean(first[seen] == now[seen])))
        return
    into.all_same.append(bool((first == now).all()))
    into.reads_same.append(_reads_same(first, now))


def _without_repeats(classes: Array) -> Array:
    found: Array = classes[np.concatenate([[True], classes[1:] != classes[:-1]])]
    return found


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


def _directions(rows: Floats) -> Floats:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(norms > 0, norms, 1.0))
