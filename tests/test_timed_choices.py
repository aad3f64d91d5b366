from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnx_lowrank import planning, workbench
from onnx_lowrank import timed_choices as module
from onnx_lowrank.chain import Chain
from onnx_lowrank.errors import BudgetError
from onnx_lowrank.latency import corrected_budget
from onnx_lowrank.latency_probe import Place
from onnx_lowrank.model import Model
from onnx_lowrank.pipeline import Result, compress
from onnx_lowrank.registry import parse_list
from onnx_lowrank.run import Run
from onnx_lowrank.runtime import Feed, Runtime
from onnx_lowrank.targets import Target
from onnx_lowrank.timed_choices import Timed, TimingOptions
from onnx_lowrank.workbench import DataOptions
from tests import fixtures_models as fm

#: seconds of a MAC, of a node, of the network besides its layers
MAC, NODE, REST = 1e-9, 2.5e-6, 1e-6

X, _ = fm.classified(300, 128)
#: MACs of the layers of the classifier
FIRST, SECOND = 128 * 128, 128 * 8


def seconds(place: Place, chain: Chain) -> float:
    return MAC * chain.macs(place.shape) + NODE * chain.nodes


class FakeTimer:
    """A machine whose times are written down."""

    asked = 0
    batches: Sequence[int] = ()

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    def layers(
        self, model: Model, feed: Feed, places: Sequence[Place]
    ) -> tuple[float, Sequence[float | None]]:
        type(self).batches = (*type(self).batches, *(len(v) for v in feed.values()))
        found = [seconds(p, p.chain) for p in places]
        whole = REST + sum(found)
        return whole, [s / whole for s in found]

    def chains(self, place: Place, chains: Sequence[Chain]) -> Sequence[float | None]:
        type(self).asked += len(chains)
        return [seconds(place, c) / seconds(place, place.chain) for c in chains]


@pytest.fixture(autouse=True)
def timer(monkeypatch: pytest.MonkeyPatch) -> type[FakeTimer]:
    class Fresh(FakeTimer):
        pass

    monkeypatch.setattr(module, "RuntimeTimer", Fresh)
    return Fresh


@pytest.fixture
def remembered(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Timed]]:
    """Proposals and what was made of them."""
    found: list[tuple[Any, Timed]] = []
    real = module.timed_choices

    def spy(work: Any, proposals: Any, *more: Any) -> Timed:
        timed = real(work, proposals, *more)
        found.append((proposals, timed))
        return timed

    monkeypatch.setattr(planning, "timed_choices", spy)
    return found


def planned(target: str = "latency=0.7", **options: Any) -> Any:
    timing = TimingOptions(**{"cache": "", **options})
    data = DataOptions({"x": X}, None, None, None, 0)
    run = Run(fm.classifier(128), parse_list("svd"), data, fm.ONE_THREAD, timing, None)
    return run.plan(Target.parse(target))


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
            assert c.cost == c.effort == pytest.approx(c.macs + 5000, rel=0, abs=1)


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
    with pytest.raises(BudgetError, match="latency: these passes reach 0"):
        planned("latency=0.3")


def test_nothing_is_written_without_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timer: type[FakeTimer]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    planned(cache="")
    assert list(tmp_path.iterdir()) == []
    # elsewhere it is, and what was measured once is not measured again
    planned(cache=str(tmp_path / "given"))
    assert [p.name for p in tmp_path.iterdir()] == ["given"]
    asked = timer.asked
    plan = planned(cache=str(tmp_path / "given"))
    assert timer.asked == asked
    assert plan == planned(cache=None)
    assert {p.name for p in tmp_path.iterdir()} == {"given", "own"}


def test_the_batch_that_counts(timer: type[FakeTimer], remembered: list[tuple[Any, Timed]]) -> None:
    planned("latency=0.9", batch=4)
    assert set(timer.batches) == {4}
    (_, timed), = remembered  # fmt: skip
    assert timed.choices[0].keep.cost == pytest.approx(4 * FIRST + 2500, rel=0, abs=1)


def test_what_another_betters_is_not_timed(timer: type[FakeTimer]) -> None:
    planned("latency=0.9")
    one = timer.asked
    data = DataOptions({"x": X}, None, None, None, 0)
    # blind to the data, the same shapes have larger errors: only one of each two is worth its time
    passes = parse_list("svd,svd{metric=identity}")
    run = Run(fm.classifier(128), passes, data, fm.ONE_THREAD, TimingOptions(cache=""), None)
    run.plan(Target.parse("latency=0.9"))
    assert timer.asked - one == one


# the flow


def compressed(
    measured: Callable[[Model], float], target: Any = "latency=0.8", **options: Any
) -> Result:
    """Where the clock says ``measured`` of each model, as a part of the original's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            workbench, "measure_latency", lambda _, new, *__, **___: (fm.pair(measured(new)),)
        )
        return compress(
            fm.classifier(128), calib={"x": X}, target=target, passes="svd", threads=1, cache="",
            **options,
        )  # fmt: skip


def rank(result: Result) -> Any:
    return {d.layer: d.rank for d in result.plan.decisions}["first"]


def note(result: Result) -> str:
    (found,) = [n for n in result.report.notes if "predicted" in n]
    return found


def test_a_time_as_predicted_is_left_at_that() -> None:
    for measured in (0.8, 0.8 * 1.029, 0.8 * 0.971):
        result = compressed(lambda _, m=measured: m)  # type: ignore[misc]
        text = note(result)
        assert text.startswith("latency at batch 1: 0.")
        assert f" of the original predicted, {measured:.3f} measured; " in text
        assert "chains measured in" in text
        assert not text.endswith("planned again by that")
        assert result.plan.target == "latency=0.8"


def test_a_time_that_differs_is_planned_for_again(remembered: list[tuple[Any, Timed]]) -> None:
    as_said = rank(compressed(lambda _: 0.8))
    less = compressed(lambda _: 0.88)
    more = compressed(lambda _: 0.6)
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
    result = compressed(lambda _: 0.85, ["latency=0.85", "size=0.6"])
    assert result.plan.target == "latency=0.85 size=0.6"
    assert result.report.after.bytes <= 0.6 * result.report.before.bytes
    ((_, timed),) = remembered
    cost = next(c.cost for c in timed.choices[0].candidates if c.rank == rank(result))
    assert timed.whole - timed.choices[0].keep.cost + cost <= 0.85 * timed.whole


def test_times_are_whole_and_finite(remembered: list[tuple[Any, Timed]]) -> None:
    planned()
    ((_, timed),) = remembered
    costs = [c.cost for choice in timed.choices for c in choice.candidates]
    assert all(isinstance(c, int) and c > 0 for c in costs)
    assert np.isfinite(costs).all()
