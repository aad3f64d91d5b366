"""Plans at several shares of pruning: which are built, and that the judge's best is taken."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from onnx_lowrank.engine import alternatives as beginning
from onnx_lowrank.engine import build as building
from onnx_lowrank.engine import foreseen_time as timing
from onnx_lowrank.engine import shares
from onnx_lowrank.engine.alternatives import Alternatives, alternatives
from onnx_lowrank.engine.analyse import Analysis
from onnx_lowrank.engine.build import draft_samples
from onnx_lowrank.engine.choose import Planned
from onnx_lowrank.engine.effort import EFFORTS
from onnx_lowrank.engine.foreseen_time import foreseen_work, pays
from onnx_lowrank.engine.plan_once import foreseen_loss, plan_once
from onnx_lowrank.engine.shares import best_share, judge_between, judge_of_drafts
from onnx_lowrank.planning.notes import (
    GroupsWeighed,
    HeadsWhole,
    NearEnough,
    Quickest,
    SharesTried,
)
from onnx_lowrank.planning.plan import GroupDecision
from onnx_lowrank.planning.targets import Target
from onnx_lowrank.pruning.cutting import Cutting
from onnx_lowrank.pruning.pruner import Pruner
from tests import fixtures_models as fm
from tests.analyses import analysis_of
from tests.scripted_timer import ScriptedTimer, by_workload

PASSES = "spatial_svd,channel_svd,prune_channels"
TARGET = Target.parse("macs=0.5")
THOROUGH = EFFORTS["thorough"]


@pytest.fixture
def analysis() -> Analysis:
    timer = ScriptedTimer(by_workload)
    return analysis_of(fm.residual_net(16), PASSES, {"x": fm.pictures(60)}, timer)


def share_of(planned: Planned) -> float:
    return planned.proposed.share


def shares_of(begun: Alternatives) -> list[Any]:
    return [*map(share_of, (begun.first, *begun.made)), *begun.shares]


@pytest.fixture
def weighed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses of pruning are measured, as in nets with attention."""
    monkeypatch.setattr(Pruner, "weighs", True)


@pytest.mark.usefixtures("weighed")
def test_none_all_and_the_best_foreseen_between_them(
    analysis: Analysis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beginning, "CERTAIN", 1e9)
    begun = alternatives(analysis, TARGET)
    plans = [begun.first, *begun.made]
    losses = [foreseen_loss(analysis, planned) for planned in plans]
    assert losses == sorted(losses)
    found = list(map(share_of, plans))
    assert {0.0, 1.0} <= set(found)
    assert len(found) == len(set(found)) <= 3


@pytest.mark.usefixtures("weighed")
def test_what_is_hopeless_is_not_built(analysis: Analysis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beginning, "CERTAIN", 1.0)
    assert not alternatives(analysis, TARGET).several


def test_what_is_hopeless_beside_the_first_is_not_built(
    analysis: Analysis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beginning, "CERTAIN", 0.0)
    begun = alternatives(analysis, TARGET)
    assert shares_of(begun) == [0.0, "some", 1.0]
    best = best_share(analysis, TARGET, begun, judge_between(analysis), THOROUGH)
    assert best.planned.plan.groups == begun.first.plan.groups
    assert not best.planned.notes


def test_drafts_are_judged_on_calibration_samples_too_that_they_are_not_solved_on(
    analysis: Analysis, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibration = analysis.job.samples.calibration
    assert calibration is not None
    assert len(calibration) == 48
    assert judge_of_drafts(analysis).samples == 6  # half of those held out, as all are solved on
    monkeypatch.setattr(building, "_LEAST_LIGHT", 10)
    solved, spare = draft_samples(analysis, calibration)
    every = [d.feed(i)["x"].tobytes() for d in (solved, spare) for i in range(len(d))]
    assert (len(solved), len(spare), len(set(every))) == (24, 24, 48)
    assert judge_of_drafts(analysis).samples == 6 + 24
    monkeypatch.setattr(shares, "MANY", 20)
    assert judge_of_drafts(analysis).samples == 20
    monkeypatch.setattr(shares, "MANY", 5)
    assert judge_of_drafts(analysis).samples == 6


def test_pruning_is_not_looked_at_where_little_is_lost_without_it(
    analysis: Analysis, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    real = beginning.plan_for

    def plan_for(analysis: Analysis, target: Target, pruning: Any) -> Planned:
        asked.append(pruning)
        return real(analysis, target, pruning=pruning)

    monkeypatch.setattr(beginning, "plan_for", plan_for)
    monkeypatch.setattr(timing, "PAYS", -1e9)
    begun = alternatives(analysis, TARGET)
    lenient = replace(THOROUGH, enough=7.5)
    best_share(analysis, TARGET, begun, judge_between(analysis), lenient)
    assert asked == [0.0]
    best_share(analysis, TARGET, begun, judge_between(analysis), replace(THOROUGH, steps=0))
    assert asked == [0.0, "some", 1.0]


def test_what_saves_no_time_makes_room_for_what_does(
    analysis: Analysis, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, lenient = judge_between(analysis), replace(THOROUGH, enough=1e9)
    begun = alternatives(analysis, TARGET)
    with monkeypatch.context() as patched:
        patched.setattr(timing, "PAYS", -1e9)
        first = best_share(analysis, TARGET, begun, judge, lenient)
    assert first.planned.notes == (NearEnough(first.loss, judge.samples),)
    found = best_share(analysis, TARGET, begun, judge, lenient)
    note = found.planned.notes[-1]
    assert isinstance(note, Quickest)
    times = dict(note.times)
    assert {0.0, found.share} < set(times)
    assert times[found.share] == min(times.values()) < times[0.0]
    before, after = foreseen_work(first.planned)
    assert times[0.0] == after / before
    # what loses more than is little enough is not taken, however quick
    strict = replace(THOROUGH, enough=1.01 * first.loss * 250 / 50)
    assert found.loss > strict.enough_on(judge.samples) > first.loss
    kept = best_share(analysis, TARGET, begun, judge, strict)
    assert kept.loss < strict.enough_on(judge.samples)
    assert kept.share < found.share
    assert isinstance(kept.planned.notes[-1], Quickest)


def test_time_is_nothing_to_those_who_want_few_parameters(
    analysis: Analysis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "PAYS", 1e9)
    target = Target.parse("params=0.5")
    begun, lenient = alternatives(analysis, target), replace(THOROUGH, enough=1e9)
    found = best_share(analysis, target, begun, judge_between(analysis), lenient)
    assert [type(note) for note in found.planned.notes] == [NearEnough]


def test_the_work_of_a_plan_is_that_of_what_it_takes(analysis: Analysis) -> None:
    planned = plan_once(analysis, TARGET, pruning=0.0)
    before, after = foreseen_work(planned)
    assert after > before  # on 7 x 7 positions
    assert not pays(planned)
    kept = replace(planned.plan, decisions=tuple(
        replace(d, method="", variant="", rank=0) for d in planned.plan.decisions
    ))  # fmt: skip
    assert foreseen_work(replace(planned, plan=kept)) == (before, before)


@pytest.mark.parametrize(("channels", "size", "worth"), [(16, 7, False), (32, 28, True)])
def test_chains_pay_where_layers_are_large(channels: int, size: int, worth: bool) -> None:
    pictures = np.kron(fm.pictures(60), np.ones((1, 1, 4, 4), np.float32))[..., :size, :size]
    timer = ScriptedTimer(by_workload)
    found = analysis_of(fm.residual_net(channels, size), PASSES, {"x": pictures}, timer)
    assert pays(plan_once(found, TARGET, pruning=0.0)) == worth


@pytest.mark.parametrize("passes", ["spatial_svd", "prune_channels"])
def test_one_sort_of_passes_leaves_no_choice(passes: str) -> None:
    found = analysis_of(fm.residual_net(16), passes, {"x": fm.pictures(60)}, ScriptedTimer())
    begun = alternatives(found, Target.parse("macs=0.7"))
    assert shares_of(begun) == [float(passes == "prune_channels")]


def test_the_report_says_why_no_channels_can_go() -> None:
    passes, x = "svd,prune_channels{gather=false}", {"x": fm.pictures(60)}
    found = analysis_of(fm.residual_net(16), f"spatial_svd,{passes}", x, ScriptedTimer())
    pruner = found.pruner("macs")
    pruner.prunables.clear()
    target = Target.parse("macs=0.7")
    assert not alternatives(found, target).several
    groups = plan_once(found, target, pruning="foreseen").plan.groups
    assert groups
    assert not any(group.shrinks for group in groups)


@pytest.mark.parametrize(
    ("best", "least", "built"),
    [
        (0.0, 0.3, [0.0, 0.6, 1.0, 0.2]),
        (0.3, 0.3, [0.0, 0.6, 1.0, 0.4, 0.2]),
        (0.7, 0.3, [0.0, 0.6, 1.0, 0.8]),
        (0.8, 0.3, [0.0, 0.6, 1.0, 0.8]),
        (1.0, 0.3, [0.0, 0.6, 1.0, 0.8]),
        # so much is lost further on that nothing between can be better
        (0.0, 0.1, [0.0, 0.6, 1.0]),
        (0.7, 0.0, [0.0, 0.6, 1.0, 0.8]),
        # little is lost without pruning, and more with some: all of it is not looked at
        (0.0, 0.04, [0.0, 0.6]),
    ],
)
def test_the_share_is_moved_to_where_the_judge_finds_less_loss(
    analysis: Analysis,
    monkeypatch: pytest.MonkeyPatch,
    best: float,
    least: float,
    built: list[float],
) -> None:
    """As if the loss were the distance to ``best``, and ``least``."""
    whole = plan_once(analysis, TARGET, pruning=0.0)
    asked: list[float] = []

    def plan_for(_: Analysis, target: Target, pruning: float) -> Planned:
        plan = replace(whole.plan, target=f"{target} at {pruning}", groups=(decision(pruning),))
        return replace(whole, plan=plan, proposed=replace(whole.proposed, share=pruning))

    def score_of(*_: Any) -> Any:
        def score(planned: Planned) -> shares.Tried:
            asked.append(share_of(planned))
            loss = least + abs(share_of(planned) - best)
            return shares.Tried(analysis, planned, None, loss)  # type: ignore[arg-type]

        return score

    monkeypatch.setattr(beginning, "CERTAIN", 1e9)
    monkeypatch.setattr(beginning, "plan_for", plan_for)
    monkeypatch.setattr(shares, "plan_for", plan_for)
    monkeypatch.setattr(shares, "PRUNING", ())
    monkeypatch.setattr(shares, "score_of", score_of)
    begun = Alternatives(plan_for(analysis, TARGET, 0.0), shares=(0.6, 1.0))
    judge = judge_between(analysis)
    tried = best_share(analysis, TARGET, begun, judge, THOROUGH)
    assert asked == built
    # of two that lose alike the one that prunes more
    assert tried.share == min(built, key=lambda s: (round(abs(s - best), 9), -s))
    (note,) = tried.planned.notes
    assert isinstance(note, SharesTried)
    assert note.share == tried.share
    assert [share for share, _ in note.losses] == sorted(built)
    asked.clear()
    best_share(analysis, TARGET, begun, judge, replace(THOROUGH, steps=0))
    assert asked == built[:3]
    asked.clear()
    lenient = replace(THOROUGH, enough=7.5)
    tried = best_share(analysis, TARGET, begun, judge, lenient)
    assert asked == built[:1]
    assert tried.planned.notes == (NearEnough(tried.loss, judge.samples),)


@pytest.mark.parametrize(("more", "taken"), [(1.04, 1.0), (1.06, 0.0)])
@pytest.mark.parametrize("first", [0.0, 1.0])
def test_of_two_that_lose_nearly_alike_the_one_that_prunes_more(
    first: float, more: float, taken: float, analysis: Analysis, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = Alternatives(plan_once(analysis, TARGET, pruning=first), shares=(1 - first,))

    def score_of(*_: Any) -> Any:
        def score(planned: Planned) -> shares.Tried:
            loss = more if share_of(planned) else 1.0
            return shares.Tried(analysis, planned, None, loss)  # type: ignore[arg-type]

        return score

    monkeypatch.setattr(shares, "score_of", score_of)
    tried = best_share(analysis, TARGET, begun, judge_between(analysis), replace(THOROUGH, steps=0))
    assert tried.share == taken


def test_shares_are_drafted_with_class_scores_whole_where_the_first_plan_is_better_so(
    analysis: Analysis, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = plan_once(analysis, TARGET, pruning=0.0)
    head = min(first.errors)
    outputs: dict[str, Any] = first.proposed.cut.work.moments.outputs
    monkeypatch.setitem(outputs, head, None)  # as if it made class scores
    drafted: list[tuple[bool, float]] = []

    def score_of(found: Analysis, *_: Any) -> Any:
        def score(planned: Planned) -> shares.Tried:
            whole = head not in planned.errors
            assert whole == (found is not analysis)
            drafted.append((whole, share_of(planned)))
            loss = (0.1 if whole else 1.0) + abs(share_of(planned) - 1.0)
            return shares.Tried(found, planned, None, loss)  # type: ignore[arg-type]

        return score

    monkeypatch.setattr(shares, "PRUNING", ())
    monkeypatch.setattr(beginning, "CERTAIN", 1e9)
    monkeypatch.setattr(shares, "score_of", score_of)
    judge = judge_between(analysis)
    tried = best_share(analysis, TARGET, Alternatives(first), judge, THOROUGH)
    assert drafted == [(False, 0.0), (True, 0.0)]
    (note,) = tried.planned.notes
    assert note == HeadsWhole((head,), 2.0, 1.1, judge.samples)
    drafted.clear()
    tried = best_share(analysis, TARGET, Alternatives(first, shares=(1.0,)), judge, THOROUGH)
    assert drafted[:2] == [(False, 0.0), (True, 0.0)]
    assert len(drafted) > 2
    assert all(whole for whole, _ in drafted[2:])
    assert tried.analysis is not analysis
    assert tried.share == max(share for _, share in drafted)
    assert [type(note) for note in tried.planned.notes] == [HeadsWhole, SharesTried]


@pytest.mark.parametrize(
    ("best", "loss", "measured"),
    [(1.0, 0.5, True), (1.0, 2.0, True), (0.0, 0.5, False)],
)
def test_channels_are_chosen_by_measured_losses_where_some_go_in_the_best(
    best: float, loss: float, measured: bool, analysis: Analysis, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafted: list[tuple[bool, float]] = []

    def score_of(found: Analysis, *_: Any) -> Any:
        def score(planned: Planned) -> shares.Tried:
            drafted.append((found is not analysis, share_of(planned)))
            value = loss if found is not analysis else 1.0 + abs(share_of(planned) - best)
            return shares.Tried(found, planned, None, value)  # type: ignore[arg-type]

        return score

    monkeypatch.setattr(beginning, "CERTAIN", 1e9)
    monkeypatch.setattr(shares, "score_of", score_of)
    # one group counts for nothing, so that measured losses choose other channels
    monkeypatch.setattr(
        Cutting, "weigh", lambda _, halves, losses: dict(zip(losses, [1e-6, 1e6] * 9, strict=False))
    )
    judge, one = judge_between(analysis), replace(THOROUGH, steps=1)
    tried = best_share(analysis, TARGET, alternatives(analysis, TARGET), judge, one)
    assert any(weighed for weighed, _ in drafted) == measured
    kept = measured and loss < 1.0
    assert (tried.analysis is not analysis) == kept
    assert tried.loss == (loss if kept else 1.0)
    notes = [n for n in tried.planned.notes if isinstance(n, GroupsWeighed)]
    again = tuple((share, loss) for weighed, share in drafted if weighed)
    assert notes == ([GroupsWeighed(again, kept, judge.samples)] if measured else [])
    assert any(isinstance(n, SharesTried) for n in tried.planned.notes)
    drafted.clear()
    best_share(analysis, TARGET, alternatives(analysis, TARGET), judge, replace(one, steps=0))
    assert not any(weighed for weighed, _ in drafted)


def decision(share: float) -> GroupDecision:
    """A decision on channels that is another one at each share."""
    return GroupDecision(f"at {share}", "cut", 2, (0,), share, "")


@pytest.mark.parametrize(
    ("loss", "changed", "share", "taken"),
    [
        (0.09, 0.5, 0.2, True),  # less loss
        (0.11, 0.0, 1.0, False),
        (0.102, 0.05, 0.2, True),  # alike, and more answers stay
        (0.098, 0.13, 1.0, False),
        (0.102, 0.11, 1.0, True),  # alike in both, and prunes more
        (0.098, 0.09, 0.2, False),
    ],
)
def test_what_decides_between_drafts(
    loss: float, changed: float, share: float, taken: bool
) -> None:
    def tried(loss: float, changed: float, share: float) -> shares.Tried:
        planned = SimpleNamespace(proposed=SimpleNamespace(share=share))
        return shares.Tried(None, planned, None, loss, changed)  # type: ignore[arg-type]

    assert shares._better(tried(loss, changed, share), tried(0.1, 0.1, 0.5), 0.02) is taken
