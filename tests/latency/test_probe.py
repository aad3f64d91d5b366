from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnx_lowrank.chains.chain import Chain, Stage
from onnx_lowrank.chains.geometry import ConvGeometry, LinearGeometry
from onnx_lowrank.chains.special_stages import Branches, Select, TensorTrainStep
from onnx_lowrank.latency.probe import Place, chain_key, place_of, probe
from onnx_lowrank.layers import find_layers
from onnx_lowrank.runtime.runtime import Runtime
from tests.support import AnyArray, graph_of, make_model, rng

POINT = ConvGeometry.pointwise(2)


def weight(*shape: int, seed: int = 0) -> AnyArray:
    return rng(seed).standard_normal(shape).astype(np.float32)


def place(proto: ModelProto, shapes: dict[str, tuple[int, ...]], number: int = 0) -> Place:
    graph = graph_of(proto)
    return place_of(graph, find_layers(graph)[0][number], shapes)


def convolution(
    *, seed: int = 0, name: str = "conv", tail: str = "", residual: bool = False, **attributes: Any
) -> ModelProto:
    """A 3x3 convolution of 16 channels, perhaps with a residual Add and an activation."""
    attributes = {"pads": [1, 1, 1, 1], **attributes}
    nodes = [helper.make_node("Conv", ["x", f"{name}_w"], [f"{name}_y"], name, **attributes)]
    if residual:
        nodes.append(helper.make_node("Add", [nodes[-1].output[0], "x"], ["sum"]))
    if tail:
        nodes.append(helper.make_node(tail, [nodes[-1].output[0]], ["act"]))
    nodes.append(helper.make_node("Neg", [nodes[-1].output[0]], ["out"]))
    weights = {f"{name}_w": weight(16, 16 // attributes.get("group", 1), 3, 3, seed=seed)}
    return make_model(nodes, {"x": ["N", 16, 8, 8]}, ["out"], weights)


SHAPES = {"x": (2, 16, 8, 8)}


def test_places_of_equal_shape_are_equal_whatever_their_names_and_numbers() -> None:
    one = place(convolution(tail="Relu"), SHAPES)
    two = place(convolution(tail="Relu", seed=1, name="other"), SHAPES)
    assert one.key == two.key


@pytest.mark.parametrize(
    "other",
    [
        {"tail": "Sigmoid"},
        {"tail": ""},
        {"residual": True},
        {"strides": [2, 2]},
        {"dilations": [2, 2]},
        {"group": 2},
        {"pads": [1, 1, 0, 0]},
    ],
    ids=str,
)
def test_places_that_run_otherwise_differ(other: dict[str, Any]) -> None:
    key = place(convolution(tail="Relu"), SHAPES).key
    assert place(convolution(**{"tail": "Relu", **other}), SHAPES).key != key


def test_places_of_other_batches_differ() -> None:
    proto = convolution()
    assert place(proto, SHAPES).key != place(proto, {"x": (1, 16, 8, 8)}).key


@pytest.mark.parametrize(
    ("options", "nodes"),
    [
        ({}, ["Conv"]),
        ({"tail": "Relu"}, ["Conv", "Relu"]),
        ({"residual": True}, ["Conv", "Add"]),
        ({"residual": True, "tail": "Relu"}, ["Conv", "Add", "Relu"]),
        ({"tail": "Softmax"}, ["Conv"]),
    ],
)
def test_what_is_fused_goes_with_the_layer(options: dict[str, Any], nodes: list[str]) -> None:
    found = place(convolution(**options), SHAPES)
    assert [n.op_type for n in found.model.proto.graph.node] == nodes


def test_an_activation_that_others_wait_for_too_stays_behind() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"]),
        helper.make_node("Relu", ["y"], ["r"]),
        helper.make_node("Mul", ["y", "r"], ["out"]),
    ]
    proto = make_model(nodes, {"x": [1, 16, 8, 8]}, ["out"], {"w": weight(16, 16, 1, 1)})
    found = place(proto, {"x": (1, 16, 8, 8)})
    assert [n.op_type for n in found.model.proto.graph.node] == ["Conv"]


# chains


def chain(rank: int, *, bias: bool = True, role: str = "") -> Chain:
    zeros = np.zeros(16) if bias else None
    spatial = ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))
    return Chain(
        (
            Stage(np.zeros((rank, 16, 3, 3)), None, spatial, role),
            Stage(np.zeros((16, rank, 1, 1)), zeros, POINT, role),
        )
    )


def test_chains_are_told_apart_by_shape_alone() -> None:
    filled = chain(8)
    filled = Chain((filled.stages[0], filled.stages[1].with_bias(np.ones(16))))
    assert chain_key(chain(8)) == chain_key(filled) == chain_key(chain(8, role="named"))
    select = Select(tuple(range(16)), 16, POINT)
    train = TensorTrainStep(
        (np.zeros((1, 4, 4, 2)), np.zeros((2, 4, 4, 1))), 16, 16, LinearGeometry()
    )
    others = [
        chain(8), chain(12), chain(8, bias=False), Chain(chain(8).stages[::1][:1]),
        Chain((Branches((chain(8, bias=False), chain(8))),)),
        Chain((select, *chain(8).stages)), Chain((train,)),
    ]  # fmt: skip
    assert len({chain_key(c) for c in others}) == len(others)


@pytest.mark.parametrize("options", [{}, {"residual": True, "tail": "Relu"}], ids=str)
def test_a_probe_holds_copies_with_numbers_of_their_own(options: dict[str, Any]) -> None:
    where = place(convolution(**options), SHAPES)
    model, feed = probe(where, chain(8), 0)
    assert where.copies == 8
    outputs = Runtime(threads=1).session(model).run(feed)
    assert len(outputs) == where.copies
    values = list(outputs.values())
    assert {v.shape for v in values} == {(2, 16, 1, 1)}
    for i, one in enumerate(values):
        assert all(np.abs(one - other).max() > 1e-3 for other in values[:i])
    ops = [n.op_type for n in model.proto.graph.node]
    assert ops.count("Conv") == 3 * where.copies  # a neighbour and two stages
    assert ops.count("Add") == (where.copies if options else 0)


def test_a_probe_is_drawn_from_its_seed() -> None:
    where = place(convolution(), SHAPES)
    one, same, other = (probe(where, chain(8), s)[0].proto for s in (0, 0, 1))
    assert one.SerializeToString(deterministic=True) == same.SerializeToString(deterministic=True)
    assert one != other


def test_large_layers_stand_alone() -> None:
    proto = make_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"x": [1, 2048]}, ["y"], {"w": np.zeros((2048, 2048), np.float32)},
    )  # fmt: skip
    assert place(proto, {"x": (1, 2048)}).copies == 1
    assert place(convolution(), {"x": (64, 16, 64, 64)}).copies == 1


# every operator


def _lstm(states: bool) -> tuple[list[NodeProto], dict[str, AnyArray], dict[str, list[int]]]:
    inputs = ["x", "w", "r", "b", *(["lengths", "h0", "c0"] if states else [])]
    node = helper.make_node("LSTM", inputs, ["y", "h", "c"], "lstm", hidden_size=12)
    weights = {"w": weight(1, 48, 8), "r": weight(1, 48, 12), "b": weight(1, 96)}
    fed = {"x": [5, 2, 8], **({"h0": [1, 2, 12], "c0": [1, 2, 12]} if states else {})}
    return [node], weights, fed


def _with_lengths(proto: ModelProto) -> ModelProto:
    value = helper.make_tensor_value_info("lengths", TensorProto.INT32, [2])
    proto.graph.input.append(value)
    return proto


def _operators() -> dict[str, tuple[ModelProto, tuple[int, ...]]]:
    transposed = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])
    gemm = helper.make_node("Gemm", ["x", "w", "b"], ["z"], transB=1)
    relu = helper.make_node("Relu", ["z"], ["y"])
    product = helper.make_node("MatMul", ["x", "w"], ["z"])
    bias = helper.make_node("Add", ["z", "b"], ["y"])
    left = helper.make_node("MatMul", ["w", "x"], ["y"])
    line = helper.make_node("Conv", ["x", "w"], ["z"], pads=[1, 1])
    clip = helper.make_node("Clip", ["z", "low", "high"], ["y"])
    plain, weights, fed = _lstm(False)
    stateful, _, fed_states = _lstm(True)
    lstm = make_model(plain, fed, ["y"], weights)
    states = make_model(plain, fed_states, ["y"], weights)
    del states.graph.node[:]
    states.graph.node.extend(stateful)
    bounds = {"low": np.float32(0), "high": np.float32(6)}
    bounds = {k: np.asarray(v, np.float32) for k, v in bounds.items()}
    return {
        "transposed": (
            make_model([transposed], {"x": [1, 8, 4, 4]}, ["y"], {"w": weight(8, 6, 2, 2)}),
            (1, 8, 4, 4),
        ),
        "gemm": (
            make_model([gemm, relu], {"x": [3, 8]}, ["y"], {"w": weight(6, 8), "b": weight(6)}),
            (3, 8),
        ),
        "matmul": (
            make_model(
                [product, bias], {"x": [3, 5, 8]}, ["y"], {"w": weight(8, 6), "b": weight(6)}
            ),
            (3, 5, 8),
        ),
        "left": (make_model([left], {"x": [2, 8, 5]}, ["y"], {"w": weight(6, 8)}), (2, 8, 5)),
        "line": (
            make_model([line, clip], {"x": [2, 16, 9]}, ["y"], {"w": weight(6, 16, 3), **bounds}),
            (2, 16, 9),
        ),
        "lstm": (lstm, (5, 2, 8)),
        "states": (_with_lengths(states), (5, 2, 8)),
    }


@pytest.mark.parametrize("name", ["transposed", "gemm", "matmul", "left", "line", "lstm", "states"])
def test_every_operator_runs_in_a_probe_as_a_layer_and_as_a_chain(name: str) -> None:
    proto, shape = _operators()[name]
    where = place(proto, {"x": shape})
    stage = where.stage
    first = np.zeros((4, *stage.weight.shape[1:]))
    last = np.zeros((stage.outputs, 4, *(1,) * len(stage.geometry.kernel)))
    axes = len(stage.geometry.kernel)
    behind: Any = ConvGeometry.pointwise(axes) if axes else stage.geometry
    if not axes:
        behind = LinearGeometry(stage.geometry.output_axis, stage.geometry.output_axis)
    two = Chain((Stage(first, None, stage.geometry), Stage(last, stage.bias, behind)))
    session = Runtime(threads=1)
    for written in (where.chain, two):
        model, feed = probe(where, written, 0)
        outputs = session.session(model).run(feed)
        assert len(outputs) == where.copies
        assert all(np.isfinite(v).all() for v in outputs.values())


def test_the_numbers_of_the_network_play_no_part() -> None:
    """Zeros and denormals run at other speeds than what a chain will hold."""
    proto = convolution()
    proto.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(np.zeros((16, 16, 3, 3), np.float32), "conv_w")
    )
    where = place(proto, SHAPES)
    model, feed = probe(where, where.chain, 0)
    outputs = Runtime(threads=1).session(model).run(feed)
    assert all(np.abs(v).max() > 1e-2 for v in outputs.values())
