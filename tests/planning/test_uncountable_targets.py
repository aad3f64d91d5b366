"""Targets on models whose work no pass can touch, or nobody can count."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, helper
from rich.console import Console

from onnx_lowrank.analysis.cost import Cost
from onnx_lowrank.analysis.counting import Counts, Uncounted
from onnx_lowrank.analysis.mac_formulas import MICROSOFT
from onnx_lowrank.engine.api import Result
from onnx_lowrank.engine.inspection import inspect
from onnx_lowrank.errors import BudgetError
from onnx_lowrank.report.report import model_table
from tests import fixtures_models as fm

RNG = np.random.default_rng(0)
X = {"x": RNG.standard_normal((60, 6, 32)).astype(np.float32)}


def weight(*shape: int) -> np.ndarray[Any, Any]:
    return fm.float32(RNG.standard_normal(shape) / 8)


def built(nodes: list[NodeProto], **weights: tuple[int, ...]) -> ModelProto:
    given = {name: weight(*shape) for name, shape in weights.items()}
    proto = fm.build(nodes, {"x": ["N", 6, 32]}, {"y": None}, given)
    proto.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    return proto


def squeezed(proto: ModelProto, target: str, **options: Any) -> Result:
    return fm.quick_compress(proto, calib=X, target=target, passes="svd", force=True, **options)


def in_function() -> ModelProto:
    """All products inside a local function, as exporters write modules."""
    body = [helper.make_node("MatMul", ["X", "W"], ["g"], name="in function"),
            helper.make_node("Relu", ["g"], ["Y"])]  # fmt: skip
    nodes = [helper.make_node("Dense", ["x", "w"], ["y"], domain="my", name="call")]
    proto = built(nodes, w=(32, 32))
    opsets = [helper.make_opsetid("", 17)]
    proto.functions.append(helper.make_function("my", "Dense", ["X", "W"], ["Y"], body, opsets))
    proto.opset_import.append(helper.make_opsetid("my", 1))
    return proto


def attention() -> ModelProto:
    """Fused attention, then two dense layers: 6 * 32 * (3 * 32 + 2 * 6) and 2 * 6 * 32 * 128."""
    return built(
        [
            helper.make_node("Attention", ["x", "q", "b"], ["h"], domain=MICROSOFT, num_heads=4,
                             name="fused"),
            helper.make_node("MatMul", ["h", "w1"], ["u"], name="first"),
            helper.make_node("Relu", ["u"], ["r"]),
            helper.make_node("MatMul", ["r", "w2"], ["y"], name="second"),
        ],
        q=(32, 96), b=(96,), w1=(32, 128), w2=(128, 32),
    )  # fmt: skip


def test_a_target_that_nothing_can_meet_is_refused() -> None:
    with pytest.raises(BudgetError, match=r"1\.000 of the MACs .* in function \(MatMul in Dense"):
        squeezed(in_function(), "macs=0.5")
    with pytest.raises(BudgetError, match=r"params=0\.5: none of the 1 layers can be compressed"):
        squeezed(in_function(), "params=0.5")
    with pytest.raises(BudgetError, match="latency: the model has no layer"):
        squeezed(in_function(), "latency=0.5")


def test_what_pruning_cannot_touch_is_named_too() -> None:
    with pytest.raises(BudgetError, match=r"1\.000 of the MACs are in nodes .* in function"):
        fm.quick_compress(in_function(), calib=X, target="macs=0.5", passes="prune_channels")


def test_the_budget_is_a_part_of_all_macs() -> None:
    fused, dense = 6 * 32 * (96 + 12), 2 * 6 * 32 * 128
    whole = fused + dense
    report = squeezed(attention(), "macs=0.6").report
    assert report.before.macs == whole
    assert fused < report.after.macs <= 0.6 * whole
    skipped = next(d for d in report.decisions if d.layer == "fused")
    assert (skipped.macs_before, skipped.macs_after) == (fused, fused)
    with pytest.raises(BudgetError, match=rf"{fused / whole:.3f} of the MACs are in .* fused"):
        squeezed(attention(), "macs=0.3")


def test_a_model_without_countable_macs_is_refused() -> None:
    gelu = built([helper.make_node("Gelu", ["x"], ["y"], domain=MICROSOFT, name="gelu")])
    with pytest.raises(BudgetError, match="no node of it multiplies matrices"):
        squeezed(gelu, "macs=0.5")
    with pytest.raises(BudgetError, match="no node of it multiplies matrices"):
        squeezed(gelu, "macs", min_snr=20.0)
    with pytest.raises(BudgetError, match="params: the model has no parameters"):
        squeezed(gelu, "params=0.5")
    waves = built([
        helper.make_node("Unsqueeze", ["x", "last"], ["h"]),
        helper.make_node("DFT", ["h"], ["y"], axis=1, name="waves"),
    ])  # fmt: skip
    waves.graph.initializer.append(helper.make_tensor("last", 7, [1], [3]))
    with pytest.raises(BudgetError, match=r"MACs of 1 node is not counted: waves \(DFT"):
        squeezed(waves, "macs=0.5")


def test_what_is_left_out_stands_in_report_table_and_json() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="dense"),
        helper.make_node("Unsqueeze", ["h", "last"], ["h4"]),
        helper.make_node("DFT", ["h4"], ["y"], axis=1, name="waves"),
    ]
    proto = built(nodes, w=(32, 64))
    proto.graph.initializer.append(helper.make_tensor("last", 7, [1], [3]))
    said = "MACs of 1 node is not counted: waves (DFT: its work depends on the algorithm)"
    report = squeezed(proto, "macs=0.7").report
    assert said in report.said
    assert report.to_dict()["model"]["before"]["uncounted"] == [
        {"name": "waves", "op": "DFT", "reason": "its work depends on the algorithm"}
    ]
    found = inspect(proto, input_shapes={"x": (1, 6, 32)})
    assert said in found.notes
    assert found.cost.macs == 6 * 32 * 64
    assert found.to_dict()["model"]["uncounted"][0]["name"] == "waves"


def test_the_table_tells_no_ratio_of_nothing() -> None:
    left = Counts(uncounted=(Uncounted("it", "Own", "it is not known"),))
    out = io.StringIO()
    cost = Cost(0, 10, 10, left)
    Console(file=out, width=100).print(model_table(cost, cost, None, None))
    assert "MACs without 1 node" in out.getvalue()
    assert "0.000" not in out.getvalue()
    assert "not known" in out.getvalue()
