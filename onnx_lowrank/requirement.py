"""What a compressed model must keep, and how surely it does on some samples.

    drop        points of labelled accuracy, or of the user's own metric, that may be lost
    agreement   part of samples whose first class must stay what it was
    snr         of all outputs against the original's, in dB

Intervals hold 95 % of cases: of a drop by the differences of both models on the same samples, of an
agreement by Wilson's, of the rest by drawing the samples again.

Reference:
    Wilson 1927, Probable inference; Efron 1979, Bootstrap methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.calibration import Dataset
from onnx_lowrank.errors import DataError, OptionError
from onnx_lowrank.model import Model
from onnx_lowrank.runtime import Runtime
from onnx_lowrank.validate import looks_like_scores

__all__ = ["Judge", "Metric", "Requirement", "Score"]

Array = npt.NDArray[Any]

#: the user's own: outputs by name, labels or None; higher is better
Metric = Callable[[Mapping[str, Array], Array | None], float]

_NORMAL = 1.959964  # of 95 %
_DRAWS = 200


@dataclass(frozen=True)
class Requirement:
    """A bound on what may be lost.

    Attributes:
        kind: ``drop | agreement | snr``.
        bound: largest drop, least agreement, least dB.
        metric: in place of labelled accuracy, for ``drop``.
    """

    kind: str
    bound: float
    metric: Metric | None = None

    @classmethod
    def of(
        cls,
        max_drop: float | None,
        min_agreement: float | None,
        min_snr: float | None,
        metric: Metric | None = None,
    ) -> Requirement | None:
        """The one that is asked for; None where none is.

        Raises:
            OptionError: more than one, a bound out of range, or a metric without a drop.
        """
        asked = [
            (kind, bound)
            for kind, bound in (
                ("drop", max_drop), ("agreement", min_agreement), ("snr", min_snr)
            )
            if bound is not None
        ]  # fmt: skip
        if len(asked) > 1:
            raise OptionError(f"{' and '.join(k for k, _ in asked)} at once; give one of them")
        if metric is not None and (not asked or asked[0][0] != "drop"):
            raise OptionError("a metric goes with the largest drop of it that is borne")
        if not asked:
            return None
        kind, bound = asked[0]
        largest = math.inf if kind == "snr" or metric is not None else 1.0
        if not (math.isfinite(bound) and 0 <= bound <= largest):
            raise OptionError(f"{kind} of {bound:g}: a part between 0 and 1 (or dB) is wanted")
        return cls(kind, bound, metric)

    def holds(self, value: float) -> bool:
        """Whether a score is within the bound."""
        return value <= self.bound + 1e-12 if self.kind == "drop" else value >= self.bound - 1e-12

    def __str__(self) -> str:
        if self.kind == "snr":
            return f"an SNR of {self.bound:g} dB at least"
        if self.kind == "agreement":
            return f"the same first class for {self.bound:.2%} at least"
        unit = f"{self.bound:g} of the metric" if self.metric else f"{self.bound * 100:g} points"
        return f"a drop of {unit} at most"


@dataclass(frozen=True)
class Score:
    """What a model reaches on some samples, with its interval."""

    value: float
    low: float
    high: float
    samples: int

    def text(self, requirement: Requirement) -> str:
        """For people."""
        scale, unit = {"drop": (100, " points"), "agreement": (100, " %"), "snr": (1, " dB")}[
            requirement.kind
        ]
        if requirement.metric is not None:
            scale, unit = 1, ""
        low, high, value = (scale * x for x in (self.low, self.high, self.value))
        return f"{value:.2f}{unit} [{low:.2f}, {high:.2f}] on {self.samples} samples"


class Judge:
    """Scores models against the original on some samples.

    Args:
        reference: the original.
        data: samples, with labels where the requirement needs them.
        runtime: how to run.
        requirement: what is asked.
        size: samples at a time.

    Raises:
        DataError: there are no labels, or no output of class scores.
    """

    def __init__(
        self,
        reference: Model,
        data: Dataset,
        runtime: Runtime,
        requirement: Requirement,
        size: int,
    ) -> None:
        self._data, self._runtime, self._requirement = data, runtime, requirement
        self._size, self._reference = size, reference
        needs_labels = requirement.kind == "drop" and requirement.metric is None
        if needs_labels and data.labels is None:
            raise DataError(
                "a drop of accuracy needs labels in the data (<input> and labels, or "
                "test.labels), or a metric; without them ask for an agreement"
            )
        self._before = self._outputs(reference)

    def score(self, model: Model) -> Score:
        """How ``model`` compares."""
        after = self._outputs(model)
        if self._requirement.kind == "snr":
            return self._snr(after)
        if self._requirement.metric is not None:
            return self._own(after, self._requirement.metric)
        name = next((n for n, v in self._before.items() if looks_like_scores(v)), None)
        if name is None:
            raise DataError(
                "no output is a vector of class scores; ask for an SNR, or give a metric"
            )
        first, now = (
            o[name].reshape(len(o[name]), -1).argmax(axis=1) for o in (self._before, after)
        )
        if self._requirement.kind == "agreement":
            return _wilson(first == now)
        assert self._data.labels is not None
        labels = self._data.labels.reshape(-1)
        lost = (first == labels).astype(float) - (now == labels)
        half = _NORMAL * float(lost.std()) / math.sqrt(len(lost))
        mean = float(lost.mean())
        return Score(mean, mean - half, mean + half, len(lost))

    def _outputs(self, model: Model) -> dict[str, Array]:
        session = self._runtime.session(model, lean=True)
        found: dict[str, list[Array]] = {}
        for feed in self._data.batches(self._size):
            for name, value in session.run(feed).items():
                found.setdefault(name, []).append(np.atleast_1d(value))
        return {name: np.concatenate(values) for name, values in found.items()}

    def _snr(self, after: Mapping[str, Array]) -> Score:
        count = min(len(v) for v in self._before.values())
        signal, noise = np.zeros(count), np.zeros(count)
        for name, value in self._before.items():
            a, b = (np.nan_to_num(v[:count].astype(float).reshape(count, -1))
                    for v in (value, after[name]))  # fmt: skip
            signal += np.sum(a * a, axis=1)
            noise += np.sum((a - b) ** 2, axis=1)

        def decibel(index: npt.NDArray[np.intp]) -> float:
            lost = float(noise[index].sum())
            return 10 * math.log10(float(signal[index].sum()) / lost) if lost else math.inf

        return _drawn(decibel, count)

    def _own(self, after: Mapping[str, Array], metric: Metric) -> Score:
        labels, count = self._data.labels, len(next(iter(self._before.values())))

        def drop(index: npt.NDArray[np.intp]) -> float:
            chosen = None if labels is None else labels.reshape(-1)[index]
            old, new = (
                float(metric({n: v[index] for n, v in o.items()}, chosen))
                for o in (self._before, after)
            )
            return old - new

        return _drawn(drop, count)


def _wilson(same: npt.NDArray[np.bool_]) -> Score:
    n, p, z = len(same), float(same.mean()), _NORMAL
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Score(p, centre - half, centre + half, n)


def _drawn(statistic: Callable[[npt.NDArray[np.intp]], float], count: int) -> Score:
    random = np.random.default_rng(0)
    draws = [statistic(random.integers(0, count, count)) for _ in range(_DRAWS)]
    low, high = np.percentile(draws, [2.5, 97.5])
    return Score(statistic(np.arange(count)), float(low), float(high), count)
