"""Samples on which two models differ most: what to look at when a result is in doubt."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.judge.judge import Judge
from onnx_lowrank.judge.reading import Reading
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.samples.dataset import Dataset
from onnx_lowrank.samples.thumbnails import thumbnail

__all__ = ["Disagreement", "most_different"]

#: samples that are told
_TOLD = 6


@dataclass(frozen=True)
class Disagreement:
    """One sample, and what both models say of it.

    Attributes:
        sample: its place among the samples, from 0 on.
        loss: the judge's loss on it.
        label: its label, as text; empty without one.
        answers: output, the original's answer and the new model's, for each reading.
        picture: the input as a PNG in a ``data:`` address, where one is a picture; else empty.
    """

    sample: int
    loss: float
    label: str
    answers: tuple[tuple[str, str, str], ...]
    picture: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        answers = [dict(zip(("output", "before", "after"), a, strict=True)) for a in self.answers]
        return {**asdict(self), "answers": answers}


def most_different(
    judge: Judge, new: Model, data: Dataset, losses: npt.NDArray[np.float64]
) -> tuple[Disagreement, ...]:
    """The samples of the largest finite losses, the largest first; those without any are left out.

    Args:
        judge: of both models, on ``data``.
        new: the model that is judged.
        data: the samples.
        losses: the loss of each.
    """
    if not len(losses) or not len(data):
        return ()
    rows = max(len(losses) // len(data), 1)  # samples in a feed whose batch is fixed
    known = np.where(np.isfinite(losses), losses, 0.0)
    places = [int(i) for i in np.argsort(-known, kind="stable")[:_TOLD] if known[i] > 0]
    if not places:
        return ()
    part = data.subset(sorted({i // rows for i in places}))
    order = {feed: number for number, feed in enumerate(sorted({i // rows for i in places}))}
    pairs = list(judge.on(part, new))
    labels = data.sample_labels
    found = []
    for place in places:
        pair, row = pairs[order[place // rows]], place % rows
        answers = []
        for reading in judge.readings:
            values = [v.get(reading.output, ()) for v in (pair.old, pair.new)]
            if all(len(v) > reading.index for v in values):
                both = [reading.of(v[reading.index])[row] for v in values]
                if both[0].shape == both[1].shape:
                    answers.append((reading.label, *_answers(reading, *both)))
        label = "" if labels is None else str(labels[place])
        inputs = [v[row] if np.ndim(v) and len(v) > row else v for v in pair.feed.values()]
        picture = next(filter(None, map(thumbnail, inputs)), "")
        found.append(Disagreement(place, float(losses[place]), label, tuple(answers), picture))
    return tuple(found)


def _answers(reading: Reading, old: npt.NDArray[Any], new: npt.NDArray[Any]) -> tuple[str, str]:
    """What both models say of a sample, in words."""
    if reading.kind == "kl":
        before, after = (np.moveaxis(a, reading.axis, -1) for a in (old, new))
        classes = [a.argmax(-1).reshape(-1) for a in (before, after)]
        if len(classes[0]) == 1:
            first, second = (
                f"class {c[0]} ({_probability(reading, a.reshape(-1), c[0]):.1%})"
                for a, c in zip((before, after), classes, strict=True)
            )
            return first, second
        changed = int(np.sum(classes[0] != classes[1]))
        return f"{len(classes[0])} classes", f"{changed} of them are others"
    if reading.kind == "equal":
        return f"{old.size} values", f"{int(np.sum(old != new))} of them are others"
    size = float(np.linalg.norm(old.astype(np.float64)))
    apart = float(np.linalg.norm(new.astype(np.float64) - old.astype(np.float64)))
    return f"norm {size:.4g}", f"differs by {apart / size:.1%}" if size else f"norm {apart:.4g}"


def _probability(reading: Reading, scores: npt.NDArray[Any], place: int) -> float:
    values = scores.astype(np.float64)
    if reading.form == "probabilities":
        return float(values[place])
    exponentials = np.exp(values - values.max())
    return float(exponentials[place] / exponentials.sum())
