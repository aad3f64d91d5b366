"""Layers weighed by what their errors do to the outputs, and plans made again by that."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from onnx_lowrank.chains.chain import Chain
from onnx_lowrank.engine import api as pipeline
from onnx_lowrank.engine import rounds
from onnx_lowrank.errors import DataError, OptionError
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import find_layers
from onnx_lowrank.modelfile.model import load
from onnx_lowrank.progress import Progress
from onnx_lowrank.refit.sensitivity import Repaired, measured_factors
from onnx_lowrank.runtime.runtime import Runtime
from tests import fixtures_models as fm

WIDTH = 6


def two_branches(weak: float) -> onnx.ModelProto:
    """``y = a(x) + weak * b(x)``: errors of ``b`` hardly reach the output."""
    random = np.random.default_rng(0)
    weights = {n: fm.float32(random.standard_normal((WIDTH, WIDTH))) for n in "ab"}
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["u"], name="strong"),
        helper.make_node("MatMul", ["x", "b"], ["v"], name="weak"),
        helper.make_node("Mul", ["v", "scale"], ["w"]),
        helper.make_node("Add", ["u", "w"], ["y"]),
    ]
    weights["scale"] = fm.float32(np.array(weak))
    return fm.build(nodes, {"x": ["N", WIDTH]}, {"y": ["N", WIDTH]}, weights)


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
    return measured_factors(
        model, model, repaired, errors, data, Runtime(threads=1), 10, Progress()
    )


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


OPTIONS: dict[str, Any] = {
    "calib": fm.DIGITS, "samples": 150, "target": "params=0.3",
    "passes": "fold_batchnorm,spatial_svd",
}  # fmt: skip


def test_rounds_end_nearer_to_the_original_or_change_nothing() -> None:
    net = fm.digits("resnet")
    plain = fm.quick_compress(net, **OPTIONS)
    result = fm.quick_compress(net, **OPTIONS, rounds=2)
    notes = [n for n in result.report.said if n.startswith("round ")]
    assert 1 <= len(notes) <= 2
    assert notes[0].endswith("kept")
    assert result.plan.decisions != plain.plan.decisions
    # on the half of the held-out samples that decides, by another way
    with np.load(fm.DIGITS) as archive:
        x = archive["test.image"][::2]
    reference = fm.run(net, {"image": x})["logits"]
    before, after = (
        fm.relative(fm.run(r.model, {"image": x})["logits"], reference) for r in (plain, result)
    )
    assert after < before
    assert f"{-20 * np.log10(before):.2f} to " in notes[0]
    for r in (plain, result):
        assert r.report.after.parameters <= 0.3 * r.report.before.parameters
    # deterministic, and what apply does with the plan
    again = fm.quick_compress(net, **OPTIONS, rounds=2)
    assert again.model == result.model
    applied = pipeline.apply(net, result.plan, calib=fm.DIGITS, threads=1, force=True)
    assert applied.model == result.model
    assert pipeline.plan(net, **OPTIONS, threads=1, rounds=2) == result.plan


def test_a_round_that_is_worse_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    net = fm.digits("resnet")
    plain = fm.quick_compress(net, **OPTIONS)
    last = plain.plan.decisions[-2].layer

    def absurd(*_: Any) -> dict[str, float]:
        return {d.layer: 1e-6 if d.layer != last else 1e6 for d in plain.plan.decisions}

    monkeypatch.setattr(rounds, "measured_factors", absurd)
    result = fm.quick_compress(net, **OPTIONS, rounds=3)
    assert result.model == plain.model
    (note,) = [n for n in result.report.said if n.startswith("round ")]
    assert note.endswith("dropped")


def said(result: Any) -> list[str]:
    return [n for n in result.report.said if n.startswith("round ")]


def test_one_round_is_made_unasked_where_layers_can_be_weighed() -> None:
    net = fm.digits("resnet")
    asked, unasked = (fm.quick_compress(net, **OPTIONS, rounds=n) for n in (1, None))
    assert len(said(unasked)) == 1
    assert unasked.model == asked.model
    assert not said(fm.quick_compress(net, **OPTIONS, rounds=None, repair="last"))
    assert not said(fm.quick_compress(net, target="params=0.3", rounds=None))  # no data
    rule = {k: v for k, v in OPTIONS.items() if k != "target"}
    assert not said(fm.quick_compress(net, **rule, ranks="ratio=0.5", rounds=None))


def test_no_round_is_made_unasked_at_much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "LARGEST", 1000)
    assert not said(fm.quick_compress(fm.digits("resnet"), **OPTIONS, rounds=None))


def test_outputs_that_are_no_numbers_end_no_run_unasked() -> None:
    net = onnx.load(fm.digits("resnet"))
    (logits,) = net.graph.output
    net.graph.node.append(helper.make_node("ArgMax", [logits.name], ["class"], axis=1))
    del net.graph.output[:]
    net.graph.output.append(helper.make_tensor_value_info("class", onnx.TensorProto.INT64, None))
    assert not said(fm.quick_compress(net, **OPTIONS, rounds=None))
    with pytest.raises(DataError, match="floating-point"):
        fm.quick_compress(net, **OPTIONS, rounds=1)


def test_what_foresees_no_less_loss_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "WORTH", 0.0)
    built: list[Any] = []
    build = rounds.build
    monkeypatch.setattr(
        rounds, "build", lambda found, plan, **o: (built.append(plan), build(found, plan, **o))[1]
    )
    result = fm.quick_compress(fm.digits("resnet"), **OPTIONS, rounds=2)
    assert said(result) == ["round 1 with measured sensitivities: no plan that promises less loss"]
    assert built == [result.plan]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": -1}, "rounds must be 0 or more"),
        ({"rounds": 1, "repair": "last"}, "give --repair chain or relu"),
        ({"rounds": 1, "min_snr": 20.0, "target": "macs"}, "rounds are for one target"),
    ],
)
def test_what_rounds_are_not_for(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        fm.quick_compress(fm.digits("resnet"), **{**OPTIONS, **options})


def test_rules_know_no_rounds() -> None:
    options = {k: v for k, v in OPTIONS.items() if k != "target"}
    with pytest.raises(OptionError, match="no rule for ranks"):
        fm.quick_compress(fm.digits("resnet"), **options, ranks="ratio=0.5", rounds=1)


def test_without_data_there_is_nothing_to_measure() -> None:
    options = {k: v for k, v in OPTIONS.items() if k not in ("calib", "samples")}
    result = fm.quick_compress(fm.digits("resnet"), **options, rounds=1)
    assert not [n for n in result.report.said if n.startswith("round ")]
