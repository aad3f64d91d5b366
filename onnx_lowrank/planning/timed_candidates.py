"""Choices whose cost is time: every candidate is measured, or predicted from similar ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from onnx_lowrank.analysis.preparation import Prepared
from onnx_lowrank.chains.chain import Chain
from onnx_lowrank.errors import BudgetError
from onnx_lowrank.latency.cache import LatencyCache
from onnx_lowrank.latency.probe import place_of
from onnx_lowrank.latency.table import Coverage, LatencyTable
from onnx_lowrank.latency.timer import Timer
from onnx_lowrank.option_values import check_count, check_seconds
from onnx_lowrank.options import OptionGroup, option
from onnx_lowrank.planning.candidates import Candidate, Choice, reweighed, without_chains
from onnx_lowrank.planning.proposals import Proposals
from onnx_lowrank.progress import Progress
from onnx_lowrank.runtime.machine import machine
from onnx_lowrank.runtime.runtime import Runtime
from onnx_lowrank.runtime.session import Feed

__all__ = ["Timed", "TimingOptions", "latency_table", "losers", "timed_choices"]

#: nanoseconds in a second: costs are whole nanoseconds
UNIT = 1e9

#: a candidate is not timed if another has no more error and at most this part of its workload
_DOMINATED = 0.9


@dataclass(frozen=True)
class TimingOptions(OptionGroup):
    """How latency is measured."""

    title: ClassVar[str] = "latency"

    batch: int = option(1, "Samples of an inference whose latency counts.", metavar="N")
    timing_limit: float = option(
        120.0,
        "Seconds to measure chains for, about, where a target is on latency.",
        metavar="S",
    )

    def __post_init__(self) -> None:
        check_count("batch", self.batch)
        check_seconds("timing limit", self.timing_limit)


@dataclass(frozen=True)
class Timed:
    """Choices with costs in nanoseconds.

    Attributes:
        choices: a choice for each layer.
        whole: time of the network as it is, in nanoseconds.
        coverage: how many times were measured, cached and predicted.
    """

    choices: tuple[Choice, ...]
    whole: int
    coverage: Coverage

    @property
    def movable(self) -> int:
        """Time of the layers as they are, in nanoseconds."""
        return sum(c.keep.cost for c in self.choices)

    def weighed(self, factors: Mapping[str, float]) -> Timed:
        """The same with the weights of layers, by name, multiplied by factors."""
        return replace(self, choices=tuple(reweighed(self.choices, factors)))

    def keeping(self, layers: Collection[str]) -> Timed:
        """The same where some layers can only be kept as they are."""
        return replace(self, choices=tuple(without_chains(self.choices, layers)))


def latency_table(
    timer: Timer,
    runtime: Runtime,
    options: TimingOptions,
    folder: Path | None,
    progress: Progress,
) -> LatencyTable:
    """Make an empty table of times that looks up earlier times on disk.

    Args:
        timer: measures the times.
        runtime: the runtime that is measured; each has its own file on disk.
        options: how long to measure.
        folder: where times are kept between runs; None for nowhere.
        progress: receives one step for each chain.
    """
    cache = None if folder is None else LatencyCache(folder, machine(runtime))
    return LatencyTable(timer, limit=options.timing_limit, cache=cache, progress=progress)


def timed_choices(
    work: Prepared,
    proposals: Proposals,
    feed: Feed,
    shapes: Mapping[str, tuple[int, ...]],
    table: LatencyTable,
) -> Timed:
    """The proposals with measured or predicted times as their costs.

    Args:
        work: the model whose layers are proposed for.
        proposals: candidates with their outlines.
        feed: inputs of one inference at the batch size to measure.
        shapes: shapes of all tensors in that inference.
        table: table that the times are added to.

    Raises:
        BudgetError: there are layers, and none of them can be timed.
        ModelError: the network does not run.
    """
    places = [place_of(work.graph, layer, shapes) for layer in work.layers]
    looked_at = [_undominated(c, proposals.outlines[c.layer]) for c in proposals.choices]
    wanted = [
        (place, [outline for _, outline in found])
        for place, found in zip(places, looked_at, strict=True)
    ]
    coverage = table.measure(work.model, feed, wanted)
    if places and table.empty:
        raise BudgetError(
            "latency: none of the layers can be run by itself in ONNX Runtime, so their times "
            "are not known; ask for macs=R, params=R or size=R instead"
        )
    choices = []
    for choice, place, found in zip(proposals.choices, places, looked_at, strict=True):
        keep = _timed(choice.keep, table.seconds(place, place.chain))
        others = [_timed(c, table.seconds(place, outline)) for c, outline in found]
        # what multiplies nothing is replaced for other targets beside
        faster = [c for c in others if c.cost < keep.cost or not keep.macs]
        choices.append(replace(choice, candidates=(keep, *faster)))
    return Timed(tuple(choices), round(UNIT * table.network), coverage)


def losers(
    work: Prepared,
    chains: Mapping[str, Chain],
    feed: Feed,
    shapes: Mapping[str, tuple[int, ...]],
    table: LatencyTable,
) -> set[str]:
    """Find the layers whose chain is not faster than the layer.

    Where no time is known the set is empty: nothing is then taken back on a guess.

    Args:
        work: the model without the chains.
        chains: chains to compare with their layers, by layer name.
        feed: inputs of one inference at the batch size to measure.
        shapes: shapes of all tensors in that inference.
        table: table that the times are added to.

    Raises:
        ModelError: the network does not run.
    """
    places = {
        layer.name: place_of(work.graph, layer, shapes)
        for layer in work.layers
        if layer.name in chains and not layer.value.lookup  # that saves numbers, never time
    }
    if not places:
        return set()
    table.measure(work.model, feed, [(p, [chains[name]]) for name, p in places.items()])
    if table.empty:
        return set()
    return {
        name
        for name, place in places.items()
        if table.seconds(place, chains[name]) >= table.seconds(place, place.chain)
    }


def _timed(candidate: Candidate, seconds: float) -> Candidate:
    cost = round(UNIT * seconds)
    return replace(candidate, cost=cost, workload=cost)


def _undominated(choice: Choice, outlines: Sequence[Chain]) -> list[tuple[Candidate, Chain]]:
    """Candidates that may be the best for some budget, each with its outline."""
    pairs = list(zip(choice.candidates[1:], outlines, strict=True))
    return [
        (c, outline)
        for c, outline in pairs
        if not any(o.error <= c.error and o.workload <= _DOMINATED * c.workload for o, _ in pairs)
    ]
