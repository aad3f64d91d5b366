"""Ways that cost less: moments that follow from the original's, drafts, samples that are enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from onnx_lowrank.analysis.preparation import moments_of
from onnx_lowrank.analysis.streaming import Streaming
from onnx_lowrank.engine import build as building
from onnx_lowrank.engine import propose as proposing
from onnx_lowrank.engine.analyse import Analysis, cut
from onnx_lowrank.engine.build import build, draft
from onnx_lowrank.engine.plan_once import plan_once
from onnx_lowrank.engine.tell import enough_of
from onnx_lowrank.layers import PlacedLayer
from onnx_lowrank.planning.asking import Question
from onnx_lowrank.planning.candidates import scaled
from onnx_lowrank.planning.proposals import Proposals, make_choices
from onnx_lowrank.planning.targets import Target
from onnx_lowrank.progress import Progress
from onnx_lowrank.pruning.remaining import RemainingMoments
from tests import fixtures_models as fm
from tests.analyses import analysis_of
from tests.scripted_timer import ScriptedTimer, by_workload

PASSES = "spatial_svd,channel_svd,prune_channels"


def analysis(count: int = 60) -> Analysis:
    timer = ScriptedTimer(by_workload)
    return analysis_of(fm.residual_net(16), PASSES, {"x": fm.pictures(count)}, timer)


def test_the_moments_of_a_cut_are_near_to_those_measured() -> None:
    found = analysis()
    kept = plan_once(found, Target.parse("macs=0.6"), pruning=1.0).proposed.kept
    assert kept
    work = cut(found, kept).work
    job = found.job
    measured = moments_of(
        work.graph, work.layers, job.samples.calibration, work.shapes,
        Streaming(job.tools.runtime, job.seed, Progress()),
    )  # fmt: skip
    assert set(work.moments) >= {layer.name for layer in work.layers}
    for layer in work.layers:
        ours, theirs = (m[layer.name].covariance for m in (work.moments, measured))
        assert ours is not None
        assert theirs is not None
        assert ours.shape == theirs.shape
        # the layers before it answer a little otherwise, and no more than that
        assert np.linalg.norm(ours - theirs) < 0.5 * np.linalg.norm(theirs)
    assert work.moments.totals == found.prepared.moments.totals


def test_what_no_cut_reaches_keeps_its_moments_to_the_bit() -> None:
    found = analysis()
    kept = plan_once(found, Target.parse("macs=0.6"), pruning=1.0).proposed.kept
    work = cut(found, kept).work
    narrowed = found.pruner("macs").cuts.positions(kept)
    whole = [layer.name for layer in work.layers if layer.name not in narrowed]
    assert whole
    for name in whole:
        ours, theirs = work.moments[name].covariance, found.prepared.moments[name].covariance
        assert ours is not None
        assert theirs is not None
        np.testing.assert_array_equal(ours, theirs)


def test_a_draft_is_solved_on_fewer_samples_and_not_behind_relus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(building, "_LEAST_LIGHT", 10)
    found = analysis()
    plan = plan_once(found, Target.parse("macs=0.5"), pruning=0.0).plan
    whole, sketch = build(found, plan), draft(found, plan)
    assert any(r.behind_relu for r in whole.refits)
    assert not any(r.behind_relu for r in sketch.refits)
    assert [r.layer for r in sketch.refits] == [r.layer for r in whole.refits]
    judge = found.judge_on(found.job.samples.validation)
    assert judge.loss(sketch.model) < 4 * judge.loss(whole.model) + 1e-3


@pytest.mark.parametrize(
    ("samples", "macs", "apart"),
    [
        (40, 10**15, 1),  # few are all drafted on
        (99, 10**6, 1),
        (100, 10**6, 2),
        (800, 10**6, 2),
        (160, 7 * 10**9, 3),  # a run takes long
        (800, 10**9, 4),
        (10_000, 10**12, 200),  # but fifty are left
    ],
)
def test_a_light_repair_reads_one_sample_in_so_many(samples: int, macs: int, apart: int) -> None:
    assert building._apart(samples, macs) == apart


def test_moments_of_a_cut_are_made_when_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    found = analysis()
    kept = plan_once(found, Target.parse("macs=0.6"), pruning=1.0).proposed.kept
    read: list[str] = []
    make = RemainingMoments.__getitem__
    monkeypatch.setattr(
        RemainingMoments, "__getitem__", lambda self, n: (read.append(n), make(self, n))[1]
    )
    found.memo.cuts.get((), lambda: cut(found, {}))  # the last cut is forgotten
    work = cut(found, kept).work
    assert not read
    one, two = (work.moments[work.layers[0].name] for _ in range(2))
    assert read == [work.layers[0].name] * 2
    np.testing.assert_array_equal(one.covariance, two.covariance)  # type: ignore[arg-type]


@pytest.mark.full
@pytest.mark.parametrize("passes", [PASSES, f"{PASSES},cp"])
def test_shares_and_plans_ask_about_a_layer_once(
    monkeypatch: pytest.MonkeyPatch, passes: str
) -> None:
    """With the same channels, whatever the share of pruning; slow passes for plans alone."""
    asked: list[tuple[str, bytes, str]] = []

    def counted(layers: Any, question: Question, *rest: Any) -> Proposals:
        specs = [p.spec for p in question.passes]
        asked.extend((la.name, la.stage.weight.tobytes(), s) for la in layers for s in specs)
        return make_choices(layers, question, *rest)

    monkeypatch.setattr(proposing, "make_choices", counted)
    found = analysis_of(
        fm.residual_net(16), passes, {"x": fm.pictures(60)}, ScriptedTimer(by_workload)
    )
    target = Target.parse("macs=0.35")
    for share in ("some", 0.8, "foreseen"):
        plan_once(found, target, pruning=share)  # type: ignore[arg-type]
    assert len(asked) == len(set(asked))
    assert len({weight for _, weight, _ in asked}) > len(found.prepared.layers)
    if "cp" in passes:
        slow, quick = ([spec for *_, spec in asked].count(s) for s in ("cp", "spatial_svd"))
        assert 0 < slow < quick


def test_wide_layers_are_foreseen_from_those_with_all_channels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of layers without some channels candidates are asked for the plan alone."""
    foreseen: list[str] = []
    monkeypatch.setattr(
        proposing, "scaled", lambda c, part: (foreseen.append(c.layer), scaled(c, part))[1]
    )
    losses = []
    for wide in (10**9, 1):
        monkeypatch.setattr(proposing, "_WIDE", wide)
        assert not foreseen
        planned = plan_once(analysis(), Target.parse("macs=0.4"), pruning="some")
        losses.append(sum(d.error for d in planned.plan.decisions))
    assert foreseen
    assert losses[1] == pytest.approx(losses[0], rel=0.5)


@pytest.mark.parametrize(
    ("macs", "labelled", "compared"),
    [(1_000, False, 600), (10**12, False, 250), (5 * 10**8, False, 400), (10**12, True, 600)],
)
def test_samples_that_take_long_are_compared_in_part(
    macs: int, labelled: bool, compared: int
) -> None:
    pictures = fm.pictures(600)
    given = {"x": pictures, "labels": np.zeros(600, np.int64)} if labelled else {"x": pictures}
    data = fm.dataset(fm.residual_net(16), given)
    assert (data.sample_labels is not None) == labelled
    some = enough_of(data, macs)
    assert len(some) == compared
    for i in (0, -1):
        np.testing.assert_array_equal(some.feed(range(compared)[i])["x"][0], pictures[i])


@pytest.mark.full
def test_layers_that_a_cut_does_not_reach_are_proposed_for_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[list[str]] = []

    def counted(layers: Sequence[PlacedLayer], *rest: Any) -> Proposals:
        asked.append([layer.name for layer in layers])
        return make_choices(layers, *rest)

    monkeypatch.setattr(proposing, "make_choices", counted)
    samples = np.random.default_rng(0).standard_normal((40, 1, 16, 16)).astype(np.float32)
    found = analysis_of(fm.digits("vgg"), PASSES, samples, ScriptedTimer(by_workload))
    target = Target.parse("macs=0.6")
    name, order = next(iter(found.pruner("macs").orders.items()))
    kept = {name: np.sort(order.order[: len(order.order) // 2])}
    proposing.whole_proposals(found, target)
    asked.clear()
    work = cut(found, kept).work
    ours = proposing._proposals(found, cut(found, kept), kept, target)
    reached = found.pruner("macs").layers_of(name)
    names = [layer.name for layer in work.layers]
    assert asked == [[n for n in names if n in reached]]
    assert 0 < len(asked[0]) < len(names)
    theirs = make_choices(
        work.layers, Question(found.job.passes.factorizations, "macs"), work.moments, work.shapes,
        work.moments.totals, Progress(),
    )  # fmt: skip
    assert ours.choices == theirs.choices
    assert ours.skips == theirs.skips
    assert list(ours.outlines) == list(theirs.outlines)
