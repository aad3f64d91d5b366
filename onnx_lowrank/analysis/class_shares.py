"""Class shares: the mean probability of every class, streamed from class scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.linalg.output_metric import OutputMetric, interpolated

__all__ = ["ClassShares"]

Array = npt.NDArray[np.floating[Any]]

#: number of rows of scores that shares are made of, over all samples
ROWS = 16_384
#: largest number of scores at a time, for the memory of their exponentials
_AT_A_TIME = 4 << 20


class ClassShares:
    """Streams scores into the mean of their softmax, over two halves of the samples.

    The sums of a shard of the samples are added up apart, so that those which were read elsewhere
    add up to the same.

    Args:
        classes: number of classes.
        axis: axis of the classes.
        samples: number of samples to come.
    """

    def __init__(self, classes: int, axis: int, samples: int) -> None:
        self._axis, self._samples = axis, samples
        self._sums = np.zeros((2, classes))
        self._rows = np.zeros(2, np.int64)
        self._part = self._empty()

    def _empty(self) -> dict[str, npt.NDArray[Any]]:
        """The sums and rows of a shard of which nothing has been read."""
        return {"sums": np.zeros_like(self._sums), "rows": np.zeros_like(self._rows)}

    def update(self, scores: Array, count: int, number: int = 0) -> None:
        """Add the scores of a batch.

        Args:
            scores: tensor with the classes along the axis.
            count: number of samples in it.
            number: of the batch.
        """
        rows = np.moveaxis(scores, self._axis, -1)
        rows = rows.reshape(-1, rows.shape[-1])
        wanted = math.ceil(ROWS * count / self._samples)
        rows = rows[:: max(len(rows) // wanted, 1)]
        # samples follow one another: the first part of a batch and the second have none in common,
        # nor have batches of which one row is read
        middle = len(rows) // 2 if len(rows) > 1 else 1 - number % 2
        for half, part in enumerate((rows[:middle], rows[middle:])):
            step = max(_AT_A_TIME // rows.shape[1], 1)
            for start in range(0, len(part), step):
                self._add(half, part[start : start + step])

    def _add(self, half: int, rows: Array) -> None:
        rows = rows[np.isfinite(rows).all(axis=1)].astype(np.float32, copy=False)
        if not len(rows):
            return
        found = np.exp(rows - rows.max(axis=1, keepdims=True))
        found /= found.sum(axis=1, keepdims=True)
        self._part["sums"][half] += found.sum(axis=0, dtype=np.float64)
        self._part["rows"][half] += len(rows)

    def end_shard(self) -> None:
        """Add what was read of a shard to the rest."""
        part, self._part = self._part, self._empty()
        self.add_shard(part)

    def shard(self) -> dict[str, npt.NDArray[Any]]:
        """All that was read, for :meth:`add_shard`; the shard has ended before."""
        return {"sums": self._sums, "rows": self._rows}

    def add_shard(self, shard: Mapping[str, npt.NDArray[Any]]) -> None:
        """Add what was read of a shard, here or elsewhere."""
        self._sums = self._sums + shard["sums"]
        self._rows = self._rows + shard["rows"]

    def metric(self) -> OutputMetric | None:
        """The metric of the scores; None where both halves do not have numbers."""
        self.end_shard()
        if not self._rows.all():
            return None
        first, second = self._sums / self._rows[:, None]
        return OutputMetric(interpolated(first, second, int(self._rows.sum())))

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """The sums so far, to be written down."""
        part = {f"part.{name}": values for name, values in self._part.items()}
        return {"sums": self._sums, "rows": self._rows, **part}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from a :meth:`state`.

        Raises:
            KeyError, ValueError: the state is of other scores.
        """
        for name, present in self.state().items():
            if state[name].shape != present.shape:
                raise ValueError(f"{name} {state[name].shape} for {present.shape}")
        self._sums, self._rows = state["sums"].copy(), state["rows"].copy()
        self._part = {name: state[f"part.{name}"].copy() for name in self._part}
