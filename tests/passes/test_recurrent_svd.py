from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.layers import find_layers
from onnx_lowrank.passes import RecurrentSvd
from tests.fixtures_layers import GATES
from tests.fixtures_models import quick_compress
from tests.support import (
    AnyArray,
    graph_of,
    make_model,
    only_layer,
    quick,
    random_moments,
    relative,
    replaced,
    rng,
    run,
)

HIDDEN, INPUTS, STEPS, BATCH = 5, 7, 4, 3


def recurrent(op: str, direction: str, extras: set[str], seed: int = 0) -> ModelProto:
    """A node with all outputs; ``extras`` name operands and attributes that it may have."""
    random, directions = rng(seed), 2 if direction == "bidirectional" else 1
    rows = GATES[op] * HIDDEN

    def values(*shape: int) -> AnyArray:
        return (0.5 * random.normal(size=shape)).astype(np.float32)

    weights = {"w": values(directions, rows, INPUTS), "r": values(directions, rows, HIDDEN)}
    inputs: dict[str, list[int | str | None]] = {"x": [STEPS, BATCH, INPUTS]}
    operands = ["x", "w", "r", "", "", "", "", ""]
    if "bias" in extras:
        operands[3], weights["b"] = "b", values(directions, 2 * rows)
    if "lengths" in extras:
        operands[4], weights["lengths"] = "lengths", np.array([4, 1, 2], np.int32)
    if "state" in extras:
        operands[5], weights["h"] = "h", values(directions, BATCH, HIDDEN)
    if "peepholes" in extras and op == "LSTM":
        operands[7], weights["p"] = "p", values(directions, 3 * HIDDEN)
    while not operands[-1]:
        operands.pop()
    attributes: dict[str, Any] = {"hidden_size": HIDDEN, "direction": direction}
    if "reset" in extras and op == "GRU":
        attributes["linear_before_reset"] = 1
    if "clip" in extras:
        attributes["clip"] = 0.7
    outputs = ["y", "y_h", "y_c"][: 3 if op == "LSTM" else 2]
    if "last" in extras:
        outputs[0] = ""
    node = helper.make_node(op, operands, outputs, name="rec", **attributes)
    return make_model([node], inputs, [o for o in outputs if o], weights)


def feed(seed: int = 1) -> dict[str, AnyArray]:
    return {"x": rng(seed).normal(size=(STEPS, BATCH, INPUTS)).astype(np.float32)}


EXTRAS = ("bias", "lengths", "state", "peepholes", "reset", "clip", "last")


@quick(60)
@given(
    st.sampled_from(sorted(GATES)),
    st.sampled_from(["forward", "reverse", "bidirectional"]),
    st.sets(st.sampled_from(EXTRAS)),
    st.integers(0, 99),
)
def test_full_rank(op: str, direction: str, extras: set[str], seed: int) -> None:
    proto = recurrent(op, direction, extras, seed)
    layer = only_layer(proto)
    wanted = run(proto, feed(seed))
    for moments in (Moments(), random_moments(layer, seed)):
        (form,) = RecurrentSvd().propose(layer, moments)
        again = replaced(proto, "rec", form.cut(form.max_rank))
        assert [n.op_type for n in again.graph.node] == ["MatMul", op]
        got = run(again, feed(seed))
        assert list(got) == list(wanted)
        for name, value in wanted.items():
            assert relative(value, got[name]) < 1e-4


@pytest.mark.parametrize("biased", [False, True])
def test_planted_rank_and_mean(biased: bool) -> None:
    """Inputs on a plane of three dimensions beside the origin: three features are enough."""
    proto = recurrent("LSTM", "forward", {"bias"} if biased else set())
    random = rng(5)
    basis, mean = random.normal(size=(3, INPUTS)), random.normal(size=INPUTS)
    x = (random.normal(size=(STEPS, BATCH, 3)) @ basis + mean).astype(np.float32)
    layer = only_layer(proto)
    covariance = basis.T @ basis + 1e-12 * np.eye(INPUTS)
    moments = Moments(100, mean[None], covariance[None])
    (form,) = RecurrentSvd().propose(layer, moments)
    assert form.error(3) < 1e-9
    again = replaced(proto, "rec", form.cut(3))
    assert relative(run(proto, {"x": x})["y"], run(again, {"x": x})["y"]) < 1e-4
    assert relative(run(proto, feed())["y"], run(again, feed())["y"]) > 1e-2


def test_the_bias_of_the_recurrent_product_stays() -> None:
    proto = recurrent("GRU", "bidirectional", {"bias"})
    layer = only_layer(proto)
    (form,) = RecurrentSvd().propose(layer, random_moments(layer, 3))
    tensors = {
        t.name: numpy_helper.to_array(t)
        for t in replaced(proto, "rec", form.cut(2)).graph.initializer
    }
    (bias,) = [v for k, v in tensors.items() if k.endswith("bias")]
    old = numpy_helper.to_array(next(t for t in proto.graph.initializer if t.name == "b"))
    half = GATES["GRU"] * HIDDEN
    np.testing.assert_array_equal(bias[:, half:], old[:, half:])
    assert relative(old[:, :half], bias[:, :half]) > 1e-2


def test_batch_first() -> None:
    proto = recurrent("LSTM", "forward", {"bias"})
    node = proto.graph.node[0]
    node.attribute.append(helper.make_attribute("layout", 1))
    layer = only_layer(proto)
    (form,) = RecurrentSvd().propose(layer, random_moments(layer, 3))
    again = replaced(proto, "rec", form.cut(2))
    assert next(a.i for a in again.graph.node[1].attribute if a.name == "layout") == 1


@pytest.mark.parametrize(
    ("weight", "reason"), [("ndim", "its weight is not constant"), ("nan", "NaN")]
)
def test_left_alone(weight: str, reason: str) -> None:
    proto = recurrent("RNN", "forward", set())
    if weight == "nan":
        w = next(t for t in proto.graph.initializer if t.name == "w")
        values = numpy_helper.to_array(w).copy()
        values[0, 0, 0] = np.nan
        w.CopyFrom(numpy_helper.from_array(values, "w"))
    else:
        kept = [t for t in proto.graph.initializer if t.name != "w"]
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(kept)
        proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [1, 5, 7]))
    (left,) = find_layers(graph_of(proto))[1]
    assert reason in left.reason


def test_whole_run_with_refit() -> None:
    """Data of few dimensions: half the MACs of the input product cost nearly nothing."""
    random = rng(3)
    wide, hidden = 64, 8
    weights = {
        "w": (0.3 * random.normal(size=(1, 4 * hidden, wide))).astype(np.float32),
        "r": (0.3 * random.normal(size=(1, 4 * hidden, hidden))).astype(np.float32),
        "b": (0.3 * random.normal(size=(1, 8 * hidden))).astype(np.float32),
        "w2": random.normal(size=(hidden, 4)).astype(np.float32),
    }
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r", "b"], ["", "h"], name="rec", hidden_size=hidden),
        helper.make_node("Squeeze", ["h", "axes"], ["s"]),
        helper.make_node("MatMul", ["s", "w2"], ["y"], name="head"),
    ]
    weights["axes"] = np.array([0], np.int64)
    proto = make_model(nodes, {"x": [6, "N", wide]}, ["y"], weights)
    basis = random.normal(size=(8, wide)) / 3
    x = (random.normal(size=(6, 40, 8)) @ basis).astype(np.float32)
    result = quick_compress(
        proto, calib={"x": x}, target="macs=0.6", passes=[RecurrentSvd()], force=True
    )
    decision = next(d for d in result.plan.decisions if d.layer == "rec")
    assert decision.method == "recurrent_svd"
    assert [r.layer for r in result.report.refits] == ["rec"]
    assert relative(run(proto, {"x": x})["y"], run(result.model, {"x": x})["y"]) < 0.05
