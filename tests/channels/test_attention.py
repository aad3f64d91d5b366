"""Blocks of attention: found in every form that exporters write, or left alone with a reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper

from onnx_lowrank.analysis.cost import tensor_shapes
from onnx_lowrank.channels.attention import find_attention, one_channel_a_column
from onnx_lowrank.channels.groups import find_channel_groups
from onnx_lowrank.channels.pairs import Attention, Pair
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import find_layers
from onnx_lowrank.modelfile.loading import load
from tests import fixtures_models as fm
from tests.fixtures_attention import FORMS, ROTARY, Form, attention


def found(proto: ModelProto) -> tuple[Graph, dict[str, tuple[int, ...]], list[Attention]]:
    model = load(proto)
    graph = Graph(model)
    feed = {
        i.name: np.zeros([d.dim_value or 1 for d in i.type.tensor_type.shape.dim], np.float32)
        for i in proto.graph.input
    }
    every = [t.name for n in graph.nodes for t in n.outputs]
    sizes = {name: value.shape for name, value in feed.items()}
    shapes = tensor_shapes(model, sizes, feed, fm.ONE_THREAD, wished=every)
    return graph, shapes, find_attention(graph, shapes, find_layers(graph)[0])


def edited(form: Form, op: str, **changes: Any) -> ModelProto:
    """A block with another attribute, or another operator, in the only node of an operator."""
    proto = attention(form)
    (node,) = [n for n in proto.graph.node if n.op_type == op]
    for name, value in changes.items():
        for attribute in [a for a in node.attribute if a.name == name]:
            node.attribute.remove(attribute)
        node.attribute.append(helper.make_attribute(name, value))
    return proto


@pytest.mark.parametrize("name", FORMS)
def test_finds_queries_keys_values_and_their_reader(name: str) -> None:
    form = FORMS[name]
    _, _, (block,) = found(attention(form))
    pairs = block.scoring, block.mixing
    assert isinstance(pairs[0], Pair), pairs[0]
    assert isinstance(pairs[1], Pair), pairs[1]
    kept, shared = form.keys or form.heads, form.heads // (form.keys or form.heads)
    assert pairs[0].first.places.shape == (kept, shared, form.width)
    assert pairs[0].second.places.shape == (kept, 1, form.width)
    assert pairs[1].first.places.shape == (kept, 1, form.value_width)
    assert pairs[1].second.places.shape == (kept, shared, form.value_width)
    assert not pairs[0].reads
    assert pairs[1].reads
    rows = [np.sort(p.places, None) for p in (pairs[0].first, pairs[0].second, pairs[1].first)]
    counts = [form.heads * form.width, kept * form.width, kept * form.value_width]
    starts = np.cumsum([0, *counts[:-1]]) if form.fused else [0, 0, 0]
    for own, start, count in zip(rows, starts, counts, strict=True):
        np.testing.assert_array_equal(own, np.arange(start, start + count))


@pytest.mark.parametrize("name", FORMS)
def test_channels_at_one_position_of_all_heads_are_one_channel(name: str) -> None:
    form = FORMS[name]
    graph, shapes, (block,) = found(attention(form))
    heads = one_channel_a_column(block.pairs, find_layers(graph)[0])
    groups = [
        g for g in find_channel_groups(graph, shapes, heads)
        if g.frozen is None and g.size in (form.width, form.value_width)
    ]  # fmt: skip
    # a tensor with an axis of three is only rectangular while all three keep the same width
    assert len(groups) == (1 if form.fused == "axis" else 2)
    assert sum(len(g.products) for g in groups) == 1
    assert sum(len(g.consumers) for g in groups) == 1


def test_without_heads_channels_of_attention_stay_frozen() -> None:
    graph, shapes, _ = found(attention(FORMS["torch"]))
    assert all(g.frozen for g in find_channel_groups(graph, shapes))


def test_an_operator_that_is_no_move_is_named() -> None:
    proto = attention(Form())
    product = next(n for n in proto.graph.node if n.output[0] == "scores")
    turned = helper.make_node("Relu", [product.input[0]], ["turned"], "rotary")
    product.input[0] = "turned"
    proto.graph.node.insert(list(proto.graph.node).index(product), turned)
    _, _, (block,) = found(proto)
    assert block.scoring == "Relu rotary stands between its layers and the product"
    assert isinstance(block.mixing, Pair)


@pytest.mark.parametrize("name", ROTARY)
def test_rotary_embeddings_are_named_and_leave_values_alone(name: str) -> None:
    _, _, (block,) = found(attention(ROTARY[name]))
    assert isinstance(block.scoring, str)
    assert block.scoring.startswith("a rotary embedding (")
    assert "turns pairs of their channels by position" in block.scoring
    assert isinstance(block.mixing, Pair)


def test_mixed_values_that_are_read_twice_are_named() -> None:
    proto = attention(Form())
    proto.graph.node.append(helper.make_node("Relu", ["mixed"], ["seen"]))
    proto.graph.output.append(helper.make_tensor_value_info("seen", 1, None))
    _, _, (block,) = found(proto)
    assert block.mixing == "no single layer reads what it mixes"


def test_layers_that_share_a_weight_are_named() -> None:
    proto = attention(Form(biased=False))
    weights = {n.output[0]: n for n in proto.graph.node if n.op_type == "MatMul"}
    weights["k"].input[1] = weights["q"].input[1]
    _, _, (block,) = found(proto)
    assert block.scoring == "n_q shares its weight with other layers"


def test_a_softmax_over_another_axis_is_no_attention() -> None:
    assert found(edited(Form(), "Softmax", axis=2))[2] == []


def test_a_softmax_of_scores_of_a_layer_is_no_attention() -> None:
    assert found(fm.classifier())[2] == []
