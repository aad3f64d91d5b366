"""Take times: of layers in alternation with their network, of chains with their layer.

    t(layer) = best of the network * best of the layer / best of the network beside it
    t(chain) = t(layer) * best of the chain / best of the layer beside it

Times are the best of many turns, for what disturbs a run only ever makes it longer; a clock that
slows down meets all that take turns alike, and leaves their ratio. One thread is timed by its own
processor time, where that clock is fine enough: no waiting for a busy processor is in it.
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
from onnx_lowrank.runtime.runtime import Feed, Runtime, Session

__all__ = ["RuntimeTimer", "Timer"]

#: seconds of turns for each session
_SECONDS = 0.04

#: seconds of one turn; turns at the least, and where a network takes part
_TURN, _TURNS, _NETWORK_TURNS = 0.005, 3, 15

#: seconds for two whole models on one feed
_PAIR = 1.0

#: seconds that a clock of processor time must tell apart
_FINE = 1e-6

Clock = Callable[[], float]


class Timer(Protocol):
    """Takes all times that a run decides by; tests pass one whose times are written down."""

    def layers(
        self, model: Model, feed: Feed, places: Sequence[Place]
    ) -> tuple[float, Sequence[float | None]]:
        """Seconds of one inference of ``model``, and of one layer in each place, as parts of it.

        None stands for what does not run by itself.
        """

    def chains(self, place: Place, chains: Sequence[Chain]) -> Sequence[float | None]:
        """Times of chains in ``place``, as parts of that of the layer there.

        None stands for what does not run by itself.
        """

    def models(
        self, reference: Model, new: Model, feeds: Sequence[tuple[int, Feed]]
    ) -> tuple[LatencyPair, ...]:
        """Times of two whole models on each ``(batch, feed)``."""


@dataclass(frozen=True)
class RuntimeTimer:
    """Times in ONNX Runtime.

    Attributes:
        runtime: how models are run.
        seed: of the numbers in them.
    """

    runtime: Runtime
    seed: int = 0

    def layers(
        self, model: Model, feed: Feed, places: Sequence[Place]
    ) -> tuple[float, Sequence[float | None]]:
        """See :class:`Timer`."""
        opened = [self._open(place, place.chain) for place in places]
        running = [(self.runtime.session(model), feed), *(o for o in opened if o is not None)]
        best = _alternate(running, _SECONDS * len(running), _NETWORK_TURNS, self._clock)
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
        best = _alternate(running, _SECONDS * len(running), _TURNS, self._clock)
        parts = iter(best[1:] / best[0])
        return [None if o is None else float(next(parts)) for o in opened[1:]]

    def models(
        self, reference: Model, new: Model, feeds: Sequence[tuple[int, Feed]]
    ) -> tuple[LatencyPair, ...]:
        """See :class:`Timer`."""
        return measure_latency(reference, new, feeds, self.runtime, seconds=_PAIR)

    @property
    def _clock(self) -> Clock:
        alone = self.runtime.threads == 1 and self.runtime.provider == "CPUExecutionProvider"
        fine = time.get_clock_info("thread_time").resolution <= _FINE
        return time.thread_time if alone and fine else time.perf_counter

    def _open(self, place: Place, chain: Chain) -> tuple[Session, Feed] | None:
        try:
            model, feed = probe(place, chain, self.seed)
            session = self.runtime.session(model)
            session.run(feed)
        except ModelError:
            return None
        return session, feed


def _alternate(
    running: Sequence[tuple[Session, Feed]], seconds: float, least: int, clock: Clock
) -> npt.NDArray[np.float64]:
    """Best time of each session; a turn is some runs, the first half of which warm up."""
    turns: list[list[float]] = []
    end = time.perf_counter() + seconds
    while len(turns) < least or time.perf_counter() < end:
        turns.append([_turn(session, feed, clock) for session, feed in running])
    best: npt.NDArray[np.float64] = np.min(turns, axis=0)
    return best


def _turn(session: Session, feed: Feed, clock: Clock) -> float:
    record: list[float] = []
    start = before = clock()
    while len(record) < 2 or before - start < _TURN:
        session.run(feed)
        now = clock()
        record.append(now - before)
        before = now
    return min(record[len(record) // 2 :])
