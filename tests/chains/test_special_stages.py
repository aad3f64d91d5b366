"""Steps that are no single product: what they compute, cost, and refuse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, helper

from onnx_lowrank.analysis.cost import model_cost, tensor_shapes
from onnx_lowrank.analysis.time_model import workload
from onnx_lowrank.chains.chain import Chain, Stage
from onnx_lowrank.chains.geometry import ConvGeometry, LinearGeometry
from onnx_lowrank.chains.protocol import Step
from onnx_lowrank.chains.special_stages import Branches, Select, TensorTrainStep
from onnx_lowrank.layers import find_layers
from onnx_lowrank.layers.writer import apply_chain, update_chain
from onnx_lowrank.modelfile.model import Model
from tests.support import (
    Array,
    checked,
    conv_model,
    graph_of,
    make_model,
    quick,
    relative,
    replaced,
    rng,
    run,
)

SQUARE = ConvGeometry((3, 3), (2, 1), (1, 1), (1, 0, 1, 1))
POINT = ConvGeometry.pointwise(2)
LINEAR = LinearGeometry()


def stage(
    outputs: int, inputs: int, geometry: ConvGeometry, seed: int, bias: bool = False
) -> Stage:
    random = rng(outputs, inputs, seed)
    weight = random.normal(size=(outputs, inputs // geometry.groups, *geometry.kernel))
    return Stage(weight, random.normal(size=outputs) if bias else None, geometry, f"s{seed}")


def train(
    modes: list[tuple[int, int]], ranks: list[int], outputs: int, inputs: int
) -> TensorTrainStep:
    edges = [1, *ranks, 1]
    cores = tuple(
        rng(k).normal(size=(edges[k], a, b, edges[k + 1])) for k, (a, b) in enumerate(modes)
    )
    return TensorTrainStep(cores, inputs, outputs, LINEAR, rng(9).normal(size=outputs))


def bias_of(chain: Chain) -> Array | None:
    """The bias of a chain as its outputs see it."""
    last = chain.last
    if isinstance(last, Select):
        before = chain.stages[-2].bias
        return None if before is None else before[list(last.index)]
    return last.bias


def conv_of(chain: Chain, geometry: ConvGeometry) -> ModelProto:
    """The plain convolution that a chain equals."""
    bias = bias_of(chain)
    kernel = chain.compose().astype(np.float32)
    return conv_model(geometry, kernel, None if bias is None else bias.astype(np.float32))


SHUFFLED = Chain(
    (
        Select((3, 1, 0, 2), 4, POINT, "order"),
        stage(6, 4, ConvGeometry((1, 1), (1, 1), (1, 1), (0, 0, 0, 0), 2), 1),
        Select((0, 2, 4, 1, 3, 5), 6, POINT, "shuffle"),
        stage(4, 6, SQUARE, 2),
        stage(6, 4, ConvGeometry((1, 1), (1, 1), (1, 1), (0, 0, 0, 0), 2), 3, bias=True),
        Select((5, 4, 3, 2, 1, 0), 6, POINT, "back"),
    )
)
BRANCHED = Chain(
    (
        Branches(
            (
                Chain((Select((2, 0), 4, SQUARE), stage(5, 2, SQUARE, 1))),
                Chain((stage(5, 4, SQUARE, 4),)),
                Chain((stage(3, 4, SQUARE, 2), stage(5, 3, POINT, 3, bias=True))),
            )
        ),
    )
)
NESTED = Chain((stage(4, 4, POINT, 7), *BRANCHED.stages))


@pytest.mark.parametrize("chain", [SHUFFLED, BRANCHED, NESTED], ids=["shuffle", "sum", "nested"])
@pytest.mark.parametrize("opset", [11, 17])
def test_convolutions_equal_their_kernel(chain: Chain, opset: int) -> None:
    whole = conv_of(chain, SQUARE)
    weights = chain.compose().astype(np.float32)
    bias = bias_of(chain)
    assert bias is not None
    proto = conv_model(SQUARE, weights, bias.astype(np.float32), opset=opset)
    x = rng(1).normal(size=(3, 4, 7, 8)).astype(np.float32)
    again = replaced(proto, "conv", chain)
    assert relative(run(whole, {"x": x})["y"], run(again, {"x": x})["y"]) < 1e-5
    shape = tuple(chain.stages[0].output_shape(x.shape))
    for step in chain.stages[1:]:
        shape = tuple(step.output_shape(shape))
    assert shape == run(whole, {"x": x})["y"].shape


@pytest.mark.parametrize("chain", [SHUFFLED, BRANCHED, NESTED], ids=["shuffle", "sum", "nested"])
def test_costs_are_those_of_the_written_model(chain: Chain) -> None:
    proto = replaced(conv_of(chain, SQUARE), "conv", chain)
    shape = (1, 4, 7, 8)
    model = Model(proto)
    cost = model_cost(model, tensor_shapes(model, {"x": shape}))
    assert chain.macs(shape) == cost.macs
    assert chain.parameters == cost.parameters
    assert workload(chain, shape) > chain.macs(shape)


TRAINS = {
    "two": train([(3, 4), (5, 2)], [3], 15, 8),
    "three": train([(2, 3), (3, 2), (2, 2)], [2, 3], 12, 12),
    "padded": train([(4, 3), (4, 4)], [5], 13, 11),
    "one": train([(5, 7)], [], 5, 7),
}


@pytest.mark.parametrize("step", TRAINS.values(), ids=TRAINS)
@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
@pytest.mark.parametrize("opset", [9, 11, 17])
def test_tensor_trains_equal_their_matrix(step: TensorTrainStep, op: str, opset: int) -> None:
    matrix = step.dense(1)[0]
    assert matrix.shape == (step.outputs, step.inputs)
    weights = {"w": matrix.T.astype(np.float32).copy()}
    shape: list[int | None]
    if op == "Gemm":
        weights["b"] = np.zeros(step.outputs, np.float32)
        nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="layer")]
        shape, size = [None, step.inputs], (6, step.inputs)
    else:
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")]
        shape, size = [None, None, step.inputs], (2, 3, step.inputs)
    x = rng(4).normal(size=size).astype(np.float32)
    proto = make_model(nodes, {"x": shape}, ["y"], weights, opset=opset)
    again = replaced(proto, "layer", Chain((step,)))
    assert step.bias is not None
    wanted = run(proto, {"x": x})["y"] + step.bias
    assert relative(wanted, run(again, {"x": x})["y"]) < 1e-5


def test_a_tensor_train_of_an_input_of_unknown_rank() -> None:
    step = TRAINS["padded"]
    weights = {"w": step.dense(1)[0].T.astype(np.float32).copy()}
    nodes = [
        helper.make_node("Identity", ["x"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["y"], name="layer"),
    ]
    proto = make_model(nodes, {"x": [None, None, None, step.inputs]}, ["y"], weights)
    x = rng(4).normal(size=(2, 1, 3, step.inputs)).astype(np.float32)
    again = replaced(proto, "layer", Chain((step.with_bias(None),)))
    assert relative(run(proto, {"x": x})["y"], run(again, {"x": x})["y"]) < 1e-5


@quick(30)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4), st.data())
def test_tensor_train_cost(modes: list[tuple[int, int]], data: st.DataObject) -> None:
    ranks = [data.draw(st.integers(1, 4)) for _ in modes[1:]]
    outputs, inputs = (int(np.prod(side)) for side in zip(*modes, strict=True))
    step = train(modes, ranks, outputs, inputs)
    weights = {"w": step.dense(1)[0].T.astype(np.float32).copy()}
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")
    proto = make_model([node], {"x": [5, inputs]}, ["y"], weights)
    model = Model(replaced(proto, "layer", Chain((step,))))
    cost = model_cost(model, tensor_shapes(model, {"x": (5, inputs)}))
    assert step.macs((5, inputs)) == cost.macs
    assert step.parameters == cost.parameters


@pytest.mark.parametrize("chain", [SHUFFLED, BRANCHED], ids=["shuffle", "sum"])
def test_numbers_and_picks_can_be_changed(chain: Chain) -> None:
    def other(step: Step) -> Step:
        if isinstance(step, Select):
            return Select(step.index[::-1], step.inputs, step.geometry, step.role)
        if isinstance(step, Branches):
            return Branches(
                tuple(Chain(tuple(other(s) for s in c.stages)) for c in step.chains), step.role
            )
        assert isinstance(step, Stage)
        return Stage(step.weight[::-1], step.bias, step.geometry, step.role)

    changed = Chain(tuple(other(s) for s in chain.stages))
    proto = conv_of(chain, SQUARE)
    graph = graph_of(proto)
    (layer,) = find_layers(graph)[0]
    written = apply_chain(graph, layer, chain)
    assert written.biased
    update_chain(graph, written, changed)
    x = rng(1).normal(size=(2, 4, 7, 8)).astype(np.float32)
    wanted = run(conv_of(changed, SQUARE), {"x": x})["y"]
    assert relative(wanted, run(checked(graph), {"x": x})["y"]) < 1e-5
    assert relative(run(proto, {"x": x})["y"], wanted) > 1e-2


def test_groups_pick_from_themselves() -> None:
    select = Select((1, 2, 5), 6, POINT, groups=3)
    np.testing.assert_array_equal(select.dense(3)[..., 0, 0], [[[0, 1]], [[1, 0]], [[0, 1]]])
    grouped = ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 3)
    chain = Chain((select, stage(6, 3, grouped, 1)))
    assert chain.groups == 3
    proto = conv_model(grouped, chain.compose().astype(np.float32), None)
    x = rng(2).normal(size=(2, 6, 5, 5)).astype(np.float32)
    again = replaced(proto, "conv", chain)
    assert relative(run(proto, {"x": x})["y"], run(again, {"x": x})["y"]) < 1e-5
    with pytest.raises(ValueError, match="is outside its group"):
        Select((1, 1, 5), 6, POINT, groups=3)


def test_what_does_not_fit_together() -> None:
    one, two = stage(5, 4, SQUARE, 1), stage(6, 4, SQUARE, 1)
    with pytest.raises(ValueError, match="branches have different inputs and outputs"):
        Branches((Chain((one,)), Chain((two,))))
    biased = Chain((stage(5, 4, SQUARE, 2, bias=True),))
    with pytest.raises(ValueError, match="only the last branch"):
        Branches((biased, Chain((one,))))
    with pytest.raises(ValueError, match="cannot have a bias"):
        Select((0,), 2, POINT).with_bias(np.zeros(1))
    with pytest.raises(ValueError, match="only the last stage"):
        Chain(
            (
                stage(4, 4, POINT, 1, bias=True),
                Select((0, 1, 2, 3), 4, POINT),
                stage(4, 4, POINT, 1),
            )
        )


@pytest.mark.parametrize("op", ["MatMul", "left", "Gemm", "transA"])
def test_picking_rows_and_columns(op: str) -> None:
    """Channels lie where the product contracts them."""
    axis = -2 if op in ("left", "transA") else -1
    geometry = LinearGeometry(axis, -2 if op == "left" else -1)
    chain = Chain((Select((3, 0, 2), 5, geometry), stage(4, 3, geometry, 1)))
    matrix = chain.compose().astype(np.float32)
    operands = ["w", "x"] if op == "left" else ["x", "w"]
    attributes = {"transA": 1} if op == "transA" else {}
    kind = "MatMul" if op in ("MatMul", "left") else "Gemm"
    node = helper.make_node(kind, operands, ["y"], name="layer", **attributes)
    size = (6, 5) if axis == -1 else (5, 6)
    weights = {"w": matrix if op == "left" else matrix.T.copy()}
    proto = make_model([node], {"x": [None, None]}, ["y"], weights)
    x = rng(4).normal(size=size).astype(np.float32)
    again = replaced(proto, "layer", chain)
    assert again.graph.node[0].op_type == "Gather"
    assert relative(run(proto, {"x": x})["y"], run(again, {"x": x})["y"]) < 1e-5


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_types(dtype: type[np.floating]) -> None:
    chain = Chain((*BRANCHED.stages,)).astype(dtype)
    branches = chain.stages[0]
    assert isinstance(branches, Branches)
    arrays = [s.weight for c in branches.chains for s in c.stages if isinstance(s, Stage)]
    assert {a.dtype for a in arrays} == {np.dtype(dtype)}
    assert TRAINS["two"].astype(dtype).cores[0].dtype == dtype
    assert branches.bias is not None
    assert branches.bias.dtype == dtype


def test_without_bias() -> None:
    assert SHUFFLED.unbiased().stages[4].bias is None
    assert BRANCHED.unbiased().last.bias is None
