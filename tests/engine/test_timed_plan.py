from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from onnx_lowrank.chains.chain import Chain
from onnx_lowrank.engine import propose
from onnx_lowrank.engine.analyse import Analysis
from onnx_lowrank.engine.api import Result, compressed
from onnx_lowrank.engine.effort import NORMAL
from onnx_lowrank.engine.plan_once import plan_once
from onnx_lowrank.errors import BudgetError
from onnx_lowrank.latency.probe import Place
from onnx_lowrank.latency.table import corrected_budget
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.planning.plan import Plan
from onnx_lowrank.planning.targets import Target
from onnx_lowrank.planning.timed_candidates import Timed
from tests import fixtures_models as fm
from tests.analyses import analysis_of
from tests.scripted_timer import ScriptedTimer

#: seconds of a MAC and of a node
MAC, NODE = 1e-9, 2.5e-6

X, _ = fm.classified(300, 128)
#: MACs of the layers of the classifier
FIRST, SECOND = 128 * 128, 128 * 8


def seconds(place: Place, chain: Chain) -> float:
    return MAC * chain.macs(place.shape) + NODE * chain.nodes


@pytest.fixture
def remembered(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Timed]]:
    """Proposals and what was made of them."""
    found: list[tuple[Any, Timed]] = []
    real = propose.timed_choices

    def spy(work: Any, proposals: Any, *more: Any) -> Timed:
        timed = real(work, proposals, *more)
        found.append((proposals, timed))
        return timed

    monkeypatch.setattr(propose, "timed_choices", spy)
    return found


def analysis(timer: ScriptedTimer | None = None, passes: str = "svd", **timing: Any) -> Analysis:
    timer = timer or ScriptedTimer(seconds)
    return analysis_of(fm.classifier(128), passes, {"x": X}, timer, **timing)


def planned(
    target: str = "latency=0.7", timer: ScriptedTimer | None = None, **options: Any
) -> Plan:
    return plan_once(analysis(timer, **options), Target.parse(target)).plan


# choices


def test_costs_are_nanoseconds(remembered: list[tuple[Any, Timed]]) -> None:
    planned()
    ((proposals, timed),) = remembered
    first, second = timed.choices
    assert [c.layer for c in timed.choices] == ["first", "second"]
    assert first.keep.cost == pytest.approx(FIRST + 2500, rel=0, abs=1)
    assert second.keep.cost == pytest.approx(SECOND + 2500, rel=0, abs=1)
    assert timed.movable == first.keep.cost + second.keep.cost
    assert timed.whole == pytest.approx(timed.movable + 1000, rel=0, abs=2)
    for choice, known in zip(timed.choices, proposals.choices, strict=True):
        assert choice.weight == known.weight
        for c in choice.candidates[1:]:
            (same,) = [k for k in known.candidates[1:] if k.rank == c.rank]
            assert (c.macs, c.error, c.method) == (same.macs, same.error, same.method)
            assert c.cost == c.workload == pytest.approx(c.macs + 5000, rel=0, abs=1)


def test_what_is_slower_than_the_layer_is_dropped(remembered: list[tuple[Any, Timed]]) -> None:
    planned("latency=0.95")
    ((proposals, timed),) = remembered
    first, second = timed.choices
    # one more node is 2500 MACs: of the first what saves fewer, of the second all goes
    saving = [c.rank for c in proposals.choices[0].candidates if FIRST - c.macs > 2500]
    assert [c.rank for c in first.candidates[1:]] == saving
    assert len(saving) < len(proposals.choices[0].candidates) - 1
    assert second.candidates == (second.keep,)
    assert len(proposals.choices[1].candidates) > 1


def test_the_plan_keeps_the_time(remembered: list[tuple[Any, Timed]]) -> None:
    plan = planned("latency=0.8")
    ((_, timed),) = remembered
    ranks = {d.layer: d.rank for d in plan.decisions}
    taken = timed.whole - timed.movable
    for choice in timed.choices:
        taken += next(c.cost for c in choice.candidates if c.rank == ranks[choice.layer])
    assert taken <= 0.8 * timed.whole
    with pytest.raises(BudgetError, match="latency: these passes cannot go below 0"):
        planned("latency=0.3")


def test_nothing_is_written_without_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    planned(cache="")
    assert list(tmp_path.iterdir()) == []
    # elsewhere it is, and what was measured once is not measured again
    plan = planned(cache=str(tmp_path / "given"))
    assert [p.name for p in tmp_path.iterdir()] == ["given"]
    timer = ScriptedTimer(seconds)
    assert planned(timer=timer, cache=str(tmp_path / "given")) == plan
    assert timer.asked == []
    assert plan == planned(cache=None)
    assert {p.name for p in tmp_path.iterdir()} == {"given", "own"}


def test_the_batch_that_counts(remembered: list[tuple[Any, Timed]]) -> None:
    timer = ScriptedTimer(seconds)
    planned("latency=0.9", timer, batch=4)
    assert timer.batches == [4]
    (_, timed), = remembered  # fmt: skip
    assert timed.choices[0].keep.cost == pytest.approx(4 * FIRST + 2500, rel=0, abs=1)


def test_what_another_betters_is_not_timed() -> None:
    one, two = ScriptedTimer(seconds), ScriptedTimer(seconds)
    planned("latency=0.9", one)
    # blind to the data, the same shapes have larger errors: only one of each two is worth its time
    planned("latency=0.9", two, passes="svd,svd{metric=identity}")
    assert len(two.asked) == len(one.asked) > 2


@pytest.mark.parametrize("passes", ["svd", "svd,prune_channels{optional=true}"])
def test_a_time_of_nothing_is_no_budget(passes: str) -> None:
    """Layers that do not run by themselves can be planned by another target only."""
    timer = ScriptedTimer(lambda place, chain: None)
    with pytest.raises(BudgetError, match=r"latency: none of the layers .*; ask for macs=R"):
        planned("latency=0.7", timer, passes=passes)
    assert any(d.method for d in planned("macs=0.7", timer, passes=passes).decisions)


def test_a_model_without_layers_is_not_faster() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    model = fm.build(nodes, {"x": ["N", 128]}, {"y": ["N", 128]}, {})
    found = analysis_of(model, "svd", {"x": X}, ScriptedTimer(seconds))
    with pytest.raises(BudgetError, match=r"^latency: "):
        plan_once(found, Target.parse("latency=0.5"))


# the flow


def finished(measured: Callable[[Model], float], target: Any = "latency=0.8") -> Result:
    """Where each model takes the part ``measured`` of the original's time."""
    found = analysis(ScriptedTimer(seconds, measured))
    return compressed(found, Target.parse(target), effort=NORMAL, force=False)


def rank(result: Result) -> Any:
    return {d.layer: d.rank for d in result.plan.decisions}["first"]


def note(result: Result) -> str:
    (found,) = [n for n in result.report.said if "predicted" in n]
    return found


def test_a_time_as_predicted_is_left_at_that() -> None:
    for measured in (0.8, 0.8 * 1.029, 0.8 * 0.971):
        result = finished(lambda _, m=measured: m)  # type: ignore[misc]
        text = note(result)
        assert text.startswith("latency at batch 1: 0.")
        assert f" of the original predicted, {measured:.3f} measured; " in text
        assert "chains measured in" in text
        assert not text.endswith("planned again by that")
        assert result.plan.target == "latency=0.8"


def test_a_time_that_differs_is_planned_for_again(remembered: list[tuple[Any, Timed]]) -> None:
    as_said = rank(finished(lambda _: 0.8))
    less = finished(lambda _: 0.88)
    more = finished(lambda _: 0.6)
    assert rank(less) < as_said < rank(more)
    for result, measured in ((less, "0.880"), (more, "0.600")):
        assert f"{measured} measured; " in note(result)
        assert note(result).endswith("; planned again by that")
    # candidates are timed once for both plans
    assert len(remembered) == 3
    timed = remembered[1][1]
    predicted = float(note(less).split()[4]) * timed.whole
    budget = corrected_budget(timed.whole, predicted, 0.88 * timed.whole, 0.8 * timed.whole)
    costs = {c.rank: c.cost for c in timed.choices[0].candidates}
    others = timed.whole - timed.choices[0].keep.cost
    fitting = [c for c in costs.values() if c + others <= budget + 1]
    assert costs[rank(less)] == max(fitting)


def test_time_and_size_together(remembered: list[tuple[Any, Timed]]) -> None:
    result = finished(lambda _: 0.85, ["latency=0.85", "size=0.6"])
    assert result.plan.target == "latency=0.85 size=0.6"
    assert result.report.after.bytes <= 0.6 * result.report.before.bytes
    ((_, timed),) = remembered
    cost = next(c.cost for c in timed.choices[0].candidates if c.rank == rank(result))
    assert timed.whole - timed.choices[0].keep.cost + cost <= 0.85 * timed.whole


def test_milliseconds_are_a_part_of_the_originals(remembered: list[tuple[Any, Timed]]) -> None:
    # the original takes 1 ms by this clock
    result = finished(lambda _: 0.8, "latency=800us")
    assert result.plan.target == "latency=800us"
    assert result.plan.decisions == finished(lambda _: 0.8).plan.decisions
    text = "latency=2ms: the original has latency=1ms, so nothing had to go for it"
    assert text in finished(lambda _: 1.0, "latency=2ms").report.said
    whole = remembered[0][1].whole
    with pytest.raises(BudgetError, match=r"0\.\d{3} of the original \(latency=.*us\)") as caught:
        finished(lambda _: 0.3, "latency=0.3ms")
    said = re.findall(r"([\d.]+) of the original \(latency=([\d.]+)us\)", str(caught.value))
    least, useful = ((float(part), 1e3 * float(amount)) for part, amount in said)
    assert least[0] < useful[0]
    for part, reached in (least, useful):
        assert reached == pytest.approx(part * whole, rel=0.01)


def test_times_are_whole_and_finite(remembered: list[tuple[Any, Timed]]) -> None:
    planned()
    ((_, timed),) = remembered
    costs = [c.cost for choice in timed.choices for c in choice.candidates]
    assert all(isinstance(c, int) and c > 0 for c in costs)
    assert np.isfinite(costs).all()
