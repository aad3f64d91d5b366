from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, helper

from onnx_lowrank.passes import FoldBatchnorm
from tests.support import AnyArray, checked, graph_of, make_model, quick, relative, rng, run

STATS = ("gamma", "beta", "mean", "var")


def norm(
    source: str = "h", output: str = "y", stats: tuple[str, ...] = STATS, **more: Any
) -> NodeProto:
    return helper.make_node(
        "BatchNormalization", [source, *stats], [output], name=f"norm_{output}", **more
    )


def statistics(channels: int, seed: int) -> dict[str, AnyArray]:
    random = rng(seed, 1)
    gamma, beta, mean = random.normal(size=(3, channels)).astype(np.float32)
    variance = random.uniform(0.1, 2, channels).astype(np.float32)
    return dict(zip(STATS, (gamma, beta, mean, variance), strict=True))


def example(
    op: str, seed: int, groups: int = 1, biased: bool = True, **attributes: Any
) -> tuple[list[NodeProto], dict[str, AnyArray], dict[str, AnyArray]]:
    """The layer in front, its weights with statistics, and an input."""
    random, n, c = rng(seed), 4 * groups, 3 * groups
    shape = {"Conv": (n, 3, 3, 2), "ConvTranspose": (c, 4, 3, 2), "Gemm": (c, n)}[op]
    if attributes.get("transB"):
        shape = shape[::-1]
    x = random.normal(size=(5, c) if op == "Gemm" else (2, c, 6, 5)).astype(np.float32)
    weights = {"w": random.normal(size=shape).astype(np.float32), **statistics(n, seed)}
    if biased:
        weights["b"] = random.normal(size=n).astype(np.float32)
    if op != "Gemm":
        attributes["group"] = groups
    layer = helper.make_node(
        op, ["x", "w", *(["b"] if biased else [])], ["h"], name="layer", **attributes
    )
    return [layer], weights, {"x": x}


def folded(proto: ModelProto, max_edits: int | None = None) -> tuple[ModelProto, list[str]]:
    graph = graph_of(proto)
    edits = FoldBatchnorm().run(graph, max_edits)
    return checked(graph), [e.node for e in edits]


def assert_folds(
    nodes: list[NodeProto], weights: dict[str, AnyArray], feed: dict[str, AnyArray], opset: int = 17
) -> ModelProto:
    shape = [None, *feed["x"].shape[1:]]
    proto = make_model(nodes, {"x": shape}, ["y"], weights, opset=opset)
    after, edits = folded(proto)
    assert edits == ["norm_y"]
    assert [(n.op_type, n.name) for n in after.graph.node] == [(nodes[0].op_type, "layer")]
    assert {t.name for t in after.graph.initializer} == {"w_folded", "w_folded_bias"}
    assert relative(run(proto, feed)["y"], run(after, feed)["y"]) < 1e-5
    return after


@quick(30)
@given(
    st.sampled_from(["Conv", "ConvTranspose"]),
    st.integers(1, 3),
    st.booleans(),
    st.sampled_from([None, 1e-5, 0.1]),
    st.sampled_from([9, 13, 17, 21]),
    st.integers(0, 99),
)
def test_convolutions(
    op: str, groups: int, biased: bool, epsilon: float | None, opset: int, seed: int
) -> None:
    nodes, weights, feed = example(
        op, seed, groups, biased, strides=[2, 1], pads=[1, 0, 1, 1], dilations=[1, 2]
    )
    options: dict[str, Any] = {} if epsilon is None else {"epsilon": epsilon}
    after = assert_folds([*nodes, norm(**options)], weights, feed, opset)
    assert list(after.graph.node[0].attribute) == list(nodes[0].attribute)


@pytest.mark.parametrize("bias_shape", [None, (4,), (1, 4), (1,), ()], ids=str)
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, -2.0), (2.0, 0.0)])
def test_gemm(bias_shape: tuple[int, ...] | None, trans_b: int, alpha: float, beta: float) -> None:
    nodes, weights, feed = example(
        "Gemm", 3, biased=bias_shape is not None, transB=trans_b, alpha=alpha, beta=beta
    )
    if bias_shape is not None:
        weights["b"] = rng(4).normal(size=bias_shape).astype(np.float32)
    assert_folds([*nodes, norm()], weights, feed)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_the_type_of_the_weight_is_kept(dtype: str) -> None:
    nodes, weights, feed = example("Gemm", 5)
    weights, feed = ({k: v.astype(dtype) for k, v in d.items()} for d in (weights, feed))
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    proto = make_model([*nodes, norm()], {"x": [None, 3]}, ["y"], weights, element=element)
    after, edits = folded(proto)
    assert len(edits) == 1
    tolerance = 2e-2 if dtype == "float16" else 1e-12
    if dtype == "float64":
        assert relative(run(proto, feed)["y"], run(after, feed)["y"]) < tolerance
    assert {t.data_type for t in after.graph.initializer} == {element}


def test_a_weight_behind_views() -> None:
    nodes, weights, feed = example("Gemm", 6)
    weights["r"] = weights.pop("w").T.copy()
    view = helper.make_node("Transpose", ["r"], ["w"])
    proto = make_model([view, *nodes, norm()], {"x": [None, 3]}, ["y"], weights)
    after, edits = folded(proto)
    assert edits == ["norm_y"]
    assert [n.op_type for n in after.graph.node] == ["Gemm"]
    assert relative(run(proto, feed)["y"], run(after, feed)["y"]) < 1e-5


def tower(count: int) -> tuple[ModelProto, dict[str, AnyArray]]:
    """Convolutions with one normalization each, and the last with two."""
    nodes: list[NodeProto] = []
    weights: dict[str, AnyArray] = {}
    tensor = "x"
    for i in range(count):
        weights[f"w{i}"] = rng(i).normal(size=(3, 3, 3)).astype(np.float32)
        weights |= {f"{k}{i}": v for k, v in statistics(3, i).items()}
        nodes.append(helper.make_node("Conv", [tensor, f"w{i}"], [f"h{i}"], name=f"conv{i}"))
        tensor = "y" if i == count - 1 else f"y{i}"
        nodes.append(norm(f"h{i}", tensor, tuple(f"{k}{i}" for k in STATS)))
    nodes[-1].output[0], nodes[-1].name = "last", "norm_last"
    nodes.append(norm("last", "y", tuple(f"{k}0" for k in STATS)))
    proto = make_model(nodes, {"x": [None, 3, 12]}, ["y"], weights)
    return proto, {"x": rng(9).normal(size=(2, 3, 12)).astype(np.float32)}


@pytest.mark.parametrize(("allowed", "done"), [(0, 0), (1, 1), (2, 2), (9, 4), (None, 4)])
def test_max_edits(allowed: int | None, done: int) -> None:
    proto, feed = tower(3)
    after, edits = folded(proto, allowed)
    assert len(edits) == done
    assert len(after.graph.node) == len(proto.graph.node) - done
    assert relative(run(proto, feed)["y"], run(after, feed)["y"]) < 1e-5


CONV, CONV_WEIGHTS, _ = example("Conv", 7)
GEMM, GEMM_WEIGHTS, _ = example("Gemm", 7)
STAT_TENSORS = {k: v for k, v in CONV_WEIGHTS.items() if k in STATS}
CONV_INPUT = {"x": [2, 3, 6, 5]}
LEFT_ALONE: dict[str, dict[str, Any]] = {
    "training mode": {
        "nodes": [*CONV, helper.make_node("BatchNormalization", ["h", *STATS], ["y", "m", "v"],
                                          training_mode=1)],
    },
    "output used twice": {
        "nodes": [*CONV, norm(), helper.make_node("Neg", ["h"], ["z"])], "outputs": ["y", "z"],
    },
    "graph output in between": {"outputs": ["h", "y"]},
    "weight shared": {
        "nodes": [*CONV, norm(), helper.make_node("Neg", ["w"], ["z"])], "outputs": ["y", "z"],
    },
    "weight shared behind a view": {
        "nodes": [helper.make_node("Identity", ["r"], ["w"]), *CONV, norm(),
                  helper.make_node("Neg", ["r"], ["z"])],
        "outputs": ["y", "z"],
        "weights": {**{k: v for k, v in CONV_WEIGHTS.items() if k != "w"}, "r": CONV_WEIGHTS["w"]},
    },
    "statistics not constant": {
        "inputs": {**CONV_INPUT, "mean": [4]},
        "weights": {k: v for k, v in CONV_WEIGHTS.items() if k != "mean"},
    },
    "weight not constant": {
        "inputs": {**CONV_INPUT, "w": [4, 3, 3, 2]},
        "weights": {k: v for k, v in CONV_WEIGHTS.items() if k != "w"},
    },
    "bias not constant": {
        "inputs": {**CONV_INPUT, "b": [4]},
        "weights": {k: v for k, v in CONV_WEIGHTS.items() if k != "b"},
    },
    "no layer in front": {
        "nodes": [norm("x")], "weights": STAT_TENSORS, "inputs": {"x": [2, 4, 6, 5]},
    },
    "another operator in front": {
        "nodes": [helper.make_node("Relu", ["x"], ["h"]), norm()], "weights": STAT_TENSORS,
        "inputs": {"x": [2, 4, 6, 5]},
    },
    "bias varies over the rows": {
        "nodes": [*GEMM, norm()], "inputs": {"x": [2, 3]},
        "weights": {**GEMM_WEIGHTS, "b": np.ones((2, 4), np.float32)},
    },
    "negative variance": {
        "weights": {**CONV_WEIGHTS, "var": np.zeros(4, np.float32)},
        "nodes": [*CONV, norm(epsilon=0.0)],
    },
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT_ALONE)
@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.filterwarnings("ignore:invalid value")
def test_left_alone(name: str) -> None:
    model = {
        "nodes": [*CONV, norm()],
        "inputs": CONV_INPUT,
        "outputs": ["y"],
        "weights": CONV_WEIGHTS,
        **LEFT_ALONE[name],
    }
    proto = make_model(**model)
    graph = graph_of(proto)
    assert FoldBatchnorm().run(graph) == []
    assert graph.to_model().proto == proto
