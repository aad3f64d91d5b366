"""Scores by the judge: the loss, the part of the answers that stay, the agreement of classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.errors import DataError
from onnx_lowrank.judge.judge import Judge
from onnx_lowrank.judge.requirement import Requirement, Score
from onnx_lowrank.judge.scorer import Scorer
from onnx_lowrank.judge.verdict import Verdict
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.runtime.outputs import finite_classes

__all__ = ["JudgeScorer"]

Array = npt.NDArray[Any]


class JudgeScorer(Scorer):
    """Scores models by one number of the judge's verdict.

    Args:
        judge: the judge of the samples.
        requirement: a bound on the number, of a kind that the judge scores.

    Raises:
        DataError: no output can be judged.
    """

    def __init__(self, judge: Judge, requirement: Requirement) -> None:
        _refuse_silence(judge, requirement)
        self._judge, self._requirement = judge, requirement
        self._first = _first_classes(judge)

    @property
    def answers(self) -> tuple[Array, Array]:
        """No labels, and the first classes by the original where a sample has one class."""
        return np.zeros(0, np.int64), self._first

    def score(self, model: Model) -> Score:
        """Score ``model`` against the original.

        Raises:
            ValidationError: an output has another shape than the original's.
        """
        return _score_in(self._judge.compare(model), self._requirement)


def _refuse_silence(judge: Judge, requirement: Requirement) -> None:
    """Refuse a judge that has nothing to say of what is required.

    Raises:
        DataError: no output can be judged.
    """
    if not judge.has_a_say:
        said = "; ".join(["no output can be judged", *judge.observer.notes])
        raise DataError(f"{said}: give outputs kinds by --judge, or a function")
    if requirement.kind == "agreement" and not any(r.kind == "kl" for r in judge.readings):
        raise DataError(
            "no output is a vector of class scores; bound the loss or the SNR, say by --judge "
            "OUTPUT=kl which output has class scores, or give a metric"
        )


def _first_classes(judge: Judge) -> npt.NDArray[np.intp]:
    """First classes of the samples by the original, where a sample has one class.

    Raises:
        DataError: class scores that are all NaN or Inf.
    """
    reading = next((r for r in judge.readings if r.kind == "kl"), None)
    if reading is None:
        return np.zeros(0, np.intp)
    classes = []
    for old in judge.originals(reading):
        scores = np.moveaxis(old, reading.axis, -1)
        if scores.size != len(scores) * scores.shape[-1]:
            return np.zeros(0, np.intp)
        classes.append(finite_classes(scores.reshape(len(scores), -1)))
    found = np.concatenate(classes)
    if not (found >= 0).any():
        raise DataError(
            f"output {reading.output!r} of the original holds only NaN and Inf; nothing can be "
            "compared: give other samples"
        )
    return found


def _score_in(verdict: Verdict, requirement: Requirement) -> Score:
    """The number of a verdict that a requirement bounds."""
    count = verdict.samples
    if requirement.kind == "loss":
        loss = verdict.loss
        return Score(loss.value, loss.low, loss.high, count)
    if requirement.kind == "agreement":
        found = next(r for r in verdict.readings if r.reading.kind == "kl")
        same = found.figures.get("same_samples", found.kept)
        return Score(same.value, same.low, same.high, count)
    kept = verdict.kept
    return Score(kept.value, kept.low, kept.high, count)
