"""Scorers: how far a model keeps a requirement on some samples, with a confidence interval.

Intervals have a level of 95 %; see :mod:`onnx_lowrank.judge.intervals`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.judge.requirement import Score
from onnx_lowrank.modelfile.model import Model

__all__ = ["Scorer"]

Array = npt.NDArray[Any]


class Scorer(ABC):
    """Scores models by one requirement on some samples."""

    @property
    def answers(self) -> tuple[Array, Array]:
        """Class numbers ``(samples,)`` by the labels and by the original; empty if not needed."""
        return np.zeros(0, np.int64), np.zeros(0, np.intp)

    @property
    def expects(self) -> bool:
        """Whether drops of accuracy are estimated by probabilities, not counted."""
        return False

    @abstractmethod
    def score(self, model: Model) -> Score:
        """Score ``model`` against the original.

        Raises:
            ValidationError: an output has another shape than the original's.
        """
