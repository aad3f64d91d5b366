"""Readers: from the tensors of batches to the sums that moments are made of.

A shard is a run of batches that may be read in another place. Where it is read makes no difference
to any bit: what is drawn in a batch depends on its number alone, and sums of a shard are added up
before they are added to the rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.analysis.accumulator import Accumulator, Recorder
from onnx_lowrank.analysis.class_shares import ClassShares
from onnx_lowrank.analysis.counted_rows import Counted, counted_rows, only
from onnx_lowrank.analysis.gates import GateSquares, reads_gates
from onnx_lowrank.analysis.layer_inputs import LayerInput, grouped, layer_inputs
from onnx_lowrank.analysis.moment_store import MomentStore
from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.analysis.phase_sums import PhaseSums, phase_rows, sums_for
from onnx_lowrank.analysis.row_counts import RowCounts
from onnx_lowrank.analysis.sharded_sums import ShardedSums, below
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import Head, PlacedLayer, states_name
from onnx_lowrank.linalg.blas_threads import blas_for
from onnx_lowrank.runtime.runtime import Runtime
from onnx_lowrank.runtime.session import Feed, Session
from onnx_lowrank.samples.padding import Mask

__all__ = ["InputGroup", "Reader", "batch_size", "drawn_positions", "input_groups", "shard_size"]

#: rows that a covariance is made of: so many for each column, or as many as narrow layers have for
#: little work: this number, or rows of so many values in all groups
ROWS_PER_COLUMN, ENOUGH_ROWS, ENOUGH_VALUES = 16, 50_000, 30_000_000
#: largest number of samples to a run
LARGEST_BATCH = 32
#: largest number of shards: so many places are of use for a group of inputs. The rows of a layer,
#: few more than :data:`ENOUGH_ROWS`, make about one product in each
SHARDS = 16

_Part = Accumulator | PhaseSums | RowCounts | ShardedSums


class InputGroup:
    """Inputs whose sums fit in memory together, and the part of the model that makes them.

    Args:
        graph: the model.
        inputs: what layers read.
        heads: class scores that layers make, by layer name.
        gates: products of recurrent nodes with their states, by name of that with the input.

    Attributes:
        tensors: names of all that is read in each batch.
    """

    def __init__(
        self,
        graph: Graph,
        inputs: Sequence[LayerInput],
        heads: Mapping[str, Head],
        gates: Mapping[str, PlacedLayer],
    ) -> None:
        self.graph, self.inputs = graph, inputs
        layers = [layer for i in inputs for layer in i.layers]
        self.heads = {la.name: (la, heads[la.name]) for la in layers if la.name in heads}
        self.gates = {la.name: (la, gates[la.name]) for la in layers if la.name in gates}
        read = [t for i in inputs for t in (i.tensor, *i.sums.values())]
        read += [la.input for pair in self.gates.values() for la in pair]
        read += [head.scores for _, head in self.heads.values()]
        self.tensors = list(dict.fromkeys(read))

    def session(self, runtime: Runtime) -> Session | None:
        """The part of the model that makes them; None where they are inputs of the model."""
        part = self.graph.extract(self.graph.input_types(), self.tensors)
        return runtime.session(part, lean=True) if part.proto.graph.node else None


def input_groups(
    graph: Graph, layers: Sequence[PlacedLayer], heads: Mapping[str, Head], memory: int
) -> list[InputGroup]:
    """What layers read, in groups whose sums fit in ``memory`` bytes.

    Args:
        graph: the model.
        layers: whose inputs to read.
        heads: class scores that layers make, by layer name.
        memory: bytes for the sums of a group.
    """
    names = {layer.name: layer for layer in layers}
    gates = {
        layer.name: states
        for layer in layers
        if (states := names.get(states_name(layer.name))) and reads_gates(graph, states)
    }
    found = grouped(layer_inputs(graph, layers), memory)
    return [InputGroup(graph, inputs, heads, gates) for inputs in found]


def batch_size(tensors: Sequence[str], shapes: Mapping[str, tuple[int, ...]], memory: int) -> int:
    """Samples at a time so that float32 copies of ``tensors`` fit in ``memory`` bytes."""
    sample = sum(4 * math.prod(shapes.get(t, ())) for t in tensors)
    return max(1, min(LARGEST_BATCH, memory // max(sample, 1)))


def shard_size(samples: int, batch: int) -> int:
    """Samples to a shard: whole batches, and the same wherever shards are read.

    Args:
        samples: number of all samples.
        batch: samples to a batch.
    """
    return max(math.ceil(samples / (SHARDS * batch)), 1) * batch


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


class Reader:
    """Sums over a group of inputs.

    Args:
        group: what is read.
        seed: of what is drawn.
        samples: number of samples of all shards.
        recording: whether what is read is one shard, to be added to the sums of another reader.
        mask: input that marks padding; None where all positions count.
    """

    def __init__(
        self,
        group: InputGroup,
        seed: Sequence[int],
        samples: int,
        *,
        recording: bool = False,
        mask: Mask | None = None,
    ) -> None:
        self._group, self._seed, self._samples, self._mask = group, seed, samples, mask
        sums = Recorder if recording else Accumulator
        self._moments: list[Accumulator | PhaseSums | RowCounts] = [
            RowCounts(i.width) if i.lookup else sums_for(i.geometry, i.width, kind=sums)
            for i in group.inputs
        ]
        # of responses only, by residual sum
        self._totals = [
            {i.sums[la.name]: sums(la.groups, 0, la.shape[0] // la.groups)
             for la in i.layers if la.name in i.sums}
            for i in group.inputs
        ]  # fmt: skip
        self._shares = {
            name: ClassShares(layer.shape[0], head.axis, samples)
            for name, (layer, head) in group.heads.items()
        }
        self._gates = {
            name: GateSquares(group.graph, *pair, samples) for name, pair in group.gates.items()
        }

    def run(self, session: Session | None, feed: Feed, number: int, samples: int) -> None:
        """Run the model on a batch, and add what it makes.

        Args:
            session: of the group's part of the model.
            feed: the inputs.
            number: of the batch among those of all shards.
            samples: in it.
        """
        made = session.run(feed) if session is not None else {}
        counted = None if self._mask is None else self._mask.counted(feed)
        self.read({**feed, **made}, number, samples, counted)

    def read(
        self,
        values: Mapping[str, npt.NDArray[Any]],
        number: int,
        samples: int,
        counted: Counted = None,
    ) -> None:
        """Add the tensors of a batch.

        Args:
            values: of the tensors, by name.
            number: of the batch among those of all shards.
            samples: in it.
            counted: positions ``(samples, positions)`` that are no padding; None where all are.
        """
        rng = np.random.default_rng([*self._seed, number])
        for name, shares in self._shares.items():
            shares.update(values[self._group.heads[name][1].scores], samples, number)
        for name, squares in self._gates.items():
            layer, states = self._group.gates[name]
            squares.update(values[layer.input], values[states.input], samples)
        for each, moments, totals in zip(
            self._group.inputs, self._moments, self._totals, strict=True
        ):
            geometry, index, read = each.geometry, None, values[each.tensor]
            if isinstance(moments, RowCounts):
                rows = counted_rows(counted, geometry, read.shape)
                moments.update(read if rows is None else read.reshape(-1)[rows])
            else:
                x = read.astype(np.float32, copy=False)
                index = drawn_positions(
                    geometry.positions(x.shape), (geometry.groups, each.width), self._samples, rng
                )
                phases = phase_rows(geometry, x.shape, index)
                for part, phase in zip(moments.parts, phases, strict=True):
                    rows = counted_rows(counted, geometry, x.shape, phase.index)
                    with blas_for(each.width):
                        part.update(only(phase.patches(geometry, x), rows))
            rows = counted_rows(counted, geometry, read.shape, index) if totals else None
            for name, total in totals.items():
                y = values[name].astype(np.float32, copy=False)
                total.update(only(geometry.responses(y, index), rows))

    def end_shard(self) -> None:
        """End a shard: the next batch is of another one."""
        for width, _, part in self._parts():
            with blas_for(width):
                part.end_shard()

    def shard(self) -> dict[str, npt.NDArray[Any]]:
        """All that a recording reader has read, once the shard has ended."""
        found: dict[str, npt.NDArray[Any]] = {}
        for _, start, part in self._parts():
            assert not isinstance(part, Accumulator) or isinstance(part, Recorder)
            found |= {start + k: v for k, v in part.shard().items()}
        return found

    def add_shard(self, shard: Mapping[str, npt.NDArray[Any]]) -> None:
        """Add what a recording reader of the same group has read, as if it had been read here."""
        for width, start, part in self._parts():
            with blas_for(width):
                part.add_shard(below(shard, start))

    def state(self, done: int) -> dict[str, npt.NDArray[Any]]:
        """All there is to it after ``done`` samples."""
        state = {"done": np.array(done)}
        for _, start, part in self._parts():
            state |= {start + k: v for k, v in part.state().items()}
        return state

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> int:
        """Go on from a :meth:`state`; samples done.

        Raises:
            KeyError, ValueError, TypeError: it is of other layers.
        """
        for _, start, part in self._parts():
            part.restore(below(state, start))
        return int(state["done"])

    def _parts(self) -> Iterator[tuple[int, str, _Part]]:
        """All sums, the columns of their products, and how their names in a state begin."""
        for number, (moments, totals) in enumerate(zip(self._moments, self._totals, strict=True)):
            yield self._group.inputs[number].width, f"inputs.{number}.", moments
            for place, total in enumerate(totals.values()):
                yield 0, f"totals.{number}.{place}.", total
        for number, shares in enumerate(self._shares.values()):
            yield 0, f"shares.{number}.", shares.sums
        for number, squares in enumerate(self._gates.values()):
            yield 0, f"gates.{number}.", squares.sums

    def finish(self, store: MomentStore) -> None:
        """Put the moments and variances into ``store``; nothing is left here."""
        for number, each in enumerate(self._group.inputs):
            sums, totals = self._moments[number], self._totals[number]
            self._moments[number] = Accumulator(each.geometry.groups, 0)
            with blas_for(each.width):
                found = sums.moments()
            names = [layer.name for layer in each.layers]
            store.add(found, *names)
            if found.covariance is None and not found.one_hot:
                store.silent.update(names)
                continue
            for layer in each.layers:
                if layer.name in each.sums:
                    store.totals[layer.name] = float(totals[each.sums[layer.name]].variances.sum())
                elif not isinstance(sums, RowCounts) and not layer.value.recurrent:
                    response = Moments(1, None, sums.scatter).energy(layer.stage.matrices)
                    store.totals[layer.name] = response / sums.count
        for name, shares in self._shares.items():
            metric = shares.metric()
            if metric is not None and name not in store.silent:
                store.outputs[name] = metric
        for squares in self._gates.values():
            store.gates |= squares.metrics()
