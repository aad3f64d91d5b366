"""Class shares: the mean probability of every class, streamed from class scores."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.analysis.sharded_sums import ShardedSums
from onnx_lowrank.linalg.output_metric import OutputMetric, interpolated

__all__ = ["ClassShares"]

Array = npt.NDArray[np.floating[Any]]

#: number of rows of scores that shares are made of, over all samples
ROWS = 16_384
#: largest number of scores at a time, for the memory of their exponentials
_AT_A_TIME = 4 << 20


class ClassShares:
    """Streams scores into the mean of their softmax, over two halves of the samples.

    Args:
        classes: number of classes.
        axis: axis of the classes.
        samples: number of samples to come.

    Attributes:
        sums: what has been read, shard by shard.
    """

    def __init__(self, classes: int, axis: int, samples: int) -> None:
        self._axis, self._samples = axis, samples
        self.sums = ShardedSums((2, classes), (2,))

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
        self.sums.add(found.sum(axis=0, dtype=np.float64), half)
        self.sums.count(len(rows), half)

    def metric(self) -> OutputMetric | None:
        """The metric of the scores; None where both halves do not have numbers."""
        sums, rows = self.sums.total()
        if not rows.all():
            return None
        first, second = sums / rows[:, None]
        return OutputMetric(interpolated(first, second, int(rows.sum())))
