"""Hidden units of recurrent nodes: cutting one that nobody hears changes nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, helper
from onnx.reference import ReferenceEvaluator

from onnx_lowrank.channels.cut import cut_groups
from onnx_lowrank.channels.groups import ChannelGroup
from tests.fixtures_channels import Net, groups_of, silenced
from tests.fixtures_recurrent import GATES, HIDDEN, Kind, kinds, recurrent_net
from tests.support import checked, quick, relative, rng, run


def hidden(groups: list[ChannelGroup]) -> list[ChannelGroup]:
    """Groups of hidden units that may be cut."""
    return [g for g in groups if g.prunable and g.producers[0].op in GATES]


def attributes_of(proto: ModelProto) -> list[dict[str, object]]:
    return [
        {a.name: helper.get_attribute_value(a) for a in n.attribute}
        for n in proto.graph.node
        if n.op_type in GATES
    ]


def cut_some(kind: Kind, layers: int, seed: int) -> tuple[ModelProto, ModelProto, Net]:
    """A net whose readers do not hear some units of each layer, the same without them, and it."""
    proto, net = recurrent_net(kind, layers, seed)
    graph, groups = groups_of(proto)
    found = hidden(groups)
    assert [g.size for g in found] == [HIDDEN] * layers
    cuts, quiet = [], proto
    for number, group in enumerate(found):
        removed = sorted(rng(seed, number).permutation(HIDDEN)[: 1 + number % 3].tolist())
        cuts.append((group, [i for i in range(HIDDEN) if i not in removed]))
        quiet = silenced(quiet, group, removed)
    cut_groups(graph, cuts)
    small = checked(graph)
    assert [a["hidden_size"] for a in attributes_of(small)] == [len(keep) for _, keep in cuts]
    return quiet, small, net


@pytest.mark.full
@quick(120)
@given(kinds, st.integers(1, 3), st.integers(0, 99))
def test_units_that_nobody_hears_may_go(kind: Kind, layers: int, seed: int) -> None:
    quiet, small, net = cut_some(kind, layers, seed)
    feed = net.feed()
    for name, value in run(quiet, feed).items():
        assert relative(value, run(small, feed)[name]) < 1e-5


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("last", [False, True])
def test_with_the_batch_first(op: str, direction: str, last: bool) -> None:
    kind = Kind(op, direction, batch_first=True, last=last, start="constant")
    quiet, small, net = cut_some(kind, 2, 0)
    feed = net.feed()
    # ONNX Runtime has no kernels for this layout
    wanted, got = (ReferenceEvaluator(p).run(None, feed) for p in (quiet, small))
    for one, two in zip(wanted, got, strict=True):
        assert relative(one, two) < 1e-5


def test_both_directions_lose_the_same_units() -> None:
    proto, _ = recurrent_net(Kind("GRU", "bidirectional"))
    (group,) = hidden(groups_of(proto)[1])
    assert [p.name for p in group.producers] == ["gru1", "gru1 (states)"]
    assert group.producers[0].rows[1] == (1, 6, 11, 16, 21, 26)
    assert [c.name for c in group.consumers] == ["gru1 (states)", "matmul1"]
    assert group.consumers[1].columns[1] == (1, HIDDEN + 1)


def test_initial_states_of_zeros_are_left_out() -> None:
    _, small, _ = cut_some(Kind(start="computed zeros"), 1, 0)
    (node,) = [n for n in small.graph.node if n.op_type == "LSTM"]
    assert list(node.input[5:]) in ([], ["", ""])
    assert not any(n.op_type == "ConstantOfShape" for n in small.graph.node)


def test_an_encoders_last_state_that_starts_a_decoder_ties_their_units() -> None:
    net = Net(0, (4, 2, 3))
    weights = [net.numbers(1, 15, 3), net.numbers(1, 15, 5)]
    last = net.ops("GRU", "x", *weights, outs=["", ""], hidden_size=5)[1]
    weights = [net.numbers(1, 15, 3), net.numbers(1, 15, 5)]
    y = net.ops("GRU", "x", *weights, "", "", last, outs=["", ""], hidden_size=5)[0]
    net.op("MatMul", y, net.numbers(5, 2), out="y")
    proto = net.model()
    graph, groups = groups_of(proto)
    (group,) = hidden(groups)
    quiet = silenced(proto, group, [1, 3])
    cut_groups(graph, [(group, [0, 2, 4])])
    feed = net.feed()
    assert relative(run(quiet, feed)["y"], run(checked(graph), feed)["y"]) < 1e-5


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("output", "graph output"),
        ("states", "are none of its outputs"),
    ],
)
def test_what_has_to_stay(change: str, reason: str) -> None:
    net = Net(0, (4, 2, 3))
    weights = [net.numbers(1, 15, 3), net.numbers(1, 15, 5)]
    outs = ["y" if change == "output" else "", "last"]
    net.ops("GRU", "x", *weights, outs=outs, hidden_size=5)
    if change == "states":
        net.nodes[0].output[0] = ""
        net.op("Squeeze", "last", net.const(0), out="flat")
        net.op("Gemm", "flat", net.numbers(5, 2), out="y")
    (group,) = [g for g in groups_of(net.model())[1] if g.name == "gru1"]
    assert group.frozen is not None
    assert reason in group.frozen


def test_computed_weights_leave_the_units_alone_and_not_what_is_read() -> None:
    net = Net(0, (4, 2, 3))
    net.inputs["r"] = (1, 15, 5)
    x = net.op("MatMul", "x", net.numbers(3, 6))
    y = net.ops("GRU", x, net.numbers(1, 15, 6), "r", outs=["", ""], hidden_size=5)[0]
    net.op("MatMul", y, net.numbers(5, 2), out="y")
    groups = {g.name: g for g in groups_of(net.model())[1]}
    assert groups["matmul1"].prunable
    assert not any(g.prunable for g in groups.values() if g.producers[0].op == "GRU")


def test_a_state_of_one_layer_that_is_read_ties_it_to_no_other() -> None:
    proto, _ = recurrent_net(replace(Kind("RNN"), last=True), 3)
    assert len(hidden(groups_of(proto)[1])) == 3


def test_a_joined_state_that_nobody_reads_may_be_of_another_width() -> None:
    proto, net = recurrent_net(replace(Kind("RNN"), last=True), 3)
    graph, groups = groups_of(proto)
    quiet = silenced(proto, hidden(groups)[0], [2])
    cut_groups(graph, [(hidden(groups)[0], [0, 1, 3, 4])])
    small, feed = checked(graph), net.feed()
    assert not any(n.op_type == "Concat" for n in small.graph.node)
    for name, value in run(quiet, feed).items():
        assert relative(value, run(small, feed)[name]) < 1e-5


def test_all_states_that_are_read_together_tie_their_units() -> None:
    net = Net(0, (4, 2, 3))
    ends, x, width = [], "x", 3
    for _ in range(2):
        weights = [net.numbers(1, 5, width), net.numbers(1, 5, 5)]
        y, last = net.ops("RNN", x, *weights, outs=["", ""], hidden_size=5)
        x, width = net.op("Squeeze", y, net.const(1)), 5
        ends.append(last)
    both = net.op("ReduceMean", net.op("Concat", *ends, axis=0), axes=[0], keepdims=0)
    net.op("Gemm", both, net.numbers(5, 2), out="y")
    proto = net.model()
    graph, groups = groups_of(proto)
    (group,) = hidden(groups)
    quiet = silenced(proto, group, [0])
    cut_groups(graph, [(group, [1, 2, 3, 4])])
    feed = net.feed()
    assert np.allclose(run(quiet, feed)["y"], run(checked(graph), feed)["y"], atol=1e-6)
