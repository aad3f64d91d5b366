"""Drop of a metric of the user: its value for the original minus that for a compressed model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.errors import DataError
from onnx_lowrank.judge.intervals import bootstrap
from onnx_lowrank.judge.observation import each_sample
from onnx_lowrank.judge.requirement import Metric, Score
from onnx_lowrank.judge.sample_runs import SampleRuns
from onnx_lowrank.judge.scorer import Scorer
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.runtime.outputs import arrays_of
from onnx_lowrank.runtime.session import Session
from onnx_lowrank.samples.user_code import takes

__all__ = ["MetricScorer"]

Array = npt.NDArray[Any]


class MetricScorer(Scorer):
    """Scores models by how far a metric drops.

    Args:
        runs: runs the original and the models.
        metric: the user's; higher values are better.
        outputs: names of the outputs of the original, which it is given.
    """

    def __init__(self, runs: SampleRuns, metric: Metric, outputs: list[str]) -> None:
        self._runs, self._metric, self._names = runs, metric, outputs
        runs.first()
        self._before = self._outputs(runs.reference)
        self._inputs = self._feeds() if takes(metric, "inputs") else None

    def score(self, model: Model) -> Score:
        """Score ``model`` against the original.

        Raises:
            DataError: the metric fails, or gives no number for the original.
        """
        after = self._outputs(self._runs.observer.session(model))
        labels = self._runs.data.sample_labels
        count = len(next(iter(self._before.values())))

        def drop(index: npt.NDArray[np.intp]) -> float:
            chosen = None if labels is None else labels[index]
            fed = None if self._inputs is None else _rows(self._inputs, index)
            old, new = (
                _value(self._metric, _rows(o, index), chosen, fed) for o in (self._before, after)
            )
            return math.inf if math.isfinite(old) and not math.isfinite(new) else old - new

        value = drop(np.arange(count))
        interval = bootstrap(drop, value, count)
        if math.isnan(value):
            raise DataError(
                "the metric gives NaN or infinity for the original; mend the metric, or give other "
                "samples"
            )
        return Score(value, *interval, count)

    def _outputs(self, session: Session) -> dict[str, Array]:
        """All outputs by name, samples along axis 0."""
        return _joined("output", self._batches(session))

    def _batches(self, session: Session) -> Iterator[dict[str, Array]]:
        for feed, count in self._runs.feeds():
            values = session.run(feed, self._names)
            yield {
                name if i == 0 else f"{name}[{i}]": each_sample(array, count)
                for name, value in values.items()
                for i, array in enumerate(arrays_of(value))
            }

    def _feeds(self) -> dict[str, Array]:
        """All inputs by name, samples along axis 0."""
        return _joined(
            "input",
            (
                {name: each_sample(np.asarray(value), count) for name, value in feed.items()}
                for feed, count in self._runs.feeds()
            ),
        )


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
