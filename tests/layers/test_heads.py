from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, helper

from onnx_lowrank.layers import Head, find_heads, find_layers
from tests.support import graph_of, make_model, rng

node = helper.make_node

#: what the nodes of a case may read: 6 classes of 4 inputs
WEIGHTS: dict[str, Any] = {
    "w": rng(0).normal(size=(4, 6)).astype(np.float32),
    "k": rng(1).normal(size=(6, 4, 1, 1)).astype(np.float32),
    "b": rng(2).normal(size=6).astype(np.float32),
    "temperature": np.array(0.5, np.float32),
    "minus": np.array(-1, np.float32),
    "rows": np.array([-1, 6]),
    "halves": np.array([0, 2, 3]),
    "columns": np.array([0, 6, -1]),
    "v": rng(3).normal(size=(6, 5)).astype(np.float32),
}
ROWS, STEPS, PLANES = (None, 4), (None, 3, 4), (None, 4, 2, 3)


def found(
    *nodes: NodeProto, shape: tuple[int | None, ...] = ROWS, outputs: tuple[str, ...] = ("y",),
    opset: int = 17, scores: Mapping[str, int] | None = None,
) -> dict[str, Head]:  # fmt: skip
    """The heads of a model of these nodes, which read ``x`` of a shape."""
    graph = graph_of(model(*nodes, shape=shape, outputs=outputs, opset=opset))
    layers, _ = find_layers(graph)
    sample = tuple(1 if extent is None else extent for extent in shape)
    shapes = dict.fromkeys([layer.input for layer in layers], sample)
    return find_heads(graph, layers, shapes, scores or {})


def model(
    *nodes: NodeProto, shape: tuple[int | None, ...], outputs: tuple[str, ...], opset: int = 17
) -> ModelProto:
    read = {name for n in nodes for name in n.input}
    weights = {name: value for name, value in WEIGHTS.items() if name in read}
    return make_model(list(nodes), {"x": shape}, outputs, weights, opset=opset)


HEAD = node("MatMul", ["x", "w"], ["s"], name="head")
CONV = node("Conv", ["x", "k"], ["s"], name="head")
SOFTMAX = node("Softmax", ["s"], ["y"])


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("shape", [ROWS, STEPS])
def test_a_layer_under_a_softmax_is_one(op: str, shape: tuple[int | None, ...]) -> None:
    heads = found(HEAD, node(op, ["s"], ["y"]), shape=shape)
    assert heads == {"head": Head("s", len(shape) - 1)}


@pytest.mark.parametrize("opset", [9, 17])
def test_its_axis_may_be_that_of_channels(opset: int) -> None:
    heads = {
        shape: found(CONV, node("Softmax", ["s"], ["y"], axis=1), shape=shape, opset=opset)
        for shape in [PLANES, (None, 4, 1, 1)]
    }
    alone = {"head": Head("s", 1)}
    # an old softmax sums over all axes from its own on
    assert heads == {PLANES: alone if opset == 17 else {}, (None, 4, 1, 1): alone}


@pytest.mark.parametrize(
    "between",
    [
        [node("Identity", ["s"], ["t"])],
        [node("Cast", ["s"], ["t"], to=1)],
        [node("Add", ["b", "s"], ["t"])],
        [node("Mul", ["s", "temperature"], ["t"])],
        [node("Div", ["s", "temperature"], ["t"])],
        [node("Reshape", ["s", "rows"], ["t"])],
        [node("Flatten", ["s"], ["t"], axis=2)],
        [node("Unsqueeze", ["s", "axes"], ["t"])],
        [
            node("Transpose", ["s"], ["r"], perm=[2, 0, 1]),
            node("Identity", ["r"], ["q"]),
            node("Transpose", ["q"], ["t"], perm=[1, 2, 0]),
        ],
    ],
    ids=lambda nodes: nodes[0].op_type,
)
def test_it_is_found_through_nodes_that_only_move(
    between: list[NodeProto], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(WEIGHTS, "axes", np.array([0]))
    heads = found(HEAD, *between, node("Softmax", ["t"], ["y"], axis=-1), shape=STEPS)
    assert [head.scores for head in heads.values()] == ["t"]


def test_classes_are_followed_to_another_axis() -> None:
    nodes = [CONV, node("Transpose", ["s"], ["t"], perm=[0, 3, 2, 1])]
    assert found(*nodes, node("Softmax", ["t"], ["y"], axis=3), shape=PLANES) == {
        "head": Head("t", 3)
    }
    assert not found(*nodes, node("Softmax", ["t"], ["y"], axis=1), shape=PLANES)
    flat = [CONV, node("Reshape", ["s", "columns"], ["t"])]
    assert found(*flat, node("Softmax", ["t"], ["y"], axis=1), shape=PLANES) == {
        "head": Head("t", 1)
    }
    assert not found(*flat, node("Softmax", ["t"], ["y"], axis=2), shape=PLANES)


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        ([HEAD, node("Relu", ["s"], ["t"]), node("Softmax", ["t"], ["y"])], ("y",)),
        ([HEAD, SOFTMAX], ("y", "s")),
        ([HEAD, SOFTMAX, node("Exp", ["s"], ["z"])], ("y", "z")),
        ([HEAD, node("Softmax", ["s"], ["y"], axis=0)], ("y",)),
        ([HEAD, node("Sigmoid", ["s"], ["y"])], ("y",)),
        ([HEAD], ("s",)),
        ([HEAD, node("Reshape", ["s", "halves"], ["t"]), node("Softmax", ["t"], ["y"])], ("y",)),
        ([HEAD, node("Mul", ["s", "b"], ["t"]), node("Softmax", ["t"], ["y"])], ("y",)),
        ([HEAD, node("Mul", ["s", "minus"], ["t"]), node("Softmax", ["t"], ["y"])], ("y",)),
        ([HEAD, node("Sub", ["b", "s"], ["t"]), node("Softmax", ["t"], ["y"])], ("y",)),
        ([HEAD, node("Add", ["s", "s"], ["t"]), node("Softmax", ["t"], ["y"])], ("y",)),
    ],
    ids=[
        "a ReLU between", "scores are an output", "another reader", "along the rows", "no softmax",
        "nothing behind", "in two parts", "each scaled", "turned round", "subtracted",
        "added to itself",
    ],
)  # fmt: skip
def test_other_layers_are_none(nodes: list[NodeProto], outputs: tuple[str, ...]) -> None:
    assert not found(*nodes, outputs=outputs)


@pytest.mark.parametrize("op", ["MatMul", "Mul"])
def test_a_softmax_that_weighs_something_is_none_of_a_head(op: str) -> None:
    behind = {
        "MatMul": [node("MatMul", ["p", "v"], ["y"])],
        "Mul": [node("Identity", ["p"], ["q"]), node("Mul", ["q", "s"], ["y"])],
    }
    gate = node("Gemm", ["x", "w"], ["g"], name="gate")
    nodes = [gate, node("Softmax", ["g"], ["p"]), node("Exp", ["x"], ["e"])]
    if op == "Mul":
        nodes.append(node("MatMul", ["e", "w"], ["s"], name="other"))
    assert not found(*nodes, *behind[op])


def test_attention_has_none() -> None:
    query = node("MatMul", ["x", "w"], ["q"], name="query")
    key = node("MatMul", ["x", "w"], ["k2"], name="key")
    heads = found(
        query, key, node("Transpose", ["k2"], ["kt"], perm=[0, 2, 1]),
        node("MatMul", ["q", "kt"], ["s"]), node("Softmax", ["s"], ["p"]),
        node("MatMul", ["p", "x"], ["y"]), shape=STEPS,
    )  # fmt: skip
    assert not heads


def test_a_scaled_or_returned_probability_is_still_one_of_a_head() -> None:
    heads = found(
        HEAD, node("Softmax", ["s"], ["p"]), node("Mul", ["p", "temperature"], ["y"]),
        node("ArgMax", ["p"], ["z"]), outputs=("y", "z"),
    )  # fmt: skip
    assert set(heads) == {"head"}


def test_outputs_known_to_be_class_scores_need_no_softmax() -> None:
    nodes = [HEAD, node("Add", ["s", "b"], ["y"])]
    assert found(*nodes, scores={"y": -1}) == {"head": Head("y", 1)}
    assert not found(*nodes, scores={"y": 0})
    assert not found(*nodes, scores={"z": -1})
