from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.chains.chain import Chain
from onnx_lowrank.chains.geometry import ConvGeometry
from onnx_lowrank.layers import Layer, find_layers
from onnx_lowrank.layers.writer import apply_chain, update_chain
from onnx_lowrank.passes import ChannelSvd, SpatialSvd, Svd
from onnx_lowrank.passkit.base import Factorization
from tests.support import (
    AnyArray,
    checked,
    conv_example,
    graph_of,
    make_model,
    only_layer,
    random_moments,
    relative,
    replaced,
    rng,
    run,
)

SQUARE = ConvGeometry((3, 3), (2, 1), (1, 1), (1, 0, 1, 1), 2)
W = rng(0).normal(size=(6, 5)).astype(np.float32)
X = rng(1).normal(size=(7, 6)).astype(np.float32)


def linear(op: str, *, left: bool = False, biased: bool = True, opset: int = 17) -> ModelProto:
    weights: dict[str, AnyArray] = {"w": W.T.copy() if left else W}
    bias = rng(2).normal(size=5).astype(np.float32)
    if op == "Gemm":
        if biased:
            weights["b"] = bias
        nodes = [helper.make_node("Gemm", ["x", *weights], ["y"], name="layer")]
    else:
        made = "p" if biased else "y"
        nodes = [helper.make_node(op, ["w", "x"] if left else ["x", "w"], [made], name="layer")]
        if biased:
            weights["b"] = bias.reshape(5, 1) if left else bias
            nodes.append(helper.make_node("Add", ["p", "b"], ["y"]))
    return make_model(nodes, {"x": [None, None]}, ["y"], weights, opset=opset)


def cut(layer: Layer, factorization: Factorization, rank: int | None = None) -> Chain:
    form = factorization.propose(layer, random_moments(layer, 3))[0]
    return form.cut(form.max_rank if rank is None else rank)


def reference(proto: ModelProto, feed: dict[str, AnyArray]) -> AnyArray:
    results = ReferenceEvaluator(proto).run(None, feed)
    assert isinstance(results, list)
    return np.asarray(results[0])


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 1e-2), ("float64", 1e-12)])
@pytest.mark.parametrize("factorization", [SpatialSvd(), ChannelSvd()], ids=["spatial", "channel"])
def test_types_of_convolutions(factorization: Factorization, dtype: str, tolerance: float) -> None:
    proto, feed = conv_example(SQUARE, 1, dtype)
    layer = only_layer(proto)
    assert layer.dtype == dtype
    again = replaced(proto, "conv", cut(layer, factorization))
    assert {numpy_helper.to_array(t).dtype.name for t in again.graph.initializer} == {dtype}
    # ONNX Runtime convolves neither on the CPU
    wanted, got = (reference(p, feed) for p in (proto, again))
    assert got.dtype == dtype
    assert relative(wanted, got) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 1e-2), ("float64", 1e-12)])
@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
def test_types_of_products(op: str, dtype: str, tolerance: float) -> None:
    weights = {"w": W.astype(dtype), "b": np.ones(5, dtype)}
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="layer")]
    if op == "MatMul":
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["p"], name="layer"),
            helper.make_node("Add", ["p", "b"], ["y"]),
        ]
    proto = make_model(nodes, {"x": [None, 6]}, ["y"], weights, element=element)
    again = replaced(proto, "layer", cut(only_layer(proto), Svd()))
    feed = {"x": X.astype(dtype)}
    got = run(again, feed)["y"]
    assert got.dtype == dtype
    assert relative(run(proto, feed)["y"], got) < tolerance


def test_nodes_are_named_after_the_layer_and_the_output_stays() -> None:
    proto, _ = conv_example(SQUARE, 1)
    again = replaced(proto, "conv", cut(only_layer(proto), SpatialSvd()))
    assert [(n.name, list(n.input), list(n.output)) for n in again.graph.node] == [
        ("conv_vertical", ["x", "conv_vertical_weight"], ["y_vertical"]),
        (
            "conv_horizontal",
            ["y_vertical", "conv_horizontal_weight", "conv_horizontal_bias"],
            ["y"],
        ),
    ]
    assert list(again.graph.output) == list(proto.graph.output)
    assert len(again.graph.initializer) == 3


def test_a_single_stage_keeps_the_name_of_its_node() -> None:
    for op in ("Gemm", "MatMul"):
        proto = linear(op)
        again = replaced(proto, "layer", Chain((only_layer(proto).stage,)))
        assert again.graph.node[0].name == "layer"
        assert len(again.graph.node) == len(proto.graph.node)
        assert relative(run(proto, {"x": X})["y"], run(again, {"x": X})["y"]) < 1e-6


def test_gemm_before_opset_11_has_three_operands() -> None:
    for opset, operands in ((9, 3), (11, 2)):
        proto = linear("Gemm", opset=opset)
        again = replaced(proto, "layer", cut(only_layer(proto), Svd()))
        assert len(again.graph.node[0].input) == operands
        assert relative(run(proto, {"x": X})["y"], run(again, {"x": X})["y"]) < 1e-5


@pytest.mark.parametrize("op", ["Conv", "Gemm", "MatMul", "left MatMul"])
def test_update_changes_the_numbers_in_place(op: str) -> None:
    if op == "Conv":
        proto, feed = conv_example(SQUARE, 1)
        factorization: Factorization = SpatialSvd()
    else:
        proto = linear(op.rsplit(maxsplit=1)[-1], left="left" in op)
        feed = {"x": X.T.copy() if "left" in op else X}
        factorization = Svd()
    graph = graph_of(proto)
    (layer,) = find_layers(graph)[0]
    chain = cut(layer.value, factorization)
    written = apply_chain(graph, layer, chain)
    first, last = chain.stages
    assert last.bias is not None
    doubled = Chain((first.with_matrices(2 * first.matrices, None),
                     last.with_matrices(last.matrices, 2 * last.bias)))  # fmt: skip
    update_chain(graph, written, doubled)
    assert written.chain.stages[0].weight.dtype == np.float32
    edited = checked(graph)
    assert relative(2 * run(proto, feed)["y"], run(edited, feed)["y"]) < 1e-4
    # and back again, so that the first numbers were not lost
    update_chain(graph, written, chain)
    assert relative(run(proto, feed)["y"], run(checked(graph), feed)["y"]) < 1e-4


@pytest.mark.parametrize("other", ["product", "capture", "output"])
def test_a_weight_used_elsewhere_stays(other: str) -> None:
    one = helper.make_node("MatMul", ["x", "w"], ["a"], name="layer")
    outputs = ["a", "y"]
    second = helper.make_node("MatMul", ["x", "w"], ["y"], name="second")
    if other == "capture":
        value = helper.make_tensor_value_info("t", TensorProto.FLOAT, None)
        product = helper.make_node("MatMul", ["x", "w"], ["t"])
        body = helper.make_graph([product], "body", [], [value])
        second = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    elif other == "output":
        second = helper.make_node("Neg", ["x"], ["y"])
        outputs.append("w")
    weights: dict[str, AnyArray] = {"w": W, "c": np.array(True)}
    if other != "capture":
        del weights["c"]
    proto = make_model([one, second], {"x": [None, 6]}, outputs, weights)
    graph = graph_of(proto)
    layer = find_layers(graph)[0][0]
    apply_chain(graph, layer, cut(layer.value, Svd(), rank=1))
    edited = graph.to_model().proto
    assert edited.graph.node[-1] == second
    assert {t.name for t in edited.graph.initializer} > set(weights)
    wanted, got = run(proto, {"x": X}), run(edited, {"x": X})
    np.testing.assert_array_equal(got["y"], wanted["y"])
    assert relative(wanted["a"], got["a"]) > 0.05  # rank 1 of 5


def test_several_layers_of_one_graph() -> None:
    random, names = rng(5), ["a", "b", "c"]
    weights: dict[str, AnyArray] = {
        f"w{n}": random.normal(size=(6, 6)).astype(np.float32) for n in names
    }
    nodes = []
    for before, name in zip(["x", *names], names, strict=False):
        nodes += [
            helper.make_node("MatMul", [before, f"w{name}"], [f"{name}_p"], name=f"layer_{name}"),
            helper.make_node("Relu", [f"{name}_p"], [name]),
        ]
    proto = make_model(nodes, {"x": [None, 6]}, ["c"], weights)
    graph = graph_of(proto)
    for layer in find_layers(graph)[0]:
        (form,) = Svd().propose(layer.value, Moments())
        apply_chain(graph, layer, form.cut(form.max_rank))
    edited = checked(graph)
    made = [n.name for n in edited.graph.node if n.op_type == "MatMul"]
    assert len(made) == len(set(made)) == 6
    assert not {t.name for t in edited.graph.initializer} & set(weights)
    assert relative(run(proto, {"x": X})["c"], run(edited, {"x": X})["c"]) < 1e-4


def test_bfloat16_stays() -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="m")
    proto = make_model([node], {"x": [2, 3]}, ["y"], {}, element=TensorProto.BFLOAT16)
    tensor = helper.make_tensor("w", TensorProto.BFLOAT16, [3, 3], W[:3, :3].ravel().tolist())
    proto.graph.initializer.append(tensor)
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.BFLOAT16, [2, 3]))
    layer = only_layer(proto)
    (form,) = Svd().propose(layer, Moments())
    again = replaced(proto, "m", form.cut(2))
    assert {t.data_type for t in again.graph.initializer} == {TensorProto.BFLOAT16}
    checked(graph_of(again))
