"""The judge: how far a model's outputs are from the original's, by what they mean.

One object that everything above a layer is decided by: sensitivities, the choice between plans,
searches, the guard, and validation. It runs the original once on some samples, finds out what each
output means (:mod:`onnx_lowrank.judge.readings`), and scores any number of models against it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.judge.comparison import Comparison, Loss, Pair
from onnx_lowrank.judge.detections import DetectionScale
from onnx_lowrank.judge.measures import Scale
from onnx_lowrank.judge.observation import Observer, by_sample, each_sample
from onnx_lowrank.judge.reading import Reading
from onnx_lowrank.judge.readings import kinds_for, readings_of
from onnx_lowrank.judge.restarts import Restarts
from onnx_lowrank.judge.structure import structures_of
from onnx_lowrank.judge.verdict import Estimate, Verdict
from onnx_lowrank.modelfile.array_store import ArrayStore, Slot
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.runtime.outputs import Values, is_float
from onnx_lowrank.runtime.runtime import Runtime
from onnx_lowrank.runtime.session import Feed, Session
from onnx_lowrank.samples.dataset import Dataset
from onnx_lowrank.samples.padding import Counted, without_padding

__all__ = ["AS_FOUND", "Judge", "Judging"]

Array = npt.NDArray[Any]
#: a feed, its number of samples, and the tensors to compare by name
Whole = tuple[Feed, int, Values]
#: largest size of the original's outputs that are held, in bytes, most of them on disk; others are
#: computed again
_HELD, _IN_MEMORY = 1 << 30, 64 << 20
#: number of samples by which outputs are read, and bytes of these outputs
_READ, _READ_BYTES = 64, 64 << 20


@dataclass(frozen=True)
class Judging:
    """What the user wants outputs to be judged by.

    Attributes:
        kinds: kinds of outputs by name, as ``kl`` or ``kl@1``; others are found out.
        function: a loss of the user's in the place of all.
    """

    kinds: Mapping[str, str] = field(default_factory=dict)
    function: Loss | None = None


#: outputs are judged by what they are found to be
AS_FOUND = Judging()


class Judge:
    """Scores models against the original on some samples.

    Args:
        reference: the original.
        data: samples.
        runtime: runs the models.
        size: number of samples in a batch.
        judging: what the user wants.
        classes: whether a vector for each sample is taken for class scores whatever its numbers
            look like; so it is where the samples have labels.
        more: further samples, whose labels do not matter, of a dataset that is read alike.

    Attributes:
        observer: the tensors that are compared, and what is to be said of them.
        readings: what their parts mean.

    Raises:
        ModelError: the original does not run.
        OptionError: the user's kinds do not fit the outputs.
    """

    def __init__(
        self,
        reference: Model,
        data: Dataset,
        runtime: Runtime,
        size: int,
        judging: Judging = AS_FOUND,
        classes: bool = False,
        more: Dataset | None = None,
    ) -> None:
        self._data, self._judging, self._more = data, judging, more
        self._labelled = classes or data.labels is not None
        self.observer = Observer(reference, data, runtime, size)
        self._reference = reference
        first = next(data.batches(size))
        count = data.samples_in(first)
        arrays = [a for v in self.observer.run(self._original, first).values() for a in v]
        self._size = size if all(by_sample(a, count) for a in arrays) else 1
        self._store = ArrayStore("the original's outputs", _IN_MEMORY)
        self._held: list[dict[str, list[Array | Slot]] | None] = []
        wholes = self._first_run()
        some = list(_enough(wholes))
        self.readings = self._read(Graph(reference), runtime, some)
        self._scales = [DetectionScale(r) if r.weighed else Scale(r) for r in self.readings]
        for whole in chain(some, wholes):
            for _, _, old in self._apart(*whole):
                for scale in self._scales:
                    scale.add(old[scale.reading.output][scale.reading.index])
        if all(held is not None for held in self._held):
            del self._original  # it has done its work

    @cached_property
    def _original(self) -> Session:
        return self.observer.session(self._reference)

    @property
    def samples(self) -> int:
        """Number of samples that it judges on."""
        return len(self._data) + (0 if self._more is None else len(self._more))

    @property
    def has_a_say(self) -> bool:
        """Whether there is anything to judge by: a reading, or a function of the user's."""
        return bool(self.readings) or self._judging.function is not None

    def originals(self, reading: Reading) -> Iterator[Array]:
        """The original's arrays of a reading, samples along axis 0, some at a time."""
        for _, _, old in self._wholes():
            yield reading.of(old[reading.output][reading.index])

    def pairs(self, model: Model) -> Iterator[Pair]:
        """Run a model on all samples, some at a time, beside the original's outputs.

        Raises:
            ValidationError: an output has another shape than the original's.
        """
        session = self.observer.session(model)
        yield from self._beside((f, self.observer.run(session, f)) for f in self._feeds())

    def _beside(self, runs: Iterable[tuple[Feed, Values]]) -> Iterator[Pair]:
        for (feed, count, old), (_, _, new) in zip(
            self._references(), self._run(runs), strict=True
        ):
            yield Pair(feed, count, old, new)

    def on(self, data: Dataset, model: Model) -> Iterator[Pair]:
        """Run both models on other samples, a feed at a time.

        Raises:
            ValidationError: an output has another shape than the original's.
        """
        session = self.observer.session(model)
        for feed in data.batches(1):
            count, counted = data.samples_in(feed), data.counted(feed)
            both = (
                _by_samples(self.observer.run(s, feed), count) for s in (self._original, session)
            )
            if counted is not None and count == 1:
                both = (_without_padding(values, counted, 0) for values in both)
            yield Pair(feed, count, *both)

    def loss(self, model: Model) -> float:
        """Mean loss of a model; infinite where it gives NaN or Inf and the original does not."""
        return self.loss_and_changed(model)[0]

    def loss_and_changed(self, model: Model) -> tuple[float, float]:
        """Mean loss of a model, and the part of the answers that it changes."""
        found = self._compared(self.pairs(model), Comparison.add_losses)
        return found.loss.value, found.changed

    def divergence(self, model: Model) -> float:
        """Mean divergence of a model, which is smoother than the loss where samples are few."""
        return self._compared(self.pairs(model), Comparison.add_losses).divergence.value

    def divergences(self, model: Model) -> Callable[[Feed], Estimate]:
        """The mean divergence, with its interval, of a model as a function of its constants.

        It is quickest where what is tried lies further and further behind in the graph.

        Args:
            model: with initializers that are inputs too, of which the function takes other values.
        """
        restarts = Restarts(model, self.observer, self._feeds)

        def divergence(constants: Feed) -> Estimate:
            pairs = self._beside(restarts.runs(constants))
            return self._compared(pairs, Comparison.add_losses).divergence

        return divergence

    def compare(self, model: Model) -> Verdict:
        """The whole verdict on a model."""
        return self._compared(self.pairs(model), Comparison.add).verdict()

    def _compared(
        self, pairs: Iterable[Pair], add: Callable[[Comparison, Pair], None]
    ) -> Comparison:
        found = self.comparison()
        for pair in pairs:
            add(found, pair)
        return found

    def comparison(self) -> Comparison:
        """An empty comparison, to add the outputs of a model to."""
        return Comparison(self._scales, self.observer.loose, self._judging.function)

    def _first_run(self) -> Iterator[Whole]:
        """The original's tensors, padding and all, which are held as far as there is room."""
        room = _HELD
        for feed in self._feeds():
            whole = self._whole(feed)
            room -= sum(a.nbytes for v in whole[2].values() for a in v)
            kept = None
            if room >= 0:
                kept = {n: list(map(self._store.add, v)) for n, v in whole[2].items()}
            self._held.append(kept)
            yield whole

    def _read(self, graph: Graph, runtime: Runtime, wholes: Sequence[Whole]) -> list[Reading]:
        given = [o.name for o in graph.model.proto.graph.output]
        kinds = kinds_for([*given, *self.observer.names], self._judging.kinds)
        structures = structures_of(graph, self.observer.names, self._data, runtime)
        some: dict[str, list[list[Array]]] = {}
        for _, _, old in wholes:
            for name, arrays in old.items():
                some.setdefault(name, []).append(list(arrays))
        last, seen = wholes[-1][0], sum(count for _, count, _ in wholes)
        fed = [(seen, *np.shape(v)[1:]) for v in last.values()]
        outputs = {name: _stacked(batches) for name, batches in some.items()}
        beside = {array.shape for arrays in outputs.values() for array in arrays}
        return [
            reading
            for name, arrays in outputs.items()
            for reading in readings_of(
                name, arrays, structures[name],
                given=kinds.get(name, ""), labelled=self._labelled, inputs=fed, beside=beside,
            )
        ]  # fmt: skip

    def _wholes(self) -> Iterator[Whole]:
        """The original's tensors, padding and all."""
        for feed, held in zip(self._feeds(), self._held, strict=True):
            if held is None:
                yield self._whole(feed)
            else:
                old = {n: list(map(self._store.read, v)) for n, v in held.items()}
                yield feed, self._data.samples_in(feed), old

    def _whole(self, feed: Feed) -> Whole:
        count = self._data.samples_in(feed)
        return feed, count, _by_samples(self.observer.run(self._original, feed), count)

    def _references(self) -> Iterator[Whole]:
        for whole in self._wholes():
            yield from self._apart(*whole)

    def _feeds(self) -> Iterator[Feed]:
        yield from self._data.batches(self._size)
        if self._more is not None:
            yield from self._more.batches(self._size)

    def _run(self, runs: Iterable[tuple[Feed, Values]]) -> Iterator[Whole]:
        for feed, made in runs:
            count = self._data.samples_in(feed)
            yield from self._apart(feed, count, _by_samples(made, count))

    def _apart(self, feed: Feed, count: int, values: Values) -> Iterator[Whole]:
        """Samples one at a time without their padding, where tensors have its positions.

        A function of the user's sees the whole, beside the mask.
        """
        counted = None if self._judging.function is not None else self._data.counted(feed)
        arrays = [a for v in values.values() for a in v]
        if counted is None or not any(a.shape[1:2] == counted.shape[1:] for a in arrays):
            yield feed, count, values
            return
        for i in range(count):
            own = {n: v[i : i + 1] if by_sample(v, count) else v for n, v in feed.items()}
            yield own, 1, _without_padding(values, counted, i)


def _enough(wholes: Iterator[Whole]) -> Iterator[Whole]:
    """The first of the original's tensors: as many as tell what outputs mean."""
    seen = read = 0
    for whole in wholes:
        yield whole
        seen += whole[1]
        read += sum(a.nbytes for arrays in whole[2].values() for a in arrays)
        if seen >= _READ or read >= _READ_BYTES:
            break


def _without_padding(values: Values, counted: Counted, sample: int) -> dict[str, list[Array]]:
    return {n: [without_padding(a, counted, sample) for a in v] for n, v in values.items()}


def _by_samples(values: Values, count: int) -> dict[str, list[Array]]:
    """Arrays with samples along axis 0 and another axis; repeated where they have no such axis."""
    return {n: [_with_width(each_sample(a, count)) for a in arrays] for n, arrays in values.items()}


def _with_width(value: Array) -> Array:
    return value[:, None] if value.ndim == 1 else value


def _stacked(batches: Sequence[Sequence[Array]]) -> list[Array]:
    """The arrays of several batches as one each; of the first alone where shapes differ."""
    found = []
    for index, first in enumerate(batches[0]):
        alike = [
            b[index] for b in batches
            if index < len(b) and b[index].shape[1:] == first.shape[1:]
        ]  # fmt: skip
        numeric = is_float(first) or first.dtype.kind in "biuc"
        found.append(np.concatenate(alike) if numeric else first)
    return found
