from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper

from onnx_lowrank.channels.atoms import Atoms
from onnx_lowrank.channels.groups import ChannelGroup, find_channel_groups
from onnx_lowrank.channels.labels import UnknownOperatorError, reshape_labels
from tests.fixtures_channels import Net, build, groups_of
from tests.support import graph_of, quick, rng

Outline = tuple[str, int, list[str], list[str]]


def outlines(groups: list[ChannelGroup]) -> list[Outline]:
    return [
        (g.name, g.size, [p.name for p in g.producers], [c.name for c in g.consumers])
        for g in groups
        if g.prunable
    ]


def reasons(proto: ModelProto) -> dict[str, str]:
    return {g.name: g.frozen for g in groups_of(proto)[1] if g.frozen is not None}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plain", [("conv1", 6, ["conv1"], ["conv2"]), ("conv2", 8, ["conv2"], ["conv3"])]),
        # a residual stage is one group
        ("residual", [("conv1", 6, ["conv1", "conv3", "conv5"], ["conv2", "conv4", "conv6"]),
                      ("conv2", 5, ["conv2"], ["conv3"]), ("conv4", 5, ["conv4"], ["conv5"])]),
        ("projection", [("conv1", 4, ["conv1"], ["conv2", "conv4"]),
                        ("conv2", 5, ["conv2"], ["conv3"]),
                        ("conv3", 8, ["conv3", "conv4"], ["conv5"])]),
        # the padding widens the sum: five of its channels come from one convolution alone
        ("padded_shortcut", [("conv1", 4, ["conv1", "conv2"], ["conv2", "conv3"]),
                             ("conv2", 5, ["conv2"], ["conv3"])]),
        ("dense", [("conv1", 4, ["conv1"], ["conv2", "conv3", "conv4", "conv5"]),
                   ("conv2", 3, ["conv2"], ["conv3", "conv4", "conv5"]),
                   ("conv3", 3, ["conv3"], ["conv4", "conv5"]),
                   ("conv4", 3, ["conv4"], ["conv5"])]),
        ("inception", [("conv1", 5, ["conv1"], ["conv2", "conv3", "conv5"]),
                       ("conv2", 3, ["conv2"], ["conv6"]), ("conv3", 4, ["conv3"], ["conv4"]),
                       ("conv4", 6, ["conv4"], ["conv6"]), ("conv5", 2, ["conv5"], ["conv6"])]),
        # depthwise layers neither make nor read a channel
        ("depthwise", [("conv1", 6, ["conv1"], ["conv3"]), ("conv3", 5, ["conv3"], ["conv5"])]),
        # a channel of a grouped convolution goes from each of its groups
        ("grouped", [("conv1", 2, ["conv1"], ["conv2"]), ("conv2", 3, ["conv2"], ["conv3"]),
                     ("conv3", 3, ["conv3"], ["conv4"])]),
        ("squeeze_excite", [("conv1", 8, ["conv1", "conv3"], ["conv2", "conv4"]),
                            ("conv2", 3, ["conv2"], ["conv3"])]),
        ("shared_weight", [("conv1", 6, ["conv1", "conv2", "conv3"],
                            ["conv2", "conv3", "conv4"])]),
        ("shared_constants", [("conv1", 6, ["conv1"], ["conv2"]),
                              ("conv2", 6, ["conv2"], ["conv3"])]),
        ("recurrent", [("matmul1", 6, ["matmul1"], ["gru1"]),
                       ("gru1", 4, ["gru1", "gru1 (states)"], ["gru1 (states)", "matmul2"])]),
        ("pixel_shuffle", [("conv1", 3, ["conv1"], ["conv2"]), ("conv2", 5, ["conv2"], ["conv3"]),
                           ("conv3", 4, ["conv3"], ["conv4"])]),
    ],
)  # fmt: skip
def test_groups(name: str, expected: list[Outline]) -> None:
    assert outlines(groups_of(build(name)[0])[1]) == expected


def test_columns_have_offsets_in_a_concatenation() -> None:
    _, groups = groups_of(build("dense")[0])
    group = groups[2]
    assert [c.columns for c in group.consumers] == [((7,), (8,), (9,))] * 2
    assert group.producers[0].rows == ((0,), (1,), (2,))


def test_columns_are_blocks_behind_a_flatten() -> None:
    _, (group, *_) = groups_of(build("flatten")[0])
    (consumer,) = group.consumers
    assert consumer.columns == tuple(tuple(range(9 * i, 9 * i + 9)) for i in range(6))
    _, (group, *_) = groups_of(build("flatten_channels_last")[0])
    (consumer,) = group.consumers
    assert consumer.columns == tuple(tuple(range(i, 384, 6)) for i in range(6))


def test_rows_and_columns_of_grouped_layers() -> None:
    _, (first, second, third, _) = groups_of(build("grouped")[0])
    assert first.producers[0].rows == ((0, 2, 4, 6), (1, 3, 5, 7))
    assert first.consumers[0].columns == ((0,), (1,))
    assert second.producers[0].rows == ((0, 3, 6, 9), (1, 4, 7, 10), (2, 5, 8, 11))
    assert second.consumers[0].columns == ((0, 3), (1, 4), (2, 5))
    assert third.producers[0].rows == ((0, 3), (1, 4), (2, 5))
    _, groups = groups_of(build("transposed")[0])
    up = next(g for g in groups if g.name == "convtranspose1")
    assert up.consumers[0].columns == ((0,), (1,), (2,), (3,))
    assert up.producers[0].rows == ((0, 4), (1, 5), (2, 6), (3, 7))


def test_carried_constants() -> None:
    _, (group, *_) = groups_of(build("affine")[0])
    assert sorted(group.carried) == [
        ("add1_out", 0, 1), ("conv1_out", 2, 1), ("div1_out", 1, 1),
        ("instancenormalization1_out", 1, 1), ("instancenormalization1_out", 2, 1),
        ("mul1_out", 1, 1), ("prelu1_out", 1, 1),
    ]  # fmt: skip


def frozen_net(*ops: Any, shape: tuple[int | None, ...] = (None, 3, 8, 8)) -> ModelProto:
    """One convolution, then operators ``(op, attributes, constants ...)``, then another."""
    net = Net(0, shape)
    x = net.conv("x", 3, 6)
    for op, attrs, *constants in ops:
        x = net.op(op, x, *(net.const(c, dtype=c.dtype) for c in constants), **attrs)
    net.op("Conv", x, net.numbers(4, 6, 1, 1), out="y")
    return net.model()


ONES = np.ones(6, np.float32)


@pytest.mark.parametrize(
    ("op", "reason"),
    [
        (("Softmax", {"axis": 1}), "Softmax softmax1 across channels"),
        (("LRN", {"size": 3}), "LRN lrn1 across channels"),
        (("LayerNormalization", {"axis": 1}, np.ones((6, 8, 8), np.float32)),
         "LayerNormalization layernormalization1 across channels"),
        (("CumSum", {}, np.array(1)), "CumSum cumsum1 across channels"),
        (("Slice", {}, np.array([0]), np.array([-99]), np.array([1]), np.array([-1])),
         "the step of Slice slice1"),
        (("Resize", {}, np.zeros(0, np.float32), np.array([1, 1, 1, 1], np.float32)), None),
        (("Trilu", {}), "Trilu trilu1"),
        (("ScatterElements", {"axis": 1}, np.zeros((1, 1, 1, 1), np.int64),
          np.zeros((1, 1, 1, 1), np.float32)), "ScatterElements scatterelements1"),
    ],
)  # fmt: skip
def test_what_mixes_channels_freezes_them(op: Any, reason: str | None) -> None:
    assert reasons(frozen_net(op)).get("conv1") == reason


def test_graph_outputs_are_frozen() -> None:
    net = Net(0)
    net.head(net.relu(net.conv("x", 3, 6)), 6)
    assert reasons(net.model(outputs=("y", "relu1_out"))) == {
        "conv1": "graph output relu1_out",
        "conv2": "graph output y",
    }


def test_sums_with_a_graph_input_are_frozen() -> None:
    net = Net(0)
    net.head(net.op("Add", net.conv("x", 3, 3), "x"), 3)
    assert reasons(net.model()) == {"conv1": "graph input x", "conv2": "graph output y"}


def test_products_of_two_activations_are_frozen() -> None:
    net = Net(0)
    x = net.op("MatMul", net.conv("x", 3, 6), net.conv("x", 3, 6))
    net.head(x, 6)
    assert reasons(net.model())["conv1"] == "MatMul matmul1 without a constant weight"


def test_a_product_may_sum_over_two_channels() -> None:
    net = Net(0, (None, 8, 8, 8))
    last = net.op("Transpose", net.conv("x", 8, 2), perm=[0, 2, 3, 1])
    ends = (net.const(np.array([n]), dtype=np.int64) for n in (0, 2, 2))
    net.head(net.op("MatMul", last, net.op("Slice", "x", *ends)), 8)
    assert reasons(net.model())["conv1"] == "MatMul matmul1 without a constant weight"


@pytest.mark.parametrize(("opset", "frozen"), [(11, True), (13, False)])
def test_softmax_has_another_axis_from_opset_13_on(opset: int, frozen: bool) -> None:
    net = Net(0)
    net.op("Conv", net.op("Softmax", net.conv("x", 3, 6)), net.numbers(4, 6, 1, 1), out="y")
    assert ("conv1" in reasons(net.model(opset))) is frozen


def test_channels_as_rows_of_a_product_are_frozen() -> None:
    net = Net(0, (None, 3, 8))
    x = net.op("MatMul", net.conv("x", 3, 6, axes=1), net.numbers(8, 5))
    net.op("Conv", x, net.numbers(4, 6, 1), out="y")
    assert reasons(net.model())["conv1"] == "channels on another axis of MatMul matmul1"


def test_calculated_shapes_freeze() -> None:
    net = Net(0)
    x = net.conv("x", 3, 6)
    count = net.op("Gather", net.op("Shape", x), net.const(np.array(1)), axis=0)
    net.op("Mul", net.head(x, 6), net.op("Cast", count, to=1), out="z")
    assert reasons(net.model(outputs=("z",)))["conv1"] == "Mul mul1 computes with their number"


def test_indices_made_of_channels_freeze_them() -> None:
    net = Net(0)
    table = net.numbers(9, 4)
    index = net.op("Cast", net.op("GlobalAveragePool", net.conv("x", 3, 6)), to=7)
    picked = net.op("Gather", table, index, axis=0)
    net.op("ReduceMean", picked, axes=[1, 2, 3], out="y")
    assert reasons(net.model())["conv1"] == "Gather gather1"


def captured() -> ModelProto:
    """An If that reads a feature map from outside."""
    net = Net(0)
    x = net.conv("x", 3, 6)
    value = helper.make_tensor_value_info("t", TensorProto.FLOAT, None)
    branches: dict[str, Any] = {
        f"{side}_branch": helper.make_graph([helper.make_node(op, [x], ["t"])], side, [], [value])
        for side, op in (("then", "Relu"), ("else", "Neg"))
    }
    flag = net.const(np.array(True), dtype=bool)
    net.head(net.op("If", flag, **branches), 6)
    return net.model()


def test_subgraphs_freeze_what_they_capture() -> None:
    assert reasons(captured())["conv1"] == "If if1"


def test_foreign_operators_freeze() -> None:
    proto = frozen_net(("Relu", {}))
    (relu,) = [n for n in proto.graph.node if n.op_type == "Relu"]
    relu.domain = "com.example"
    proto.opset_import.append(helper.make_opsetid("com.example", 1))
    assert reasons(proto)["conv1"].startswith(("Relu relu1", "the unknown shape"))


def test_unknown_shapes_freeze_every_layer() -> None:
    proto, _ = build("residual")
    groups = find_channel_groups(graph_of(proto), {})
    assert not any(g.prunable for g in groups)
    assert {g.name: g.size for g in groups} == {
        "conv1": 6, "conv2": 5, "conv3": 6, "conv4": 5, "conv5": 6, "conv6": 4,
    }  # fmt: skip
    assert all(str(g.frozen).startswith("the unknown shape of") for g in groups)


def test_training_mode_and_computed_weights_freeze() -> None:
    net = Net(0)
    x = net.conv("x", 3, 6)
    kernel = net.op("RandomNormalLike", net.numbers(5, 6, 1, 1))
    net.head(net.op("Conv", x, kernel), 5)
    assert reasons(net.model())["conv1"] == "Conv conv2 without a constant weight"


def test_no_names_no_crash() -> None:
    proto, _ = build("squeeze_excite")
    for node in proto.graph.node:
        node.name = ""
    groups = groups_of(proto)[1]
    assert outlines(groups)[0][:2] == ("conv1_out", 8)
    assert len({g.name for g in groups}) == len(groups)


@quick(60)
@given(st.data())
def test_labels_are_reshaped_as_data_is(data: st.DataObject) -> None:
    factors = data.draw(st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=5))
    total = int(np.prod(factors))
    cuts = sorted(data.draw(st.sets(st.integers(1, max(len(factors) - 1, 1)), max_size=3)))
    old = [int(np.prod(p)) for p in np.split(np.array(factors), cuts)]
    new = data.draw(st.permutations(factors))
    vary = [n if data.draw(st.booleans()) else 1 for n in old]
    labels = rng(total, len(cuts)).integers(0, 4, vary)
    found = reshape_labels(labels, old, new)
    full = np.broadcast_to(labels, old).reshape(new)
    np.testing.assert_array_equal(np.broadcast_to(found, new), full)
    with pytest.raises(UnknownOperatorError):
        reshape_labels(labels, old, [*new, 2])


def test_atoms() -> None:
    atoms = Atoms()
    a, b, c = atoms.fresh(2), atoms.fresh(2), atoms.fresh(2)
    atoms.freeze(b[:1], "first")
    atoms.tie(a, b)
    assert atoms.reason(a[0]) == "first"
    assert atoms.reason(a[1]) is None
    np.testing.assert_array_equal(atoms.roots(np.array([[b[1], c[0]]])), [[a[1], c[0]]])
    fixed = atoms.fixed("input")
    atoms.tie(np.array([c[0], fixed]), np.array([fixed, b[1]]))
    assert [atoms.reason(x) for x in (a[1], c[0], c[1])] == ["input", "input", None]
    assert atoms.root(int(c[0])) == c[0]  # fixed atoms tie nothing to each other
    atoms.tie(a[:1], c[:1])
    assert atoms.reason(a[0]) == atoms.reason(c[0]) == "first"
