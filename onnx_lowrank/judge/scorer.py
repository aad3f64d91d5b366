"""Scorers: how far a model keeps a requirement on some samples, with a confidence interval.

Intervals have a level of 95 %. Agreements, losses and drops of accuracy have those of
:mod:`onnx_lowrank.judge.intervals`, other scores that of the bootstrap.

A drop of accuracy that is counted by labels is the difference of two numbers of mistakes, most of
them the same, and moves by chance: on 500 samples by a point. Where an *expected* drop is enough,
the labels are only used to calibrate the original's probabilities, and these say what a changed
answer costs:

    (1 / n) sum_i  p_i[class before] - p_i[class after]

which moves a quarter as much. It assumes that the compressed model knows nothing of the labels
that the original does not know.

Reference:
    Efron 1979, Bootstrap methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.errors import DataError, ValidationError
from onnx_lowrank.judge.intervals import mean, paired
from onnx_lowrank.judge.judge import AS_FOUND, Judge, Judging
from onnx_lowrank.judge.labels import class_ids
from onnx_lowrank.judge.observation import Observer, by_sample, each_sample
from onnx_lowrank.judge.requirement import BY_JUDGE, Metric, Requirement, Score
from onnx_lowrank.judge.verdict import Verdict
from onnx_lowrank.linalg.temperature import calibrated
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.runtime.outputs import (
    Values,
    arrays_of,
    difference,
    finite_classes,
    is_float,
    scores_in,
)
from onnx_lowrank.runtime.runtime import Runtime
from onnx_lowrank.runtime.session import Session
from onnx_lowrank.samples.dataset import Dataset
from onnx_lowrank.samples.user_code import takes

__all__ = ["Scorer"]

Array = npt.NDArray[Any]

#: number of resamplings of the bootstrap
_DRAWS = 200


class Scorer:
    """Scores models by one requirement on some samples.

    Args:
        reference: the original.
        data: samples, with labels where the requirement needs them.
        runtime: runs the models.
        requirement: bound on what may be lost.
        size: number of samples in a batch.
        expected: whether to estimate drops of accuracy by the original's probabilities, calibrated
            by the labels, instead of counting them.
        judging: what the user wants outputs to be judged by.

    Raises:
        DataError: the labels are missing or do not fit, or no output can be judged.
    """

    def __init__(
        self,
        reference: Model,
        data: Dataset,
        runtime: Runtime,
        requirement: Requirement,
        size: int,
        expected: bool = False,
        judging: Judging = AS_FOUND,
    ) -> None:
        self._data, self._requirement = data, requirement
        self._judge: Judge | None = None
        self._chances: Array | None = None
        self._ids, self._first = np.zeros(0, np.int64), np.zeros(0, np.intp)
        if requirement.kind in BY_JUDGE:
            self._judge = _judge_for(requirement, reference, data, runtime, size, judging)
            self._first = _first_classes(self._judge)
            return
        self._observer = Observer(reference, data, runtime, size)
        self._given = [o.name for o in reference.proto.graph.output]
        self._reference, self._size = self._observer.session(reference), size
        scored = requirement.kind == "drop" and requirement.metric is None
        if scored and data.labels is None:
            raise DataError(
                "a bound on the drop of accuracy needs labels in the data (the key labels, or "
                "test.labels), or a metric; without them bound the agreement"
            )
        feed = next(data.batches(size))
        found = self._observer.run(self._reference, feed)
        count = data.samples_in(feed)
        if not all(by_sample(a, count) for arrays in found.values() for a in arrays):
            self._size = 1
        scores = {n: _scores_of(found[n], count) for n in self._observer.outputs}
        self._scores = next((n for n, v in scores.items() if v is not None), "")
        if scored and not self._scores:
            raise DataError(
                "no output is a vector of class scores; bound the SNR, or give a metric"
            )
        floats = any(is_float(a) for arrays in found.values() for a in arrays)
        if requirement.kind == "snr" and not floats:
            said = "; ".join(["no output has floating-point numbers", *self._observer.notes])
            raise DataError(f"{said}; an SNR needs such an output: give a metric instead")
        if expected and scored:
            logits = self._logits()
            self._first = finite_classes(logits)
        else:
            self._first = self._classes(self._reference) if scored else self._first
        if scored and not (self._first >= 0).any():
            raise DataError(
                f"output {self._scores!r} of the original holds only NaN and Inf; nothing can be "
                "compared: give other samples"
            )
        if scored:
            assert data.sample_labels is not None
            width = next(v.shape[1] for v in [scores[self._scores]] if v is not None)
            self._ids = class_ids(data.sample_labels, width, self._scores, self._first)
            if expected and np.isfinite(logits).all():
                self._chances = calibrated(logits, self._ids)
        metric = requirement.metric
        self._before = self._outputs(self._reference) if metric else {}
        self._inputs = self._feeds() if metric and takes(metric, "inputs") else None

    @property
    def answers(self) -> tuple[Array, Array]:
        """Class numbers ``(samples,)`` by the labels (empty if not needed) and by the original."""
        return self._ids, self._first

    @property
    def expects(self) -> bool:
        """Whether drops of accuracy are estimated by probabilities, not counted."""
        return self._chances is not None

    def score(self, model: Model) -> Score:
        """Score ``model`` against the original.

        Raises:
            ValidationError: an output has another shape than the original's.
        """
        if self._judge is not None:
            return _score_in(self._judge.compare(model), self._requirement)
        session = self._observer.session(model)
        if self._requirement.kind == "snr":
            return self._snr(session)
        if self._requirement.metric is not None:
            return self._metric_drop(self._outputs(session), self._requirement.metric)
        now = self._classes(session)
        if self._chances is not None:
            rows = np.arange(len(now))
            lost = self._chances[rows, self._first] - self._chances[rows, now]
            return Score(float(lost.mean()), *mean(lost), len(now), expected=True)
        return _accuracy_drop(self._first == self._ids, now == self._ids)

    def _run(self, session: Session) -> Iterator[dict[str, list[Array]]]:
        """Yield the arrays to compare, batch by batch, samples along axis 0."""
        for feed in self._data.batches(self._size):
            count = self._data.samples_in(feed)
            yield {
                n: [each_sample(a, count) for a in arrays]
                for n, arrays in self._observer.run(session, feed).items()
            }

    def _batches_of_scores(self, session: Session) -> Iterator[Array]:
        for outputs in self._run(session):
            scores = scores_in(outputs[self._scores])
            if scores is None:
                raise ValidationError(
                    f"output {self._scores!r} holds class scores in the original and not in the "
                    "compressed model"
                )
            yield scores

    def _classes(self, session: Session) -> npt.NDArray[np.intp]:
        return np.concatenate([finite_classes(s) for s in self._batches_of_scores(session)])

    def _logits(self) -> Array:
        """Class scores of the original, ``(samples, classes)``."""
        every = self._batches_of_scores(self._reference)
        return np.concatenate([v.reshape(len(v), -1) for v in every])

    def _outputs(self, session: Session) -> dict[str, Array]:
        """All outputs by name, samples along axis 0, for the user's metric."""
        return _joined("output", self._given_batches(session))

    def _given_batches(self, session: Session) -> Iterator[dict[str, Array]]:
        for feed in self._data.batches(self._size):
            values = session.run(feed, self._given)
            yield {
                name if i == 0 else f"{name}[{i}]": each_sample(array, self._data.samples_in(feed))
                for name, value in values.items()
                for i, array in enumerate(arrays_of(value))
            }

    def _feeds(self) -> dict[str, Array]:
        """All inputs by name, samples along axis 0."""
        feeds = self._data.batches(self._size)
        counted = ((feed, self._data.samples_in(feed)) for feed in feeds)
        return _joined(
            "input",
            ({n: each_sample(np.asarray(v), count) for n, v in f.items()} for f, count in counted),
        )

    def _snr(self, session: Session) -> Score:
        every = [
            _energies(old, new, self._observer.loose)
            for old, new in zip(self._run(self._reference), self._run(session), strict=True)
        ]
        signal, noise, places = np.concatenate(every, axis=1)
        if not places.any():
            raise DataError(
                "the original's outputs hold only NaN and Inf, or have other shapes in the "
                "compressed model, so nothing can be compared; give other samples"
            )

        def decibel(index: npt.NDArray[np.intp]) -> float:
            kept, lost = float(signal[index].sum()), float(noise[index].sum())
            if lost == 0:
                return math.inf
            return 10 * math.log10(kept / lost) if kept and lost < math.inf else -math.inf

        return _drawn(decibel, len(signal))

    def _metric_drop(self, after: Mapping[str, Array], metric: Metric) -> Score:
        labels, count = self._data.sample_labels, len(next(iter(self._before.values())))

        def drop(index: npt.NDArray[np.intp]) -> float:
            chosen = None if labels is None else labels[index]
            fed = None if self._inputs is None else _rows(self._inputs, index)
            old, new = (_value(metric, _rows(o, index), chosen, fed) for o in (self._before, after))
            return math.inf if math.isfinite(old) and not math.isfinite(new) else old - new

        found = _drawn(drop, count)
        if math.isnan(found.value):
            raise DataError(
                "the metric gives NaN or infinity for the original; mend the metric, or give other "
                "samples"
            )
        return found


def _judge_for(
    requirement: Requirement,
    reference: Model,
    data: Dataset,
    runtime: Runtime,
    size: int,
    judging: Judging,
) -> Judge:
    """The judge that a requirement is scored by.

    Raises:
        DataError: no output can be judged.
    """
    agreement = requirement.kind == "agreement"
    judge = Judge(reference, data, runtime, size, judging, classes=agreement)
    if not judge.has_a_say:
        said = "; ".join(["no output can be judged", *judge.observer.notes])
        raise DataError(f"{said}: give outputs kinds by --judge, or a function")
    if agreement and not any(r.kind == "kl" for r in judge.readings):
        raise DataError(
            "no output is a vector of class scores; bound the loss or the SNR, say by --judge "
            "OUTPUT=kl which output has class scores, or give a metric"
        )
    return judge


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


def _scores_of(arrays: Sequence[Array], count: int) -> Array | None:
    """Class scores of ``count`` samples, ``(count, classes, ...)``; None where there are none."""
    if count > 1 and not any(by_sample(a, count) for a in arrays):
        return None
    return scores_in([each_sample(a, count) for a in arrays])


def _joined(what: str, batches: Iterable[Mapping[str, Array]]) -> dict[str, Array]:
    found: dict[str, list[Array]] = {}
    for batch in batches:
        for name, value in batch.items():
            found.setdefault(name, []).append(value)
    for name, values in found.items():
        if len({v.shape[1:] for v in values}) > 1:
            raise DataError(
                f"{what} {name!r} has different shapes on different samples, which a metric "
                "cannot take; bound the SNR instead"
            )
    return {name: np.concatenate(values) for name, values in found.items()}


def _rows(values: Mapping[str, Array], index: npt.NDArray[np.intp]) -> dict[str, Array]:
    return {name: value[index] for name, value in values.items()}


def _value(
    metric: Metric,
    outputs: Mapping[str, Array],
    labels: Array | None,
    inputs: Mapping[str, Array] | None,
) -> float:
    try:
        if inputs is None:
            return float(metric(outputs, labels))
        return float(metric(outputs, labels, inputs=inputs))
    except Exception as error:  # the metric is the user's code and may raise anything
        raise DataError(
            f"the metric failed with {type(error).__name__}: {error}"
            + ("; the data has no labels" if labels is None else "")
        ) from error


def _energies(old: Values, new: Values, loose: Collection[str]) -> npt.NDArray[np.float64]:
    """Energy of the original's floating-point outputs, and of the errors in them.

    Where the output has NaN or Inf in the original too, a value that becomes NaN or Inf counts as
    an error of its whole size; elsewhere it makes the error of its sample infinite.

    Returns:
        Energy, energy of the error, and number of finite values of the original, for each sample;
        ``(3, samples)``.
    """
    count = len(next((a for arrays in old.values() for a in arrays), ()))
    found = np.zeros((3, count))
    for name, arrays in old.items():
        others = new.get(name, [])
        if name not in loose and [a.shape for a in arrays] != [a.shape for a in others]:
            shapes = ([a.shape for a in v] for v in (others, arrays))
            one, other = (s[0] if len(s) == 1 else s for s in shapes)
            raise ValidationError(
                f"output {name!r} has the shape {one}, and the original's has {other}"
            )
        for a, b in zip(arrays, others, strict=False):
            if is_float(a) and a.shape == b.shape:
                apart = difference(a, b, count)
                spoilt = (apart.finite > apart.places) & bool(np.isfinite(a).all())
                found[0] += apart.signal + apart.lost
                found[1] += np.where(spoilt, math.inf, apart.noise + apart.lost)
                found[2] += apart.finite
    return found


def _accuracy_drop(before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_]) -> Score:
    lost, won = int(np.sum(before & ~after)), int(np.sum(after & ~before))
    return Score((lost - won) / len(before), *paired(lost, won, len(before)), len(before))


def _drawn(statistic: Callable[[npt.NDArray[np.intp]], float], count: int) -> Score:
    random = np.random.default_rng(0)
    value = statistic(np.arange(count))
    drawn = [statistic(random.integers(0, count, count)) for _ in range(_DRAWS)]
    # take draws themselves: nothing can be interpolated beside an infinite one
    ranked = sorted(v for v in drawn if not math.isnan(v)) or [value]
    low, high = (ranked[round(part * (len(ranked) - 1))] for part in (0.025, 0.975))
    return Score(value, low, high, count)
