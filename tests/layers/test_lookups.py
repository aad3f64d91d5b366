from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnx_lowrank.chains.chain import Chain
from onnx_lowrank.chains.lookup_geometry import LookupGeometry
from onnx_lowrank.layers import Ineligible, PlacedLayer, find_layers
from onnx_lowrank.layers.writer import apply_chain
from tests.fixtures_text import ROWS, WIDTH, looked_up, readings, table, text_model, text_net
from tests.support import AnyArray, checked, graph_of, only_placed_layer, relative, run

E = table()
IDS = readings(3)


def node(op: str, inputs: Sequence[str], output: str, **attributes: object) -> NodeProto:
    return helper.make_node(op, inputs, [output], name=output, **attributes)


def model(*nodes: NodeProto, **weights: AnyArray) -> ModelProto:
    made = [node("Gather", ["table", "ids"], "e"), *nodes]
    shape: tuple[None, ...] = ()
    return text_model(
        made, {"ids": ["N", 10]}, {made[-1].output[0]: shape}, {"table": E, **weights}
    )


def found(proto: ModelProto) -> tuple[list[PlacedLayer], list[Ineligible]]:
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    return find_layers(graph_of(proto))


def test_a_lookup_is_a_layer_of_its_table() -> None:
    layer = only_placed_layer(looked_up(E))
    assert (layer.op, layer.name, layer.input, layer.output) == ("Gather", "words", "ids", "y")
    assert layer.shape == (WIDTH, ROWS)
    assert layer.geometry == LookupGeometry()
    np.testing.assert_array_equal(layer.stage.weight, E.T)
    assert layer.stage.bias is None
    assert layer.value.outline.parameters == E.size
    assert layer.value.outline.macs((7, 10)) == 0
    assert layer.value.outline.output_shape((7, 10)) == (7, 10, WIDTH)


def test_its_responses_are_rows_of_the_output() -> None:
    geometry = LookupGeometry()
    y = run(looked_up(E), {"ids": IDS})["y"]
    assert geometry.rows(IDS.shape) == IDS.size
    assert geometry.positions(IDS.shape) == IDS.shape[1]
    rows = geometry.responses(y)
    np.testing.assert_array_equal(rows[0], E[IDS.reshape(-1)])
    with pytest.raises(NotImplementedError, match="count the rows"):
        geometry.patches(IDS)


@pytest.mark.parametrize("bias", [False, True])
def test_another_table_takes_its_place(bias: bool) -> None:
    """A chain of one lookup keeps the node; where it has a bias, an Add follows."""
    graph = graph_of(looked_up(E))
    (layer,) = find_layers(graph)[0]
    offset = np.arange(WIDTH, dtype=float) if bias else None
    apply_chain(graph, layer, Chain((layer.stage.with_matrices(2 * E.T, offset),)))
    edited = checked(graph)
    wanted = 2 * E[IDS] + (0 if offset is None else offset)
    assert relative(wanted, run(edited, {"ids": IDS})["y"]) < 1e-6
    assert [n.op_type for n in edited.graph.node] == ["Gather", "Add"][: 1 + bias]


def test_two_lookups_of_one_table_share_it() -> None:
    again = [node("Neg", ["ids"], "m"), node("Gather", ["table", "m"], "f")]
    layers, others = found(model(*again, node("Add", ["e", "f"], "y")))
    assert [(la.name, la.sharers) for la in layers] == [("e", 2), ("f", 2)]
    assert not others


#: what is left alone, and why
LEFT: dict[str, tuple[ModelProto, str]] = {
    "tied head": (
        model(node("Transpose", ["table"], "t", perm=[1, 0]), node("MatMul", ["e", "t"], "y")),
        "its table is tied: other nodes use it too, and not to look rows up",
    ),
    "used as it is": (
        model(node("ReduceMean", ["table"], "m", axes=[0]), node("Add", ["e", "m"], "y")),
        "its table is tied: other nodes use it too, and not to look rows up",
    ),
    "read at a constant place too": (
        model(node("Gather", ["table", "i"], "s"), node("Add", ["e", "s"], "y"), i=np.array([3])),
        "its table is tied: other nodes use it too, and not to look rows up",
    ),
    "places counted by a shape": (
        model(
            node("Shape", ["ids"], "n"),
            node("Gather", ["n", "one"], "length"),
            node("Range", ["zero", "length", "step"], "places"),
            node("Gather", ["rows", "places"], "p"),
            node("Add", ["e", "p"], "y"),
            one=np.array(1),
            zero=np.array(0),
            step=np.array(1),
            rows=2 * E,
        ),
        "the rows that it reads follow from positions, not from data",
    ),
    "places counted by a sum": (
        model(
            node("CumSum", ["ids", "axis"], "places"),
            node("Gather", ["rows", "places"], "p"),
            node("Add", ["e", "p"], "y"),
            axis=np.array(1),
            rows=2 * E,
        ),
        "the rows that it reads follow from positions, not from data",
    ),
    "quantized": (
        model(
            node("DequantizeLinear", ["q", "scale"], "d"),
            node("Gather", ["d", "ids"], "p"),
            node("Add", ["e", "p"], "y"),
            q=E.astype(np.int8),
            scale=np.float32(0.1),
        ),
        "its weight is quantized (DequantizeLinear)",
    ),
}


@pytest.mark.parametrize("case", LEFT)
def test_tables_left_alone_have_a_reason(case: str) -> None:
    proto, reason = LEFT[case]
    layers, others = found(proto)
    assert [o.reason for o in others if o.op == "Gather"] == [reason]
    assert len([la for la in layers if la.op == "Gather"]) == (0 if "tied" in reason else 1)


def test_a_table_that_callers_may_feed_is_left_alone() -> None:
    proto = looked_up(E)
    proto.graph.input.append(helper.make_tensor_value_info("table", TensorProto.FLOAT, E.shape))
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(1), "unlisted"))
    layers, others = find_layers(graph_of(proto))
    assert not layers
    assert "callers may feed another value" in others[0].reason


#: Gathers that are no lookups: nobody is told of them
NONE: dict[str, ModelProto] = {
    "channels": model(node("Gather", ["e", "i"], "y", axis=2), i=np.array([2, 0])),
    "columns of a table": model(
        node("Gather", ["wide", "ids"], "c", axis=1),
        node("Shape", ["c"], "y"),
        wide=np.ascontiguousarray(E),
    ),
    "few rows": model(
        node("Gather", ["kinds", "ids"], "k"), node("Add", ["e", "k"], "y"), kinds=E[:2]
    ),
    "whole numbers": model(node("Gather", ["map", "ids"], "y"), map=np.arange(800).reshape(400, 2)),
    "constant numbers": model(
        node("Gather", ["rows", "i"], "s"),
        node("Add", ["e", "s"], "y"),
        rows=2 * E,
        i=np.array([3, 4, 5] * 3 + [6]),
    ),
    "a shape": model(
        node("Shape", ["e"], "n"), node("Gather", ["n", "i"], "y"), i=np.array([0, 1])
    ),
}


@pytest.mark.parametrize("case", NONE)
def test_other_gathers_are_none_of_our_business(case: str) -> None:
    layers, others = found(NONE[case])
    assert [la.name for la in layers if la.op == "Gather"] == ["e"]
    assert not [o for o in others if o.op == "Gather"]


def test_lookups_in_subgraphs_are_not_read() -> None:
    inner = helper.make_graph(
        [node("Gather", ["rows", "ids"], "p")],
        "inner",
        [],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, None)],
    )
    branch = helper.make_node("If", ["yes"], ["q"], then_branch=inner, else_branch=inner)
    proto = model(branch, node("Add", ["e", "q"], "y"), rows=2 * E)
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    layers, others = found(proto)
    assert [la.name for la in layers] == ["e"]
    assert not others


def test_the_numbers_may_come_from_other_nodes() -> None:
    proto = text_net()
    cast = node("Cast", ["ids"], "small", to=TensorProto.INT32)
    clipped = node("Max", ["small", "least"], "from0")
    proto.graph.node[0].input[1] = "from0"
    rest = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend([cast, clipped, *rest])
    proto.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int32), "least"))
    layers = find_layers(graph_of(proto))[0]
    assert (layers[0].name, layers[0].input) == ("words", "from0")
