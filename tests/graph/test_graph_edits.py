from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.graph.nodes import Node
from onnx_lowrank.modelfile.model import Model
from tests.support import AnyArray, checked, graph_of, make_model, relative, rng, run

W = rng(0).normal(size=(3, 4)).astype(np.float32)
X = rng(1).normal(size=(2, 3)).astype(np.float32)
PRODUCT = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")


def branch(output: str, nodes: list[onnx.NodeProto], **weights: Any) -> onnx.GraphProto:
    value = helper.make_tensor_value_info(output, TensorProto.FLOAT, [2, 4])
    tensors = [onnx.numpy_helper.from_array(v, k) for k, v in weights.items()]
    return helper.make_graph(nodes, output, [], [value], tensors)


def conditional(condition: bool = True) -> ModelProto:
    """The weight ``w`` is read by a MatMul outside and by one inside an If."""
    then = [
        helper.make_node("MatMul", ["x", "w"], ["y_one"], name="product_1"),
        helper.make_node("Neg", ["y_one"], ["t"]),
    ]
    other = [helper.make_node("Add", ["y", "w_1"], ["e"])]
    decide = helper.make_node(
        "If",
        ["c"],
        ["z"],
        then_branch=branch("t", then),
        else_branch=branch("e", other, w_1=np.ones((2, 4), np.float32)),
    )
    weights: dict[str, AnyArray] = {"w": W, "c": np.array(condition)}
    return make_model([PRODUCT, decide], {"x": [2, 3]}, ["y", "z"], weights)


def negated(graph: Graph, name: str = "product") -> list[Node]:
    """Replace the product by another one and two Neg behind it."""
    (old,) = [n for n in graph.nodes if n.name == name]
    source, output = old.inputs[0].name, old.outputs[0].name
    made: list[Node] = []

    def make() -> list[Node]:
        one, two = graph.fresh(f"{output}_one"), graph.fresh(f"{output}_two")
        weight = graph.add_constant("w", W)
        made.extend(
            [
                graph.make_node("MatMul", graph.fresh("product"), [source, weight], one),
                graph.make_node("Neg", "", [one], two),
                graph.make_node("Neg", "", [two], output),
            ]
        )
        return made

    graph.replace([old], make)
    return made


def names(proto: ModelProto) -> set[str]:
    return {t.name for t in proto.graph.initializer}


@pytest.mark.parametrize("condition", [True, False])
def test_names_inside_subgraphs_are_taken(condition: bool) -> None:
    proto = conditional(condition)
    graph = graph_of(proto)
    product = negated(graph)[0]
    assert product.name == "product_2"
    assert product.inputs[1].name == "w_2"
    assert product.outputs[0].name == "y_one_1"
    edited = checked(graph)
    assert names(edited) == {"w", "c", "w_2"}  # the If captures w
    wanted, got = run(proto, {"x": X}), run(edited, {"x": X})
    assert all(relative(wanted[k], got[k]) < 1e-6 for k in ("y", "z"))


def test_fresh_never_repeats() -> None:
    graph = graph_of(make_model([PRODUCT], {"x": [2, 3]}, ["y"], {"w": W}))
    assert [graph.fresh(s) for s in ("w", "w", "new", "new", "x", "y", "product")] == [
        "w_1", "w_2", "new", "new_1", "x_1", "y_1", "product_1",
    ]  # fmt: skip


def test_a_replacement_in_the_middle_keeps_the_order() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["b"], name="product"),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Add", ["c", "b"], ["y"]),
    ]
    proto = make_model(nodes, {"x": [2, 3]}, ["y"], {"w": W})
    for name in ("b", "c"):
        proto.graph.value_info.append(helper.make_tensor_value_info(name, 1, [2, 4]))
    graph = graph_of(proto)
    negated(graph)
    edited = checked(graph)
    assert [n.op_type for n in edited.graph.node] == ["Relu", "MatMul", "Neg", "Neg", "Relu", "Add"]
    assert [edited.graph.node[i] for i in (0, 4, 5)] == [nodes[i] for i in (0, 2, 3)]
    assert list(edited.graph.value_info) == list(proto.graph.value_info)
    assert relative(run(proto, {"x": X})["y"], run(edited, {"x": X})["y"]) < 1e-6


def test_two_nodes_make_room_at_the_last() -> None:
    nodes = [
        PRODUCT,
        helper.make_node("Shape", ["x"], ["s"], name="shape"),
        helper.make_node("Relu", ["y"], ["r"], name="relu"),
        helper.make_node("Neg", ["r"], ["z"]),
    ]
    proto = make_model(nodes, {"x": [2, 3]}, ["z"], {"w": W})
    proto.graph.value_info.append(helper.make_tensor_value_info("y", 1, [2, 4]))
    graph = graph_of(proto)
    old = [n for n in graph.nodes if n.name in ("product", "relu")]
    graph.replace(old, lambda: [graph.make_node("MatMul", "one", ["x", "w"], "r")])
    edited = checked(graph)
    assert [n.op_type for n in edited.graph.node] == ["Shape", "MatMul", "Neg"]
    assert not edited.graph.value_info  # y is gone
    assert names(edited) == {"w"}


def read_by(*others: onnx.NodeProto, outputs: tuple[str, ...] = ()) -> set[str]:
    """Initializers that remain once the product behind two views is replaced."""
    nodes = [
        helper.make_node("Cast", ["r"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["c"], ["w"]),
        PRODUCT,
        *others,
    ]
    made = ["y", *(o for n in others for o in n.output), *outputs]
    weights = {"r": W.T.copy(), "d": W}
    graph = graph_of(make_model(nodes, {"x": [2, 3]}, made, weights))
    negated(graph)
    edited = checked(graph)
    ops = [n.op_type for n in edited.graph.node]
    assert ("Transpose" in ops) == ("w" in made or any("w" in n.input for n in others))
    return names(edited)


def test_dead_weights_go_and_used_ones_stay() -> None:
    # nobody read "d" in the original either: it is not ours to judge
    assert read_by() == {"d", "w_1"}
    assert read_by(helper.make_node("Neg", ["w"], ["n"])) == {"d", "r", "w_1"}
    assert read_by(helper.make_node("Neg", ["c"], ["n"])) == {"d", "r", "w_1"}
    assert read_by(helper.make_node("Neg", ["d"], ["n"])) == {"d", "w_1"}
    assert read_by(outputs=("w",)) == {"d", "r", "w_1"}
    assert read_by(outputs=("r",)) == {"d", "r", "w_1"}


def test_a_node_with_another_living_output_stays() -> None:
    nodes = [
        helper.make_node("Split", ["r"], ["w", "v"], axis=0),
        PRODUCT,
        helper.make_node("MatMul", ["x", "v"], ["z"]),
    ]
    r = np.concatenate([W, 2 * W])
    proto = make_model(nodes, {"x": [2, 3]}, ["y", "z"], {"r": r}, opset=13)
    graph = graph_of(proto)
    negated(graph)
    edited = checked(graph)
    assert edited.graph.node[0] == nodes[0]
    assert names(edited) == {"r", "w_1"}
    wanted, got = run(proto, {"x": X}), run(edited, {"x": X})
    assert all(relative(wanted[k], got[k]) < 1e-6 for k in ("y", "z"))


@pytest.mark.parametrize(
    ("ir", "unlisted", "left"),
    [
        (3, False, ["x", "spare", "w_1"]),
        (8, True, ["x", "w", "spare"]),
        (8, False, ["x"]),  # all are listed, out of habit
    ],
)
def test_only_what_had_to_be_an_input_leaves_with_its_reader(
    ir: int, unlisted: bool, left: list[str]
) -> None:
    inputs = {"x": [2, 3], "w": [3, 4], "spare": [1]}
    one = np.ones(1, np.float32)
    weights = {"w": W, "spare": one} | ({"inner": one} if unlisted else {})
    graph = graph_of(
        make_model([PRODUCT], inputs, ["y"], weights, opset=9 if ir < 4 else 17, ir=ir)
    )
    assert graph.inputs == ["x"]
    negated(graph)
    edited = checked(graph)
    assert [i.name for i in edited.graph.input] == left
    assert names(edited) == {"spare", "w_1"} | ({"w", "inner"} if unlisted else set())


def test_set_constant_changes_our_own_values_only() -> None:
    graph = graph_of(make_model([PRODUCT], {"x": [2, 3]}, ["y"], {"w": W}))
    negated(graph)
    graph.set_constant("w_1", 2 * W)
    assert relative(2 * X @ W, run(checked(graph), {"x": X})["y"]) < 1e-6
    with pytest.raises(ValueError, match="'w' belongs to the original model"):
        graph.set_constant("w", W)


def test_extract_of_all_outputs_is_the_model() -> None:
    proto = conditional()
    part = graph_of(proto).extract({"x": TensorProto.FLOAT}, ["y", "z"]).proto
    assert list(part.graph.node) == list(proto.graph.node)
    wanted, got = run(proto, {"x": X}), run(part, {"x": X})
    assert all(relative(wanted[k], got[k]) < 1e-6 for k in ("y", "z"))


def test_extract_reads_edited_weights_and_what_subgraphs_capture() -> None:
    graph = graph_of(conditional())
    negated(graph)
    graph.set_constant("w_2", 3 * W)
    part = graph.extract({"x": TensorProto.FLOAT}, ["y"]).proto
    assert names(part) == {"w_2"}
    assert relative(3 * X @ W, run(part, {"x": X})["y"]) < 1e-6
    inner = graph.extract({"x": TensorProto.FLOAT, "y": TensorProto.FLOAT}, ["z"]).proto
    assert names(inner) == {"w", "c"}
    assert {i.name for i in inner.graph.input} == {"x", "y"}


def test_a_second_edit_starts_from_the_first() -> None:
    proto = conditional()
    first = graph_of(proto)
    negated(first)
    second = Graph(Model(checked(first)))
    negated(second, "product_2")
    edited = checked(second)
    wanted, got = run(proto, {"x": X}), run(edited, {"x": X})
    assert all(relative(wanted[k], got[k]) < 1e-6 for k in ("y", "z"))
    assert sum(n.op_type == "Neg" for n in edited.graph.node) == 4
