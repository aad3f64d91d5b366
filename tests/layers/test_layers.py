from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, TensorProto, helper

from onnx_lowrank.chains.chain import Chain
from onnx_lowrank.chains.geometry import ConvGeometry, LinearGeometry
from onnx_lowrank.layers import find_layers
from tests.support import (
    AnyArray,
    conv_model,
    geometries,
    graph_of,
    make_model,
    only_layer,
    only_placed_layer,
    quick,
    relative,
    replaced,
    rng,
    run,
    sizes,
)

W = rng(0).normal(size=(3, 4)).astype(np.float32)
ROW = rng(1).normal(size=4).astype(np.float32)


def node(op: str, inputs: list[str], output: str = "y", **attributes: Any) -> NodeProto:
    return helper.make_node(op, inputs, [output], name=op.lower(), **attributes)


def written_back(proto: ModelProto, feed: dict[str, AnyArray]) -> None:
    """The only layer, replaced by a chain of its own stage, computes the same."""
    layer = only_layer(proto)
    stage, outline = layer.stage, layer.outline
    assert outline.weight.shape == stage.weight.shape
    assert (outline.bias is None) == (stage.bias is None)
    assert outline.parameters == stage.parameters
    again = replaced(proto, layer.name, Chain((stage,)))
    assert relative(run(proto, feed)["y"], run(again, feed)["y"]) < 1e-5


@quick(25)
@given(geometries(), st.booleans(), st.integers(0, 99))
def test_conv(geometry: ConvGeometry, biased: bool, seed: int) -> None:
    random, g = rng(seed), geometry.groups
    weight = random.normal(size=(3 * g, 2, *geometry.kernel)).astype(np.float32)
    bias = random.normal(size=3 * g).astype(np.float32) if biased else None
    proto = conv_model(geometry, weight, bias)
    layer = only_placed_layer(proto)
    assert (layer.name, layer.op, layer.input, layer.output) == ("conv", "Conv", "x", "y")
    assert layer.geometry == geometry
    assert layer.shape == weight.shape
    assert layer.value.dtype == np.float32
    assert (layer.groups, layer.sharers, layer.bias_shape) == (g, 1, None)
    assert layer.patch == 2 * int(np.prod(geometry.kernel))
    stage = layer.stage
    assert stage.weight.dtype == np.float64
    np.testing.assert_array_equal(stage.weight, weight)
    np.testing.assert_array_equal(stage.bias, bias)
    x = random.normal(size=(2, 2 * g, *sizes(geometry))).astype(np.float32)
    written_back(proto, {"x": x})


def test_conv_defaults() -> None:
    proto = make_model(
        [node("Conv", ["x", "w", ""])], {"x": [1, 4, 5, 5]}, ["y"],
        {"w": np.ones((4, 1, 3, 3), np.float32)},
    )  # fmt: skip
    proto.graph.node[0].attribute.append(helper.make_attribute("group", 4))
    layer = only_layer(proto)
    assert layer.geometry == ConvGeometry((3, 3), (1, 1), (1, 1), (0, 0, 0, 0), 4)
    assert layer.depthwise
    assert layer.stage.bias is None


GEMM_BIASES = [None, (4,), (1, 4), (1,), (1, 1), ()]


@pytest.mark.parametrize("bias_shape", GEMM_BIASES, ids=str)
@pytest.mark.parametrize(("trans_a", "trans_b"), list(itertools.product((0, 1), repeat=2)))
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, -2.0), (2.0, 0.0)])
def test_gemm(
    bias_shape: tuple[int, ...] | None, trans_a: int, trans_b: int, alpha: float, beta: float
) -> None:
    weights: dict[str, AnyArray] = {"w": W.T.copy() if trans_b else W}
    if bias_shape is not None:
        weights["b"] = rng(2).normal(size=bias_shape).astype(np.float32)
    gemm = node("Gemm", ["x", *weights], transA=trans_a, transB=trans_b, alpha=alpha, beta=beta)
    proto = make_model([gemm], {"x": [None, None]}, ["y"], weights)
    layer = only_layer(proto)
    assert layer.geometry == LinearGeometry(-2 if trans_a else -1, -1)
    assert layer.shape == (4, 3)
    assert relative(alpha * W.T, layer.stage.weight) < 1e-7
    if bias_shape is None:
        assert layer.stage.bias is None
    else:
        assert layer.stage.bias is not None
        wanted = np.broadcast_to(beta * weights["b"].astype(np.float64), (1, 4))[0]
        assert relative(wanted, layer.stage.bias) < 1e-7
    x = rng(3).normal(size=(5, 3)).astype(np.float32)
    written_back(proto, {"x": x.T.copy() if trans_a else x})


RIGHT_BIASES = [(4,), (1, 4), (1, 1, 4), (1,), ()]
LEFT_BIASES = [(4, 1), (1, 4, 1), (1,), (1, 1), ()]


@pytest.mark.parametrize("swapped", [False, True], ids=["product+b", "b+product"])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
@pytest.mark.parametrize(
    ("left", "bias_shape"),
    [(False, None), (True, None)]
    + [(False, s) for s in RIGHT_BIASES]
    + [(True, s) for s in LEFT_BIASES],
    ids=str,
)
def test_matmul(
    left: bool, bias_shape: tuple[int, ...] | None, batch: tuple[int, ...], swapped: bool
) -> None:
    weights: dict[str, AnyArray] = {"w": W.T.copy() if left else W}
    nodes = [node("MatMul", ["w", "x"] if left else ["x", "w"], "p")]
    if bias_shape is None:
        nodes[0].output[0] = "y"
    else:
        weights["b"] = rng(4).normal(size=bias_shape).astype(np.float32)
        nodes.append(node("Add", ["b", "p"] if swapped else ["p", "b"]))
    x = rng(5).normal(size=(*batch, 3, 5) if left else (*batch, 5, 3)).astype(np.float32)
    proto = make_model(nodes, {"x": x.shape}, ["y"], weights)
    layer = only_placed_layer(proto)
    axis = -2 if left else -1
    assert (layer.geometry, layer.shape) == (LinearGeometry(axis, axis), (4, 3))
    assert (layer.input, layer.output, len(layer.nodes)) == ("x", "y", len(nodes))
    assert relative(W.T, layer.stage.weight) == 0
    assert (layer.stage.bias is None) == (bias_shape is None)
    written_back(proto, {"x": x})


@pytest.mark.parametrize(
    ("left", "bias_shape"),
    [(False, (5, 4)), (False, (5, 1)), (False, (2, 1, 4)), (True, (5,)), (True, (4, 5))],
)
def test_an_add_that_is_no_bias_stays(left: bool, bias_shape: tuple[int, ...]) -> None:
    weights = {"w": W.T.copy() if left else W, "b": np.ones(bias_shape, np.float32)}
    nodes = [node("MatMul", ["w", "x"] if left else ["x", "w"], "p"), node("Add", ["p", "b"])]
    x = rng(6).normal(size=(2, 3, 5) if left else (2, 5, 3)).astype(np.float32)
    proto = make_model(nodes, {"x": x.shape}, ["y"], weights)
    layer = only_placed_layer(proto)
    assert (layer.output, layer.bias_shape, len(layer.nodes)) == ("p", None, 1)
    assert layer.stage.bias is None
    written_back(proto, {"x": x})


def test_an_add_of_a_product_used_elsewhere_stays() -> None:
    nodes = [node("MatMul", ["x", "w"], "p"), node("Add", ["p", "b"])]
    weights = {"w": W, "b": ROW}
    for outputs, extra in ((["y", "p"], []), (["y", "z"], [node("Neg", ["p"], "z")])):
        layer = only_placed_layer(make_model([*nodes, *extra], {"x": [5, 3]}, outputs, weights))
        assert layer.output == "p"


def product(**weights: AnyArray) -> dict[str, Any]:
    return {"nodes": [node("MatMul", ["x", "w"])], "weights": weights}


def conv(x: str, w: str, *more: str, **attributes: Any) -> NodeProto:
    return node("Conv", [x, w, *more], **attributes)


K = np.ones((4, 3, 3, 3), np.float32)
IMAGE = {"x": [1, 3, 8, 8]}
LEFT_ALONE: list[tuple[str, str, dict[str, Any]]] = [
    ("MatMul", "no operand is constant",
     {"nodes": [node("MatMul", ["x", "v"])], "inputs": {"x": [2, 3], "v": [3, 4]}}),
    ("MatMul", "both operands are constant",
     {"nodes": [node("MatMul", ["v", "w"])], "weights": {"v": W.T.copy(), "w": W}}),
    ("MatMul", "its weight holds NaN or Inf", product(w=np.full((3, 4), np.nan, np.float32))),
    ("MatMul", "its weight holds NaN or Inf", product(w=np.full((3, 4), np.inf, np.float32))),
    ("MatMul", "weight has 3 axes; a matrix has 2", product(w=np.stack([W, W]))),
    ("MatMul", "its weight may have more axes than its input, by what the model declares",
     product(w=W[None])),
    ("MatMul", "weight has 1 axes; a matrix has 2", product(w=W[:, 0].copy())),
    ("MatMul", "its weight is empty", product(w=W[:, :0].copy())),
    ("MatMul", "its weight has the type int64",
     {**product(w=W.astype(np.int64)), "element": TensorProto.INT64}),
    ("Gemm", "its weight is quantized (DequantizeLinear)",
     {"nodes": [node("DequantizeLinear", ["q", "s"], "w"), node("Gemm", ["x", "w"])],
      "weights": {"q": np.ones((3, 4), np.int8), "s": np.array(0.1, np.float32)}}),
    ("Gemm", "its first operand is constant",
     {"nodes": [node("Gemm", ["w", "x"], transA=1)], "weights": {"w": W}}),
    ("Gemm", "its weight is not constant",
     {"nodes": [node("Gemm", ["x", "v"])], "inputs": {"x": [2, 3], "v": [3, 4]}}),
    ("Gemm", "its bias is not constant",
     {"nodes": [node("Gemm", ["x", "w", "v"])], "inputs": {"x": [2, 3], "v": [4]},
      "weights": {"w": W}}),
    ("Gemm", "its bias of shape (2, 1) differs from row to row",
     {"nodes": [node("Gemm", ["x", "w", "b"])],
      "weights": {"w": W, "b": np.ones((2, 1), np.float32)}}),
    ("Gemm", "its bias of shape (2, 4) differs from row to row",
     {"nodes": [node("Gemm", ["x", "w", "b"])],
      "weights": {"w": W, "b": np.ones((2, 4), np.float32)}}),
    ("Gemm", "its bias of shape (4, 1) differs from row to row",
     {"nodes": [node("Gemm", ["x", "w", "b"])], "inputs": {"x": [4, 3]},
      "weights": {"w": W, "b": np.ones((4, 1), np.float32)}}),
    ("Conv", "its weight is not constant",
     {"nodes": [conv("x", "v")], "inputs": {**IMAGE, "v": [4, 3, 3, 3]}}),
    ("Conv", "its bias is not constant",
     {"nodes": [conv("x", "w", "v")], "inputs": {**IMAGE, "v": [4]}, "weights": {"w": K}}),
    ("ConvTranspose", "its output_shape is larger than its kernel reaches",
     {"nodes": [node("ConvTranspose", ["x", "w"], output_shape=[30, 9])], "inputs": IMAGE,
      "weights": {"w": K.reshape(3, 4, 3, 3)}}),
    ("ConvTranspose", "its stride is larger than 1 along an axis where its kernel is 1 wide",
     {"nodes": [node("ConvTranspose", ["x", "w"], strides=[2, 2])], "inputs": IMAGE,
      "weights": {"w": K.reshape(3, 12, 1, 3)[:, :4]}}),
    ("MatMulInteger", "MatMulInteger is not factorized",
     {"nodes": [node("MatMulInteger", ["x", "w"])], "element": TensorProto.INT8,
      "weights": {"w": np.ones((3, 4), np.int8)}, "outputs": []}),
    ("Einsum", "Einsum is not factorized",
     {"nodes": [node("Einsum", ["x", "w"], equation="ij,jk->ik")], "weights": {"w": W}}),
    ("Attention", "it has no weight",
     {"nodes": [node("Attention", ["x", "w"])], "weights": {"w": W}}),
]  # fmt: skip


@pytest.mark.parametrize(("op", "reason", "model"), LEFT_ALONE)
def test_left_alone(op: str, reason: str, model: dict[str, Any]) -> None:
    options = {"inputs": {"x": [2, 3]}, "outputs": ["y"], "weights": {}, **model}
    layers, others = find_layers(graph_of(make_model(**options)))
    assert layers == []
    assert [(o.name, o.op, o.reason) for o in others] == [(op.lower(), op, reason)]


@pytest.mark.parametrize(
    "op", ["Attention", "MultiHeadAttention", "GroupQueryAttention", "QAttention"]
)
def test_attention_that_onnx_runtime_has_fused_is_left_alone_with_the_remedy(op: str) -> None:
    fused = node(op, ["x", "x", "x"], domain="com.microsoft", num_heads=1)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 4])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 4])]
    graph = helper.make_graph([fused], "g", inputs, outputs)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    layers, (other,) = find_layers(graph_of(proto))
    assert not layers
    assert (other.name, other.op) == (op.lower(), op)
    assert "give the model as it was before" in other.reason
