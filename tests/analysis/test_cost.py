from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, helper, numpy_helper

from onnx_lowrank.analysis.bodies import flatten
from onnx_lowrank.analysis.cost import layer_cost, model_cost, tensor_shapes
from onnx_lowrank.analysis.counting import count
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import find_layers
from onnx_lowrank.modelfile.loading import load
from tests import fixtures_models as fm

Shape = list[int | str]


def macs_of(proto: ModelProto, **inputs: tuple[int, ...]) -> list[int | None]:
    """MACs of each node, the shapes inferred from those of the inputs."""
    model = load(proto)
    counts = count(flatten(model), tensor_shapes(model, inputs))
    return [counts.of(node.output[0]) for node in proto.graph.node]


def single(op: str, x: Shape, weights: dict[str, tuple[int, ...]], **attributes: Any) -> ModelProto:
    """A model of one node that reads ``x`` and the weights, in this order."""
    values = {k: fm.float32(np.ones(v)) for k, v in weights.items()}
    node = helper.make_node(op, ["x", *weights], ["y"], name="node", **attributes)
    return fm.build([node], {"x": x}, {"y": None}, values)


# by hand: outputs * inputs * taps * positions


@pytest.mark.parametrize(
    ("proto", "x", "macs"),
    [
        (single("Conv", ["N", 3, 8, 8], {"w": (5, 3, 3, 3)}), (1, 3, 8, 8), 5 * 27 * 36),
        (
            single("Conv", ["N", 3, 8, 8], {"w": (5, 3, 3, 3), "b": (5,)}, strides=[2, 2],
                   pads=[1, 1, 1, 1]),
            (1, 3, 8, 8), 5 * 27 * 16,
        ),
        (single("Conv", ["N", 4, 9], {"w": (6, 2, 3)}, group=2), (1, 4, 9), 6 * 2 * 3 * 7),
        (single("Conv", ["N", 8, 6, 6], {"w": (8, 1, 3, 3)}, group=8), (1, 8, 6, 6), 8 * 9 * 16),
        (single("ConvTranspose", ["N", 3, 5, 5], {"w": (3, 4, 2, 2)}, strides=[2, 2]),
         (1, 3, 5, 5), 3 * 4 * 4 * 25),
        (single("Gemm", ["N", 7], {"w": (7, 4), "b": (4,)}), (1, 7), 28),
        (single("Gemm", ["N", 7], {"w": (4, 7)}, transB=1), (3, 7), 3 * 28),
        (single("Gemm", [7, 2], {"w": (7, 4)}, transA=1), (7, 2), 2 * 28),
        (single("MatMul", ["N", 5, 7], {"w": (7, 4)}), (1, 5, 7), 5 * 28),
        (single("MatMul", ["N", 2, 5, 7], {"w": (2, 7, 4)}), (3, 2, 5, 7), 6 * 5 * 28),
        (single("LSTM", [6, "N", 3], {"w": (1, 20, 3), "r": (1, 20, 5)}, hidden_size=5),
         (6, 1, 3), 6 * 20 * 8),
        (single("GRU", [6, "N", 3], {"w": (2, 15, 3), "r": (2, 15, 5)}, hidden_size=5,
                direction="bidirectional"), (6, 2, 3), 2 * 6 * 2 * 15 * 8),
        (single("RNN", [6, "N", 3], {"w": (1, 5, 3), "r": (1, 5, 5)}, hidden_size=5),
         (6, 1, 3), 6 * 5 * 8),
        (single("Relu", ["N", 3], {}), (1, 3), 0),
    ],
    ids=["conv", "conv strided", "conv grouped", "depthwise", "transpose", "gemm", "gemm transB",
         "gemm transA", "matmul", "matmul batched", "lstm", "gru", "rnn", "relu"],
)  # fmt: skip
def test_macs_by_hand(proto: ModelProto, x: tuple[int, ...], macs: int) -> None:
    assert macs_of(proto, x=x) == [macs]


def test_macs_of_a_product_of_two_tensors() -> None:
    node = helper.make_node("MatMul", ["a", "b"], ["y"], name="attention")
    proto = fm.build([node], {"a": ["N", 6, 4], "b": ["N", 4, 5]}, {"y": None}, {})
    assert macs_of(proto, a=(2, 6, 4), b=(2, 4, 5)) == [2 * 6 * 4 * 5]


def test_nodes_are_counted_in_their_order() -> None:
    macs = macs_of(fm.residual_net(12, 7), x=(1, 3, 7, 7))
    first, other = 12 * 27 * 49, 12 * 12 * 9 * 49
    assert macs == [first, 0, other, 0, 0, other, 0, 0, other]


def test_a_dynamic_batch_counts_as_it_is_fed() -> None:
    one, five = (sum(filter(None, macs_of(fm.classifier(), x=(n, 64)))) for n in (1, 5))
    assert one == 64 * 64 + 64 * 8
    assert five == 5 * one


# shapes


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM"])
def test_unknown_shapes_are_no_macs(op: str) -> None:
    weights: dict[str, tuple[int, ...]] = {"w": (3, 3)}
    attributes: dict[str, Any] = {}
    if op == "LSTM":
        weights, attributes = {"w": (1, 20, 3), "r": (1, 20, 5)}, {"hidden_size": 5}
    elif op.startswith("Conv"):
        weights = {"w": (3, 3, 1, 1)}
    values = {k: fm.float32(np.ones(v)) for k, v in weights.items()}
    node = helper.make_node(op, ["x", *weights], ["y"], name="node", **attributes)
    counts = count(flatten(load(fm.build([node], {"x": None}, {"y": None}, values))), {})
    assert (counts.macs, counts.of("y")) == (0, None)


def reshaped_by_data() -> ModelProto:
    """The Gemm reads a tensor whose shape depends on values: inference cannot tell it."""
    nodes: list[NodeProto] = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("NonZero", ["r"], ["index"]),
        helper.make_node("Transpose", ["index"], ["pairs"]),
        helper.make_node("Cast", ["pairs"], ["rows"], to=1),
        helper.make_node("Gemm", ["rows", "w"], ["y"], name="gemm"),
    ]
    return fm.build(nodes, {"x": [1, 6]}, {"y": None}, {"w": fm.float32(np.ones((2, 5)))})


def test_the_runtime_tells_what_inference_cannot() -> None:
    model = load(reshaped_by_data())
    x = np.array([[1, -1, 2, 3, -4, 5]], np.float32)
    alone = tensor_shapes(model, {"x": (1, 6)})
    assert "rows" not in alone
    assert count(flatten(model), alone).of("y") is None
    asked = tensor_shapes(model, {"x": (1, 6)}, {"x": x}, fm.ONE_THREAD, ["rows", "y", "w"])
    assert asked["rows"] == (4, 2)
    assert count(flatten(model), asked).of("y") == 4 * 2 * 5


def test_shapes_where_inference_fails_altogether() -> None:
    proto = fm.classifier()
    # a stale declaration that contradicts the graph
    proto.graph.value_info.append(helper.make_tensor_value_info("h", 1, [1, 999]))
    proto.graph.node.insert(0, helper.make_node("NoSuchOperator", ["x"], ["unused"]))
    shapes = tensor_shapes(load(proto), {"x": (1, 64)})
    assert shapes["x"] == (1, 64)
    assert shapes["w1"] == (64, 64)
    del proto.graph.node[0]
    x, _ = fm.classified(1)
    asked = tensor_shapes(load(proto), {"x": (1, 64)}, {"x": x}, fm.ONE_THREAD, ["h", "y"])
    assert (asked["h"], asked["y"]) == ((1, 64), (1, 8))


# models and layers


def test_cost_of_a_model(tmp_path: Path) -> None:
    proto = fm.classifier()
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(1000, np.float32), "not used"))
    proto.graph.initializer.append(numpy_helper.from_array(np.arange(3), "indices"))
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    model = load(path)
    cost = model_cost(model, tensor_shapes(model, {"x": (1, 64)}))
    assert cost.macs == 64 * 64 + 64 * 8
    assert cost.parameters == 64 * 64 + 64 + 64 * 8 + 8
    assert cost.bytes == path.stat().st_size


def test_cost_of_a_layer_is_that_of_its_node() -> None:
    model = load(fm.residual_net())
    graph = Graph(model)
    shapes = tensor_shapes(model, {"x": (1, 3, 7, 7)})
    layers, _ = find_layers(graph)
    counts = count(flatten(model), shapes)
    assert [layer.name for layer in layers] == [f"conv{i}" for i in range(4)]
    for layer in layers:
        cost = layer_cost(layer, shapes)
        assert cost.macs == counts.of(layer.nodes[0].outputs[0].name)
        assert cost.parameters == np.prod(layer.shape) + layer.shape[0]
        assert cost.bytes == 4 * cost.parameters


def test_a_layer_is_counted_without_reading_its_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(fm.residual_net())
    shapes = tensor_shapes(model, {"x": (1, 3, 7, 7)})
    layers, _ = find_layers(Graph(model))
    wanted = [layer.stage.macs(shapes[layer.input]) for layer in layers]

    def refuse(*_: object) -> None:
        raise AssertionError("a constant was read")

    monkeypatch.setattr(Graph, "constant", refuse)
    with pytest.raises(AssertionError, match="a constant was read"):
        _ = layers[0].stage
    assert [layer_cost(layer, shapes).macs for layer in layers] == wanted


def test_a_shared_weight_is_divided_among_its_sharers() -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"], name="one"),
        helper.make_node("Gemm", ["h", "w"], ["y"], name="two"),
    ]
    weights = {"w": fm.float32(np.ones((4, 4)))}
    model = load(fm.build(nodes, {"x": ["N", 4]}, {"y": None}, weights))
    shapes = tensor_shapes(model, {"x": (1, 4)})
    layers, _ = find_layers(Graph(model))
    assert [layer_cost(layer, shapes).parameters for layer in layers] == [8, 8]
    assert [layer_cost(layer, shapes).macs for layer in layers] == [16, 16]
    assert layer_cost(layers[0], {}).macs == 0
