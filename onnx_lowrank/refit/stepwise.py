"""Running a model step by step over the same batches, storing only the tensors still needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy.typing as npt
from onnx import helper

from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.graph.values import no_tensors
from onnx_lowrank.modelfile.array_store import ArrayStore, Slot
from onnx_lowrank.runtime.runtime import Runtime
from onnx_lowrank.samples.dataset import Dataset

__all__ = ["Walker"]


class Walker:
    """Runs a model step by step; weights of later steps may change in between.

    Args:
        graph: the model.
        dataset: samples.
        size: number of samples in a batch.
        runtime: runs the model.
        memory: largest size of tensors stored in memory, in bytes; the rest is stored on disk.
    """

    def __init__(
        self, graph: Graph, dataset: Dataset, size: int, runtime: Runtime, memory: int
    ) -> None:
        self._graph, self._dataset, self._size = graph, dataset, size
        self._runtime = runtime
        self._steps: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
        #: sequences, strings and other values that are computed again in each step, not stored
        self._unkept = no_tensors(graph)
        self._done = set(graph.inputs)
        #: element types of what a step may start from
        self._types = graph.input_types()
        #: the tensors that are kept of each batch, as their store gave them out
        self._store = ArrayStore("the tensors between layers", memory)
        self._kept: list[dict[str, npt.NDArray[Any] | Slot]] = []

    def plan(self, ends: Sequence[tuple[str, ...]], others: Sequence[tuple[str, ...]]) -> None:
        """Set what each step returns.

        Args:
            ends: tensors to stop at; what is before them does not change any more.
            others: tensors that later steps compute again.
        """
        self._steps = list(zip(ends, others, strict=True))

    def advance(self) -> Iterator[dict[str, npt.NDArray[Any]]]:
        """Run the next step; yield its tensors batch by batch."""
        graph, store, (ends, others) = self._graph, self._store, self._steps.pop(0)
        step = (*ends, *others)
        self._done |= graph.ancestors(ends, self._done) - self._unkept
        ahead = {t for s in self._steps for part in s for t in part}
        keep = self._done & (graph.reads_between(self._done, ahead) | ahead)
        part = graph.extract(self._types, sorted(keep | set(step)))
        session = self._runtime.session(part, lean=True) if part.proto.graph.node else None
        new = keep - self._types.keys()
        read = {value.name for value in part.proto.graph.input} | set(step)
        for number, feed in enumerate(self._feeds(read)):
            if number == len(self._kept):
                self._kept.append({})
            kept = self._kept[number]
            values = dict(feed) | {t: store.read(v) for t, v in kept.items() if t in read}
            if session is not None:
                values |= session.run(values)
            for name in kept.keys() - keep:
                store.release(kept.pop(name))
            kept |= {t: store.add(values[t]) for t in sorted(new)}
            for name in new:
                self._types[name] = helper.np_dtype_to_tensor_dtype(values[name].dtype)
            yield {t: values[t] for t in step}
        for name in self._types.keys() - keep - set(graph.inputs):
            del self._types[name]

    def _feeds(self, read: set[str]) -> Iterator[Mapping[str, npt.NDArray[Any]]]:
        """The inputs of the model, batch by batch; empty ones where none of them is read."""
        if self._kept and read.isdisjoint(self._graph.inputs):
            return iter([{}] * len(self._kept))
        return self._dataset.batches(self._size)
