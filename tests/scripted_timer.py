"""A timer and a session whose times are written down, for tests of what is decided by time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy.typing as npt

from onnx_lowrank.analysis.time_model import workload
from onnx_lowrank.chains.chain import Chain
from onnx_lowrank.latency.pairs import LatencyPair
from onnx_lowrank.latency.probe import Place
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.runtime.session import Feed, Session

__all__ = ["ScriptedSession", "ScriptedTimer", "by_workload", "pair", "taking"]


def pair(ratio: float = 0.5, noise: float = 1.0) -> LatencyPair:
    """What a clock would say of a model that takes ``ratio`` of the time, give or take a factor."""
    low, high = 1 / ratio / noise, noise / ratio
    return LatencyPair(1, 1.0, ratio, 1.0, ratio, 1.0, ratio, low, high)


def by_workload(place: Place, chain: Chain) -> float:
    """Seconds on a machine whose time grows with workload and with the number of nodes."""
    return 1e-10 * workload(chain, place.shape) + 1e-6 * chain.nodes


class ScriptedTimer:
    """Tells times by a script, and remembers what it was asked.

    Args:
        seconds: of a chain, or of a layer, in its place; None for what does not run by itself.
        models: part of the original's time that a whole model takes.
        network: seconds of a network whose layers are timed; None for the sum of those.
        noise: factor up and down that the times of whole models may be off by.
    """

    def __init__(
        self,
        seconds: Callable[[Place, Chain], float | None] = by_workload,
        models: Callable[[Model], float] = lambda _: 0.5,
        network: float | None = None,
        noise: float = 1.0,
    ) -> None:
        self._seconds, self._models, self._network = seconds, models, network
        self._noise = noise
        #: seconds that the times taken so far would have lasted: one for all layers, one a chain
        self.now = 0.0
        #: batch of every network that was timed
        self.batches: list[int] = []
        self.asked: list[tuple[Place, Chain]] = []
        self.groups: list[tuple[Place, Sequence[Chain]]] = []

    def layers(
        self, model: Model, feed: Feed, places: Sequence[Place]
    ) -> tuple[float, Sequence[float | None]]:
        self.batches.append(len(next(iter(feed.values()))))
        self.asked += [(p, p.chain) for p in places]
        self.now += 1.0
        found = [self._seconds(p, p.chain) for p in places]
        whole = self._network
        if whole is None:
            whole = 1e-6 + sum(s for s in found if s is not None)
        return whole, [None if s is None else s / whole for s in found]

    def chains(self, place: Place, chains: Sequence[Chain]) -> Sequence[float | None]:
        self.asked += [(place, c) for c in chains]
        self.groups.append((place, chains))
        self.now += len(chains)
        layer = self._seconds(place, place.chain)
        assert layer is not None
        found = [self._seconds(place, c) for c in chains]
        return [None if s is None else s / layer for s in found]

    def models(
        self, reference: Model, new: Model, feeds: Sequence[tuple[int, Feed]]
    ) -> tuple[LatencyPair, ...]:
        ratio = self._models(new)
        return tuple(replace(pair(ratio, self._noise), batch=batch) for batch, _ in feeds)


def taking(ratio: float) -> ScriptedTimer:
    """A timer that finds every whole model to take ``ratio`` of the original's time."""
    return ScriptedTimer(models=lambda _: ratio)


class ScriptedSession(Session):
    """Takes a known time and writes down its turns.

    Args:
        name: what it writes into ``log`` at each run.
        seconds: how long a run takes.
        log: the names of the sessions that ran, in their order.
    """

    def __init__(self, name: str, seconds: float, log: list[str]) -> None:
        self._name, self._seconds, self._log = name, seconds, log

    def run(self, *_: object) -> dict[str, npt.NDArray[Any]]:
        self._log.append(self._name)
        time.sleep(self._seconds)
        return {}
