from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper, numpy_helper

from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.chains.chain import Chain, Stage
from onnx_lowrank.engine import reckon_int8
from onnx_lowrank.engine.api import plan
from onnx_lowrank.errors import OptionError
from onnx_lowrank.planning.plan import Plan
from tests import fixtures_models as fm
from tests.scripted_timer import taking

X = fm.pictures(40)


def planned(**options: Any) -> Plan:
    return plan(
        fm.residual_net(), calib={"x": X}, target="macs=0.6", effort="quick", cache="", threads=1,
        timer=taking(0.5), **{"passes": "spatial_svd,cp{form=three}", **options},
    )  # fmt: skip


def forms(made: Plan) -> set[str]:
    return {d.method for d in made.decisions if d.method}


def cancelling(stage: Stage, chain: Chain, moments: Moments) -> float:
    """Chains of three steps, those of cp, are nothing but noise."""
    return 5.0 if len(chain.stages) == 3 else 0.0


@pytest.mark.full
@pytest.mark.parametrize(
    ("options", "cp"),
    [({}, True), ({"for_int8": "static"}, False), ({"for_int8": "none"}, True),
     ({"for_int8": "dynamic"}, True)],
)  # fmt: skip
def test_chains_that_int8_ruins_are_not_chosen(
    options: dict[str, str], cp: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Convolutions stay in floating point where it is dynamic."""
    monkeypatch.setattr(reckon_int8, "rounding_error", cancelling)
    assert ("cp{form=three}" in forms(planned(**options))) == cp


@pytest.mark.full
def test_quantizing_turns_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reckon_int8, "rounding_error", cancelling)
    given: dict[str, Any] = {
        "calib": {"x": X}, "passes": "spatial_svd,cp{form=three}", "target": "macs=0.6",
        "quantize": "static", "force": True,
    }  # fmt: skip
    net = fm.residual_net()
    assert "cp{form=three}" not in forms(fm.quick_compress(net, **given).plan)
    assert "cp{form=three}" in forms(fm.quick_compress(net, **given, for_int8="none").plan)


@pytest.mark.full
def test_chains_that_lose_nothing_leave_the_plan_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reckon_int8, "rounding_error", lambda *_: 0.0)
    assert planned(for_int8="static") == planned()


def two_products() -> ModelProto:
    """Two layers of one size, whose singular values fall quickly."""
    rng = np.random.default_rng(4)
    weights, nodes = {}, []
    for i, (read, made) in enumerate((("x", "h"), ("t", "y"))):
        left, right = (np.linalg.qr(rng.normal(size=(48, 48)))[0] for _ in range(2))
        weights[f"w{i}"] = fm.float32((left * 0.8 ** np.arange(48)) @ right)
        nodes.append(helper.make_node("MatMul", [read, f"w{i}"], [made], name=f"layer{i}"))
    nodes.insert(1, helper.make_node("Tanh", ["h"], ["t"], name="tanh"))
    return fm.build(nodes, {"x": ["N", 48]}, {"y": ["N", 48]}, weights)


@pytest.mark.parametrize("mode", ["none", "dynamic"])
def test_layers_whose_chains_int8_ruins_stay(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"x": fm.float32(np.random.default_rng(5).normal(size=(100, 48)))}
    weight = numpy_helper.to_array(two_products().graph.initializer[0])

    def ruined(stage: Stage, chain: Chain, moments: Moments) -> float:
        own = np.allclose(stage.weight, weight.T, rtol=0, atol=0)
        return 5.0 if len(chain.stages) == 2 and own else 0.0

    monkeypatch.setattr(reckon_int8, "rounding_error", ruined)
    made = plan(
        two_products(), calib=data, passes="svd", target="macs=0.75", effort="quick", cache="",
        threads=1, timer=taking(0.5), for_int8=mode,
    )  # fmt: skip
    changed = {d.layer for d in made.decisions if d.method}
    assert changed == ({"layer1"} if mode == "dynamic" else {"layer0", "layer1"})


def test_other_values_are_refused() -> None:
    with pytest.raises(OptionError, match="for_int8 is 'int4'; write one of auto, dynamic"):
        planned(for_int8="int4")
