"""Stream calibration samples through the model and into the moments of its layers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from onnx_lowrank.analysis.accumulator import Accumulator
from onnx_lowrank.analysis.class_shares import ClassShares
from onnx_lowrank.analysis.counted_rows import Counted, counted_rows, only
from onnx_lowrank.analysis.gates import GateSquares, reads_gates
from onnx_lowrank.analysis.layer_inputs import LayerInput, grouped, layer_inputs
from onnx_lowrank.analysis.moment_cache import MomentCache
from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.analysis.row_counts import RowCounts
from onnx_lowrank.analysis.streaming import Streaming
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import Head, PlacedLayer, states_name
from onnx_lowrank.linalg.blas_threads import blas_for
from onnx_lowrank.linalg.gate_metric import GateMetric
from onnx_lowrank.linalg.output_metric import OutputMetric, ResponseMetric
from onnx_lowrank.modelfile.array_store import ArrayStore, Slot
from onnx_lowrank.samples.dataset import Dataset

__all__ = ["MomentStore", "batch_size", "collect_moments", "drawn_positions"]

#: rows that a covariance is made of: so many for each column, or as many as narrow layers have for
#: little work: this number, or rows of so many values in all groups
ROWS_PER_COLUMN, ENOUGH_ROWS, ENOUGH_VALUES = 16, 50_000, 30_000_000
#: largest number of samples to a run
LARGEST_BATCH = 32
#: a model without class scores
NO_HEADS: Mapping[str, Head] = MappingProxyType({})

#: an array of moments, as its store gave it out
_Stored: TypeAlias = npt.NDArray[Any] | Slot | None


class MomentStore(Mapping[str, Moments]):
    """Moments by layer name; beyond ``memory`` bytes they wait on disk.

    Args:
        memory: bytes to hold.
    """

    def __init__(self, memory: int = 0) -> None:
        #: variance, summed over channels, of the residual sum that a layer's response enters
        self.totals: dict[str, float] = {}
        #: metrics of the outputs of layers that make class scores
        self.outputs: dict[str, OutputMetric] = {}
        #: metrics of the gates of recurrent nodes, by name of a product that they are made by
        self.gates: dict[str, GateMetric] = {}
        #: layers that the data says nothing of
        self.silent: set[str] = set()
        self._arrays = ArrayStore("the moments of the layers", memory)
        self._found: dict[str, tuple[int, _Stored, _Stored, bool] | Callable[[], Moments]] = {}

    def add(self, moments: Moments, *names: str) -> None:
        """Take the moments of layers that read the same patches.

        Raises:
            DataError: they have to wait on disk, and it is full.
        """
        mean, covariance = (
            None if a is None else self._arrays.add(a) for a in (moments.mean, moments.covariance)
        )
        found = moments.count, mean, covariance, moments.one_hot
        self._found |= dict.fromkeys(names, found)

    def add_made(self, make: Callable[[], Moments], name: str) -> None:
        """Take the moments of a layer that are made from others each time they are read."""
        self._found[name] = make

    def __getitem__(self, name: str) -> Moments:
        found = self._found[name]
        if callable(found):
            return found()
        count, *stored, one_hot = found
        mean, covariance = (None if s is None else self._arrays.read(s) for s in stored)
        return Moments(count, mean, covariance, self.metric(name), one_hot)

    def metric(self, name: str) -> ResponseMetric | None:
        """The metric of a layer's outputs; None where all count alike."""
        return self.outputs.get(name) or self.gates.get(name)

    def __contains__(self, name: object) -> bool:
        return name in self._found

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


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

    Args:
        graph: the model.
        layers: whose inputs to read.
        dataset: calibration samples; peak memory does not grow with their number.
        shapes: of tensors at one sample.
        streaming: how to run the model over them.
        cache: what an interrupted run has done of it, and this one does.
        heads: class scores that layers make, by layer name, for the metrics of their outputs.
    """
    memory, runtime, seed = streaming.memory, streaming.runtime, streaming.seed
    store = MomentStore(memory)
    names = {layer.name: layer for layer in layers}
    gates = {
        layer.name: states
        for layer in layers
        if (states := names.get(states_name(layer.name))) and reads_gates(graph, states)
    }
    groups = list(grouped(layer_inputs(graph, layers), memory))
    with streaming.progress.task("calibrate", len(groups) * len(dataset)) as advance:
        for number, group in enumerate(groups):
            begin = partial(_Reader, graph, group, [seed, number], len(dataset), heads, gates)
            reader, done = _resumed(begin, cache.read(number) if cache is not None else None)
            size = batch_size(reader.tensors, shapes, memory // 4)
            if cache is not None:
                cache.resumed += done
            advance(done)
            if done < len(dataset):
                part = reader.part
                # layers that read inputs of the model need no run of it
                session = runtime.session(part, lean=True) if part.proto.graph.node else None
                rest = dataset.subset(range(done, len(dataset)))
                for feed in rest.batches(size):
                    made = session.run(feed) if session is not None else {}
                    more = len(next(iter(feed.values()))) if dataset.batchable else 1
                    reader.read({**feed, **made}, more, rest.counted(feed))
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
    positions: int, shape: tuple[int, int], samples: int, rng: np.random.Generator
) -> np.ndarray[tuple[int], np.dtype[np.intp]] | None:
    """Draw the output positions that are read in each sample; None for all of them.

    Args:
        positions: number of positions of a sample.
        shape: groups, and columns of each.
        samples: number of samples, which all give as many rows.
        rng: random generator.
    """
    groups, width = shape
    enough = min(ENOUGH_ROWS, ENOUGH_VALUES // (groups * width))
    wanted = math.ceil(max(enough, ROWS_PER_COLUMN * width) / samples)
    if wanted >= positions:
        return None
    return np.sort(rng.choice(positions, wanted, replace=False)).astype(np.intp)


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
    """Accumulators of a group of inputs, and the part of the model that feeds them."""

    def __init__(
        self,
        graph: Graph,
        inputs: Sequence[LayerInput],
        seed: Sequence[int],
        samples: int,
        heads: Mapping[str, Head],
        gates: Mapping[str, PlacedLayer],
    ) -> None:
        self._inputs, self._samples = inputs, samples
        self._rng = np.random.default_rng(seed)
        self._moments: list[Accumulator | RowCounts] = [
            RowCounts(i.width) if i.lookup else Accumulator(i.geometry.groups, i.width)
            for i in inputs
        ]
        self._gates = {
            la.name: GateSquares(graph, la, gates[la.name], samples)
            for i in inputs for la in i.layers if la.name in gates
        }  # fmt: skip
        self._gated = {la.name: (la.input, gates[la.name].input)
                       for i in inputs for la in i.layers if la.name in gates}  # fmt: skip
        # of responses only, by residual sum
        self._totals = [
            {i.sums[la.name]: Accumulator(la.groups, 0, la.shape[0] // la.groups)
             for la in i.layers if la.name in i.sums}
            for i in inputs
        ]  # fmt: skip
        layers = [layer for i in inputs for layer in i.layers if layer.name in heads]
        self._scores = {layer.name: heads[layer.name].scores for layer in layers}
        self._shares = {
            la.name: ClassShares(la.shape[0], heads[la.name].axis, samples) for la in layers
        }
        read = [t for i in inputs for t in (i.tensor, *i.sums.values())]
        read += [t for pair in self._gated.values() for t in pair]
        self.tensors = list(dict.fromkeys([*read, *self._scores.values()]))
        self.part = graph.extract(graph.input_types(), self.tensors)

    def read(
        self, values: Mapping[str, npt.NDArray[Any]], samples: int, counted: Counted = None
    ) -> None:
        """Add the tensors of a batch.

        Args:
            values: of the tensors, by name.
            samples: number of samples.
            counted: positions ``(samples, positions)`` that are no padding; None where all are.
        """
        for name, shares in self._shares.items():
            shares.update(values[self._scores[name]], samples)
        for name, squares in self._gates.items():
            read, made = self._gated[name]
            squares.update(values[read], values[made], samples)
        for each, moments, totals in zip(self._inputs, self._moments, self._totals, strict=True):
            geometry, index = each.geometry, None
            if isinstance(moments, RowCounts):
                numbers = values[each.tensor]
                rows = counted_rows(counted, geometry, numbers.shape)
                moments.update(numbers if rows is None else numbers.reshape(-1)[rows])
            else:
                x = values[each.tensor].astype(np.float32, copy=False)
                index = drawn_positions(
                    geometry.positions(x.shape), (geometry.groups, each.width), self._samples,
                    self._rng,
                )  # fmt: skip
                rows = counted_rows(counted, geometry, x.shape, index)
                with blas_for(each.width):
                    moments.update(only(geometry.patches(x, index), rows))
            for name, total in totals.items():
                y = values[name].astype(np.float32, copy=False)
                total.update(only(geometry.responses(y, index), rows))

    def state(self, done: int) -> dict[str, npt.NDArray[Any]]:
        """All there is to it after ``done`` samples."""
        drawn = json.dumps(self._rng.bit_generator.state)
        state = {"done": np.array(done), "drawn": np.array(drawn)}
        for start, part in self._parts():
            state |= {start + k: v for k, v in part.state().items()}
        return state

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> int:
        """Go on from a :meth:`state`; samples done.

        Raises:
            KeyError, ValueError, TypeError: it is of other layers.
        """
        for start, part in self._parts():
            part.restore(
                {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
            )
        self._rng.bit_generator.state = json.loads(str(state["drawn"]))
        return int(state["done"])

    def _parts(self) -> Iterator[tuple[str, Accumulator | RowCounts | ClassShares | GateSquares]]:
        """All sums, and how their names in a state begin."""
        for number, (moments, totals) in enumerate(zip(self._moments, self._totals, strict=True)):
            yield f"inputs.{number}.", moments
            for place, total in enumerate(totals.values()):
                yield f"totals.{number}.{place}.", total
        for number, shares in enumerate(self._shares.values()):
            yield f"shares.{number}.", shares
        for number, squares in enumerate(self._gates.values()):
            yield f"gates.{number}.", squares

    def finish(self, store: MomentStore) -> None:
        """Put the moments and variances into ``store``; nothing is left here."""
        for number, each in enumerate(self._inputs):
            sums, totals = self._moments[number], self._totals[number]
            self._moments[number] = Accumulator(each.geometry.groups, 0)
            found = sums.moments()
            names = [layer.name for layer in each.layers]
            store.add(found, *names)
            if found.covariance is None and not found.one_hot:
                store.silent.update(names)
                continue
            for layer in each.layers:
                if layer.name in each.sums:
                    store.totals[layer.name] = float(totals[each.sums[layer.name]].variances.sum())
                elif isinstance(sums, Accumulator) and not layer.value.recurrent:
                    response = Moments(1, None, sums.scatter).energy(layer.stage.matrices)
                    store.totals[layer.name] = response / sums.count
        for name, shares in self._shares.items():
            metric = shares.metric()
            if metric is not None and name not in store.silent:
                store.outputs[name] = metric
        for squares in self._gates.values():
            store.gates |= squares.metrics()
