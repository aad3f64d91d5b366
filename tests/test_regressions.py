"""Bugs that were found once, each kept from coming back."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_lowrank.analysis.accumulator import Accumulator
from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.chains.chain import Chain
from onnx_lowrank.chains.geometry import ConvGeometry
from onnx_lowrank.layers import destination, find_layers
from onnx_lowrank.passes import FoldBatchnorm, Svd
from tests.support import (
    conv_model,
    graph_of,
    make_model,
    only_layer,
    random_moments,
    relative,
    replaced,
    rng,
    run,
)

W = rng(0).normal(size=(3, 3)).astype(np.float32)


def branch(output: str, nodes: list[Any], **weights: Any) -> onnx.GraphProto:
    value = helper.make_tensor_value_info(output, TensorProto.FLOAT, [None, 3])
    tensors = [numpy_helper.from_array(v, k) for k, v in weights.items()]
    return helper.make_graph(nodes, output, [], [value], tensors)


def test_ir3_lists_new_initializers_as_inputs() -> None:
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="g")
    weights = {"w": W, "b": np.ones(3, np.float32)}
    inputs = {"x": [2, 3], "w": [3, 3], "b": [3]}
    proto = make_model([node], inputs, ["y"], weights, opset=9, ir=3)
    onnx.checker.check_model(proto)
    replaced(proto, "g", Chain((only_layer(proto).stage,)))


def test_byte_strings_in_attributes_are_no_obstacle() -> None:
    node = helper.make_node("Blob", ["x"], ["y"], domain="com.example", blob=b"\xff\xfe")
    proto = make_model([node], {"x": [2, 3]}, ["y"], {}, domains=["com.example"])
    assert graph_of(proto).to_model().proto == proto


def test_qdq_matmul_says_so() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    weights: dict[str, Any] = {"q": np.ones((3, 3), np.int8), "s": np.array(0.1, np.float32)}
    _, (other,) = find_layers(graph_of(make_model(nodes, {"x": [2, 3]}, ["y"], weights)))
    assert other.reason == "its weight is quantized (DequantizeLinear)"


def test_a_sum_inside_if_is_no_destination() -> None:
    then = branch("t", [helper.make_node("Add", ["p", "x"], ["t"])])
    other = branch("e", [helper.make_node("Neg", ["x"], ["e"])])
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other),
    ]
    weights: dict[str, Any] = {"w": W, "c": np.array(True)}
    graph = graph_of(make_model(nodes, {"x": [2, 3]}, ["y"], weights))
    (layer,) = find_layers(graph)[0]
    assert destination(graph, layer).total == "p"


def test_a_matrix_times_a_vector() -> None:
    """``W x`` with x of rank 1: its rows cannot be read, and a bias (N, 1) would be wrong."""
    node = helper.make_node("MatMul", ["w", "x"], ["y"], name="m")
    proto = make_model([node], {"x": [3]}, ["y"], {"w": W})
    x = rng(1).normal(size=3).astype(np.float32)
    for layer in find_layers(graph_of(proto))[0]:
        assert layer.geometry.patches(x).shape == (1, 1, 3)
        (form,) = Svd().propose(layer.value, random_moments(layer.value, 0))
        again = replaced(proto, "m", form.cut(3))
        assert relative(run(proto, {"x": x})["y"], run(again, {"x": x})["y"]) < 1e-4


def test_one_dead_group_does_not_cap_the_rank_of_the_others() -> None:
    weight = rng(2).normal(size=(8, 4, 1)).astype(np.float32)
    weight[:4] = 0
    layer = only_layer(conv_model(ConvGeometry.pointwise(1, 2), weight, None))
    (form,) = Svd().propose(layer, Moments())
    assert relative(weight, form.cut(form.max_rank).compose()) < 1e-6


def test_one_group_of_constant_input_keeps_its_weights() -> None:
    weight = rng(3).normal(size=(8, 4, 1)).astype(np.float32)
    layer = only_layer(conv_model(ConvGeometry.pointwise(1, 2), weight, None))
    sums = Accumulator(2, 4)
    rows = rng(4).normal(size=(2, 500, 4))
    rows[0] = 1.0
    sums.update(rows)
    (form,) = Svd().propose(layer, sums.moments())
    assert relative(weight, form.cut(form.max_rank).compose()) < 1e-4


def test_leading_is_a_new_accumulator() -> None:
    sums = Accumulator(1, 3)
    sums.update(rng(5).normal(size=(1, 10, 3)))
    before = sums.mean.copy(), sums.covariance
    sums.leading(2).update(rng(6).normal(size=(1, 10, 2)))
    np.testing.assert_array_equal(sums.mean, before[0])
    np.testing.assert_array_equal(sums.covariance, before[1])


STATS = ("gamma", "beta", "mean", "var")


def norm_model(opset: int, shape: tuple[int, ...], **options: Any) -> onnx.ModelProto:
    weights = {k: np.ones(shape, np.float32) for k in STATS}
    weights["w"] = np.ones((4, 3, 1, 1), np.float32)
    domain = options.pop("domain", "")
    outputs = options.pop("made", ["y"])
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"]),
        helper.make_node("BatchNormalization", ["h", *STATS], outputs, domain=domain, **options),
    ]
    domains = [domain] if domain else []
    proto = make_model(nodes, {"x": [1, 3, 2, 2]}, ["y"], weights, opset=9, ir=4, domains=domains)
    proto.opset_import[0].version = opset
    return proto


@pytest.mark.parametrize("opset", [9, 13])
def test_batchnorm_with_all_outputs_is_in_training_mode(opset: int) -> None:
    """Before opset 14 the number of outputs says so, whether they are read or not."""
    proto = norm_model(opset, (4,), made=["y", "m", "v", "sm", "sv"])
    x = rng(9).normal(size=(1, 3, 2, 2)).astype(np.float32)
    graph = graph_of(proto)
    FoldBatchnorm().run(graph)
    got = run(graph.to_model().proto, {"x": x})["y"]
    assert relative(run(proto, {"x": x})["y"], got) < 1e-5


def test_batchnorm_without_spatial_is_left_alone() -> None:
    graph = graph_of(norm_model(8, (4, 2, 2), spatial=0))
    assert FoldBatchnorm().run(graph) == []


def test_batchnorm_of_another_domain_is_left_alone() -> None:
    graph = graph_of(norm_model(9, (4,), domain="com.example"))
    assert FoldBatchnorm().run(graph) == []


def test_a_fold_that_overflows_half_precision_is_refused() -> None:
    weights: dict[str, Any] = {k: np.ones(4, np.float16) for k in STATS}
    weights["var"] = np.zeros(4, np.float16)
    weights["w"] = np.full((3, 4), 300, np.float16)
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"]),
        helper.make_node("BatchNormalization", ["h", *STATS], ["y"]),
    ]
    proto = make_model(nodes, {"x": [2, 3]}, ["y"], weights, element=TensorProto.FLOAT16)
    graph = graph_of(proto)
    assert FoldBatchnorm().run(graph) == []


def test_names_of_a_branch_without_nodes_are_taken() -> None:
    then = branch("t", [], t=np.ones((2, 3), np.float32))
    other = branch("e", [helper.make_node("Neg", ["x"], ["e"])])
    node = helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)
    graph = graph_of(make_model([node], {"x": [2, 3]}, ["y"], {"c": np.array(True)}))
    assert graph.fresh("t") == "t_1"


def test_layer_names_are_unique() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="b"),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
    ]
    layers, _ = find_layers(graph_of(make_model(nodes, {"x": [2, 3]}, ["b"], {"w": W})))
    assert len({x.name for x in layers}) == 2


def test_sparse_initializer_is_a_reason() -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="m")
    proto = make_model([node], {"x": [2, 3]}, ["y"], {"w": W})
    del proto.graph.initializer[:]
    proto.graph.sparse_initializer.append(
        helper.make_sparse_tensor(
            numpy_helper.from_array(np.ones(2, np.float32), "w"),
            numpy_helper.from_array(np.array([0, 4])),
            [3, 3],
        )
    )
    x = np.ones((2, 3), np.float32)
    run(proto, {"x": x})
    layers, others = find_layers(graph_of(proto))
    assert len(layers) + len(others) == 1
    assert graph_of(proto).to_model().proto == proto


def test_unused_initializers_of_an_unedited_graph_stay() -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="m")
    proto = make_model([node], {"x": [2, 3]}, ["y"], {"w": W, "dead": W})
    assert graph_of(proto).to_model().proto == proto


def test_layers_inside_an_if_inside_a_function_are_named() -> None:
    then = branch("t", [helper.make_node("MatMul", ["a", "b"], ["t"])])
    other = branch("e", [helper.make_node("Neg", ["a"], ["e"])])
    body = helper.make_node("If", ["k"], ["c"], then_branch=then, else_branch=other)
    opsets = [helper.make_opsetid("", 17)]
    call = helper.make_node("F", ["x", "w", "k"], ["y"], domain="local")
    weights: dict[str, Any] = {"w": W, "k": np.array(True)}
    proto = make_model([call], {"x": [2, 3]}, ["y"], weights, domains=["local"])
    proto.functions.append(
        helper.make_function("local", "F", ["a", "b", "k"], ["c"], [body], opsets)
    )
    _, others = find_layers(graph_of(proto))
    assert [o.op for o in others] == ["MatMul"]


def test_a_weight_shared_half_way_through_its_views() -> None:
    nodes = [
        helper.make_node("Identity", ["r"], ["i"]),
        helper.make_node("Identity", ["i"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("MatMul", ["p", "i"], ["y"]),
    ]
    layers, _ = find_layers(graph_of(make_model(nodes, {"x": [2, 3]}, ["y"], {"r": W})))
    assert [x.sharers for x in layers] == [2, 2]
