"""Stream calibration samples through the model and into the moments of its layers."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import numpy.typing as npt

from onnx_lowrank.analysis.moment_cache import MomentCache
from onnx_lowrank.analysis.moment_store import MomentStore
from onnx_lowrank.analysis.reader import InputGroup, Reader, batch_size, input_groups, shard_size
from onnx_lowrank.analysis.shards import Shard, ShardedModel, read_shard
from onnx_lowrank.analysis.streaming import Streaming
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import Head, PlacedLayer
from onnx_lowrank.runtime.session import Feed
from onnx_lowrank.runtime.workers import Workers
from onnx_lowrank.samples.dataset import Dataset

__all__ = ["NO_HEADS", "collect_moments"]

#: a model without class scores
NO_HEADS: Mapping[str, Head] = MappingProxyType({})


def collect_moments(
    graph: Graph,
    layers: Sequence[PlacedLayer],
    dataset: Dataset,
    shapes: Mapping[str, tuple[int, ...]],
    streaming: Streaming,
    *,
    cache: MomentCache | None = None,
    heads: Mapping[str, Head] = NO_HEADS,
) -> MomentStore:
    """Moments of the inputs of ``layers``, and the variance of the residual sums that they enter.

    They are the same to the last bit with workers, whatever their number, and without.

    Args:
        graph: the model.
        layers: whose inputs to read.
        dataset: calibration samples; peak memory does not grow with their number.
        shapes: of tensors at one sample.
        streaming: how to run the model over them, and who does.
        cache: what an interrupted run has done of it, and this one does.
        heads: class scores that layers make, by layer name, for the metrics of their outputs.

    Raises:
        ModelError: the model cannot be run, or sent to workers.
    """
    # few are needed at a time, and what is read of a file again is mostly in the page cache
    store = MomentStore(streaming.memory // 8)
    groups = input_groups(graph, layers, heads, streaming.memory)
    collections = (
        _Collection(number, group, dataset, shapes, streaming, cache)
        for number, group in enumerate(groups)
    )
    with streaming.progress.task("calibrate", len(groups) * len(dataset)) as advance:
        if streaming.workers is None:
            done = _here(collections, store)
        else:
            sharded = ShardedModel(
                graph.model.portable, [layer.name for layer in layers], dict(heads), len(dataset),
                streaming.memory, streaming.seed, streaming.runtime, dataset.mask,
            )  # fmt: skip
            done = _shared_out(collections, store, sharded, streaming.workers)
        with closing(done):
            for samples in done:
                advance(samples)
    return store


class _Collection:
    """The samples of one group of inputs: how they are cut, and how many have been read.

    Attributes:
        reader: sums over what has been read.
        done: number of samples that have been read, also by a run that was interrupted.
    """

    def __init__(
        self,
        number: int,
        group: InputGroup,
        dataset: Dataset,
        shapes: Mapping[str, tuple[int, ...]],
        streaming: Streaming,
        cache: MomentCache | None,
    ) -> None:
        self._number, self._group = number, group
        self._dataset, self._cache, self._runtime = dataset, cache, streaming.runtime
        begin = partial(Reader, group, [streaming.seed, number], len(dataset), mask=dataset.mask)
        self.reader, self.done = begin(), 0
        state = cache.read(number) if cache is not None else None
        if state is not None:
            try:
                self.done = self.reader.restore(state)
            except (KeyError, ValueError, TypeError):  # it is of something else
                self.reader = begin()
        if cache is not None:
            cache.resumed += self.done
        size = batch_size(group.tensors, shapes, streaming.memory // 4)
        self._batch = size if dataset.batchable else 1
        self._shard = shard_size(len(dataset), self._batch)

    @property
    def begun(self) -> bool:
        """Whether a shard has been read in part."""
        return self.done < len(self._dataset) and self.done % self._shard > 0

    def left(self) -> list[tuple[int, int]]:
        """The first sample of each shard that is left, and the sample behind its last."""
        total, starts = len(self._dataset), [self.done]
        starts += range((self.done // self._shard + 1) * self._shard, total, self._shard)
        return list(pairwise([*starts, total])) if self.done < total else []

    def read(self, shards: Sequence[tuple[int, int]]) -> Iterator[int]:
        """Read shards; the number of samples in each batch."""
        if not shards:
            return
        session = self._group.session(self._runtime)
        for start, end in shards:
            for feed, samples in self._batches(start, end):
                self.reader.run(session, feed, self.done // self._batch, samples)
                self.done += samples
                if self.done == end:
                    self.reader.end_shard()
                yield samples
                self._keep()

    def shard(self, start: int, end: int) -> Shard:
        """A shard to be read elsewhere."""
        return Shard(self._number, start // self._batch, list(self._batches(start, end)))

    def add(self, shard: Mapping[str, npt.NDArray[Any]], end: int) -> Iterator[int]:
        """Add the next shard, which was read elsewhere; the number of samples in it."""
        samples, self.done = end - self.done, end
        self.reader.add_shard(shard)
        yield samples
        self._keep()

    def _batches(self, start: int, end: int) -> Iterator[tuple[Feed, int]]:
        """The inputs of some samples in batches, and the number of samples in each."""
        for feed in self._dataset.subset(range(start, end)).batches(self._batch):
            yield feed, len(next(iter(feed.values()))) if self._dataset.batchable else 1

    def _keep(self) -> None:
        """Write down what has been done, where that is worth it."""
        if self._cache is not None:
            self._cache.write(self._number, partial(self.reader.state, self.done))


def _here(collections: Iterable[_Collection], store: MomentStore) -> Generator[int, None, None]:
    """Read all samples; yield their numbers as they are done."""
    for collection in collections:
        yield collection.done
        yield from collection.read(collection.left())
        collection.reader.finish(store)


def _shared_out(
    collections: Iterable[_Collection],
    store: MomentStore,
    sharded: ShardedModel,
    workers: Workers,
) -> Generator[int, None, None]:
    """Let workers read all samples; yield their numbers as they are done."""
    # shards that are being read with the sample behind their last, and what ends groups
    awaited: deque[tuple[_Collection, int | None]] = deque()
    here: list[int] = []

    def shards() -> Iterator[Shard]:
        for collection in collections:
            here.append(collection.done)
            if collection.begun:
                here.extend(collection.read(collection.left()[:1]))
            for start, end in collection.left():
                awaited.append((collection, end))
                yield collection.shard(start, end)
            awaited.append((collection, None))

    def done() -> Iterator[int]:
        yield from here
        here.clear()
        while awaited and awaited[0][1] is None:
            awaited.popleft()[0].reader.finish(store)

    with closing(workers.answers(read_shard, sharded, shards())) as answers:
        for answer in answers:
            yield from done()
            collection, end = awaited.popleft()
            assert end is not None
            yield from collection.add(answer, end)
    yield from done()
