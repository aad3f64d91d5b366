"""Layers that use one weight, and get one chain where a budget wants it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper

from onnx_lowrank import apply, plan
from onnx_lowrank.analysis.accumulator import Accumulator
from onnx_lowrank.errors import BudgetError, PlanError
from onnx_lowrank.layers import find_layers
from onnx_lowrank.planning.sharing import pooled, ties
from tests import fixtures_models as fm
from tests.scripted_timer import taking
from tests.support import AnyArray, graph_of, make_model, placed_layers_of, relative, rng, run


def low(*shape: int, seed: int = 0) -> AnyArray:
    """A weight of rank 4, nearly."""
    random, width = rng(seed), int(np.prod(shape[1:]))
    matrix = random.normal(size=(shape[0], 4)) @ random.normal(size=(4, width)) / 2
    matrix += 0.02 * random.normal(size=matrix.shape)
    return (matrix / width**0.5).reshape(shape).astype(np.float32)


def pyramid() -> ModelProto:
    """One 3x3 convolution on three levels of a pyramid, as in the head of a detector."""
    nodes = [
        helper.make_node("AveragePool", ["x"], ["x2"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("AveragePool", ["x2"], ["x4"], kernel_shape=[2, 2], strides=[2, 2]),
    ]
    for level in ("x", "x2", "x4"):
        nodes.append(
            helper.make_node("Conv", [level, "w", "b"], [f"y_{level}"], name=f"head_{level}",
                             pads=[1, 1, 1, 1])
        )  # fmt: skip
    weights = {"w": low(24, 16, 3, 3), "b": rng(5).normal(size=24).astype(np.float32)}
    return make_model(nodes, {"x": ["N", 16, 8, 8]}, ["y_x", "y_x2", "y_x4"], weights)


def pair(op: str) -> ModelProto:
    """One matrix used twice, one use after the other."""
    nodes = []
    for source, target in (("x", "h"), ("a", "y")):
        if op == "Gemm":
            nodes.append(helper.make_node("Gemm", [source, "w", "b"], [target], name=target))
        else:
            nodes.append(helper.make_node("MatMul", [source, "w"], [f"{target}0"], name=target))
            nodes.append(helper.make_node("Add", [f"{target}0", "b"], [target]))
        if target == "h":
            nodes.append(helper.make_node("Tanh", ["h"], ["a"]))
    weights = {"w": low(32, 32), "b": np.full(32, 0.1, np.float32)}
    return make_model(nodes, {"x": ["N", 32]}, ["y"], weights)


NETS: dict[str, tuple[ModelProto, AnyArray]] = {
    "pyramid": (pyramid(), rng(1).normal(size=(48, 16, 8, 8)).astype(np.float32)),
    "Gemm": (pair("Gemm"), rng(1).normal(size=(200, 32)).astype(np.float32)),
    "MatMul": (pair("MatMul"), rng(1).normal(size=(200, 32)).astype(np.float32)),
}


def compressed(name: str, **options: Any) -> Any:
    proto, x = NETS[name]
    return fm.quick_compress(proto, calib={"x": x}, force=True, **options)


@pytest.mark.parametrize(
    ("name", "target"),
    [(name, "params=0.35") for name in NETS] + [("pyramid", "size=0.35")],
)
def test_one_chain_meets_what_one_for_each_misses(name: str, target: str) -> None:
    proto, x = NETS[name]
    result = compressed(name, target=target)
    report = result.report
    ratios = {
        "params": report.after.parameters / report.before.parameters,
        "size": report.after.bytes / report.before.bytes,
    }
    assert ratios[target.partition("=")[0]] <= 0.35
    decisions = result.plan.decisions
    assert {d.decision for d in decisions} == {"share"}
    assert all("which use the same weight" in d.reason for d in decisions)
    readers: dict[str, set[str]] = {}
    for node in result.model.graph.node:
        for operand in node.input:
            readers.setdefault(operand, set()).add(node.name)
    for tensor in result.model.graph.initializer:
        assert len(readers[tensor.name]) == len(decisions), tensor.name
    wanted, got = run(proto, {"x": x}), run(result.model, {"x": x})
    for output in wanted:
        assert relative(wanted[output], got[output]) < 0.1


@pytest.mark.full
def test_a_budget_that_separate_chains_meet_is_met_by_them() -> None:
    assert "share" not in {
        d.decision for d in compressed("pyramid", target="macs=0.5").plan.decisions
    }
    with pytest.raises(BudgetError, match="cannot go below"):
        compressed("pyramid", target="params=0.01")


#: options of every run
RUN: dict[str, Any] = {"threads": 1, "timer": taking(0.5)}


def test_a_plan_that_shares_is_applied_as_it_was_made() -> None:
    proto, x = NETS["pyramid"]
    made = plan(proto, calib={"x": x}, target="params=0.35", effort="quick", threads=1)
    one = apply(proto, type(made).from_json(made.to_json()), calib={"x": x}, force=True, **RUN)
    two = compressed("pyramid", target="params=0.35")
    assert one.model.SerializeToString() == two.model.SerializeToString()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"rank": 7}, "have different methods, variants or ranks"),
        (None, "no other layer uses its weight in the same way"),
    ],
)
def test_a_plan_that_cannot_share_is_refused(edit: dict[str, Any] | None, message: str) -> None:
    proto, x = NETS["Gemm"]
    if edit is None:
        node = helper.make_node("MatMul", ["x", "w"], ["y"], name="y")
        proto = make_model([node], {"x": ["N", 32]}, ["y"], {"w": low(32, 32)})
    target = "params=0.35"
    made = plan(proto, calib={"x": x}, target=target, effort="quick", threads=1)
    first = replace(made.decisions[0], **(edit or {"decision": "share"}))
    edited = replace(made, decisions=(first, *made.decisions[1:]))
    with pytest.raises(PlanError, match=message):
        apply(proto, edited, calib={"x": x}, force=True, **RUN)


def test_what_is_a_tie() -> None:
    proto = pyramid()
    layers = placed_layers_of(proto)
    (tie,) = ties(graph_of(proto), layers)
    assert [layer.name for layer in tie] == ["head_x", "head_x2", "head_x4"]
    assert not ties(graph_of(proto), layers[:2])  # the third one would keep the weight alive
    proto.graph.node[-1].attribute.append(helper.make_attribute("strides", [2, 2]))
    graph = graph_of(proto)
    assert not ties(graph, find_layers(graph)[0])


def test_pooled_moments_are_those_of_all_rows() -> None:
    rows = [rng(i).normal(i, 1 + i, size=(1, 50 * (i + 1), 6)).astype(np.float32) for i in range(3)]
    parts = []
    for part in (*rows, np.concatenate(rows, axis=1)):
        accumulator = Accumulator(1, 6)
        accumulator.update(part)
        parts.append(accumulator.moments())
    whole = parts.pop()
    made = pooled(parts)
    assert made.count == whole.count
    assert made.mean is not None
    assert made.covariance is not None
    np.testing.assert_allclose(made.mean, whole.mean, rtol=1e-5)
