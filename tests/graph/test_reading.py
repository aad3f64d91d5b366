from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.modelfile.protobuf import readable
from tests import fixtures_models as fm
from tests.support import AnyArray, graph_of, make_model, relative, rng, run

W = rng(0).normal(size=(3, 4)).astype(np.float32)


def matmul(weight: str = "w", **options: Any) -> NodeProto:
    return helper.make_node("MatMul", ["x", weight], ["y"], name="product", **options)


def view(*nodes: NodeProto, **weights: AnyArray) -> Graph:
    """A graph whose weight ``w`` is made by ``nodes`` from ``weights``."""
    return graph_of(make_model([*nodes, matmul()], {"x": [2, 3]}, ["y"], weights, opset=13))


def constant_node(**value: Any) -> NodeProto:
    return helper.make_node("Constant", [], ["w"], **value)


SHAPE = np.array([3, 4])
VIEWS: dict[str, tuple[Graph, AnyArray]] = {
    "initializer": (view(w=W), W),
    "Constant": (view(constant_node(value=numpy_helper.from_array(W))), W),
    "value_float": (view(constant_node(value_float=0.5)), np.array(0.5, np.float32)),
    "value_floats": (view(constant_node(value_floats=[1.0, 2.0])), np.array([1, 2], np.float32)),
    "value_ints": (view(constant_node(value_ints=[1, 2])), np.array([1, 2])),
    "Identity": (view(helper.make_node("Identity", ["r"], ["w"]), r=W), W),
    "Transpose": (view(helper.make_node("Transpose", ["r"], ["w"]), r=W.T.copy()), W),
    "perm": (
        view(helper.make_node("Transpose", ["r"], ["w"], perm=[1, 2, 0]), r=W.reshape(1, 3, 4)),
        W.reshape(1, 3, 4).transpose(1, 2, 0),
    ),
    "Cast": (
        view(helper.make_node("Cast", ["r"], ["w"], to=TensorProto.FLOAT), r=W.astype(np.float16)),
        W.astype(np.float16).astype(np.float32),
    ),
    "Reshape": (view(helper.make_node("Reshape", ["r", "s"], ["w"]), r=W.ravel(), s=SHAPE), W),
    "Unsqueeze": (
        view(helper.make_node("Unsqueeze", ["r", "s"], ["w"]), r=W, s=np.array([0])), W[None],
    ),
    "Squeeze": (view(helper.make_node("Squeeze", ["r"], ["w"]), r=W[None]), W),
    "Flatten": (view(helper.make_node("Flatten", ["r"], ["w"]), r=W.reshape(3, 2, 2)), W),
    "chain": (
        view(
            helper.make_node("Cast", ["r"], ["a"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["a"], ["b"]),
            helper.make_node("Identity", ["b"], ["w"]),
            r=W.T.astype(np.float64),
        ),
        W,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VIEWS)
def test_constants_are_found(name: str) -> None:
    graph, wanted = VIEWS[name]
    assert graph.is_constant("w")
    value = graph.constant("w")
    assert value is not None
    assert value.dtype == wanted.dtype
    np.testing.assert_array_equal(value, wanted)


def test_roots_of_views() -> None:
    for name in ("Identity", "Transpose", "Cast", "Reshape", "chain"):
        assert VIEWS[name][0].views("w")[-1] == "r"
    assert VIEWS["initializer"][0].views("w")[-1] == "w"


@pytest.mark.parametrize("opset", [9, 11])
def test_views_of_old_opsets(opset: int) -> None:
    nodes = [
        helper.make_node("Unsqueeze", ["r"], ["a"], axes=[0]),
        helper.make_node("Squeeze", ["a"], ["w"], axes=[0]),
        matmul(),
    ]
    graph = graph_of(make_model(nodes, {"x": [2, 3]}, ["y"], {"r": W}, opset=opset))
    np.testing.assert_array_equal(graph.constant("w"), W)


def test_what_is_not_constant() -> None:
    nodes = [
        helper.make_node("Identity", ["x"], ["a"]),
        helper.make_node("Reshape", ["r", "s"], ["b"]),
        helper.make_node("RandomNormalLike", ["r"], ["c"]),
    ]
    inputs = {"x": [2, 3], "s": [2]}
    graph = graph_of(make_model(nodes, inputs, ["a", "b", "c"], {"r": W}))
    for name in ("x", "a", "b", "c", "absent"):
        assert not graph.is_constant(name), name
        assert graph.constant(name) is None, name


def chain_model(ir: int = 8) -> ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="one"),
        helper.make_node("Relu", ["a"], ["b"], name="two"),
        helper.make_node("Add", ["b", "bias"], ["c"], name="three"),
        helper.make_node("Neg", ["a"], ["d"], name="four"),
    ]
    weights = {"w": W, "bias": np.ones(4, np.float32)}
    inputs = {"x": [2, 3], "w": [3, 4], "bias": [4]} if ir < 4 else {"x": [2, 3]}
    return make_model(nodes, inputs, ["c", "d"], weights, opset=9 if ir < 4 else 17, ir=ir)


@pytest.mark.parametrize("ir", [3, 8])
def test_extract_cuts_between_tensors(ir: int) -> None:
    proto = chain_model(ir)
    part = graph_of(proto).extract({"a": TensorProto.FLOAT}, ["c", "a"]).proto
    assert [n.name for n in part.graph.node] == ["two", "three"]
    assert [t.name for t in part.graph.initializer] == ["bias"]
    assert [i.name for i in part.graph.input] == (["a", "bias"] if ir < 4 else ["a"])
    a = rng(2).normal(size=(5, 4)).astype(np.float32)
    assert relative(np.maximum(a, 0) + 1, run(part, {"a": a})["c"]) < 1e-6


def test_walks() -> None:
    graph = graph_of(chain_model())
    assert graph.ancestors(["c"]) == {"a", "b", "c"}
    assert graph.ancestors(["c"], stop=["a"]) == {"b", "c"}
    assert graph.reads_between(["a"], ["c"]) == {"a", "b", "bias"}
    assert graph.reads_between([], ["d"]) == {"x", "w", "a"}
    assert [n.name for n in graph.consumers("a")] == ["two", "four"]


def test_a_graph_that_is_let_go_is_gone_at_once() -> None:
    """Nothing refers to itself, or models stay in memory until Python looks for circles."""
    gc.disable()
    try:
        graph = Graph(load(fm.residual_net()))
        assert all(graph.is_constant(name) for name, _, _ in graph.initializers())
        gone = weakref.ref(graph)
        del graph
        assert gone() is None
    finally:
        gc.enable()


def test_what_the_graph_is_read_from_has_no_weights() -> None:
    model = fm.residual_net(64)
    assert len(readable(model).SerializeToString()) < 0.05 * len(model.SerializeToString())
    assert len(Graph(load(model)).to_model().proto.SerializeToString()) >= model.ByteSize()
