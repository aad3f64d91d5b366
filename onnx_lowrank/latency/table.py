"""Measured latency as a cost: the time of every layer, and of every chain in its place.

    latency(plan) = latency(original) - sum_l [t_l(layer) - t_l(chosen)]

Only differences count, so the time that a probe (:mod:`onnx_lowrank.latency.probe`) takes besides
its chain drops out, and nodes outside layers need not be measured. Each distinct chain of each
distinct place is timed once, in alternation with the layer itself
(:mod:`onnx_lowrank.latency.timer`). Ranks are visited from coarse to fine: whenever the time limit
ends the measuring, the other ranks lie between measured neighbours
(:mod:`onnx_lowrank.latency.fit`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from onnx_lowrank.analysis.time_model import Features, features, form_of, workload
from onnx_lowrank.chains.chain import Chain
from onnx_lowrank.errors import ModelError
from onnx_lowrank.latency.cache import LatencyCache
from onnx_lowrank.latency.fit import Fit, Sample
from onnx_lowrank.latency.probe import Place, chain_key
from onnx_lowrank.latency.timer import Timer
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.progress import Progress
from onnx_lowrank.runtime.session import Feed

__all__ = [
    "Coverage",
    "Estimate",
    "LatencyTable",
    "corrected_budget",
    "levels",
]

Clock = Callable[[], float]
Wanted = Sequence[tuple[Place, Sequence[Chain]]]

#: number of chains that take turns with their layer
_GROUP = 6


@dataclass(frozen=True)
class Estimate:
    """The time of a chain in its place, in seconds, and whether it was measured."""

    seconds: float
    measured: bool


@dataclass(frozen=True)
class Coverage:
    """Numbers of chains that were measured, known and predicted.

    Attributes:
        measured: number of distinct chains timed now.
        cached: number of distinct chains whose times were known.
        predicted: number of distinct chains that the time limit excluded, or that do not run by
            themselves.
        seconds: time spent on measuring, in seconds.
    """

    measured: int
    cached: int
    predicted: int
    seconds: float

    def __str__(self) -> str:
        text = f"{self.measured} chains measured in {self.seconds:.0f} s, {self.cached} known"
        return text + (f", {self.predicted} predicted" if self.predicted else "")


class LatencyTable:
    """Times of chains in their places.

    Args:
        timer: measures the times.
        limit: seconds that :meth:`measure` may take, approximately; the network and its layers are
            timed in any case.
        cache: earlier times on disk; None to neither read nor write any.
        progress: receives one step for each chain.
        clock: clock that the limit is measured by, in seconds.
    """

    def __init__(
        self,
        timer: Timer,
        *,
        limit: float = 120.0,
        cache: LatencyCache | None = None,
        progress: Progress | None = None,
        clock: Clock = time.perf_counter,
    ) -> None:
        self._timer, self._limit, self._cache = timer, limit, cache
        self._progress, self._clock = progress or Progress(), clock
        self._network = 0.0
        self._known: dict[str, dict[str, float]] = {}
        self._layers: dict[str, float] = {}
        self._samples: dict[str, list[Sample]] = {}
        self._fits: dict[str, Fit] = {}

    @property
    def network(self) -> float:
        """Time of one inference of the whole network in seconds, known after :meth:`measure`."""
        return self._network

    @property
    def empty(self) -> bool:
        """Whether no time of a layer or chain is known, so none can be predicted."""
        return not self._samples

    @property
    def samples(self) -> list[Sample]:
        """All measured chains."""
        return [sample for found in self._samples.values() for sample in found]

    def measure(self, model: Model, feed: Feed, wanted: Wanted) -> Coverage:
        """Time a network and its layers, and as many of the chains wanted as the limit allows.

        Args:
            model: the network.
            feed: inputs of one inference at the batch size to measure.
            wanted: places of its layers, each with the chains that may take it; layers of equal
                shapes have equal places.

        Raises:
            ModelError: the network does not run.
        """
        start = self._clock()
        places, chains, uses = _distinct(wanted)
        total = sum(map(len, chains.values()))
        cached = sum(self._from_cache(places[k], c) for k in places for c in chains[k].values())
        measured = 0
        try:
            with self._progress.task("time", total) as advance:
                advance(cached)
                measured += self._time_layers(model, feed, list(places.values()))
                advance(measured)
                for place, group in _groups(places, chains, uses, self._known):
                    if self._clock() - start >= self._limit:
                        break
                    measured += self._time_chains(place, group)
                    advance(len(group))
        finally:
            if self._cache is not None:
                self._cache.save()
        self._fits = {}
        spent = self._clock() - start
        return Coverage(measured, cached, total - cached - measured, spent)

    def estimate(self, place: Place, chain: Chain) -> Estimate:
        """The time of ``chain`` in ``place``, measured or predicted; call :meth:`measure` first.

        Raises:
            ModelError: the table is :attr:`empty`.
        """
        seconds = self._known.get(place.key, {}).get(chain_key(chain))
        if seconds is not None:
            return Estimate(seconds, True)
        if self.empty:
            raise ModelError(
                "no layer can be run by itself in ONNX Runtime, so no time is known; give another "
                "target than latency"
            )
        if place.key not in self._fits:
            own = self._samples.get(place.key, [])
            others = [s for key, found in self._samples.items() if key != place.key for s in found]
            self._fits[place.key] = Fit(own, others)
        fit = self._fits[place.key]
        return Estimate(fit.seconds(form_of(chain), _features(place, chain)), False)

    def seconds(self, place: Place, chain: Chain) -> float:
        """Seconds of ``chain`` in ``place``, measured or predicted."""
        return self.estimate(place, chain).seconds

    def _time_layers(self, model: Model, feed: Feed, places: Sequence[Place]) -> int:
        shapes = sorted((name, value.shape) for name, value in feed.items())
        key = f"network {model.digest} {shapes}"
        known = self._recall(key)
        new = [p for p in places if p.key not in self._layers]
        if known is None or new:
            seconds, parts = self._timer.layers(model, feed, new)
            if known is None:
                known = seconds
                self._remember(key, known)
            for place, part in zip(new, parts, strict=True):
                if part is not None:
                    self._learn(place, place.chain, part * known, new=True)
        self._network = known
        return sum(p.key in self._layers for p in new)

    def _time_chains(self, place: Place, group: Sequence[Chain]) -> int:
        layer = self._layers.get(place.key)
        if layer is None:
            return 0
        parts = self._timer.chains(place, group)
        for chain, part in zip(group, parts, strict=True):
            if part is not None:
                self._learn(place, chain, part * layer, new=True)
        return sum(part is not None for part in parts)

    def _from_cache(self, place: Place, chain: Chain) -> bool:
        if chain_key(chain) in self._known.get(place.key, {}):
            return True
        seconds = self._recall(_cache_key(place, chain))
        if seconds is not None:
            self._learn(place, chain, seconds)
        return seconds is not None

    def _learn(self, place: Place, chain: Chain, seconds: float, new: bool = False) -> None:
        key = chain_key(chain)
        self._known.setdefault(place.key, {})[key] = seconds
        if key == chain_key(place.chain):
            self._layers[place.key] = seconds
        sample = Sample(form_of(chain), _features(place, chain), seconds)
        self._samples.setdefault(place.key, []).append(sample)
        if new:
            self._remember(_cache_key(place, chain), seconds)

    def _recall(self, key: str) -> float | None:
        return None if self._cache is None else self._cache.get(key)

    def _remember(self, key: str, seconds: float) -> None:
        if self._cache is not None:
            self._cache.put(key, seconds)


def corrected_budget(whole: float, predicted: float, measured: float, wanted: float) -> float:
    """Correct a budget on time so that the next plan takes the time wanted.

    It is one step of the secant method: if a plan saved only a part of the time that was predicted,
    the next one is asked to save more by that factor, and the other way round.

    Args:
        whole: time of the original, in seconds.
        predicted: time predicted for the last plan, in seconds.
        measured: time measured for the last plan, in seconds.
        wanted: time that the target asks for, in seconds.

    Returns:
        The budget to plan under, in seconds.
    """
    if predicted >= whole or measured >= whole:
        return wanted
    return whole - (whole - wanted) * (whole - predicted) / (whole - measured)


def levels(count: int) -> list[int]:
    """Levels of ``count`` ordered items: 0 for the ends, 1 for the middle, 2 for the quarters."""
    result = [0] * count
    spans, level = [(0, count - 1)], 1
    while spans:
        halves = []
        for low, high in spans:
            middle = (low + high) // 2
            if low < middle < high:
                result[middle] = level
                halves += [(low, middle), (middle, high)]
        spans, level = halves, level + 1
    return result


def _distinct(
    wanted: Wanted,
) -> tuple[dict[str, Place], dict[str, dict[str, Chain]], dict[str, int]]:
    """Collect places, their chains (the layer itself first) and their numbers of layers, by key."""
    places: dict[str, Place] = {}
    chains: dict[str, dict[str, Chain]] = {}
    uses: dict[str, int] = {}
    for place, candidates in wanted:
        places.setdefault(place.key, place)
        uses[place.key] = uses.get(place.key, 0) + 1
        found = chains.setdefault(place.key, {})
        for chain in (place.chain, *candidates):
            found.setdefault(chain_key(chain), chain)
    return places, chains, uses


def _groups(
    places: Mapping[str, Place],
    chains: Mapping[str, Mapping[str, Chain]],
    uses: Mapping[str, int],
    known: Mapping[str, Mapping[str, float]],
) -> list[tuple[Place, list[Chain]]]:
    """Groups of chains to time together, the most useful first.

    The ends of the ranks of every form come first, then the middles, then finer levels. Within a
    level the first groups of all places come before the others, and places with more workload
    before those with less.
    """
    ordered: list[tuple[tuple[int, bool, float], Place, list[Chain]]] = []
    for key, place in places.items():
        by_level: dict[int, list[Chain]] = {}
        forms: dict[str, list[Chain]] = {}
        own = chain_key(place.chain)
        for chain in (c for k, c in chains[key].items() if k != own):
            forms.setdefault(form_of(chain), []).append(chain)
        for form in forms.values():
            form.sort(key=lambda c: (workload(c, place.shape), c.parameters))
            for level, chain in zip(levels(len(form)), form, strict=True):
                by_level.setdefault(level, []).append(chain)
        weight = uses[key] * workload(place.chain, place.shape)
        for level, members in by_level.items():
            new = [c for c in members if chain_key(c) not in known.get(key, {})]
            for start in range(0, len(new), _GROUP):
                order = (level, start > 0, -float(weight))
                ordered.append((order, place, new[start : start + _GROUP]))
    ordered.sort(key=lambda entry: entry[0])
    return [(place, group) for _, place, group in ordered]


def _features(place: Place, chain: Chain) -> Features:
    return features(chain, place.shape, place.itemsize)


def _cache_key(place: Place, chain: Chain) -> str:
    return f"{place.key} {chain_key(chain)}"
