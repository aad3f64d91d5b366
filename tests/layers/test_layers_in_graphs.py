from __future__ import annotations

import numpy as np
import pytest
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from onnx_lowrank.chains.chain import Chain
from onnx_lowrank.layers import Destination, destination, find_layers
from onnx_lowrank.layers.writer import apply_chain
from tests.support import (
    AnyArray,
    checked,
    graph_of,
    make_model,
    only_layer,
    only_placed_layer,
    placed_layers_of,
    relative,
    rng,
    run,
)

W = rng(0).normal(size=(3, 3)).astype(np.float32)
X = rng(1).normal(size=(5, 3)).astype(np.float32)


def product(source: str, weight: str, output: str, name: str = "") -> NodeProto:
    return helper.make_node("MatMul", [source, weight], [output], name=name)


def model(*nodes: NodeProto, outputs: tuple[str, ...] = ("y",), **more: AnyArray) -> ModelProto:
    weights: dict[str, AnyArray] = {"w": W, **more}
    return make_model(nodes, {"x": [None, 3]}, outputs, weights)


def test_layers_come_in_order_with_unique_names() -> None:
    nodes = [product("x", "w", "a", "same"), product("a", "w", "b"), product("b", "w", "y", "same")]
    layers = placed_layers_of(model(*nodes))
    assert [x.name for x in layers] == ["same", "b", "y"]
    assert [x.input for x in layers] == ["x", "a", "b"]
    assert [x.sharers for x in layers] == [3, 3, 3]


def test_views_share_their_root() -> None:
    view = helper.make_node("Transpose", ["w"], ["t"])
    layers = placed_layers_of(model(view, product("x", "w", "a"), product("a", "t", "y")))
    assert [x.sharers for x in layers] == [2, 2]
    np.testing.assert_array_equal(layers[1].stage.weight, W)
    np.testing.assert_array_equal(layers[0].stage.weight, W.T)


def test_a_shared_weight_stays_for_the_other() -> None:
    proto = model(product("x", "w", "a", "one"), product("a", "w", "y", "two"))
    graph = graph_of(proto)
    one, _ = find_layers(graph)[0]
    stage = one.stage
    apply_chain(graph, one, Chain((stage.with_matrices(2 * stage.matrices, None),)))
    edited = checked(graph)
    assert edited.graph.node[1] == proto.graph.node[1]
    assert relative(2 * X @ W @ W, run(edited, {"x": X})["y"]) < 1e-5


def test_other_domains_are_not_ours() -> None:
    foreign = helper.make_node("MatMul", ["x", "w"], ["y"], domain="com.example")
    proto = make_model([foreign], {"x": [2, 3]}, ["y"], {"w": W}, domains=["com.example"])
    assert find_layers(graph_of(proto)) == ([], [])


def branch(output: str, node: NodeProto) -> GraphProto:
    value = helper.make_tensor_value_info(output, TensorProto.FLOAT, [None, 3])
    return helper.make_graph([node], output, [], [value])


def conditional(then: NodeProto, *before: NodeProto, condition: bool = True) -> ModelProto:
    decide = helper.make_node(
        "If",
        ["c"],
        ["y"],
        name="decide",
        then_branch=branch(then.output[0], then),
        else_branch=branch("e", helper.make_node("Neg", ["x"], ["e"])),
    )
    return model(*before, decide, c=np.array(condition))


def test_layers_inside_if_are_named_and_left_alone() -> None:
    proto = conditional(product("x", "w", "t", "hidden"))
    layers, others = find_layers(graph_of(proto))
    assert layers == []
    assert [(o.name, o.op, o.reason) for o in others] == [("hidden", "MatMul", "inside decide")]


def test_layers_inside_functions_are_left_alone() -> None:
    call = helper.make_node("Product", ["x", "w"], ["y"], domain="local")
    proto = make_model([call], {"x": [2, 3]}, ["y"], {"w": W}, domains=["local"])
    proto.functions.append(
        helper.make_function(
            "local", "Product", ["a", "b"], ["c"], [product("a", "b", "c")],
            [helper.make_opsetid("", 17)],
        )
    )  # fmt: skip
    layers, others = find_layers(graph_of(proto))
    assert layers == []
    assert [(o.op, o.reason) for o in others] == [("MatMul", "inside function Product")]


def test_an_add_inside_if_is_no_bias() -> None:
    then = helper.make_node("Add", ["p", "b"], ["t"])
    proto = conditional(then, product("x", "w", "p"))
    proto.graph.initializer.append(helper.make_tensor("b", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0]))
    layer = only_placed_layer(proto)
    assert (layer.output, layer.bias_shape) == ("p", None)


ADD = helper.make_node("Add", ["s", "p"], ["y"])


def test_destination_is_the_residual_sum() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["s"]), product("x", "w", "p")]
    graph = graph_of(model(*nodes, ADD))
    (layer,) = find_layers(graph)[0]
    assert destination(graph, layer) == Destination("y", ("s",))


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        ([helper.make_node("Relu", ["p"], ["y"])], ("y",)),
        ([helper.make_node("Add", ["p", "p"], ["y"])], ("y",)),
        ([helper.make_node("Add", ["p", "x"], ["y"])], ("y", "p")),
        ([helper.make_node("Add", ["p", "x"], ["y"]), helper.make_node("Neg", ["p"], ["z"])],
         ("y", "z")),
        ([helper.make_node("Mul", ["p", "x"], ["y"])], ("y",)),
    ],
)  # fmt: skip
def test_destination_without_a_sum_of_its_own(
    nodes: list[NodeProto], outputs: tuple[str, ...]
) -> None:
    graph = graph_of(model(product("x", "w", "p"), *nodes, outputs=outputs))
    (layer,) = find_layers(graph)[0]
    assert destination(graph, layer) == Destination("p", ())


def test_with_stage_replaces_the_numbers() -> None:
    layer = only_layer(model(product("x", "w", "y")))
    stage = layer.stage
    other = layer.with_stage(stage.with_matrices(3 * stage.matrices, np.ones(3)))
    np.testing.assert_array_equal(other.stage.weight, 3 * stage.weight)
    np.testing.assert_array_equal(other.stage.bias, np.ones(3))
    np.testing.assert_array_equal(layer.stage.weight, stage.weight)
