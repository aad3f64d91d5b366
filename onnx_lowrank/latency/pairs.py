"""Time whole models beside each other."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.runtime.runtime import Runtime
from onnx_lowrank.runtime.session import Feed, Session

__all__ = ["Latency", "LatencyPair", "interleaved_latency", "measure_latency"]

#: turns of models that take this many times the seconds that are to be spent
_TURNS, _SLOW = 3, 4

#: turns from which on two models take no more once the 95 % interval of their ratio is this narrow
_ENOUGH, _PRECISE = 8, 1.03

#: turns up to which two models go on when the seconds are over, where that interval is this wide
_FEW, _VAGUE = 20, 1.2


@dataclass(frozen=True)
class Latency:
    """Times of one model, in seconds for one run.

    Attributes:
        median: the median time.
        late: the time that 95 % of the runs stay below.
        turns: the shortest time of each turn.
    """

    median: float
    late: float
    turns: tuple[float, ...]

    @property
    def typical(self) -> float:
        """The geometric mean of the shortest times of turns.

        The ratio of two such times is the mean speed-up of turns. That of the shortest times of
        all scatters up to seven times as much, as one lucky turn decides it.
        """
        return math.exp(float(np.mean(np.log(self.turns))))


def interleaved_latency(
    sessions: Sequence[Session], feed: Feed, *, seconds: float = 2.0, least: int = 5
) -> list[Latency]:
    """Time several models in alternation, so that a noisy machine disturbs all alike.

    They take turns of a few runs rather than of one: the idle threads of a session spin for a
    while, and would take the cores from the next one.

    Args:
        sessions: a session of each model.
        feed: the inputs, the same for all of them.
        seconds: time to spend on all of them together.
        least: smallest number of turns that each takes; where they take several times as long as
            that, three turns do. Two models whose ratio is known well take no more; where few
            turns leave it vague, they take up to several times as long.
    """
    times: list[list[list[float]]] = [[] for _ in sessions]
    start = time.perf_counter()
    while _go_on(times, (time.perf_counter() - start) / max(seconds, 1e-9), least):
        for session, record in zip(sessions, times, strict=True):
            record.append(session.turn(feed))
    return [_latency(record) for record in times]


def _go_on(times: Sequence[Sequence[Sequence[float]]], spent: float, least: int) -> bool:
    """Whether models take one more turn.

    Args:
        times: of the turns so far, by model.
        spent: time that they took, as a part of that to spend.
        least: number of turns that they take at the least.
    """
    turns, pair = len(times[0]), len(times) == 2
    if turns >= _TURNS and spent > _SLOW:
        return False
    if pair and turns >= _ENOUGH and _known(times, _PRECISE):
        return False
    if turns < least or spent < 1:
        return True
    return pair and turns < _FEW and not _known(times, _VAGUE)


def _known(times: Sequence[Sequence[Sequence[float]]], within: float) -> bool:
    """Whether the ends of the interval of the ratio of two models' times differ by less."""
    low, high = _speedups(*([min(turn) for turn in turns] for turns in times))
    return high <= within * low


def _latency(turns: Sequence[Sequence[float]]) -> Latency:
    record = [t for turn in turns for t in turn]
    median, late = np.percentile(record, [50, 95])
    return Latency(float(median), float(late), tuple(map(min, turns)))


@dataclass(frozen=True)
class LatencyPair:
    """Times of one inference of two models that ran in alternation.

    Attributes:
        batch: number of samples in an inference.
        reference_ms: typical time of the original, in milliseconds: the geometric mean of the
            shortest times of turns.
        new_ms: the same of the new model.
        reference_median_ms: median time of the original.
        new_median_ms: median time of the new model.
        reference_p95_ms: time that 95 % of the original's runs stay below.
        new_p95_ms: likewise of the new model.
        speedup_low: lower end of the 95 % interval of the mean speed-up of turns.
        speedup_high: upper end; where it is below 1, the new model is slower beyond chance.
    """

    batch: int
    reference_ms: float
    new_ms: float
    reference_median_ms: float
    new_median_ms: float
    reference_p95_ms: float
    new_p95_ms: float
    speedup_low: float
    speedup_high: float

    @property
    def speedup(self) -> float:
        """Ratio of the original's typical time to the new model's: the mean of turns."""
        return self.reference_ms / self.new_ms

    @property
    def median_speedup(self) -> float:
        """Ratio of the original's median time to the new model's."""
        return self.reference_median_ms / self.new_median_ms

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "speedup": self.speedup, "median_speedup": self.median_speedup}


def measure_latency(
    reference: Model,
    new: Model,
    feeds: Sequence[tuple[int, Feed]],
    runtime: Runtime,
    seconds: float,
) -> tuple[LatencyPair, ...]:
    """Time two models in alternation.

    Args:
        reference: the original.
        new: the model to compare with it.
        feeds: samples of an inference, and its inputs, for each time that is asked.
        runtime: how both are run.
        seconds: time to spend on each feed.

    Returns:
        One pair of times for each feed.
    """
    sessions: list[Session] = [runtime.session(reference), runtime.session(new)]
    pairs = []
    for batch, feed in feeds:
        one, two = interleaved_latency(sessions, feed, seconds=seconds)
        pairs.append(
            LatencyPair(
                batch,
                one.typical * 1e3,
                two.typical * 1e3,
                one.median * 1e3,
                two.median * 1e3,
                one.late * 1e3,
                two.late * 1e3,
                *_speedups(one.turns, two.turns),
            )
        )
    return tuple(pairs)


def _speedups(one: Sequence[float], two: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the geometric mean of the speed-ups of turns, by Student's t."""
    logs = np.log(np.array(one) / np.array(two))
    half = stdtrit(len(logs) - 1, 0.975) * logs.std(ddof=1) / math.sqrt(len(logs))
    return math.exp(logs.mean() - half), math.exp(logs.mean() + half)
