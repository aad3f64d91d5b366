"""What a plan was chosen from goes with it; to judge it or choose again, nothing else counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from onnx_lowrank.chains.chain import Chain
from onnx_lowrank.engine.analyse import Analysis, cut
from onnx_lowrank.engine.api import compressed
from onnx_lowrank.engine.build import Built, build, draft
from onnx_lowrank.engine.choose import Planned, choose
from onnx_lowrank.engine.effort import QUICK
from onnx_lowrank.engine.plan_checks import kept_by
from onnx_lowrank.engine.plan_once import plan_once
from onnx_lowrank.engine.take_back import without_slow_chains
from onnx_lowrank.errors import GuardError
from onnx_lowrank.latency.probe import Place
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.planning.notes import ChainsAreSlower, ChainsTakenBack, TimeBesideProducts
from onnx_lowrank.planning.plan import Plan
from onnx_lowrank.planning.targets import Target
from tests import fixtures_models as fm
from tests.analyses import analysis_of
from tests.scripted_timer import ScriptedTimer, by_workload

CHAINS = "spatial_svd,channel_svd"
BOTH = f"{CHAINS},prune_channels"
#: of the net below: 0.7 is planned by ranks alone, 0.6 with channels taken out
UNPRUNED, PRUNED = Target.parse("macs=0.7"), Target.parse("macs=0.6")
LAYERS = [f"conv{i}" for i in range(4)]


def analysis(timer: ScriptedTimer, passes: str = BOTH) -> Analysis:
    return analysis_of(fm.residual_net(16), passes, {"x": fm.pictures(60)}, timer)


def slower(seconds: Any = by_workload) -> ScriptedTimer:
    """A clock by which every result takes 1.2 times the time of the original."""
    return ScriptedTimer(seconds, lambda _: 1.2)


def planned_to(found: Analysis, target: Target) -> Planned:
    return plan_once(found, target, pruning=0.0 if target is UNPRUNED else "some")


def taken_apart(plan: Plan) -> list[str]:
    return [d.layer for d in plan.decisions if d.method]


def chain_costs_more(place: Place, chain: Chain) -> float:
    return float(chain.nodes)


def no_layer_runs(place: Place, chain: Chain) -> None:
    return None


def no_chain_runs(place: Place, chain: Chain) -> float | None:
    return by_workload(place, chain) if chain.nodes == 1 else None


# results that are slower


@pytest.mark.parametrize(
    ("passes", "target", "seconds"),
    [
        ("prune_channels", "macs=0.7", by_workload),
        ("prune_channels", "latency=0.7", by_workload),
        ("prune_channels{keep=0.5}", "macs=0.9", by_workload),
        # ranks are planned, and pruning does all
        (BOTH, "macs=0.7", by_workload),
        (CHAINS, "macs=0.7", no_layer_runs),
        (CHAINS, "macs=0.7", no_chain_runs),
        (BOTH, "macs=0.6", no_layer_runs),
    ],
)
def test_where_no_chain_is_to_blame_the_guard_decides(
    passes: str, target: str, seconds: Any
) -> None:
    with pytest.raises(GuardError, match=r"takes 1\.2 ms, the original 1 ms .*; nothing was"):
        compressed(analysis(slower(seconds), passes), Target.parse(target), QUICK, force=False)
    result = compressed(analysis(slower(seconds), passes), Target.parse(target), QUICK, force=True)
    assert result.report.after.macs < result.report.before.macs
    assert not any(isinstance(n, ChainsAreSlower) for n in result.report.notes)


def test_a_plan_that_only_prunes_is_not_timed_again() -> None:
    timer = slower()
    found = analysis(timer, "prune_channels")
    planned = plan_once(found, PRUNED)
    same, built = without_slow_chains(found, planned)
    assert same is planned
    assert built.chains == {}
    assert timer.asked == []


# what does not pay


def conv1_costs_more(place: Place, chain: Chain) -> float:
    """Seconds where the chains of one layer do not pay, whose place has a shape of its own."""
    return by_workload(place, chain) * (3.0 if chain.nodes > 1 and place.output == "b0" else 1.0)


def slower_by_conv1(
    without: float = 1.1, chains: Callable[[Place, Chain], float] = conv1_costs_more
) -> ScriptedTimer:
    """A clock by which chains of one layer make a model slower than the others do."""

    return ScriptedTimer(chains, lambda m: 1.2 if chained(m, "conv1") else without)


def chained(model: Model, layer: str) -> bool:
    return sum(layer in node.name for node in model.proto.graph.node) > 1


@pytest.mark.full
def test_what_does_not_pay_is_replaced_from_the_plans_own_proposals() -> None:
    """Whatever was planned since; a plan with other channels has other candidates."""
    results = []
    for since in ([], [PRUNED]):
        found = analysis(slower_by_conv1())
        planned = planned_to(found, UNPRUNED)
        assert not kept_by(planned.plan)
        assert "conv1" in taken_apart(planned.plan)
        built = build(found, planned.plan)
        for target in since:
            assert kept_by(planned_to(found, target).plan)
        results.append(without_slow_chains(found, planned, built))
    (planned, built), (_, again) = results
    assert again.plan == built.plan == planned.plan
    assert again.model.proto == built.model.proto
    assert "conv1" not in taken_apart(built.plan)
    assert len(taken_apart(built.plan)) > 1
    (decision,) = [d for d in built.plan.decisions if d.layer == "conv1"]
    assert decision.reason == "its chain takes more time than the layer"
    assert planned.notes == (ChainsTakenBack(("conv1",)),)


def test_a_plan_that_takes_chains_back_is_repaired_in_full() -> None:
    """That a light repair is enough was measured for the plan with these chains."""
    found = analysis(slower_by_conv1())
    planned = planned_to(found, UNPRUNED)
    light = draft(found, planned.plan)
    fewer, built = without_slow_chains(found, replace(planned, plan=light.plan), light)
    assert "conv1" not in taken_apart(fewer.plan)
    assert built.plan == fewer.plan
    assert fewer.plan.repair == "relu"


def test_a_draft_says_what_does_not_pay_and_the_model_is_built_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = analysis(slower_by_conv1())
    planned = planned_to(found, UNPRUNED)
    fewer, built = without_slow_chains(found, planned)
    drafted = draft(found, planned.plan)
    built_of = []

    def counted(about: Analysis, plan: Plan, **options: Any) -> Built:
        built_of.append(plan)
        return build(about, plan, **options)

    for module in ("take_back", "timed_plan"):
        monkeypatch.setattr(f"onnx_lowrank.engine.{module}.build", counted)
    again, once = without_slow_chains(found, planned, drafted)
    assert again.plan == fewer.plan
    assert built_of == [replace(again.plan, repair="none"), again.plan]  # the first to be timed
    assert once.model.proto == built.model.proto


def test_what_makes_the_model_no_faster_is_not_taken_back() -> None:
    found = analysis(slower_by_conv1(without=1.2))
    planned = planned_to(found, UNPRUNED)
    same, built = without_slow_chains(found, planned)
    assert built.plan == same.plan == planned.plan
    assert same.notes == (ChainsAreSlower(("conv1",)),)


@pytest.mark.parametrize(("noise", "taken"), [(1.0, True), (1.15, True), (1.25, False)])
def test_chance_takes_no_chains_back(noise: float, taken: bool) -> None:
    found = analysis(
        ScriptedTimer(conv1_costs_more, lambda m: 1.2 if chained(m, "conv1") else 1.1, noise=noise)
    )
    planned = planned_to(found, UNPRUNED)
    found_after, _ = without_slow_chains(found, planned)
    assert (found_after is planned) != taken


def test_what_does_not_pay_is_named_where_the_budget_needs_it() -> None:
    found = analysis(slower(chain_costs_more), CHAINS)
    planned = plan_once(found, UNPRUNED)
    named, built = without_slow_chains(found, planned, build(found, planned.plan))
    assert named.notes == (ChainsAreSlower(tuple(sorted(taken_apart(planned.plan)))),)
    assert built.plan == named.plan == planned.plan


class ChangingClock:
    """Seconds by MACs; chains of the layer whose output is ``slow`` take 99 times as long."""

    slow = ""

    def __call__(self, place: Place, chain: Chain) -> float:
        factor = 99.0 if place.output == self.slow and chain.nodes > 1 else 1.0
        return factor * 1e-9 * chain.macs(place.shape)


def test_what_does_not_pay_is_taken_back_under_a_target_on_time() -> None:
    """The clock says another thing than at planning; the time that was planned for stays."""
    clock, target = ChangingClock(), Target.parse("latency=0.8")
    found = analysis(slower_by_conv1(chains=clock), CHAINS)
    first = plan_once(found, target)
    assert first.proposed.timed is not None
    planned = choose(found, first.proposed, time=0.7 * first.proposed.timed.whole)
    built = build(found, planned.plan)
    assert "conv1" in built.chains
    clock.slow = "b0"
    fewer, rebuilt = without_slow_chains(found, planned, built)
    assert rebuilt.plan == fewer.plan
    assert "conv1" not in rebuilt.chains
    assert fewer.proposed.timed is not None
    made = {d.layer: (d.method, d.variant, d.rank) for d in fewer.plan.decisions}
    costs = [
        c.cost
        for choice in fewer.proposed.timed.choices
        for c in choice.candidates
        if (c.method, c.variant, c.rank) == made[choice.layer]
    ]
    assert (
        fewer.proposed.timed.whole - fewer.proposed.timed.movable + sum(costs)
        <= 0.7 * fewer.proposed.timed.whole
    )


# weights


@pytest.mark.parametrize("factor", [0.25, 4.0])
@pytest.mark.parametrize("target", [UNPRUNED, PRUNED])
def test_equal_factors_are_none(target: Target, factor: float) -> None:
    """How much is pruned must not depend on the unit of the weights."""
    found = analysis(ScriptedTimer())
    assert (
        plan_once(found, target, dict.fromkeys(LAYERS, factor)).plan
        == plan_once(found, target).plan
    )


def test_errors_of_a_plan_are_weighed_as_it_was_planned() -> None:
    """Weights are parts of what a response ends up in; fewer channels make other parts."""
    found = analysis(ScriptedTimer())
    plans = [planned_to(found, target) for target in (UNPRUNED, PRUNED)]
    shared = set.intersection(*(set(p.errors) for p in plans))
    weights = []
    for planned in plans:
        work = cut(found, kept_by(planned.plan)).work
        layers = {la.name: la for la in work.layers}
        totals = found.prepared.moments.totals
        expected = {}
        for d in planned.plan.decisions:
            if d.method:
                energy = work.moments[d.layer].energy(layers[d.layer].stage.matrices)
                expected[d.layer] = energy / totals.get(d.layer, energy)
        weights.append(expected)
        error = {d.layer: d.error for d in planned.plan.decisions}
        assert planned.errors.keys() == expected.keys()
        for name, weight in expected.items():
            assert planned.errors[name] == pytest.approx(weight * error[name], rel=1e-9)
    assert any(abs(weights[0][n] / weights[1][n] - 1) > 1e-3 for n in shared)


def test_loss_is_by_the_weights_that_are_asked_about() -> None:
    planned = planned_to(analysis(ScriptedTimer()), UNPRUNED)
    assert len(planned.errors) > 1
    first = next(iter(planned.errors))
    assert planned.loss({}) == pytest.approx(sum(planned.errors.values()), rel=1e-12)
    more = planned.loss({first: 3.0}) - planned.loss({})
    assert more == pytest.approx(2 * planned.errors[first], rel=1e-9)
    assert np.isfinite(more)


@pytest.mark.parametrize(("ratio", "told"), [(0.5, False), (0.95, True)])
def test_where_time_does_not_fall_as_macs_do_it_is_said_what_else_takes_time(
    ratio: float, told: bool
) -> None:
    timer = ScriptedTimer(models=lambda _: ratio)
    result = compressed(analysis(timer, CHAINS), Target.parse("macs=0.7"), QUICK, force=True)
    found = [n for n in result.report.notes if isinstance(n, TimeBesideProducts)]
    assert len(found) == told
    for note in found:
        assert note.speedup == pytest.approx(1 / ratio)
        assert note.promised == result.report.before.macs / result.report.after.macs
        assert 0 < sum(note.before.values()) < 1
        assert 0 < sum(note.after.values()) < 1
