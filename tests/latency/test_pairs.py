from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from onnx_lowrank.latency import pairs
from onnx_lowrank.latency.pairs import Latency, interleaved_latency, measure_latency
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.runtime.session import Feed
from tests import fixtures_models as fm
from tests.scripted_timer import ScriptedSession


def test_models_take_turns_and_the_slower_is_slower() -> None:
    log: list[str] = []
    fast, slow = interleaved_latency(
        [ScriptedSession("a", 0.001, log), ScriptedSession("b", 0.006, log)],
        {},
        seconds=0.0,
        least=3,
    )
    turns = [name for name, before in zip(log, ["", *log], strict=False) if name != before]
    assert turns == ["a", "b"] * 3
    assert 0.001 <= min(fast.turns) <= fast.typical <= fast.late
    assert 0.006 <= min(slow.turns) <= slow.typical <= slow.late
    assert fast.typical < slow.typical
    assert len(fast.turns) == len(slow.turns) == 3


def test_models_that_take_long_take_three_turns() -> None:
    log: list[str] = []
    pair = [ScriptedSession("a", 0.01, log), ScriptedSession("b", 0.01, log)]
    interleaved_latency(pair, {}, seconds=0.001, least=5)
    turns = [name for name, before in zip(log, ["", *log], strict=False) if name != before]
    assert turns == ["a", "b"] * 3


class TimedTurns(ScriptedSession):
    """Turns whose times are written down, over and over."""

    def __init__(self, *times: float) -> None:
        super().__init__("", 0.0, [])
        self._times, self.turns = times, 0

    def turn(self, *_: object, **__: object) -> list[float]:
        self.turns += 1
        return [self._times[self.turns % len(self._times)]]


def test_two_models_whose_ratio_is_known_take_no_more_turns() -> None:
    for second, known in ((TimedTurns(2.0), True), (TimedTurns(2.0, 3.0), False)):
        interleaved_latency([TimedTurns(1.0), second], {}, seconds=0.05)
        assert (second.turns == 8) == known
        assert second.turns >= 8


@pytest.mark.parametrize(
    ("ratios", "turns"),
    [((1.0,), 8), ((1.0, 1.08), 15), ((1.0, 3.0), 20)],
    ids=["well known", "known", "vague"],
)
def test_a_vague_ratio_takes_more_time(
    ratios: tuple[float, ...], turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(np.arange(0.0, 10.0, 1 / 16))  # a look at it for each turn of both
    monkeypatch.setattr(pairs.time, "perf_counter", lambda: next(clock))
    second = TimedTurns(*ratios)
    interleaved_latency([TimedTurns(1.0), second], {}, seconds=1.0)
    assert second.turns == turns


def test_latency_is_in_milliseconds() -> None:
    node = helper.make_node("Relu", ["x"], ["y"], name="relu")
    model = load(fm.build([node], {"x": ["N", 2]}, {"y": ["N", 2]}, {}))
    feeds: list[tuple[int, Feed]] = [(n, {"x": np.ones((n, 2), np.float32)}) for n in (1, 4)]
    timed = measure_latency(model, model, feeds, fm.ONE_THREAD, seconds=0.05)
    assert [p.batch for p in timed] == [1, 4]
    for p in timed:
        assert 1e-4 < p.reference_ms < 100
        assert p.reference_median_ms <= p.reference_p95_ms
        assert p.new_median_ms <= p.new_p95_ms
        assert p.speedup_low <= p.speedup <= p.speedup_high
        assert p.speedup == pytest.approx(p.reference_ms / p.new_ms, rel=1e-12)
        assert p.median_speedup == pytest.approx(p.reference_median_ms / p.new_median_ms, rel=1e-12)
        assert p.to_dict()["speedup"] == p.speedup


def test_the_interval_of_a_speedup_is_that_of_its_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    # turns of 2x, 2x, 1x and 4x
    times = [
        Latency(2.0, 3.0, (2.0, 4.0, 2.0, 4.0)),
        Latency(2.0, 3.0, (1.0, 2.0, 2.0, 1.0)),
    ]
    monkeypatch.setattr(pairs, "interleaved_latency", lambda *_, **__: times)
    node = helper.make_node("Relu", ["x"], ["y"], name="relu")
    model = load(fm.build([node], {"x": ["N", 2]}, {"y": ["N", 2]}, {}))
    (found,) = measure_latency(model, model, [(1, {})], fm.ONE_THREAD, seconds=0.0)
    assert found.speedup == pytest.approx(2.0)  # which no run alone decides
    logs = np.log([2.0, 2.0, 1.0, 4.0])
    half = 3.182446 * np.std(logs, ddof=1) / 2
    assert found.speedup_low == pytest.approx(2 * np.exp(-half), rel=1e-6)
    assert found.speedup_high == pytest.approx(2 * np.exp(half), rel=1e-6)
