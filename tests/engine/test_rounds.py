"""Layers weighed by what their errors do to the outputs, and plans made again by that."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnx_lowrank.chains.chain import Chain
from onnx_lowrank.engine import api as pipeline
from onnx_lowrank.engine import effort as efforts
from onnx_lowrank.engine import rounds, shares
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.judge.judge import Judge
from onnx_lowrank.layers import find_layers
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.progress import Progress
from onnx_lowrank.refit.sensitivity import Measured, Repaired, measured_factors, samples_to_weigh
from onnx_lowrank.runtime.runtime import Runtime
from tests import fixtures_models as fm
from tests.scripted_timer import taking

#: inputs and outputs of a layer, where layers are weighed and where they are planned
WIDTH, DIRECTIONS = 6, 48


def two_branches(weak: float, width: int = WIDTH) -> onnx.ModelProto:
    """``y = a(x) + weak * b(x)``: errors of ``b`` hardly reach the output."""
    random = np.random.default_rng(0)
    weights = {n: fm.float32(random.standard_normal((width, width))) for n in "ab"}
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["u"], name="strong"),
        helper.make_node("MatMul", ["x", "b"], ["v"], name="weak"),
        helper.make_node("Mul", ["v", "scale"], ["w"]),
        helper.make_node("Add", ["u", "w"], ["y"]),
    ]
    weights["scale"] = fm.float32(np.array(weak))
    return fm.build(nodes, {"x": ["N", width]}, {"y": ["N", width]}, weights)


def factors(weak: float, errors: dict[str, float], noise: float = 0.1) -> dict[str, float]:
    model = load(two_branches(weak))
    random = np.random.default_rng(1)
    repaired = {}
    for layer in find_layers(Graph(model))[0]:
        off = layer.stage.matrices + noise * random.standard_normal(layer.stage.matrices.shape)
        chain = Chain((layer.stage.with_matrices(off, None),))
        repaired[layer.name] = Repaired(layer.stage, chain)
    x = fm.float32(random.standard_normal((50, WIDTH)))
    data = fm.dataset(model.proto, {"x": x})
    judge = Judge(model, samples_to_weigh(data, len(errors)), Runtime(threads=1), 10)
    found = measured_factors(judge, model, repaired, errors, Progress())
    assert found.losses.keys() == found.factors.keys()
    return dict(found.factors)


def test_an_error_that_does_not_reach_the_output_weighs_little() -> None:
    found = factors(0.1, {"strong": 0.01, "weak": 0.01})
    # shares of 1 and 0.01 about; their median is half, so damped they are 2^(1/2) and 1/2
    assert found["strong"] == pytest.approx(2**0.5, rel=0.02)
    assert found["weak"] == pytest.approx(0.5, rel=1e-6)


def test_weights_are_of_an_error_of_one() -> None:
    same = factors(1.0, {"strong": 0.01, "weak": 0.01})
    other = factors(1.0, {"strong": 0.01, "weak": 0.02})
    assert same["weak"] / same["strong"] == pytest.approx(
        2**0.5 * other["weak"] / other["strong"], rel=1e-6
    )


def test_nothing_is_said_of_what_was_not_repaired() -> None:
    assert set(factors(1.0, {"strong": 0.01, "elsewhere": 0.1})) == {"strong"}
    assert factors(1.0, {}) == {}


def net(weak: float = 0.1) -> onnx.ModelProto:
    """``y = a(x) + weak * b(x)``, of singular values that fall alike."""
    proto = two_branches(weak, DIRECTIONS)
    random = np.random.default_rng(2)
    for tensor in proto.graph.initializer[:2]:
        left, right = (
            np.linalg.qr(random.standard_normal((DIRECTIONS, DIRECTIONS)))[0] for _ in "lr"
        )
        weight = fm.float32(left * 0.85 ** np.arange(DIRECTIONS) @ right)
        tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    return proto


X = fm.float32(np.random.default_rng(3).standard_normal((300, DIRECTIONS)))
DATA = {"x": X[:200], "test.x": X[200:]}
OPTIONS: dict[str, Any] = {"calib": DATA, "target": "params=0.5", "passes": "svd"}


def said(result: pipeline.Result) -> list[str]:
    return [n for n in result.report.said if n.startswith("round ")]


def ranks(result: pipeline.Result) -> dict[str, Any]:
    return {d.layer: d.rank for d in result.plan.decisions}


@pytest.mark.full
def test_rounds_end_nearer_to_the_original() -> None:
    plain = fm.quick_compress(net(), **OPTIONS)
    result = fm.quick_compress(net(), **OPTIONS, effort="thorough")
    notes = said(result)
    assert 1 <= len(notes) <= 2
    assert notes[0].endswith("kept")
    assert ranks(result)["strong"] > ranks(plain)["strong"]
    assert ranks(result)["weak"] < ranks(plain)["weak"]
    # on the samples that decide, half of those held out and half of the others, by another way
    x = np.concatenate([DATA["test.x"][::2], DATA["x"][1::2]])
    reference = fm.run(net(), {"x": x})["y"]
    before, after = (
        np.mean(np.square(fm.run(r.model, {"x": x})["y"] - reference) / reference.var(axis=0))
        for r in (plain, result)
    )
    assert after < before
    noted = re.search(r"loss ([\d.]+)% to ", notes[0])
    assert noted is not None
    assert float(noted[1]) == pytest.approx(100 * before, rel=0.05)  # that of a draft
    for r in (plain, result):
        assert r.report.after.parameters <= 0.5 * r.report.before.parameters
    # deterministic, and what apply does with the plan
    again = fm.quick_compress(net(), **OPTIONS, effort="thorough")
    assert again.model == result.model
    applied = pipeline.apply(net(), result.plan, calib=DATA, threads=1, force=True)
    assert applied.model == result.model
    assert pipeline.plan(net(), **OPTIONS, threads=1, effort="thorough") == result.plan


def test_a_round_that_is_worse_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = fm.quick_compress(net(), **OPTIONS, repair="relu")

    def absurd(*_: Any) -> Measured:
        return Measured({"strong": 1e-6, "weak": 1e6}, {}, 1.0)

    monkeypatch.setattr(rounds, "measured_factors", absurd)
    result = fm.quick_compress(net(), **OPTIONS, effort="thorough")
    assert result.model == plain.model
    (note,) = said(result)
    assert note.endswith("dropped")


def test_no_round_is_made_where_layers_cannot_be_weighed() -> None:
    assert said(fm.quick_compress(net(), **OPTIONS, effort="thorough"))
    assert not said(fm.quick_compress(net(), **OPTIONS, effort="thorough", repair="last"))
    assert not said(fm.quick_compress(net(), target="params=0.5", effort="thorough"))  # no data
    rule = {k: v for k, v in OPTIONS.items() if k != "target"}
    assert not said(fm.quick_compress(net(), **rule, ranks="ratio=0.5", effort="thorough"))


def with_enough(monkeypatch: pytest.MonkeyPatch, loss: float, name: str = "normal") -> None:
    """Let an effort look for nothing better below a loss."""
    monkeypatch.setattr(efforts, "MANY", 1)
    lenient = replace(efforts.EFFORTS[name], enough=loss)
    monkeypatch.setattr(efforts, "EFFORTS", {**efforts.EFFORTS, name: lenient})


@pytest.mark.parametrize(
    ("samples", "loss"), [(1000, 0.01), (250, 0.01), (125, 0.005), (50, 0.002), (10, 0.002)]
)
def test_less_is_enough_where_few_samples_tell(samples: int, loss: float) -> None:
    assert efforts.NORMAL.enough_on(samples) == pytest.approx(loss)
    assert efforts.THOROUGH.enough_on(samples) == 0


def test_nothing_lost_is_nothing_to_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    assert said(fm.quick_compress(net(), **OPTIONS, effort="thorough"))
    with_enough(monkeypatch, 0.5, "thorough")
    assert not said(fm.quick_compress(net(), **OPTIONS, effort="thorough"))


def test_fewer_plans_of_models_that_run_long_are_drafted(monkeypatch: pytest.MonkeyPatch) -> None:
    repairs: list[str] = []

    def said_of_time(effort: str, **more: str) -> list[str]:
        options = {"target": "macs=0.5", "passes": "spatial_svd,prune_channels"} | more
        x = {"x": fm.pictures(60)}
        result = fm.quick_compress(
            fm.residual_net(16), calib=x, **options, effort=effort, force=True
        )
        repairs.append(result.plan.repair)
        return [n for n in result.report.said if "run over the calibration samples takes" in n]

    assert not said_of_time("normal")
    monkeypatch.setattr(rounds, "LONGEST", 1000)
    (left_out,) = said_of_time("normal")
    assert "normal effort" in left_out
    assert "--effort thorough" in left_out
    assert not said_of_time("thorough")
    for more in ({"passes": "spatial_svd"}, {"repair": "chain"}):
        assert said_of_time("normal", **more)
    assert repairs == ["relu", "light", "relu", "light", "chain"]


def test_quick_effort_says_what_it_left_out() -> None:
    result = fm.quick_compress(net(), **OPTIONS, effort="quick")
    assert [n for n in result.report.said if "predictions alone decided" in n]


def test_whole_numbers_are_judged_by_how_many_stay() -> None:
    classes = net()
    classes.graph.node.append(helper.make_node("ArgMax", ["y"], ["class"], axis=1))
    classes.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("class", onnx.TensorProto.INT64, None)
    )
    result = fm.quick_compress(classes, **OPTIONS, effort="normal", force=True)
    (judged,) = result.report.validation.to_dict()["judged"]
    assert judged["kind"] == "equal"


def test_what_foresees_no_less_loss_is_not_drafted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "WORTH", 0.0)
    drafted: list[Any] = []
    draft = shares.draft
    monkeypatch.setattr(
        shares, "draft", lambda found, plan, **o: (drafted.append(plan), draft(found, plan, **o))[1]
    )
    result = fm.quick_compress(net(), **OPTIONS, effort="thorough")
    assert said(result) == ["round 1 with measured sensitivities: no plan that promises less loss"]
    assert drafted == [result.plan]


@pytest.mark.parametrize(
    ("enough", "asked", "light"),
    [
        (1.0, {}, True),
        (0.0, {}, False),
        (1.0, {"repair": "chain"}, False),
        (1.0, {"effort": "thorough"}, False),
    ],
)
def test_a_draft_that_loses_next_to_nothing_is_the_model(
    monkeypatch: pytest.MonkeyPatch, enough: float, asked: dict[str, str], light: bool
) -> None:
    with_enough(monkeypatch, enough)
    drafted: list[Any] = []
    draft = shares.draft
    monkeypatch.setattr(
        shares, "draft", lambda *a, **o: (drafted.append(draft(*a, **o)), drafted[-1])[1]
    )
    data = {"calib": fm.DIGITS, "samples": 40}
    options = {"target": "macs=0.6", "passes": "svd,prune_channels", "effort": "normal", **asked}
    result = fm.quick_compress(fm.digits("mlp"), **data, **options)
    assert (result.plan.repair == "light") == light
    made = [built.model.proto.SerializeToString() for built in drafted]
    assert (result.model.SerializeToString() in made) == light
    if light:  # and it is the model that its plan describes
        again = pipeline.apply(
            fm.digits("mlp"), result.plan, calib=fm.DIGITS, threads=1, cache="",
            timer=taking(0.5), force=True,
        )  # fmt: skip
        assert again.model.SerializeToString() == result.model.SerializeToString()
        assert result.report.costliest


def test_without_data_there_is_nothing_to_measure() -> None:
    options = {k: v for k, v in OPTIONS.items() if k not in ("calib", "samples")}
    result = fm.quick_compress(net(), **options, effort="normal")
    assert not said(result)
