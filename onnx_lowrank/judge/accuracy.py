"""Drop of accuracy: counted by labels, or expected by the original's probabilities.

A drop of accuracy that is counted by labels is the difference of two numbers of mistakes, most of
them the same, and moves by chance: on 500 samples by a point. Where an *expected* drop is enough,
the labels are only used to calibrate the original's probabilities, and these say what a changed
answer costs:

    (1 / n) sum_i  p_i[class before] - p_i[class after]

which moves a quarter as much. It assumes that the compressed model knows nothing of the labels
that the original does not know.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.errors import DataError, ValidationError
from onnx_lowrank.judge.intervals import mean, paired
from onnx_lowrank.judge.labels import class_ids
from onnx_lowrank.judge.observation import by_sample, each_sample
from onnx_lowrank.judge.requirement import Score
from onnx_lowrank.judge.sample_runs import SampleRuns
from onnx_lowrank.judge.scorer import Scorer
from onnx_lowrank.linalg.temperature import calibrated
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.runtime.outputs import finite_classes, scores_in
from onnx_lowrank.runtime.session import Session

__all__ = ["AccuracyScorer"]

Array = npt.NDArray[Any]


class AccuracyScorer(Scorer):
    """Scores models by how far the accuracy drops.

    Args:
        runs: runs the original and the models.
        expected: whether to estimate drops by the original's probabilities, calibrated by the
            labels, instead of counting them.

    Raises:
        DataError: the labels are missing or do not fit, or no output has class scores.
    """

    def __init__(self, runs: SampleRuns, expected: bool) -> None:
        self._runs = runs
        self._chances: Array | None = None
        labels = runs.data.sample_labels
        if runs.data.labels is None or labels is None:
            raise DataError(
                "a bound on the drop of accuracy needs labels in the data (the key labels, or "
                "test.labels), or a metric; without them bound the agreement"
            )
        found, count = runs.first()
        scores = {n: _scores_of(found[n], count) for n in runs.observer.outputs}
        name, first = next(((n, v) for n, v in scores.items() if v is not None), ("", None))
        if first is None:
            raise DataError(
                "no output is a vector of class scores; bound the SNR, or give a metric"
            )
        self._output = name
        if expected:
            logits = self._logits()
            before = finite_classes(logits)
        else:
            before = self._classes(runs.reference)
        if not (before >= 0).any():
            raise DataError(
                f"output {name!r} of the original holds only NaN and Inf; nothing can be "
                "compared: give other samples"
            )
        ids = class_ids(labels, first.shape[1], name, before)
        if expected and np.isfinite(logits).all():
            self._chances = calibrated(logits, ids)
        self._ids, self._before = ids, before

    @property
    def answers(self) -> tuple[Array, Array]:
        """Class numbers ``(samples,)`` by the labels and by the original."""
        return self._ids, self._before

    @property
    def expects(self) -> bool:
        """Whether drops of accuracy are estimated by probabilities, not counted."""
        return self._chances is not None

    def score(self, model: Model) -> Score:
        """Score ``model`` against the original.

        Raises:
            ValidationError: the output has no class scores any more.
        """
        now = self._classes(self._runs.observer.session(model))
        if self._chances is not None:
            rows = np.arange(len(now))
            lost = self._chances[rows, self._before] - self._chances[rows, now]
            return Score(float(lost.mean()), *mean(lost), len(now), expected=True)
        return accuracy_drop(self._before == self._ids, now == self._ids)

    def _batches_of_scores(self, session: Session) -> Iterator[Array]:
        for outputs in self._runs.compared(session):
            scores = scores_in(outputs[self._output])
            if scores is None:
                raise ValidationError(
                    f"output {self._output!r} holds class scores in the original and not in the "
                    "compressed model"
                )
            yield scores

    def _classes(self, session: Session) -> npt.NDArray[np.intp]:
        return np.concatenate([finite_classes(s) for s in self._batches_of_scores(session)])

    def _logits(self) -> Array:
        """Class scores of the original, ``(samples, classes)``."""
        every = self._batches_of_scores(self._runs.reference)
        return np.concatenate([v.reshape(len(v), -1) for v in every])


def accuracy_drop(before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_]) -> Score:
    """Count the drop from which samples were right before, and which are after."""
    lost, won = int(np.sum(before & ~after)), int(np.sum(after & ~before))
    return Score((lost - won) / len(before), *paired(lost, won, len(before)), len(before))


def _scores_of(arrays: Sequence[Array], count: int) -> Array | None:
    """Class scores of ``count`` samples, ``(count, classes, ...)``; None where there are none."""
    if count > 1 and not any(by_sample(a, count) for a in arrays):
        return None
    return scores_in([each_sample(a, count) for a in arrays])
