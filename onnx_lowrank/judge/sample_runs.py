"""Runs of two models on the same samples, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy.typing as npt

from onnx_lowrank.judge.observation import Observer, by_sample, each_sample
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.runtime.runtime import Runtime
from onnx_lowrank.runtime.session import Feed, Session
from onnx_lowrank.samples.dataset import Dataset

__all__ = ["SampleRuns"]

Array = npt.NDArray[Any]


class SampleRuns:
    """Runs the original and compressed models on the same samples.

    Attributes:
        data: the samples.
        observer: runs models for the tensors that can be compared.
        reference: the original, opened.

    Args:
        reference: the original.
        data: the samples.
        runtime: runs the models.
        size: number of samples in a batch.
    """

    def __init__(self, reference: Model, data: Dataset, runtime: Runtime, size: int) -> None:
        self.data = data
        self.observer = Observer(reference, data, runtime, size)
        self.reference = self.observer.session(reference)
        self._size = size

    def first(self) -> tuple[dict[str, list[Array]], int]:
        """What the original gives for the first batch, and the number of samples in it.

        Where an array has no axis of samples, samples are run one at a time from now on.
        """
        feed = next(self.data.batches(self._size))
        found, count = self.observer.run(self.reference, feed), self.data.samples_in(feed)
        if not all(by_sample(a, count) for arrays in found.values() for a in arrays):
            self._size = 1
        return found, count

    def feeds(self) -> Iterator[tuple[Feed, int]]:
        """Yield the batches, each with its number of samples."""
        for feed in self.data.batches(self._size):
            yield feed, self.data.samples_in(feed)

    def compared(self, session: Session) -> Iterator[dict[str, list[Array]]]:
        """Yield the arrays to compare, batch by batch, samples along axis 0."""
        for feed, count in self.feeds():
            yield {
                n: [each_sample(a, count) for a in arrays]
                for n, arrays in self.observer.run(session, feed).items()
            }
