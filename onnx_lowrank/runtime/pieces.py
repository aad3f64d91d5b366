"""Running a model that is larger than memory, piece by piece."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import helper

from onnx_lowrank.errors import ModelError
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.runtime.segments import pieces
from onnx_lowrank.runtime.session import Feed, Session

__all__ = ["Pieces"]


class Pieces(Session):
    """Session of a model that is larger than memory, opened piece by piece in each run.

    Args:
        model: the model to run.
        start: opens a piece; the second argument says whether for one run only.
        size: largest weights of one piece, in bytes.
    """

    def __init__(self, model: Model, start: Callable[[Model, bool], Session], size: int) -> None:
        self._graph, self._start = Graph(model), start
        self._pieces = pieces(self._graph, size)
        self._given = self._graph.input_types()
        self.outputs = self._graph.outputs

    def run(
        self, feed: Feed, outputs: Sequence[str] | None = None, constants: Feed | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """Run the model as :meth:`Session.run` does, with its own constants."""
        if constants:
            raise ModelError("a model that is run in pieces takes no other constants")
        return self._run(feed, outputs)[0]

    def turn(self, feed: Feed, seconds: float = 0.0, least: int = 1) -> list[float]:
        """Return the time of one run in seconds, without the time of opening the pieces."""
        return [self._run(feed, None, timed=True)[1]]

    def _run(
        self, feed: Feed, outputs: Sequence[str] | None, *, timed: bool = False
    ) -> tuple[dict[str, npt.NDArray[Any]], float]:
        names = list(self.outputs if outputs is None else outputs)
        if missing := self._given.keys() - feed.keys():
            raise ModelError(
                f"ONNX Runtime cannot run the model: the input {min(missing)!r} is not given"
            )
        values = {k: np.asarray(v) for k, v in feed.items() if k in self._given}
        for name in names:  # an output may be an initializer
            value = self._graph.constant(name) if name not in values else None
            if value is not None:
                values[name] = value
        total = 0.0
        for piece in self._pieces:
            types = {k: _element(k, v) for k, v in values.items()} | self._given
            part = self._graph.extract(types, piece.outputs)
            inner = self._start(part, not timed)
            made = inner.run(values)
            if timed:  # the first run waits for the disk
                before = time.perf_counter()
                inner.run(values)
                total += time.perf_counter() - before
            values = {k: v for k, v in (values | made).items() if k in piece.needed or k in names}
        return {name: values[name] for name in names}, total


def _element(name: str, value: Any) -> int:
    if not isinstance(value, np.ndarray):
        raise ModelError(
            f"{name!r} is not a tensor, and a model above 2 GB cannot be cut into pieces there"
        )
    return int(helper.np_dtype_to_tensor_dtype(value.dtype))
