"""Comparison of a model's outputs with the original's: losses and figures, sample by sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.errors import DataError, ValidationError
from onnx_lowrank.judge.answers import Figures, changes, figures_of
from onnx_lowrank.judge.measures import Scale
from onnx_lowrank.judge.reading import Reading
from onnx_lowrank.judge.verdict import Estimate, ReadingVerdict, Verdict, estimated, verdict_on
from onnx_lowrank.runtime.outputs import Values
from onnx_lowrank.runtime.session import Feed
from onnx_lowrank.samples.user_code import user_code

__all__ = ["Comparison", "Loss", "Pair"]

Array = npt.NDArray[Any]
#: A loss of the user: a function of the original's outputs, the new ones and the inputs of some
#: samples, each by name; lower is better, 0 is the original.
Loss = Callable[[Mapping[str, Array], Mapping[str, Array], Mapping[str, Array]], float]


@dataclass(frozen=True)
class Pair:
    """Outputs of both models on some samples, with samples along axis 0.

    Attributes:
        feed: the inputs.
        count: number of samples.
        old: arrays of each tensor of the original, by name.
        new: those of the new model.
    """

    feed: Feed
    count: int
    old: Values
    new: Values


class Comparison:
    """Losses and figures of a model, sample by sample.

    Args:
        scales: readings, and what their losses are divided by.
        loose: tensors that may have another shape in a correct model.
        function: a loss of the user's in the place of all.
    """

    def __init__(
        self, scales: Sequence[Scale], loose: frozenset[str], function: Loss | None
    ) -> None:
        self._scales, self._loose, self._function = scales, loose, function
        self._losses: list[list[npt.NDArray[np.float64]]] = [[] for _ in scales]
        self._divergences: list[list[npt.NDArray[np.float64]]] = [[] for _ in scales]
        self._figures = [Figures() for _ in scales]
        self._own: list[npt.NDArray[np.float64]] = []
        self._samples = 0
        self._changed: list[float] = []
        self._answered = 0

    def add(self, pair: Pair) -> None:
        """Add the losses and figures of some samples.

        Raises:
            ValidationError: an output has another shape than the original's.
        """
        self.add_losses(pair)
        for scale, figures in zip(self._scales, self._figures, strict=True):
            both = self._both(scale.reading, pair)
            if both is not None:
                figures_of(scale.reading, *both, figures)

    def add_losses(self, pair: Pair) -> None:
        """Add the losses of some samples.

        Raises:
            ValidationError: an output has another shape than the original's.
        """
        self._samples += pair.count
        for scale, found, apart in zip(self._scales, self._losses, self._divergences, strict=True):
            both = self._both(scale.reading, pair)
            apart.append(np.ones(pair.count) if both is None else scale.divergences(*both))
            changed = None if both is None else changes(scale.reading, *both)
            found.append(apart[-1] if changed is None else (apart[-1] + changed) / 2)
            if changed is not None:
                self._changed.append(float(np.sum(changed)))
                self._answered += pair.count
        if self._function is not None:
            self._own.append(np.full(pair.count, _of_user(self._function, pair)))

    @property
    def loss(self) -> Estimate:
        """Mean loss so far, with its interval."""
        return self._mean_over(self._losses)

    @property
    def losses(self) -> npt.NDArray[np.float64]:
        """Loss of each sample so far, mean over the readings, ``(samples,)``."""
        every = [np.concatenate(found) for found in self._losses if found]
        return np.mean(every, axis=0) if every else np.zeros(self._samples)

    @property
    def changed(self) -> float:
        """Part of the answers so far that changed; 0 where outputs give none."""
        return math.fsum(self._changed) / self._answered if self._answered else 0.0

    @property
    def divergence(self) -> Estimate:
        """Mean divergence so far; the loss where a function of the user's gives it."""
        return self._mean_over(self._divergences)

    def verdict(self) -> Verdict:
        """What there is to be said."""
        readings: list[ReadingVerdict] = [
            verdict_on(scale.reading, np.concatenate(found), figures)
            for scale, found, figures in zip(self._scales, self._losses, self._figures, strict=True)
            if found
        ]
        return Verdict(self._samples, self.loss, tuple(readings))

    def _mean_over(self, parts: Sequence[Sequence[npt.NDArray[np.float64]]]) -> Estimate:
        """Mean over all readings and samples."""
        if self._own:
            return estimated(np.concatenate(self._own))
        every = [np.concatenate(found) for found in parts if found]
        return estimated(np.mean(every, axis=0) if every else np.zeros(0))

    def _both(self, reading: Reading, pair: Pair) -> tuple[Array, Array] | None:
        """The arrays of a reading; None where their shapes differ and may."""
        old, new = pair.old[reading.output], pair.new.get(reading.output, ())
        shapes = [[a.shape for a in v] for v in (old, new)]
        if shapes[0] == shapes[1]:
            return old[reading.index], new[reading.index]
        if reading.output in self._loose:
            return None
        if not new:  # a tensor in front of an output, which the new model need not have
            return None
        one, other = (s[0][1:] if len(s) == 1 else s for s in shapes)
        raise ValidationError(
            f"output {reading.output!r} has the shape {other} a sample, and the original's has "
            f"{one}"
        )


def _of_user(function: Loss, pair: Pair) -> float:
    old, new = (
        {name: v[0] if len(v) == 1 else np.asarray(v) for name, v in values.items() if len(v)}
        for values in (pair.old, pair.new)
    )
    with user_code("the function of --judge"):
        found = float(function(old, new, dict(pair.feed)))
    if math.isnan(found):
        raise DataError(
            "the function of --judge gave NaN; let it return a number, infinity for the worst"
        )
    return found
