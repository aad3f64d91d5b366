"""Verdicts: what the judge says of a model, with 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.judge.answers import Figures
from onnx_lowrank.judge.intervals import mean, wilson
from onnx_lowrank.judge.reading import Reading

__all__ = ["Estimate", "ReadingVerdict", "Verdict", "estimated", "verdict_on"]

#: neighbours of a sample that are looked at, and fewest samples that have some
_NEIGHBOURS, _FEWEST = 5, 20
#: kinds whose loss is the part of the answers that goes, and what these answers are
_LOST_PARTS = {"boxes": "boxes", "equal": "values"}


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    def to_list(self) -> list[float | None]:
        """Value and interval for JSON; infinite numbers become None."""
        return [v if math.isfinite(v) else None for v in (self.value, self.low, self.high)]


@dataclass(frozen=True)
class ReadingVerdict:
    """How far a part of an output is from the original's.

    Attributes:
        reading: what its numbers mean.
        loss: 0 for the original, 1 for a model that gives all samples the same answer; see
            :mod:`onnx_lowrank.judge.measures`.
        kept: part of the answers that stay: of the samples with the same class (the same sequence
            of classes), of positions in maps of classes, of the places where a detector sees
            something, of exact values; for boxes the overlap
            with the original's, weighed by scores; for other kinds the correlation with the
            original's, the square root of 1 less the loss.
        figures: what people ask of such an output, by name: ``same_samples``, ``same_sequences``
            ``same_positions`` and ``same_places`` (parts with the same first class, or side of
            one half),
            ``overlap`` (intersection over union), ``cosine``, ``neighbours`` (part of the nearest
            5 samples that stay so).
        answer: what ``kept`` is: ``samples``, ``sequences``, ``positions``, ``places``, ``boxes``,
            ``values`` or ``correlation``.
    """

    reading: Reading
    loss: Estimate
    kept: Estimate
    figures: Mapping[str, Estimate]
    answer: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; infinite numbers become None."""
        return {
            "part": self.reading.label,
            "kind": self.reading.kind,
            "why": self.reading.why,
            "answer": self.answer,
            "loss": self.loss.to_list(),
            "kept": self.kept.to_list(),
            **{name: value.to_list() for name, value in self.figures.items()},
        }


@dataclass(frozen=True)
class Verdict:
    """How far a model is from the original on some samples.

    Attributes:
        samples: number of samples.
        loss: mean over the readings, or what the user's function says.
        readings: parts of the outputs, one by one.
    """

    samples: int
    loss: Estimate
    readings: tuple[ReadingVerdict, ...] = ()

    @property
    def kept(self) -> Estimate:
        """What the reading that keeps least keeps; without readings, what the loss leaves."""
        if self.worst is not None:
            return self.worst.kept
        return Estimate(1 - self.loss.value, 1 - self.loss.high, 1 - self.loss.low)

    @property
    def worst(self) -> ReadingVerdict | None:
        """The reading of which least is kept."""
        return min(self.readings, key=lambda r: r.kept.value, default=None)


def verdict_on(
    reading: Reading, losses: npt.NDArray[np.float64], figures: Figures
) -> ReadingVerdict:
    """The verdict on a reading, from the loss and the figures of each sample."""
    loss = estimated(losses)
    found: dict[str, Estimate] = {}
    if figures.same:
        found["same_positions"] = _mean(figures.same)
    for name, values in (("samples", figures.all_same), ("sequences", figures.reads_same)):
        if values:
            part = float(np.mean(values))
            found[f"same_{name}"] = Estimate(part, *wilson(part, len(values)))
    if figures.seen_same:
        found["same_places"] = _mean(figures.seen_same)
    overlap = [v for v in figures.overlap if not math.isnan(v)]
    if overlap:
        found["overlap"] = _mean(overlap)
    if figures.cosine:
        found["cosine"] = _mean(figures.cosine)
    neighbours = _neighbours(*figures.vectors)
    if neighbours is not None:
        found["neighbours"] = neighbours
    answer = _answer(reading, figures)
    kept = found.get(f"same_{answer}")
    if kept is None:
        share = _values_left if reading.kind in _LOST_PARTS else _correlation
        kept = Estimate(share(loss.value), share(loss.high), share(loss.low))
    return ReadingVerdict(reading, loss, kept, found, answer)


def estimated(values: npt.NDArray[np.float64]) -> Estimate:
    """The mean of some values with its interval; infinite where one of them is."""
    if not len(values):
        return Estimate(math.nan, math.nan, math.nan)
    if not np.isfinite(values).all():
        return Estimate(math.inf, math.inf, math.inf)
    return Estimate(float(values.mean()), *mean(values))


def _answer(reading: Reading, figures: Figures) -> str:
    if reading.kind == "bernoulli" and figures.positions == 1 and figures.same:
        return "positions"
    if reading.kind in _LOST_PARTS:
        return _LOST_PARTS[reading.kind]
    if reading.kind != "kl":
        return "correlation"
    if reading.background is not None:
        return "places" if figures.seen_same else "correlation"
    return ("samples", "sequences", "positions")[min(figures.axes, 2)]


def _values_left(loss: float) -> float:
    return 1 - loss


def _correlation(loss: float) -> float:
    """Correlation with numbers of which a part ``loss`` of the variance is missed."""
    return math.sqrt(max(1 - loss, 0.0)) if math.isfinite(loss) else -math.inf


def _mean(values: Sequence[float]) -> Estimate:
    return estimated(np.asarray(values, np.float64))


def _neighbours(old: Sequence[Any], new: Sequence[Any]) -> Estimate | None:
    """Part of each sample's nearest samples that are among its nearest in the new model."""
    if len(old) < _FEWEST:
        return None
    nearest = []
    for vectors in (np.stack(old), np.stack(new)):
        near = vectors @ vectors.T
        np.fill_diagonal(near, -np.inf)
        nearest.append(np.argsort(-near, axis=1, kind="stable")[:, :_NEIGHBOURS])
    kept = [len(np.intersect1d(a, b)) / _NEIGHBOURS for a, b in zip(*nearest, strict=True)]
    return _mean(kept)
