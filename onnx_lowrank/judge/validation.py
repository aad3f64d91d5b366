"""Original against compressed, in ONNX Runtime, on samples that were not used to calibrate."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.errors import DataError, ValidationError
from onnx_lowrank.judge.checks import Accuracy, OutputCheck, Validation
from onnx_lowrank.judge.disagreements import most_different
from onnx_lowrank.judge.judge import AS_FOUND, Judge, Judging
from onnx_lowrank.judge.labels import class_ids, doubt, not_class_numbers
from onnx_lowrank.judge.readings import readings_of
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.progress import Progress
from onnx_lowrank.runtime.outputs import (
    Values,
    arrays_of,
    difference,
    finite_classes,
    is_float,
    scores_in,
)
from onnx_lowrank.runtime.runtime import Runtime
from onnx_lowrank.runtime.session import Feed
from onnx_lowrank.samples.dataset import (
    Dataset,
)

__all__ = ["check_classes", "validate_models"]

Classes = npt.NDArray[np.intp]

_TOP = 5


class _Tally:
    """Running sums of one output."""

    def __init__(self, name: str, *, loose: bool = False, scored: bool = True) -> None:
        self.name, self._loose = name, loose
        self.signal = self.noise = self.cosine = self.largest = 0.0
        self.rows = self.whole = self.equal = 0
        self.places = self.finite = self.total = self.mismatches = self.unlike = 0
        self.samples = self.hits1 = self.hits5 = 0
        self.scores, self.numeric, self.exact_type = scored, False, True
        self.varied = False
        self._first: list[npt.NDArray[Any]] | None = None

    def add(self, reference: Sequence[npt.NDArray[Any]], new: Sequence[npt.NDArray[Any]]) -> None:
        """Add the arrays of one batch."""
        shapes = [a.shape for a in reference], [a.shape for a in new]
        if shapes[0] != shapes[1]:
            self.unlike += 1
            if not self._loose:
                one, other = (s[0] if len(s) == 1 else s for s in shapes)
                raise ValidationError(
                    f"output {self.name!r} has the shape {other}, and the reference's has {one}"
                )
        pairs = [(a, b) for a, b in zip(reference, new, strict=False) if a.shape == b.shape]
        for old, now in pairs:
            self._add(old, now)
        self._look_for_change(reference)
        old_scores, new_scores = scores_in(reference), scores_in(new)
        self.scores &= old_scores is not None
        if self.scores and old_scores is not None and new_scores is not None and pairs:
            best = finite_classes(old_scores)
            known = best >= 0
            self.samples += int(known.sum())
            self.hits1 += int(np.sum((finite_classes(new_scores) == best)[known]))
            rows = new_scores.reshape(len(best), -1)
            rows = np.where(np.isnan(rows), -np.inf, rows)
            self.hits5 += int(np.sum(top_hits(rows[known], best[known])))

    def _add(self, old: npt.NDArray[Any], now: npt.NDArray[Any]) -> None:
        samples = max(len(np.atleast_1d(old)), 1)
        found = difference(old, now, samples)
        self.numeric |= old.dtype.kind not in "OUS"
        self.exact_type &= not is_float(old)
        self.signal += float(found.signal.sum())
        self.noise += float(found.noise.sum())
        self.largest = max(self.largest, float(found.largest.max(initial=0.0)))
        self.places += int(found.places.sum())
        self.finite += int(found.finite.sum())
        self.total += old.size
        self.mismatches += int(found.mismatches.sum())
        norms = np.sqrt(found.signal) * np.sqrt(found.power)
        same = (found.noise == 0) & (found.places > 0)
        cosines = np.where(same, 1.0, found.product / np.where(norms, norms, 1.0))
        self.cosine += float(cosines.sum())
        self.whole += int(np.sum(found.places > 0))
        self.rows += samples
        self.equal += int(found.equal.sum())

    def _look_for_change(self, reference: Sequence[npt.NDArray[Any]]) -> None:
        if self.varied:
            return
        firsts = [np.atleast_1d(a)[:1] for a in reference]
        if self._first is None:
            self._first = firsts
        self.varied = any(
            f.shape[1:] != a.shape[1:] or not np.array_equal(np.broadcast_to(f, a.shape), a)
            for f, a in zip(self._first, map(np.atleast_1d, reference), strict=False)
            if len(f) and len(a)
        )

    def result(self) -> OutputCheck:
        """Comparison over all batches.

        Raises:
            ValidationError: values are not finite where all of the reference are.
        """
        if self.finite > self.places and self.finite == self.total:
            raise ValidationError(
                f"output {self.name!r} has NaN or Inf where the reference has none"
            )
        relative = snr = cosine = largest = math.nan
        if self.numeric and self.places:
            relative = math.sqrt(self.noise / self.signal) if self.signal else math.sqrt(self.noise)
            snr = -20 * math.log10(relative) if relative else math.inf
            cosine, largest = self.cosine / self.whole, self.largest
        scored = self.scores and self.samples
        return OutputCheck(
            self.name,
            relative,
            snr,
            cosine,
            largest,
            self.hits1 / self.samples if scored else None,
            self.hits5 / self.samples if scored else None,
            self.equal / self.rows if self.exact_type and self.places else None,
            self.places,
            self.mismatches,
            self.unlike,
            self.varied,
            self.total == self.rows,
        )


def top_hits(scores: npt.NDArray[Any], classes: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Whether each row of ``scores`` has its class among the first five."""
    top = np.argsort(-scores, axis=1, kind="stable")[:, :_TOP]
    hits: npt.NDArray[np.bool_] = (top == classes[:, None]).any(axis=1)
    return hits


def validate_models(
    reference: Model,
    new: Model,
    dataset: Dataset,
    runtime: Runtime,
    *,
    size: int = 16,
    progress: Progress | None = None,
    labels_are_classes: bool = True,
    judging: Judging = AS_FOUND,
) -> Validation:
    """Compare the outputs of two models on ``dataset``, a batch at a time.

    Args:
        reference: the original.
        new: the model to judge.
        dataset: samples, with or without labels.
        runtime: runs both models.
        size: number of samples in a batch.
        progress: receives one step for each sample.
        labels_are_classes: whether integer labels that are not classes of the output are an
            error. Where a metric of the user reads the labels they are not, and then no accuracy
            is counted.
        judging: what the user wants outputs to be judged by.

    Raises:
        DataError: integer labels are not numbers of the output's classes.
        ValidationError: outputs are missing, have other shapes, or are not finite.
        ModelError: one of the models does not run.
    """
    given = ([o.name for o in m.proto.graph.output] for m in (reference, new))
    missing = set(next(given)) - set(next(given))
    if missing:
        raise ValidationError(f"the new model lacks the outputs {', '.join(sorted(missing))}")
    judge = Judge(reference, dataset, runtime, size, judging)
    observer, comparison = judge.observer, judge.comparison()
    made = observer.made_by(new)
    names = [n for n in observer.names if n in made]
    classes_in = {r.output for r in judge.readings if r.kind == "kl"}
    directions = {r.output for r in judge.readings if r.kind == "cosine"}
    tallies = {
        name: _Tally(name, loose=name in observer.loose, scored=name in classes_in)
        for name in names
    }
    labels = dataset.sample_labels
    scored, classes = "", 0
    found: tuple[list[Classes], list[Classes]] = ([], [])  # first classes by both models
    with (progress or Progress()).task("validate", len(dataset)) as advance:
        for pair in judge.pairs(new):
            count, both = pair.count, (pair.old, pair.new)
            comparison.add(pair)
            for name, tally in tallies.items():
                tally.add(both[0][name], both[1][name])
            if labels is not None:
                scored = _scored(both[0], count, directions)
                if scored:
                    scores = [s for o in both if (s := scores_in(o[scored])) is not None]
                    classes = scores[0].shape[1]
                    for kept, values in zip(found, scores, strict=True):
                        kept.append(finite_classes(values))
            advance(_samples(dataset, pair.feed))
    if labels is not None and sum(map(len, found[0])) != len(labels):
        scored = ""  # runs of different length, some of which look like class scores
    accuracy, uncounted = None, ""
    if labels is not None and scored:
        uncounted = not_class_numbers(labels)
    if labels is not None and scored and not uncounted:
        try:
            accuracy = _accuracy(scored, classes, labels, *map(np.concatenate, found))
        except DataError:
            if labels_are_classes:
                raise
    checks = tuple(t.result() for t in tallies.values())
    notes = [*observer.notes, *_notes(checks, len(dataset))]
    if labels is not None and not scored and directions and labels_are_classes:
        notes.append(
            f"the labels were not used: output {min(directions)!r} holds vectors of length one, "
            "which say no classes"
        )
    if uncounted and labels_are_classes:
        notes.append(f"accuracy was not counted: {uncounted}")
    if accuracy is not None and accuracy.doubt:
        notes.append(f"the accuracy says nothing about the models: {accuracy.doubt}")
    worst = most_different(judge, new, dataset, comparison.losses)
    return Validation(
        len(dataset), checks, accuracy, tuple(notes), uncounted, comparison.verdict(), worst
    )


def _accuracy(
    output: str,
    classes: int,
    labels: npt.NDArray[Any],
    reference: Classes,
    new: Classes,
) -> Accuracy:
    """Accuracy of both models, from the first class that each gives a sample."""
    ids, count = class_ids(labels, classes, output, reference), len(reference)
    old, now = (int(np.sum(found == ids)) / count for found in (reference, new))
    return Accuracy(output, count, old, now, doubt(ids, reference))


def check_classes(reference: Model, dataset: Dataset, runtime: Runtime) -> None:
    """Refuse integer labels that are not numbers of the classes that a model has.

    The model runs on one sample, and on all of them only where labels are refused.

    Raises:
        DataError: labels are not numbers of the model's classes.
        ModelError: the model does not run.
    """
    labels, session = dataset.sample_labels, runtime.session(reference, lean=True)
    feed = dataset.feed(0)
    count = dataset.samples_in(feed)
    outputs = _of_samples({n: arrays_of(v) for n, v in session.run(feed).items()}, count)
    directions = {n for n, v in outputs.items() if _are_directions(n, v)}
    scored = _scored(outputs, count, directions)
    first = scores_in(outputs[scored]) if scored else None
    if labels is None or first is None:
        return
    classes = first.shape[1]
    if not_class_numbers(labels) or (labels.min() >= 0 and labels.max() < classes):
        return
    predicted = []
    for feed in dataset.batches(16):
        found = {scored: arrays_of(session.run(feed, [scored])[scored])}
        scores = scores_in(_of_samples(found, dataset.samples_in(feed))[scored])
        if scores is not None:
            predicted.append(finite_classes(scores))
    if sum(map(len, predicted)) == len(labels):
        class_ids(labels, classes, scored, np.concatenate(predicted))


def _of_samples(outputs: Values, count: int) -> dict[str, list[npt.NDArray[Any]]]:
    """Outputs with an axis of samples in front, where the vector of one sample has none."""
    return {
        n: [a[None] if count == 1 and a.ndim == 1 and len(a) > 1 else a for a in arrays]
        for n, arrays in outputs.items()
    }


def _are_directions(name: str, arrays: Sequence[npt.NDArray[Any]]) -> bool:
    """Whether an output holds vectors of length one, which say no classes."""
    return any(r.kind == "cosine" for r in readings_of(name, arrays))


def _scored(outputs: Values, count: int, directions: Collection[str]) -> str:
    """Name of the first output with class scores of ``count`` samples; empty without one.

    Args:
        outputs: arrays by name.
        count: number of samples.
        directions: outputs that are vectors of length one, as embeddings are.
    """
    scores = ((n, scores_in(arrays)) for n, arrays in outputs.items() if n not in directions)
    return next((n for n, v in scores if v is not None and len(v) == count), "")


def _notes(checks: Sequence[OutputCheck], samples: int) -> list[str]:
    """List what a reader of the figures should know besides."""
    said = []
    for check in checks:
        if check.unlike:
            said.append(
                f"output {check.name!r} had another shape than the original's in {check.unlike} "
                "batches; only arrays of the same shape are compared"
            )
        if not check.places:
            said.append(
                f"output {check.name!r} could not be compared: on all samples it is empty, or "
                "holds only NaN and Inf"
            )
        elif check.mismatches:
            said.append(
                f"output {check.name!r}: at {check.mismatches} places one model has NaN or Inf "
                f"and the other has not; errors are those of the {check.places} places that are "
                "finite in both"
            )
    if samples > 1 and not any(c.varied for c in checks if c.places):
        said.append(
            f"the original's outputs are the same on all {samples} samples, so the figures prove "
            "little; give samples that differ"
        )
    return said


def _samples(dataset: Dataset, feed: Feed) -> int:
    return len(next(iter(feed.values()))) if dataset.batchable else 1
