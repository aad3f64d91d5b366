"""Heads, from the data to the model that is built."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from onnx import ModelProto, helper

from onnx_lowrank.analysis import preparation
from onnx_lowrank.engine.analyse import Analysis, cut
from onnx_lowrank.engine.build import build
from onnx_lowrank.engine.plan_once import plan_once
from onnx_lowrank.linalg.output_metric import interpolated
from onnx_lowrank.planning.targets import Target
from onnx_lowrank.refit import regression
from tests import fixtures_models as fm
from tests.analyses import analysis_of

CLASSES, WIDTH = 60, 24


def reader(rare: float = 0.0) -> ModelProto:
    """Features, and a head over many classes whose scores mostly go up and down together.

    Args:
        rare: how far below the others all classes but the first ten are.
    """
    rng = np.random.default_rng(3)
    together = rng.standard_normal((1, WIDTH)) * 4
    bias = np.where(np.arange(CLASSES) < 10, 0.0, -rare)
    weights = {
        "w1": fm.float32(rng.standard_normal((WIDTH, WIDTH)) / 3),
        "w2": fm.float32((rng.standard_normal((CLASSES, WIDTH)) + together).T),
        "b2": fm.float32(bias),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w2"], ["m"], name="head"),
        helper.make_node("Add", ["m", "b2"], ["s"]),
        helper.make_node("Softmax", ["s"], ["y"], axis=-1),
    ]
    return fm.build(nodes, {"x": ["N", WIDTH]}, {"y": ["N", CLASSES]}, weights)


def inputs(count: int, seed: int = 0) -> fm.AnyArray:
    return fm.float32(np.random.default_rng(seed).standard_normal((count, WIDTH)))


def divergence(model: ModelProto, other: ModelProto, x: fm.AnyArray) -> float:
    p, q = (fm.run(m, {"x": x})["y"].astype(np.float64) for m in (model, other))
    return float(np.mean(np.sum(p * np.log(np.maximum(p, 1e-30) / np.maximum(q, 1e-30)), axis=1)))


def read_by_head(analysis: Analysis) -> str:
    """Name of the channels that the head reads."""
    (name,) = (
        name
        for name, prunable in analysis.pruner("macs").prunables.items()
        if prunable.readers[0][0].name == "head"
    )
    return name


def test_the_metric_is_made_of_the_softmax_of_the_original() -> None:
    model = reader()
    analysis = analysis_of(model, "svd", {"x": inputs(320)})
    moments, data = analysis.prepared.moments, analysis.job.samples.calibration
    assert set(moments.outputs) == {"head"}
    assert data is not None
    assert len(data) % 32 == 0
    p = np.stack([fm.run(model, feed)["y"].astype(np.float64) for feed in data.batches(32)])
    halves = p[:, :16].mean((0, 1)), p[:, 16:].mean((0, 1))
    wanted = interpolated(*halves, len(data))
    found = moments["head"].outputs
    assert found is not None
    np.testing.assert_allclose(found.shares, wanted, rtol=1e-3)
    assert moments["first"].outputs is None


def test_without_data_all_outputs_count_alike() -> None:
    moments = analysis_of(reader(), "svd", None).prepared.moments
    assert moments.outputs == {}
    assert moments["head"].outputs is None


def test_a_pruned_model_has_the_metric_of_the_original() -> None:
    analysis = analysis_of(reader(), "prune_channels", {"x": inputs(320)})
    name = read_by_head(analysis)
    pruned = cut(analysis, {name: np.arange(6)}).work
    assert pruned.moments.outputs == analysis.prepared.moments.outputs


def test_the_loss_of_a_channel_counts_under_the_metric() -> None:
    analysis = analysis_of(reader(), "prune_channels", {"x": inputs(320)})
    pruner = analysis.pruner("macs")
    order = pruner.orders[read_by_head(analysis)]
    moments, layer = analysis.prepared.moments["head"], pruner._layers["head"]
    assert moments.outputs is not None
    # without any channel the whole response under the metric is lost
    assert order.losses[0] == pytest.approx(1, rel=1e-6)
    kept = order.order[:6]
    sigma, weight = moments.sigma(0), moments.outputs.weighed(layer.stage.matrices[0], 0)
    assert sigma is not None
    solved = weight @ sigma[:, kept] @ np.linalg.inv(sigma[np.ix_(kept, kept)]) @ sigma[kept]
    lost = np.trace(weight @ sigma @ weight.T) - np.trace(solved @ weight.T)
    assert order.losses[6] == pytest.approx(lost / np.trace(weight @ sigma @ weight.T), rel=1e-6)


@pytest.mark.parametrize("repair", ["none", "layer"])
def test_a_model_diverges_less_under_the_metric(
    repair: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x, other = reader(rare=6.0), inputs(640), inputs(400, seed=1)
    found = []
    for heads in (True, False):
        if not heads:
            monkeypatch.setattr(preparation, "find_heads", lambda *_: {})
        analysis = analysis_of(model, "svd", {"x": x})
        plan = plan_once(analysis, Target((("macs", 0.7),))).plan
        if repair == "none":
            plan = replace(plan, repair="none")
        built = build(analysis, plan)
        found.append(divergence(model, built.model.proto, other))
    assert found[0] < 0.8 * found[1]


def test_a_head_weighs_as_much_as_its_relative_error() -> None:
    analysis = analysis_of(reader(), "svd", {"x": inputs(320)})
    proposals = plan_once(analysis, Target((("macs", 0.6),))).proposed.proposals
    weights = {choice.layer: choice.weight for choice in proposals.choices}
    assert weights["head"] == 1.0


def test_a_head_that_is_solved_again_is_compared_under_the_metric(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(regression, "_least", lambda _: 1e-3)
    model, found = reader(), []
    for heads in (True, False):
        if not heads:
            monkeypatch.setattr(preparation, "find_heads", lambda *_: {})
        analysis = analysis_of(model, "svd", {"x": inputs(640)})
        plan = plan_once(analysis, Target((("macs", 0.8),))).plan
        alone = replace(
            plan,
            decisions=tuple(
                replace(d, decision="factorize", method="svd", rank=4)
                if d.layer == "first"
                else replace(d, decision="keep", method="", rank=0)
                for d in plan.decisions
            ),
        )
        built = build(analysis, alone)
        (head,) = (r for r in built.refits if r.layer == "head")
        found.append((head, fm.run(built.model.proto, {"x": inputs(200, seed=1)})["y"]))
    (under, scores), (plain, same) = found
    # least squares do not depend on how outputs are weighed, the size of what is left does
    assert under.ridge == plain.ridge == 1e-3
    np.testing.assert_allclose(scores, same, rtol=1e-3, atol=1e-6)
    assert abs(under.error_after - plain.error_after) > 0.1 * plain.error_after
