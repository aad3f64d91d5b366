"""Products by a matrix that has axes of extent 1 in front."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper

from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.chains.chain import Chain
from onnx_lowrank.layers import find_layers
from onnx_lowrank.passes import Svd
from tests import fixtures_models as fm
from tests.support import (
    assert_identity_at_full_rank,
    graph_of,
    make_model,
    only_layer,
    relative,
    replaced,
    rng,
    run,
)

W = rng(0).normal(size=(16, 12)).astype(np.float32)


def product(axes: int, left: bool, shape: list[Any], bias: bool) -> ModelProto:
    weight = W.reshape((1,) * axes + W.shape)
    operands = ["w", "x"] if left else ["x", "w"]
    nodes = [helper.make_node("MatMul", operands, ["p" if bias else "y"], name="product")]
    weights = {"w": weight}
    if bias:
        nodes.append(helper.make_node("Add", ["p", "b"], ["y"], name="sum"))
        size = (16, 1) if left else (12,)
        weights["b"] = rng(1).normal(size=size).astype(np.float32)
    return make_model(nodes, {"x": shape}, ["y"], weights)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("axes", "left", "shape"),
    [
        (1, False, ["N", "T", 16]),
        (1, False, ["N", 3, 5, 16]),
        (2, False, ["N", 3, 5, 16]),
        (1, True, ["N", 12, 7]),
        (1, True, ["N", 3, 12, 5]),
    ],
)
def test_it_is_a_plain_product(axes: int, left: bool, shape: list[Any], bias: bool) -> None:
    proto = product(axes, left, shape, bias)
    x = rng(2).normal(size=[d if isinstance(d, int) else 2 for d in shape]).astype(np.float32)
    layer = only_layer(proto)
    assert layer.shape == ((16, 12) if left else (12, 16))
    assert_identity_at_full_rank(Svd(), proto, {"x": x}, 0)
    chain = Svd().propose(layer, Moments())[0].cut(3)
    made = replaced(proto, "product", chain)
    assert run(made, {"x": x})["y"].shape == run(proto, {"x": x})["y"].shape


@pytest.mark.parametrize(
    ("weight", "shape", "reason"),
    [
        ((1, 16, 12), ["N", 16], "more axes than its input"),
        ((1, 1, 16, 12), ["N", "T", 16], "more axes than its input"),
        ((3, 16, 12), ["N", 3, 5, 16], "3 axes; a matrix has 2"),
    ],
)
def test_what_adds_an_axis_or_differs_by_sample_is_left_alone(
    weight: tuple[int, ...], shape: list[Any], reason: str
) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    proto = make_model([node], {"x": shape}, ["y"], {"w": np.ones(weight, np.float32)})
    layers, (other,) = find_layers(graph_of(proto))
    assert not layers
    assert reason in other.reason


def net() -> ModelProto:
    """Two products, a wide hidden layer between them."""
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["p1"], name="one"),
        helper.make_node("Add", ["p1", "b1"], ["h"], name="one_add"),
        helper.make_node("Relu", ["h"], ["a"], name="relu"),
        helper.make_node("MatMul", ["a", "w2"], ["p2"], name="two"),
        helper.make_node("Add", ["p2", "b2"], ["y"], name="two_add"),
    ]
    random = rng(3)
    w1 = random.normal(size=(1, 16, 8)) @ random.normal(size=(1, 8, 48)) / 12
    w2 = random.normal(size=(1, 48, 8)) / 7
    weights = {"w1": w1, "w2": w2, "b1": np.zeros(48), "b2": np.ones(8)}
    floats = {k: v.astype(np.float32) for k, v in weights.items()}
    return make_model(nodes, {"x": ["N", 5, 16]}, ["y"], floats)


X = rng(4).normal(size=(64, 5, 16)).astype(np.float32)


@pytest.mark.parametrize("passes", ["svd", "prune_channels"])
def test_layers_with_unit_axes_are_compressed(passes: str) -> None:
    proto = net()
    result = fm.quick_compress(proto, calib={"x": X}, target="macs=0.75", passes=passes, force=True)
    assert result.report.macs_ratio <= 0.75
    assert relative(run(proto, {"x": X})["y"], run(result.model, {"x": X})["y"]) < 0.3
    if passes == "prune_channels":
        weights = {t.name: tuple(t.dims) for t in result.model.graph.initializer}
        kept = weights["w1"][2]
        assert kept < 48
        assert (weights["w1"], weights["w2"]) == ((1, 16, kept), (1, kept, 8))


def test_a_kept_layer_keeps_its_unit_axes() -> None:
    proto = net()
    layer = next(x for x in find_layers(graph_of(proto))[0] if x.name == "two")
    made = replaced(proto, "two", Chain((layer.stage,)))
    assert made.graph == proto.graph
