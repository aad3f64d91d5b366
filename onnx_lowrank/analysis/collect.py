"""Stream calibration samples through the model and into the moments of its layers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from onnx_lowrank.analysis.moment_cache import MomentCache
from onnx_lowrank.analysis.moments import Accumulator, Moments, Spread
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import PlacedLayer, destination
from onnx_lowrank.linalg.blas_threads import blas_for
from onnx_lowrank.modelfile.array_store import ArrayStore, Slot
from onnx_lowrank.progress import Progress
from onnx_lowrank.runtime.runtime import Runtime
from onnx_lowrank.samples.dataset import Dataset

__all__ = ["MomentStore", "batch_size", "collect_moments", "drawn_positions"]

#: rows that a covariance is made of: enough for any layer, and so many times its width
LEAST_ROWS, ROWS_PER_COLUMN = 100_000, 16
LARGEST_BATCH = 32

#: an array of moments, as its store gave it out
_Stored: TypeAlias = npt.NDArray[Any] | Slot | None


class MomentStore(Mapping[str, Moments]):
    """Moments by layer name; beyond ``memory`` bytes they wait on disk.

    Args:
        memory: bytes to hold.
    """

    def __init__(self, memory: int = 0) -> None:
        #: variance, summed over channels, of the tensor that each layer's response ends up in
        self.totals: dict[str, float] = {}
        #: layers that the data says nothing of
        self.silent: set[str] = set()
        self._arrays = ArrayStore("the moments of the layers", memory)
        self._found: dict[str, tuple[int, _Stored, _Stored]] = {}

    def add(self, name: str, moments: Moments) -> None:
        """Take the moments of one layer.

        Raises:
            DataError: they have to wait on disk, and it is full.
        """
        mean, covariance = (
            None if a is None else self._arrays.add(a) for a in (moments.mean, moments.covariance)
        )
        self._found[name] = moments.count, mean, covariance

    def __getitem__(self, name: str) -> Moments:
        count, *stored = self._found[name]
        mean, covariance = (None if s is None else self._arrays.read(s) for s in stored)
        return Moments(count, mean, covariance)

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def collect_moments(
    graph: Graph,
    layers: Sequence[PlacedLayer],
    dataset: Dataset,
    runtime: Runtime,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    seed: int,
    memory: int,
    progress: Progress,
    cache: MomentCache | None = None,
) -> MomentStore:
    """Moments of the inputs of ``layers``, and the variance of what they end up in.

    Args:
        graph: the model.
        layers: whose inputs to read.
        dataset: calibration samples.
        runtime: how to run the model.
        shapes: of tensors at one sample.
        seed: of the positions that are drawn where a sample has many.
        memory: bytes for accumulators and captured activations at a time; where they need
            more, the data is read several times. Peak memory does not grow with the samples.
        progress: is told of every sample.
        cache: what an interrupted run has done of it, and this one does.
    """
    store = MomentStore(memory)
    groups = list(_grouped(layers, memory // 2))
    with progress.task("calibrate", len(groups) * len(dataset)) as advance:
        for number, group in enumerate(groups):
            begin = partial(_Reader, graph, group, [seed, number], len(dataset))
            reader, done = _resumed(begin, cache.read(number) if cache is not None else None)
            size = batch_size(reader.tensors, shapes, memory // 4)
            if cache is not None:
                cache.resumed += done
            advance(done)
            if done < len(dataset):
                session = runtime.session(reader.part, lean=True)
                rest = dataset.subset(range(done, len(dataset)))
                for feed in rest.batches(size):
                    reader.read({**feed, **session.run(feed)})
                    more = len(next(iter(feed.values()))) if dataset.batchable else 1
                    done += more
                    advance(more)
                    if cache is not None:
                        cache.write(number, partial(reader.state, done))
            reader.finish(store)
    return store


def batch_size(tensors: Sequence[str], shapes: Mapping[str, tuple[int, ...]], memory: int) -> int:
    """Samples at a time so that float32 copies of ``tensors`` fit in ``memory`` bytes."""
    sample = sum(4 * math.prod(shapes.get(t, ())) for t in tensors)
    return max(1, min(LARGEST_BATCH, memory // max(sample, 1)))


def drawn_positions(
    positions: int, width: int, samples: int, rng: np.random.Generator
) -> np.ndarray[tuple[int], np.dtype[np.intp]] | None:
    """Output positions to read in each sample; None for all of them."""
    rows = max(LEAST_ROWS, ROWS_PER_COLUMN * width)
    wanted = math.ceil(rows / samples)
    if wanted >= positions:
        return None
    return np.sort(rng.choice(positions, wanted, replace=False)).astype(np.intp)


def _grouped(layers: Sequence[PlacedLayer], memory: int) -> Iterator[list[PlacedLayer]]:
    group: list[PlacedLayer] = []
    held = 0
    for layer in layers:
        need = 12 * layer.groups * layer.patch**2  # the sums, and rows that wait
        if group and held + need > memory:
            yield group
            group, held = [], 0
        group.append(layer)
        held += need
    if group:
        yield group


def _resumed(
    begin: Callable[[], _Reader], state: Mapping[str, npt.NDArray[Any]] | None
) -> tuple[_Reader, int]:
    """A reader and the samples that it has seen: those of ``state``, if that is of its kind."""
    reader = begin()
    if state is None:
        return reader, 0
    try:
        return reader, reader.restore(state)
    except (KeyError, ValueError, TypeError):
        return begin(), 0


class _Reader:
    """Accumulators of a group of layers, and the part of the model that feeds them."""

    def __init__(
        self, graph: Graph, layers: Sequence[PlacedLayer], seed: Sequence[int], samples: int
    ) -> None:
        self._layers, self._samples = layers, samples
        self._rng = np.random.default_rng(seed)
        self._ends = {la.name: destination(graph, la).total for la in layers}
        self._inputs = {la.name: Accumulator(la.groups, la.patch) for la in layers}
        self._totals = {la.name: Spread() for la in layers if self._ends[la.name]}
        ends = filter(None, self._ends.values())
        self.tensors = list(dict.fromkeys([*(la.input for la in layers), *ends]))
        self.part = graph.extract(graph.input_types(), self.tensors)

    def read(self, values: Mapping[str, npt.NDArray[Any]]) -> None:
        for layer in self._layers:
            x = values[layer.input].astype(np.float32, copy=False)
            geometry = layer.geometry
            index = drawn_positions(
                geometry.positions(x.shape), layer.patch, self._samples, self._rng
            )
            with blas_for(layer.patch):
                self._inputs[layer.name].update(geometry.patches(x, index))
            if layer.name in self._totals:
                total = values[self._ends[layer.name]].astype(np.float32, copy=False)
                self._totals[layer.name].update(geometry.responses(total, index))

    def state(self, done: int) -> dict[str, npt.NDArray[Any]]:
        """All there is to it after ``done`` samples."""
        drawn = json.dumps(self._rng.bit_generator.state)
        state = {"done": np.array(done), "drawn": np.array(drawn)}
        for start, part in self._sums():
            state |= {start + k: v for k, v in part.state().items()}
        return state

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> int:
        """Go on from a :meth:`state`; samples done.

        Raises:
            KeyError, ValueError, TypeError: it is of other layers.
        """
        for start, part in self._sums():
            part.restore(
                {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
            )
        self._rng.bit_generator.state = json.loads(str(state["drawn"]))
        return int(state["done"])

    def _sums(self) -> Iterator[tuple[str, Accumulator | Spread]]:
        """All sums, and how their names in a state begin."""
        for number, name in enumerate(self._inputs):
            yield f"inputs.{number}.", self._inputs[name]
        for number, name in enumerate(self._totals):
            yield f"totals.{number}.", self._totals[name]

    def finish(self, store: MomentStore) -> None:
        for layer in self._layers:
            moments = self._inputs.pop(layer.name).moments()
            store.add(layer.name, moments)
            if moments.covariance is None:
                store.silent.add(layer.name)
            if layer.name in self._totals and moments.covariance is not None:
                store.totals[layer.name] = self._totals[layer.name].variance
