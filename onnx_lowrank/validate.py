"""Original against compressed, in ONNX Runtime, on samples that were not used to calibrate."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnx_lowrank.calibration import (
    HELD_OUT,
    Dataset,
    ImageOptions,
    has_part,
    input_specs,
    load_dataset,
)
from onnx_lowrank.errors import DataError, ValidationError
from onnx_lowrank.labels import class_ids, doubt, no_numbers
from onnx_lowrank.model import Model, load
from onnx_lowrank.progress import Progress
from onnx_lowrank.runtime import Feed, Runtime, Session, interleaved_latency

__all__ = [
    "Accuracy",
    "LatencyPair",
    "OutputCheck",
    "Validation",
    "check_classes",
    "measure_latency",
    "validate",
    "validate_models",
]

Classes = npt.NDArray[np.intp]

_TOP = 5


@dataclass(frozen=True)
class OutputCheck:
    """How one output of the new model compares with that of the reference.

    Attributes:
        name: of the output.
        relative_error: ``|new - reference| / |reference|``, Frobenius norms over all samples.
        snr_db: the same as a signal-to-noise ratio in dB; infinite for equal outputs.
        cosine: mean cosine similarity of a sample's output with its reference.
        max_abs_error: largest difference of one element.
        top1_agreement: part of samples with the same largest class; None if no class scores.
        top5_agreement: part of samples whose reference class is among the new first five.
    """

    name: str
    relative_error: float
    snr_db: float
    cosine: float
    max_abs_error: float
    top1_agreement: float | None
    top5_agreement: float | None


@dataclass(frozen=True)
class Accuracy:
    """Labelled accuracy of both models on the same samples (top-1, between 0 and 1).

    Attributes:
        output: the one with the class scores.
        samples: how many were counted.
        reference: accuracy of the original.
        new: accuracy of the new model.
        doubt: why the labels say nothing of the original; empty where they do.
    """

    output: str
    samples: int
    reference: float
    new: float
    doubt: str = ""

    @property
    def drop(self) -> float:
        """Points lost, as a fraction."""
        return self.reference - self.new


@dataclass(frozen=True)
class LatencyPair:
    """Time of one inference of both models, run in alternation, in milliseconds."""

    batch: int
    reference_ms: float
    new_ms: float
    reference_median_ms: float
    new_median_ms: float
    spread: float

    @property
    def speedup(self) -> float:
        """Ratio of the best times."""
        return self.reference_ms / self.new_ms

    @property
    def median_speedup(self) -> float:
        """Ratio of the median times."""
        return self.reference_median_ms / self.new_median_ms


@dataclass(frozen=True)
class Validation:
    """All checks of a pair of models.

    Attributes:
        samples: how many were looked at.
        outputs: one check for each output.
        accuracy: by labels; None where there are none, or no output of class scores.
        notes: what a reader should know besides, one sentence each.
        uncounted: why no accuracy was counted by the labels that there are; else empty.
    """

    samples: int
    outputs: tuple[OutputCheck, ...]
    accuracy: Accuracy | None
    notes: tuple[str, ...] = ()
    uncounted: str = ""

    @property
    def drop(self) -> float | None:
        """Accuracy lost where there are labels, else disagreement of the first class scores."""
        if self.accuracy is not None:
            return self.accuracy.drop
        agreements = [o.top1_agreement for o in self.outputs if o.top1_agreement is not None]
        return 1 - agreements[0] if agreements else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data; infinite ratios become None."""
        outputs = [
            {k: None if v == math.inf else v for k, v in asdict(o).items()} for o in self.outputs
        ]
        accuracy = None
        if self.accuracy is not None:
            accuracy = {**asdict(self.accuracy), "drop": self.accuracy.drop}
            del accuracy["doubt"]  # it is among the notes
        return {
            "samples": self.samples,
            "outputs": outputs,
            "accuracy": accuracy,
            "notes": list(self.notes),
        }


class _Tally:
    """Running sums of one output."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.signal = self.noise = self.cosine = self.largest = 0.0
        self.samples = self.hits1 = self.hits5 = 0
        self.scores = True

    def add(self, reference: npt.NDArray[Any], new: npt.NDArray[Any]) -> None:
        if reference.shape != new.shape:
            raise ValidationError(
                f"output {self.name!r} has shape {new.shape}, the reference {reference.shape}"
            )
        if reference.dtype.kind == "f" and not np.isfinite(new[np.isfinite(reference)]).all():
            raise ValidationError(
                f"output {self.name!r} has NaN or Inf where the reference has none"
            )
        samples = max(len(np.atleast_1d(reference)), 1)
        a, b = (_finite(values).reshape(samples, -1) for values in (reference, new))
        self.signal += float(np.sum(a * a))
        self.noise += float(np.sum((b - a) ** 2))
        self.largest = max(self.largest, float(np.max(np.abs(b - a), initial=0.0)))
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        equal = np.all(a == b, axis=1)
        self.cosine += float(
            np.sum(np.where(equal, 1.0, np.sum(a * b, 1) / np.where(norms, norms, 1.0)))
        )
        self.samples += len(a)
        self.scores &= looks_like_scores(reference)
        if self.scores:
            best = a.argmax(1)
            self.hits1 += int(np.sum(b.argmax(1) == best))
            self.hits5 += int(np.sum(top_hits(b, best)))

    def result(self) -> OutputCheck:
        count = max(self.samples, 1)
        relative = math.sqrt(self.noise / self.signal) if self.signal else math.sqrt(self.noise)
        return OutputCheck(
            self.name,
            relative,
            -20 * math.log10(relative) if relative else math.inf,
            self.cosine / count,
            self.largest,
            self.hits1 / count if self.scores else None,
            self.hits5 / count if self.scores else None,
        )


def _finite(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    return np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)


def looks_like_scores(output: npt.NDArray[Any]) -> bool:
    """Whether ``output`` could be one vector of class scores a sample."""
    return (
        output.dtype.kind == "f"
        and output.ndim >= 2
        and output.shape[1] > 1
        and math.prod(output.shape[2:]) == 1
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
) -> Validation:
    """Compare the outputs of two models on ``dataset``, a batch at a time.

    Args:
        reference: the original.
        new: the model to judge.
        dataset: samples, with or without labels.
        runtime: how to run both.
        size: samples of a batch.
        progress: told of every sample.
        labels_are_classes: whether integer labels that are no classes of the output are an error.
            They are none where a metric of the user reads them; no accuracy is counted then.

    Raises:
        DataError: integer labels are not numbers of the output's classes.
        ValidationError: outputs missing, of other shapes, or not finite.
        ModelError: one of the models does not run.
    """
    sessions = (runtime.session(reference, lean=True), runtime.session(new, lean=True))
    missing = set(sessions[0].outputs) - set(sessions[1].outputs)
    if missing:
        raise ValidationError(f"outputs {sorted(missing)} are missing in the new model")
    tallies = {name: _Tally(name) for name in sessions[0].outputs}
    labels = dataset.sample_labels
    scored, classes = "", 0
    found: tuple[list[Classes], list[Classes]] = ([], [])  # classes that both models give
    with (progress or Progress()).task("validate", len(dataset)) as advance:
        for feed in dataset.batches(size):
            both = [s.run(feed, list(tallies)) for s in sessions]
            for name, tally in tallies.items():
                tally.add(np.asarray(both[0][name]), np.asarray(both[1][name]))
            if labels is not None:
                scored = next((n for n in tallies if looks_like_scores(both[0][n])), "")
                if scored:
                    classes = both[0][scored].shape[1]
                    for kept, outputs in zip(found, both, strict=True):
                        scores = outputs[scored]
                        kept.append(scores.reshape(len(scores), -1).argmax(1))
            advance(_samples(dataset, feed))
    accuracy, uncounted = None, ""
    if labels is not None and scored:
        uncounted = no_numbers(labels)
    if labels is not None and scored and not uncounted:
        try:
            accuracy = _accuracy(scored, classes, labels, *map(np.concatenate, found))
        except DataError:
            if labels_are_classes:
                raise
    notes = []
    if uncounted and labels_are_classes:
        notes.append(f"no accuracy was counted: {uncounted}")
    if accuracy is not None and accuracy.doubt:
        notes.append(f"the accuracy says nothing of the models: {accuracy.doubt}")
    checks = tuple(t.result() for t in tallies.values())
    return Validation(len(dataset), checks, accuracy, tuple(notes), uncounted)


def _accuracy(
    output: str,
    classes: int,
    labels: npt.NDArray[Any],
    reference: Classes,
    new: Classes,
) -> Accuracy:
    """Both accuracies, from the classes that both models give each sample."""
    ids, count = class_ids(labels, classes, output, reference), len(reference)
    old, now = (int(np.sum(found == ids)) / count for found in (reference, new))
    return Accuracy(output, count, old, now, doubt(ids, reference))


def check_classes(reference: Model, dataset: Dataset, runtime: Runtime) -> None:
    """Refuse integer labels that are not numbers of the classes that a model has.

    The model runs on one sample, and on all of them only where there is something to refuse.

    Raises:
        DataError: as said.
        ModelError: the model does not run.
    """
    labels, session = dataset.sample_labels, runtime.session(reference, lean=True)
    first = session.run(dataset.feed(0))
    scored = next((n for n, v in first.items() if looks_like_scores(np.asarray(v))), "")
    if labels is None or not scored:
        return
    count = first[scored].shape[1]
    if no_numbers(labels) or (labels.min() >= 0 and labels.max() < count):
        return
    outputs = (session.run(feed, [scored])[scored] for feed in dataset.batches(16))
    predicted = np.concatenate([o.reshape(len(o), -1).argmax(1) for o in outputs])
    class_ids(labels, count, scored, predicted)


def measure_latency(
    reference: Model,
    new: Model,
    feeds: Sequence[tuple[int, Feed]],
    runtime: Runtime,
    seconds: float,
) -> tuple[LatencyPair, ...]:
    """Time both models in alternation on each ``(batch, feed)``, ``seconds`` on each."""
    sessions: list[Session] = [runtime.session(reference), runtime.session(new)]
    pairs = []
    for batch, feed in feeds:
        one, two = interleaved_latency(sessions, feed, seconds=seconds)
        pairs.append(
            LatencyPair(
                batch,
                one.best * 1e3,
                two.best * 1e3,
                one.median * 1e3,
                two.median * 1e3,
                max(one.spread, two.spread),
            )
        )
    return tuple(pairs)


def _samples(dataset: Dataset, feed: Feed) -> int:
    return len(next(iter(feed.values()))) if dataset.batchable else 1


def validate(
    reference: str | os.PathLike[str] | onnx.ModelProto,
    new: str | os.PathLike[str] | onnx.ModelProto,
    data: Any,
    *,
    samples: int | None = None,
    images: ImageOptions | None = None,
    seed: int = 0,
    threads: int = 0,
    provider: str = "CPUExecutionProvider",
    progress: Progress | None = None,
) -> Validation:
    """Compare two models on data, with labelled accuracy where the data has labels.

    Args:
        reference: path or ModelProto of the original.
        new: path or ModelProto of the model to judge.
        data: anything that :func:`onnx_lowrank.calibration.load_dataset` reads; of an archive
            with a held-out part, that part.
        samples: a random subset of so many; all by default.
        images: how pictures become inputs.
        seed: of the subset.
        threads: of ONNX Runtime; 0 leaves the choice to it.
        provider: ONNX Runtime execution provider.
        progress: told of every sample.

    Raises:
        ModelError, DataError, OptionError: as the inputs deserve.
        ValidationError: outputs missing, of other shapes, or not finite.
    """
    models = load(reference), load(new)
    part = HELD_OUT if has_part(data) else None
    dataset = load_dataset(
        data, input_specs(models[0]), samples=samples, seed=seed, images=images, part=part
    )
    return validate_models(*models, dataset, Runtime(provider, threads), progress=progress)
