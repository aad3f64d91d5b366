from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from onnx_lowrank.chains.chain import Chain, Stage
from onnx_lowrank.chains.geometry import ConvGeometry
from onnx_lowrank.errors import ModelError
from onnx_lowrank.latency.cache import LatencyCache
from onnx_lowrank.latency.probe import Place, chain_key, place_of
from onnx_lowrank.latency.table import LatencyTable, corrected_budget, levels
from onnx_lowrank.latency.timer import RuntimeTimer
from onnx_lowrank.layers import find_layers
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.progress import Progress
from onnx_lowrank.runtime.runtime import Runtime
from tests.scripted_timer import ScriptedTimer, by_workload
from tests.support import graph_of, make_model, quick, rng

SHAPES = {"x": (1, 16, 8, 8), "a": (1, 16, 8, 8), "b": (1, 16, 8, 8)}
FEED = {"x": np.zeros(SHAPES["x"], np.float32)}


def network(*widths: int) -> Model:
    """Convolutions of 16 channels, each with a kernel of its own size, one after the other."""
    weights, nodes, source = {}, [], "x"
    for number, width in enumerate(widths):
        weights[f"w{number}"] = rng(number).standard_normal((16, 16, width, width), np.float32)
        pads = [width // 2] * 4
        nodes.append(helper.make_node("Conv", [source, f"w{number}"], [f"y{number}"], pads=pads))
        source = f"y{number}"
    return Model(make_model(nodes, {"x": SHAPES["x"]}, [source], weights))


def places(model: Model) -> list[Place]:
    graph = graph_of(model.proto)
    layers = find_layers(graph)[0]
    shapes = {layer.input: SHAPES["x"] for layer in layers}
    return [place_of(graph, layer, shapes) for layer in layers]


def ranked(place: Place, ranks: Sequence[int]) -> list[Chain]:
    """The layer in two stages, the second pointwise."""
    geometry, point = place.stage.geometry, ConvGeometry.pointwise(2)
    return [
        Chain(
            (
                Stage(np.zeros((r, 16, *geometry.kernel)), None, geometry, "first"),
                Stage(np.zeros((16, r, 1, 1)), None, point, "last"),
            )
        )
        for r in ranks
    ]


def table(
    timer: ScriptedTimer, *, limit: float = 1e9, cache: LatencyCache | None = None
) -> LatencyTable:
    return LatencyTable(timer, limit=limit, cache=cache, clock=lambda: timer.now)


RANKS = list(range(1, 16))


# what is measured


def test_a_clock_of_processor_time_that_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "thread_time", lambda: 1.0)
    model = network(3)
    (place,) = places(model)
    runtime = Runtime(threads=1)
    seconds, (share,) = RuntimeTimer(runtime).layers(model, FEED, [place])
    assert 0 < seconds < 1
    assert share is not None
    assert 0 < share < 100
    (again,) = RuntimeTimer(runtime).chains(place, [place.chain])
    assert again is not None
    assert 0.01 < again < 100


def test_equal_places_and_equal_chains_are_measured_once() -> None:
    model = network(3, 3, 5, 3)
    found = places(model)
    timer = ScriptedTimer()
    wanted = [(p, ranked(p, RANKS) + ranked(p, RANKS)) for p in found]
    coverage = table(timer).measure(model, FEED, wanted)
    keys = [(p.key, chain_key(c)) for p, c in timer.asked]
    assert len(keys) == len(set(keys)) == 2 * (1 + len(RANKS))
    assert (coverage.measured, coverage.cached, coverage.predicted) == (len(keys), 0, 0)


def test_measured_times_are_those_of_the_timer() -> None:
    model = network(3, 5)
    timer = ScriptedTimer(network=0.01)
    times = table(timer)
    wanted = [(p, ranked(p, RANKS)) for p in places(model)]
    times.measure(model, FEED, wanted)
    assert times.network == 0.01
    for place, chains in wanted:
        for chain in (place.chain, *chains):
            estimate = times.estimate(place, chain)
            assert estimate.measured
            assert estimate.seconds == pytest.approx(by_workload(place, chain), rel=1e-9)


@quick(50)
@given(st.integers(1, 200))
def test_levels_go_from_coarse_to_fine(count: int) -> None:
    """Up to each level the gaps between visited ranks are at most half of those before, about."""
    found = levels(count)
    assert len(found) == count
    gap = float(count)
    for level in range(max(found, default=0) + 1):
        visited = [i for i, x in enumerate(found) if x <= level]
        assert {0, count - 1} <= set(visited)
        widest = max((b - a for a, b in pairwise(visited)), default=1)
        assert widest <= max((gap + 1) // 2 if level else gap, 1)
        gap = widest
    assert gap == 1
    assert levels(0) == []


def test_ends_of_the_ranks_of_all_places_come_first_and_heavy_places_before_light_ones() -> None:
    model = network(1, 5, 3, 3, 3)
    light, heavy, *many = places(model)
    timer = ScriptedTimer()
    table(timer).measure(model, FEED, [(p, ranked(p, RANKS)) for p in places(model)])
    order = {light.key: "light", heavy.key: "heavy", many[0].key: "many"}
    first = [(order[p.key], [c.stages[0].outputs for c in g]) for p, g in timer.groups[:3]]
    assert first == [("many", [1, 15]), ("heavy", [1, 15]), ("light", [1, 15])]
    for key in order:
        ranks = [c.stages[0].outputs for p, c in timer.asked if p.key == key and len(c.stages) > 1]
        assert ranks[:5] == [1, 15, 8, 4, 11]
        assert sorted(ranks) == RANKS


@pytest.mark.parametrize("limit", [0.0, 1.0, 6.0, 17.0])
def test_the_limit_ends_the_measuring_and_the_rest_is_predicted(limit: float) -> None:
    model = network(3, 5)
    timer = ScriptedTimer()
    times = table(timer, limit=limit)
    wanted = [(p, ranked(p, RANKS)) for p in places(model)]
    coverage = times.measure(model, FEED, wanted)
    assert timer.now <= max(limit, 1.0) + 6  # the group that runs is not cut short
    assert coverage.seconds == timer.now
    assert coverage.predicted > 0
    assert coverage.measured + coverage.predicted == 2 * (1 + len(RANKS))
    flags = [times.estimate(p, c).measured for p, cs in wanted for c in (p.chain, *cs)]
    assert flags.count(True) == coverage.measured


def test_what_was_not_measured_lies_near_the_truth_on_a_machine_of_the_models_kind() -> None:
    model = network(3, 5)
    timer = ScriptedTimer()
    times = table(timer, limit=12.0)
    wanted = [(p, ranked(p, RANKS)) for p in places(model)]
    assert times.measure(model, FEED, wanted).predicted > 10
    for place, chains in wanted:
        for chain in chains:
            true = by_workload(place, chain)
            assert times.seconds(place, chain) == pytest.approx(true, rel=0.1)


def test_a_chain_that_does_not_run_alone_is_predicted() -> None:
    model = network(3)
    (place,) = places(model)
    chains = ranked(place, RANKS)
    broken = chains[7]
    timer = ScriptedTimer(lambda p, c: None if c is broken else by_workload(p, c))
    times = table(timer)
    coverage = times.measure(model, FEED, [(place, chains)])
    assert coverage.predicted == 1
    estimate = times.estimate(place, broken)
    assert not estimate.measured
    assert estimate.seconds == pytest.approx(by_workload(place, broken), rel=0.1)


def test_a_layer_that_does_not_run_alone_is_predicted_from_other_places() -> None:
    model = network(3, 5)
    good, bad = places(model)
    timer = ScriptedTimer(lambda p, c: None if p is bad else by_workload(p, c))
    times = table(timer)
    coverage = times.measure(model, FEED, [(p, ranked(p, RANKS)) for p in (good, bad)])
    assert coverage.predicted == 1 + len(RANKS)
    estimate = times.estimate(bad, bad.chain)
    assert not estimate.measured
    assert estimate.seconds == pytest.approx(by_workload(bad, bad.chain), rel=0.1)


def test_where_no_layer_runs_alone_nothing_is_known() -> None:
    model = network(3)
    (place,) = places(model)
    times = table(ScriptedTimer(lambda p, c: None))
    coverage = times.measure(model, FEED, [(place, ranked(place, [4]))])
    assert times.empty
    assert (coverage.measured, coverage.cached, coverage.predicted) == (0, 0, 2)
    with pytest.raises(ModelError, match="no layer can be run by itself in ONNX Runtime"):
        times.seconds(place, place.chain)


def test_of_no_layers_the_network_alone_is_timed() -> None:
    timer = ScriptedTimer(network=0.01)
    times = table(timer)
    assert times.measure(network(3), FEED, []).measured == 0
    assert times.network == 0.01
    assert times.empty
    assert timer.asked == []


def test_progress_is_told_of_every_chain() -> None:
    told: list[int] = []

    class Listening(Progress):
        @contextmanager
        def task(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
            told.append(-total)
            yield told.append

    model, timer = network(3, 5), ScriptedTimer()
    times = LatencyTable(timer, progress=Listening(), clock=lambda: timer.now)
    times.measure(model, FEED, [(p, ranked(p, RANKS)) for p in places(model)])
    assert sum(told) == 0
    assert told[0] == -2 * (1 + len(RANKS))


# the cache


def cached(folder: Path, version: str = "1") -> LatencyCache:
    return LatencyCache(folder, {"version": version})


def test_a_second_run_measures_nothing(tmp_path: Path) -> None:
    model = network(3, 5)
    wanted = [(p, ranked(p, RANKS)) for p in places(model)]
    first, second = ScriptedTimer(), ScriptedTimer()
    one = table(first, cache=cached(tmp_path))
    one.measure(model, FEED, wanted)
    two = table(second, cache=cached(tmp_path))
    coverage = two.measure(model, FEED, wanted)
    assert (coverage.measured, coverage.cached) == (0, 2 * (1 + len(RANKS)))
    assert not second.asked
    assert second.batches == []
    assert two.network == one.network
    assert [two.seconds(p, c) for p, cs in wanted for c in cs] == [
        one.seconds(p, c) for p, cs in wanted for c in cs
    ]


def test_another_version_or_no_cache_measures_anew(tmp_path: Path) -> None:
    model = network(3)
    wanted = [(p, ranked(p, RANKS)) for p in places(model)]
    table(ScriptedTimer(), cache=cached(tmp_path)).measure(model, FEED, wanted)
    for cache in (cached(tmp_path, "2"), None):
        assert table(ScriptedTimer(), cache=cache).measure(model, FEED, wanted).cached == 0


def test_new_chains_of_a_known_layer_hang_together_with_it(tmp_path: Path) -> None:
    """The machine is twice as slow the second time; ratios are what counts."""
    model = network(3)
    (place,) = places(model)
    table(ScriptedTimer(), cache=cached(tmp_path)).measure(
        model, FEED, [(place, ranked(place, [4]))]
    )
    slow = ScriptedTimer(lambda p, c: 2 * by_workload(p, c))
    times = table(slow, cache=cached(tmp_path))
    coverage = times.measure(model, FEED, [(place, ranked(place, [4, 8]))])
    assert (coverage.measured, coverage.cached) == (1, 2)
    (new,) = ranked(place, [8])
    assert times.seconds(place, new) == pytest.approx(by_workload(place, new), rel=1e-9)


def test_what_was_measured_before_an_interruption_is_kept(tmp_path: Path) -> None:
    model = network(3)
    (place,) = places(model)
    chains = ranked(place, RANKS)

    def seconds(where: Place, chain: Chain) -> float:
        if chain is chains[4]:
            raise KeyboardInterrupt
        return by_workload(where, chain)

    times = table(ScriptedTimer(seconds), cache=cached(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        times.measure(model, FEED, [(place, chains)])
    again = table(ScriptedTimer(), cache=cached(tmp_path)).measure(model, FEED, [(place, chains)])
    assert again.cached > 0


# the correction


def test_a_correction_of_a_true_prediction_changes_nothing() -> None:
    assert corrected_budget(1.0, 0.6, 0.6, 0.5) == pytest.approx(0.5, rel=1e-12)


@quick(50)
@given(worth=st.floats(0.2, 3.0), wanted=st.floats(0.4, 0.95))
def test_one_correction_is_exact_where_savings_are_worth_a_constant(
    worth: float, wanted: float
) -> None:
    def measured(predicted: float) -> float:
        return 1.0 - worth * (1.0 - predicted)

    first = 0.8
    budget = corrected_budget(1.0, first, measured(first), wanted)
    assert measured(budget) == pytest.approx(wanted, rel=1e-9)


def test_no_correction_is_made_from_a_plan_that_saves_nothing() -> None:
    assert corrected_budget(1.0, 1.0, 0.9, 0.5) == 0.5
    assert corrected_budget(1.0, 0.9, 1.1, 0.5) == 0.5


# in ONNX Runtime


def test_a_large_convolution_takes_longer_than_a_small_one() -> None:
    weights = {
        "small": rng(0).standard_normal((32, 32, 1, 1), np.float32),
        "large": rng(1).standard_normal((32, 32, 7, 7), np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "small"], ["a"]),
        helper.make_node("Conv", ["a", "large"], ["y"], pads=[3, 3, 3, 3]),
    ]
    shape = (1, 32, 28, 28)
    model = Model(make_model(nodes, {"x": shape}, ["y"], weights))
    graph = graph_of(model.proto)
    layers = find_layers(graph)[0]
    small, large = (place_of(graph, x, {"x": shape, "a": shape}) for x in layers)
    geometry, point = large.stage.geometry, ConvGeometry.pointwise(2)
    narrow = Chain(
        (
            Stage(np.zeros((8, 32, 1, 1)), None, point),
            Stage(np.zeros((8, 8, 7, 7)), None, geometry),
            Stage(np.zeros((32, 8, 1, 1)), None, point),
        )
    )
    times = LatencyTable(RuntimeTimer(Runtime(threads=1)), limit=10.0)
    feed = {"x": rng(2).standard_normal(shape, np.float32)}
    coverage = times.measure(model, feed, [(small, []), (large, [narrow])])
    assert (coverage.measured, coverage.predicted) == (3, 0)
    whole = times.seconds(large, large.chain)
    assert times.seconds(small, small.chain) < whole / 3  # 49 times the MACs
    assert times.seconds(large, narrow) < whole / 1.5  # a twelfth of them
    assert whole / 3 < times.network < whole * 3
