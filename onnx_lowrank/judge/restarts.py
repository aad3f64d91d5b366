"""Runs of one model with other values of its constants, each from where these are first read.

Models that differ in one layer are the same up to this layer. Where layers are tried one after
another in the order of the graph, the tensors that cross to what is behind are kept, and the next
runs begin with them: on the average half of the model is run, not all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy.typing as npt
from onnx import helper

from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.graph.values import no_tensors
from onnx_lowrank.judge.observation import Observer
from onnx_lowrank.layers.variable_model import make_inputs
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.runtime.session import Feed, Session

__all__ = ["Restarts"]

Array = npt.NDArray[Any]

#: part of the places of change that a new start must skip: it opens two sessions
_STEP = 1 / 8

#: largest size of the tensors that are kept, in bytes
_ROOM = 128 << 20


class Restarts:
    """A model that runs many times on the same feeds, with other constants each time.

    Args:
        model: with initializers that are inputs too, of which runs take other values.
        observer: opens it, and says which tensors to return.
        feeds: gives the feeds, the same ones each time.
    """

    def __init__(
        self, model: Model, observer: Observer, feeds: Callable[[], Iterator[Feed]]
    ) -> None:
        self._observer, self._feeds = observer, feeds
        self._graph = Graph(observer.opened(model))
        self._wanted = [n for n in observer.names if n in observer.made_by(model)]
        listed = {i.name for i in model.proto.graph.input}
        self._constants = {t.name for t in model.proto.graph.initializer} & listed
        #: numbers of the nodes that read constants first
        self._first: dict[str, int] = {}
        for number, node in enumerate(self._graph.nodes):
            for name in self._graph.reads(node) & self._constants:
                self._first.setdefault(name, number)
        self._places = sorted(set(self._first.values()))
        self._begin()

    def _begin(self) -> None:
        self._session: Session | None = None
        #: number of nodes that are done, and what is read of them, by feed
        self._done, self._kept = 0, list[dict[str, Array]]()
        #: number up to which the last start was tried
        self._tried = 0
        self._types = self._graph.input_types()

    def runs(self, constants: Feed) -> Iterator[tuple[Feed, dict[str, list[Array]]]]:
        """Run on all feeds; yield each with the arrays of the tensors to compare, by name.

        Args:
            constants: other values of initializers, by name.
        """
        first = min((self._first.get(name, 0) for name in constants), default=0)
        if first < self._done:
            self._begin()
        skipped = sum(self._tried <= place < first for place in self._places)
        if skipped > _STEP * len(self._places):
            self._tried = first
            self._advance(first)
        if self._session is None:
            self._session = self._observer.part(self._behind())
        session = self._session
        for feed, before in self._begun():
            found = self._observer.run(session, {**feed, **before}, constants)
            yield feed, {**found, **{n: [before[n]] for n in self._wanted if n in before}}

    def _begun(self) -> Iterator[tuple[Feed, dict[str, Array]]]:
        """The feeds, each with what is kept of it."""
        for number, feed in enumerate(self._feeds()):
            yield feed, self._kept[number] if self._kept else {}

    def _behind(self) -> Model:
        """What is behind the nodes that are done."""
        if not self._done:
            return self._graph.model
        model = self._graph.extract(self._types, self._wanted)
        left = {t.name for t in model.proto.graph.initializer}
        make_inputs(model.proto, sorted(self._constants & left))
        return model

    def _advance(self, place: int) -> None:
        """Run up to a node, and keep what is read behind; do nothing where that is too much."""
        graph = self._graph
        fed = set(graph.inputs)
        made = {t.name for node in graph.nodes[:place] for t in node.outputs} | fed
        keep = made & (graph.reads_between(made, self._wanted) | set(self._wanted)) - fed
        if keep & no_tensors(graph):
            return
        self._session = None  # two would take more memory
        session = self._observer.part(graph.extract(self._types, sorted(keep)))
        stored: list[dict[str, Array]] = []
        room = _ROOM
        for feed, before in self._begun():
            values = {**before, **session.run({**feed, **before})}
            stored.append({name: values[name] for name in keep})
            room -= sum(array.nbytes for array in stored[-1].values())
            if room < 0:
                return
        self._done, self._kept = place, stored
        self._types = graph.input_types() | {
            name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in stored[0].items()
        }
