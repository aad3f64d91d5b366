"""Prediction of the times of chains that were not measured, from those that were.

    t(chain) = (a workload + b moved + c relayout + d nodes) * exp(r(workload)),    a, b, c, d >= 0

with the features of :mod:`onnx_lowrank.analysis.time_model`. The rates a to d are fitted to the
measured chains of one place, in relative error; r is the residual (a logarithm) of the measured
chains of the same form, interpolated between their workloads. So measured chains are met exactly,
and the others lie between their neighbours as the model does.

Reference:
    Lawson & Hanson 1974, Solving least squares problems (non-negative least squares).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from onnx_lowrank.analysis.time_model import Features

__all__ = ["Fit", "Sample"]

Array = npt.NDArray[np.floating[Any]]

#: number of measured chains from which on the rates are fitted to one place alone
_ENOUGH = 6


@dataclass(frozen=True)
class Sample:
    """A measured chain: its form, its features, and its time in seconds."""

    form: str
    features: Features
    seconds: float


class Fit:
    """Predicted times of the chains of one place.

    Args:
        samples: measured chains of the place.
        elsewhere: measured chains of other places, used where the place has few of its own.
    """

    def __init__(self, samples: Sequence[Sample], elsewhere: Sequence[Sample] = ()) -> None:
        basis = samples if len(samples) >= _ENOUGH else [*samples, *elsewhere]
        self._rates = _rates(basis)
        self._forms: dict[str, dict[float, list[float]]] = {}
        left = []
        for sample in samples:
            rest = math.log(sample.seconds / self._model(sample.features))
            left.append(rest)
            self._forms.setdefault(sample.form, {}).setdefault(sample.features[0], []).append(rest)
        self._usual = float(np.median(left)) if left else 0.0

    def seconds(self, form: str, about: Features) -> float:
        """Predict the time in seconds of a chain.

        Args:
            form: form of the chain, from :func:`onnx_lowrank.analysis.time_model.form_of`.
            about: features of the chain.
        """
        points = sorted(self._forms.get(form, {}).items())
        if not points:
            return self._model(about) * math.exp(self._usual)
        workloads, rests = [p[0] for p in points], [float(np.mean(p[1])) for p in points]
        return self._model(about) * math.exp(float(np.interp(about[0], workloads, rests)))

    def _model(self, about: Features) -> float:
        return max(float(self._rates @ np.array(about)), 1e-12)


def _rates(samples: Sequence[Sample]) -> Array:
    """Seconds for a unit of each feature, ``(4,)``, by least squares of the relative error."""
    seconds = np.array([s.seconds for s in samples])
    rows = np.array([s.features for s in samples]) / seconds[:, None]
    scale = np.maximum(rows.max(axis=0), 1e-300)
    solution, _ = nnls(rows / scale, np.ones(len(samples)))
    rates: Array = solution / scale
    return rates
