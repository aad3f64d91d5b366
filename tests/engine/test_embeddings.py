"""Tables of embeddings in plans: beside all other layers, and only where it is of use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

from onnx_lowrank.engine.api import Result, apply, plan
from onnx_lowrank.engine.build import build
from onnx_lowrank.engine.curves import curves
from onnx_lowrank.engine.inspection import inspect
from onnx_lowrank.engine.option_groups import DEFAULT_PASSES
from onnx_lowrank.engine.plan_once import plan_once
from onnx_lowrank.errors import BudgetError
from onnx_lowrank.planning.plan import Decision, Plan
from onnx_lowrank.planning.targets import Target
from onnx_lowrank.progress import Progress
from onnx_lowrank.refit.sensitivity import losses_of_layers
from tests import fixtures_models as fm
from tests.analyses import analysis_of
from tests.fixtures_text import ROWS, WIDTH, readings, text_net
from tests.scripted_timer import taking

#: most of the second is a dense layer, in MACs
NET, WIDE = text_net(), text_net(width=96)
CALIB = {"ids": readings(80)}
PASSES = "svd,embedding_svd"
RUN: dict[str, Any] = {"threads": 1, "timer": taking(0.5), "cache": ""}


def compressed(target: Any, model: Any = NET, passes: str = PASSES, **options: Any) -> Result:
    given = {"calib": CALIB, "passes": passes, "target": target, **options}
    return fm.quick_compress(model, **given)


def decision(result: Result, name: str = "words") -> Decision:
    return next(d for d in result.report.decisions if d.layer == name)


def bytes_of(model: ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)


@pytest.mark.parametrize("target", ["params=0.4", "size=0.45"])
def test_what_was_out_of_reach_is_met(target: str) -> None:
    with pytest.raises(BudgetError, match="cannot go below"):
        compressed(target, passes="svd")
    result = compressed(target)
    made, before, after = decision(result), result.report.before, result.report.after
    metric, ratio = target.split("=")
    assert after.of(metric) <= float(ratio) * before.of(metric)
    assert (made.decision, made.method) == ("factorize", "embedding_svd")
    assert made.reason.endswith("of its parameters")
    assert (made.macs_before, made.parameters_before) == (0, ROWS * WIDTH)
    # the outline of the plan and the chain that was cut have the same costs, and so has the file
    tables = [t for t in result.model.graph.initializer if ROWS in t.dims]
    assert [tuple(t.dims) for t in tables] == [(ROWS, made.rank)]
    assert made.parameters_after == ROWS * made.rank + WIDTH * made.rank + WIDTH
    assert made.macs_after == 10 * WIDTH * made.rank
    others = sum(int(np.prod(t.dims)) for t in result.model.graph.initializer
                 if t.name in ("places", "c"))  # fmt: skip
    layers = sum(d.parameters_after for d in result.report.decisions)
    assert after.parameters == layers + others - 4  # the bias of the scores is the layer's
    ids = readings(50, seed=9)
    wanted, got = (fm.run(m, {"ids": ids})["y"] for m in (NET, result.model))
    assert fm.relative(got, wanted) < 0.15


@pytest.mark.parametrize("target", ["macs=0.6", "latency=0.9"])
def test_a_target_on_work_alone_leaves_tables_as_they_are(target: str) -> None:
    result = compressed(target, WIDE, force=True)
    made = decision(result)
    assert made.decision == "keep"
    assert made.reason == "it multiplies nothing; a target on params or size makes it smaller"
    assert any(t.name == "table" for t in result.model.graph.initializer)


@pytest.mark.parametrize("rule", ["energy=0.9", "fixed=4"])
def test_a_rule_for_ranks_leaves_tables_as_they_are(rule: str) -> None:
    result = fm.quick_compress(NET, calib=CALIB, passes=PASSES, ranks=rule, force=True)
    assert decision(result).decision == "keep"
    assert decision(result, "dense").method == "svd"


@pytest.mark.parametrize("other", ["macs=0.8", "latency=0.9"])
def test_several_targets_are_met_together(other: str) -> None:
    result = compressed([other, "params=0.45"], WIDE, force=True)
    assert decision(result).method == "embedding_svd"
    assert result.report.after.parameters <= 0.45 * result.report.before.parameters
    assert any(d.method == "svd" for d in result.report.decisions)
    if other == "macs=0.8":
        assert result.report.after.macs <= 0.8 * result.report.before.macs


def test_without_the_pass_a_table_stays() -> None:
    result = compressed("params=0.97", passes="svd", force=True)
    assert decision(result).reason == "none of the passes replaces Gather"


def test_apply_is_compress() -> None:
    made = plan(NET, calib=CALIB, target="params=0.4", passes=PASSES, effort="quick", **RUN)
    again = apply(NET, Plan.from_json(made.to_json()), calib=CALIB, force=True, **RUN)
    assert bytes_of(again.model) == bytes_of(compressed("params=0.4").model)


def test_all_default_passes_make_one_plan() -> None:
    """Pruning, attention and the rest beside the table; its error counts in sensitivities."""
    assert "embedding_svd" in DEFAULT_PASSES.split(",")
    result = compressed("params=0.4", passes=DEFAULT_PASSES, effort="normal")
    assert decision(result).method == "embedding_svd"
    assert result.report.after.parameters <= 0.4 * result.report.before.parameters


def test_what_a_table_loses_is_measured_as_of_other_layers() -> None:
    analysis = analysis_of(NET, PASSES, CALIB)
    planned = plan_once(analysis, Target.parse("params=0.3"), pruning=0.0)
    built = build(analysis, planned.plan, weighable=["words", "dense"])
    assert built.repaired["words"].solved is None
    judge = analysis.judge_on(analysis.job.samples.calibration)
    names = ["words", "dense"]
    work = planned.proposed.cut.work.model
    whole, losses = losses_of_layers(judge, work, built.repaired, names, Progress())
    assert whole == pytest.approx(judge.divergence(built.model), rel=1e-3)
    assert 0 < losses["words"] <= whole
    # the only other chain, if any, cannot explain what the table loses
    assert losses["words"] > 0.2 * whole


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_int8_comes_last(mode: str) -> None:
    result = compressed("params=0.4", quantize=mode, force=True)
    assert decision(result).method == "embedding_svd"
    assert [s.name for s in result.report.stages][-1] == f"compressed, int8 ({mode})"
    ids = {"ids": readings(50, seed=9)}
    assert fm.relative(fm.run(result.model, ids)["y"], fm.run(NET, ids)["y"]) < 0.2


def test_without_data_the_table_itself_is_fitted() -> None:
    result = fm.quick_compress(NET, passes=PASSES, target="params=0.4", force=True)
    assert decision(result).method == "embedding_svd"


def test_two_lookups_of_one_table_share_one_chain() -> None:
    net = ModelProto()
    net.CopyFrom(NET)
    negated = helper.make_node("Sub", ["last", "ids"], ["other"])
    again = helper.make_node("Gather", ["table", "other"], ["f"], name="again")
    total = helper.make_node("Mul", ["e", "f"], ["both"])
    net.graph.node[1].input[0] = "both"
    nodes = list(net.graph.node)
    del net.graph.node[:]
    net.graph.node.extend([nodes[0], negated, again, total, *nodes[1:]])
    net.graph.initializer.append(numpy_helper.from_array(np.array(ROWS - 1), "last"))
    onnx.checker.check_model(net)
    result = compressed("params=0.45", net, force=True)
    assert [decision(result, n).decision for n in ("words", "again")] == ["share", "share"]
    assert result.report.after.parameters <= 0.45 * result.report.before.parameters
    assert len([t for t in result.model.graph.initializer if ROWS in t.dims]) == 1


@pytest.mark.parametrize("large", [False, True], ids=["whole", "in pieces"])
def test_a_table_in_another_file(
    large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As models have that are too large for one file, and for one session."""
    inside = compressed("params=0.4")
    if large:
        fm.shrink_limits(monkeypatch, 12_000, 8_000)
    path = fm.external(tmp_path, NET)
    before = (tmp_path / "weights.bin").read_bytes()
    result = compressed("params=0.4", path)
    result.save(tmp_path / "out.onnx")
    assert decision(result).method == "embedding_svd"
    assert (tmp_path / "weights.bin").read_bytes() == before
    ids = {"ids": readings(20, seed=4)}
    wanted, got = (fm.run(m, ids)["y"] for m in (inside.model, tmp_path / "out.onnx"))
    assert fm.relative(got, wanted) < 1e-5


def test_inspect_shows_the_table() -> None:
    info = next(la for la in inspect(NET).layers if la.name == "words")
    assert (info.op, info.shape, info.params) == ("Gather", (WIDTH, ROWS), ROWS * WIDTH)
    assert (info.eligible, info.reason, info.macs) == (True, "embedding_svd", 0)


def test_curves_leave_it_out_with_a_reason() -> None:
    made = curves(NET, calib=CALIB, passes=PASSES)
    assert made.skipped["words"].startswith("it multiplies nothing")
    assert [c.layer for c in made.curves] == ["dense"]
