"""Timing: layers in alternation with their network, chains in alternation with their layer.

    t(layer) = best of the network * best of the layer / best of the network beside it
    t(chain) = t(layer) * best of the chain / best of the layer beside it

Times are the best of many turns, as disturbances only ever make a run longer; a processor that
slows down slows all that take turns alike, and leaves their ratio. One thread is timed by its own
processor time where that clock is fine enough: it does not count waiting for a busy processor.
Virtual machines may stop that clock for a while; where it saw a run take no time at all, the clock
on the wall is asked instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from onnx_lowrank.chains.chain import Chain
from onnx_lowrank.errors import ModelError
from onnx_lowrank.latency.pairs import LatencyPair, measure_latency
from onnx_lowrank.latency.probe import Place, probe
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.runtime.runtime import Runtime
from onnx_lowrank.runtime.session import Feed, Session

__all__ = ["RuntimeTimer", "Timer"]

#: seconds to spend on each session
_SECONDS = 0.04

#: seconds of one turn
_TURN = 0.005

#: smallest number of turns of chains, and where a whole network takes part
_TURNS, _NETWORK_TURNS = 3, 15

#: seconds to spend on two whole models on one feed
_PAIR = 1.0

#: coarsest resolution of a clock of processor time that is used, in seconds
_FINE = 1e-6

Clock = Callable[[], float]


class Timer(Protocol):
    """Measures all times that decisions depend on; tests pass one with times of a script."""

    def layers(
        self, model: Model, feed: Feed, places: Sequence[Place]
    ) -> tuple[float, Sequence[float | None]]:
        """Time a network and its layers.

        Returns:
            Seconds of one inference of ``model``, and the time of a layer in each place as a part
            of that; None for a layer that does not run by itself.
        """

    def chains(self, place: Place, chains: Sequence[Chain]) -> Sequence[float | None]:
        """Time chains in ``place``.

        Returns:
            Times as multiples of the layer's time there; None for a chain that does not run by
            itself.
        """

    def models(
        self, reference: Model, new: Model, feeds: Sequence[tuple[int, Feed]]
    ) -> tuple[LatencyPair, ...]:
        """Time two whole models in alternation on each ``(batch, feed)``."""


@dataclass(frozen=True)
class RuntimeTimer:
    """Measures times in ONNX Runtime; see :class:`Timer`.

    Attributes:
        runtime: runs the models.
        seed: random seed of the weights in probes.
    """

    runtime: Runtime
    seed: int = 0

    def layers(
        self, model: Model, feed: Feed, places: Sequence[Place]
    ) -> tuple[float, Sequence[float | None]]:
        """See :class:`Timer`."""
        opened = [self._open(place, place.chain) for place in places]
        running = [(self.runtime.session(model), feed), *(o for o in opened if o is not None)]
        best = _best(running, _NETWORK_TURNS, self._clocks)
        parts = iter(best[1:] / best[0])
        found = [
            None if o is None else float(next(parts)) / p.copies
            for p, o in zip(places, opened, strict=True)
        ]
        return float(best[0]), found

    def chains(self, place: Place, chains: Sequence[Chain]) -> Sequence[float | None]:
        """See :class:`Timer`."""
        opened = [self._open(place, chain) for chain in (place.chain, *chains)]
        if opened[0] is None:
            return [None] * len(chains)
        running = [o for o in opened if o is not None]
        best = _best(running, _TURNS, self._clocks)
        parts = iter(best[1:] / best[0])
        return [None if o is None else float(next(parts)) for o in opened[1:]]

    def models(
        self, reference: Model, new: Model, feeds: Sequence[tuple[int, Feed]]
    ) -> tuple[LatencyPair, ...]:
        """See :class:`Timer`."""
        return measure_latency(reference, new, feeds, self.runtime, seconds=_PAIR)

    @property
    def _clocks(self) -> Sequence[Clock]:
        alone = self.runtime.threads == 1 and self.runtime.provider == "CPUExecutionProvider"
        fine = time.get_clock_info("thread_time").resolution <= _FINE
        return [time.thread_time, time.perf_counter] if alone and fine else [time.perf_counter]

    def _open(self, place: Place, chain: Chain) -> tuple[Session, Feed] | None:
        try:
            model, feed = probe(place, chain, self.seed)
            session = self.runtime.session(model)
            session.run(feed)
        except ModelError:
            return None
        return session, feed


def _best(
    running: Sequence[tuple[Session, Feed]], least: int, clocks: Sequence[Clock]
) -> npt.NDArray[np.float64]:
    """Best time of each session in seconds, by the first clock that saw all of them take time."""
    best = np.zeros(len(running))
    for clock in clocks:
        best = _alternate(running, least, clock)
        if np.all(best > 0):
            break
    return np.maximum(best, time.get_clock_info("perf_counter").resolution)


def _alternate(
    running: Sequence[tuple[Session, Feed]], least: int, clock: Clock
) -> npt.NDArray[np.float64]:
    """Best time of each session in seconds; the first half of the runs in a turn warms up."""
    turns: list[list[float]] = []
    end = time.perf_counter() + _SECONDS * len(running)
    while len(turns) < least or time.perf_counter() < end:
        turns.append([_turn(session, feed, clock) for session, feed in running])
    best: npt.NDArray[np.float64] = np.min(turns, axis=0)
    return best


def _turn(session: Session, feed: Feed, clock: Clock) -> float:
    record: list[float] = []
    end = time.perf_counter() + _TURN
    before = clock()
    while len(record) < 2 or time.perf_counter() < end:
        session.run(feed)
        now = clock()
        record.append(now - before)
        before = now
    return min(record[len(record) // 2 :])
