"""Answers that stay: the first classes, readings, places and directions that people ask for.

Divergences of class scores do not tell a line that is read otherwise from one whose letters only
begin a step earlier. So the loss of a sample of class scores is half its divergence and half the
part of its answers that change (:func:`changes`): its class, its sequence of classes with repeats
taken for one, or, in maps, its positions (of a detector, those where either model sees something).
On one recogniser two models of nearly one divergence (9.8 and 9.0 %) read 77 and 98 % of the lines.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.judge.measures import directions, finite_rows, rows_where, samples_of
from onnx_lowrank.judge.reading import Reading

__all__ = ["Figures", "changes", "figures_of"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.floating[Any]]
#: one number for each sample
Losses = npt.NDArray[np.float64]


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
            one, other = directions(a), directions(b)
            into.cosine.append(float(np.mean(np.sum(one * other, axis=1))))
            into.vectors[0].append(one.mean(axis=0))
            into.vectors[1].append(other.mean(axis=0))


def _add_classes(reading: Reading, first: Array, now: Array, into: Figures) -> None:
    into.same.append(float(np.mean(first == now)))
    if reading.background is not None:
        same = _seen_same(reading.background, first, now)
        into.seen_same += [] if same is None else [same]
        return
    into.all_same.append(bool((first == now).all()))
    into.reads_same.append(_reads_same(first, now))


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
        same = _seen_same(reading.background, first, now)
        return 0.0 if same is None else 1 - same
    return float(np.mean(first != now)) if axes > 1 else float(not _reads_same(first, now))


def _seen_same(background: int, first: Array, now: Array) -> float | None:
    """Part of the places where either model sees something that keep their class; None for none."""
    seen = (first != background) | (now != background)
    return float(np.mean(first[seen] == now[seen])) if seen.any() else None


def _known(old: Floats, new: Floats) -> tuple[Floats, Floats]:
    """The positions of a sample where the original is finite; NaN of the new model is least."""
    known = finite_rows(old)
    old, new = rows_where(old, known), rows_where(new, known)
    return old, new if finite_rows(new).all() else np.where(np.isnan(new), -np.inf, new)


def _reads_same(first: Array, now: Array) -> bool:
    """Whether two sequences of classes are the same, repeats being one."""
    return np.array_equal(_without_repeats(first), _without_repeats(now))


def _position_axes(reading: Reading, array: Array) -> int:
    """Number of axes of positions longer than one."""
    extents = [n for a, n in enumerate(array.shape[1:], 1) if a - array.ndim != reading.axis]
    return sum(n > 1 for n in extents)


def _without_repeats(classes: Array) -> Array:
    found: Array = classes[np.concatenate([[True], classes[1:] != classes[:-1]])]
    return found
