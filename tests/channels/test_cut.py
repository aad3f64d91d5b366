from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, numpy_helper

from onnx_lowrank.analysis.cost import tensor_shapes
from onnx_lowrank.chains.chain import Chain, Stage
from onnx_lowrank.channels.cut import cut_channels, cut_groups, gather_input
from onnx_lowrank.channels.groups import ChannelGroup, Consumer, find_channel_groups
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import PlacedLayer, find_layers, state_products
from onnx_lowrank.layers.writer import apply_chain, set_states
from onnx_lowrank.modelfile.model import Model
from tests.fixtures_channels import TOPOLOGIES, Net, build, groups_of, random_net, silenced
from tests.support import AnyArray, checked, graph_of, quick, relative, rng, run


def some(group: ChannelGroup, seed: int) -> tuple[list[int], list[int]]:
    """Random channels to keep, and those to remove."""
    count = int(rng(seed).integers(1, group.size))
    removed = sorted(rng(seed, 1).permutation(group.size)[:count].tolist())
    return [i for i in range(group.size) if i not in removed], removed


def assert_same(wanted: ModelProto, got: ModelProto, net: Net, *batches: int) -> None:
    for batch in batches:
        feed = net.feed(batch)
        outputs = run(got, feed)
        for name, value in run(wanted, feed).items():
            assert relative(value, outputs[name]) < 1e-5, (name, batch)


def batches(proto: ModelProto) -> tuple[int, ...]:
    """The batch size of the search and another, where the model takes it."""
    return (2,) if any(n.op_type in ("Resize", "Expand") for n in proto.graph.node) else (2, 3)


def products(graph: Graph) -> list[PlacedLayer]:
    """All layers, and the products of recurrent ones with their states."""
    layers = find_layers(graph)[0]
    return [*layers, *state_products(graph, layers)]


def cuttable(groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
    return [g for g in groups if g.prunable and g.size > 1]


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_cutting_is_silencing(name: str) -> None:
    proto, net = build(name)
    count = len(cuttable(groups_of(proto)[1]))
    assert count
    for index in range(count):
        graph, groups = groups_of(proto)
        group = cuttable(groups)[index]
        keep, removed = some(group, index)
        cut_channels(graph, group, keep)
        small = checked(graph)
        assert small.ByteSize() < proto.ByteSize()
        assert_same(silenced(proto, group, removed), small, net, *batches(proto))


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_all_groups_at_once(name: str) -> None:
    proto, net = build(name, seed=1)
    graph, groups = groups_of(proto)
    cuts, quiet = [], proto
    for seed, group in enumerate(cuttable(groups)):
        keep, removed = some(group, seed)
        cuts.append((group, keep))
        quiet = silenced(quiet, group, removed)
    cut_groups(graph, cuts)
    assert_same(quiet, checked(graph), net, *batches(proto))


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_one_group_after_the_other(name: str) -> None:
    proto, net = build(name, seed=2)
    graph, groups = groups_of(proto)
    for seed, wanted in enumerate([g.name for g in cuttable(groups)]):
        group = next((g for g in cuttable(groups) if g.name == wanted), None)
        if group is None:  # a single channel that is left takes others with it
            continue
        keep, removed = some(group, seed)
        before = checked(graph)
        shapes = cut_channels(graph, group, keep).shapes
        after = checked(graph)
        assert_same(silenced(before, group, removed), after, net, *batches(proto))
        groups = find_channel_groups(graph, shapes)
        # what is left is a model like any other
        fed = {k: v.shape for k, v in net.feed().items()}
        inferred = tensor_shapes(Model(after), fed)
        assert {t: shapes[t] for t in inferred if t in shapes} == {
            t: inferred[t] for t in inferred if t in shapes
        }
        assert groups_of(after)[1] == groups


@pytest.mark.full
@quick(150)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=10), st.integers(0, 99))
def test_random_nets(choices: list[int], seed: int) -> None:
    proto, net = random_net(choices, seed)
    graph, groups = groups_of(proto)
    cuts, quiet = [], proto
    for number, group in enumerate(cuttable(groups)):
        if rng(seed, number, 5).random() < 0.7:
            keep, removed = some(group, seed + number)
            cuts.append((group, keep))
            quiet = silenced(quiet, group, removed)
    cut_groups(graph, cuts)
    assert_same(quiet, checked(graph), net, 2, 3)


def test_shapes_that_the_file_states_are_forgotten() -> None:
    proto, _ = build("residual")
    proto = onnx.shape_inference.infer_shapes(proto)
    stated = {v.name for v in proto.graph.value_info}
    graph, groups = groups_of(proto)
    (group,) = [g for g in groups if g.name == "conv2"]
    cut_channels(graph, group, [0])
    after = {v.name for v in checked(graph).graph.value_info}
    assert stated - after == {"conv2_out", "batchnormalization2_out", "relu2_out"}
    onnx.shape_inference.infer_shapes(checked(graph), strict_mode=True)


def test_the_rest_stays_bit_for_bit() -> None:
    proto, _ = build("residual")
    graph, groups = groups_of(proto)
    (group,) = [g for g in groups if g.name == "conv2"]
    cut_channels(graph, group, [0, 3])
    after = checked(graph)
    assert [(n.name, n.op_type, n.output) for n in after.graph.node] == [
        (n.name, n.op_type, n.output) for n in proto.graph.node
    ]
    assert after.graph.node == proto.graph.node
    old = {t.name: t for t in proto.graph.initializer}
    changed = {t.name for t in after.graph.initializer if t != old[t.name]}
    readers = {n.name for n in proto.graph.node if changed & set(n.input)}
    assert readers == {"conv2", "batchnormalization2", "conv3"}
    kernel = tensor(after, "conv2", 1)
    np.testing.assert_array_equal(kernel, tensor(proto, "conv2", 1)[[0, 3]])
    np.testing.assert_array_equal(tensor(after, "conv3", 1), tensor(proto, "conv3", 1)[:, [0, 3]])


def tensor(proto: ModelProto, node: str, index: int) -> AnyArray:
    (name,) = [n.input[index] for n in proto.graph.node if n.name == node]
    (found,) = [t for t in proto.graph.initializer if t.name == name]
    return numpy_helper.to_array(found)


def test_shared_constants_stay_shared() -> None:
    proto, _ = build("shared_weight")
    graph, groups = groups_of(proto)
    cut_channels(graph, groups[0], [1, 2, 4])
    after = checked(graph)
    assert len(after.graph.initializer) == len(proto.graph.initializer)
    one, two = (n.input[1] for n in after.graph.node if n.name in ("conv2", "conv3"))
    assert one == two


@pytest.mark.parametrize("name", ["plain", "residual", "flatten", "reshape_explicit", "recurrent",
                                  "transposed", "left_product", "channels_last"])  # fmt: skip
@pytest.mark.parametrize("biased", [False, True])
def test_new_weights_for_the_consumers(name: str, biased: bool) -> None:
    proto, net = build(name)
    for index in range(len(cuttable(groups_of(proto)[1]))):
        graph, groups = groups_of(proto)
        group = cuttable(groups)[index]
        keep, removed = some(group, index)
        loud = graph_of(silenced(proto, group, removed))
        new: dict[str, tuple[Any, Any]] = {}
        expected = graph_of(checked(loud))
        for consumer in group.consumers:
            layer = next(x for x in products(expected) if x.name == consumer.name)
            columns = sorted(c for i in keep for c in consumer.columns[i])
            bias = rng(index, 8).normal(size=layer.shape[0]) if biased else None
            stage = layer.stage
            changed = Stage(2 * stage.weight, bias, stage.geometry)
            if consumer.name.endswith("(states)"):
                set_states(expected, layer, changed.weight, bias)
            else:
                apply_chain(expected, layer, Chain((changed,)))
            new[consumer.name] = (2 * stage.weight[:, columns], bias)
        shapes = cut_channels(graph, group, keep, new).shapes
        assert_same(checked(expected), checked(graph), net, 2)
        names = {g.name for g in find_channel_groups(graph, shapes) if g.prunable}
        assert group.name in names or len(keep) == 1


@pytest.mark.parametrize(
    ("name", "layer", "columns"),
    [
        ("residual", "conv4", 6),
        ("plain", "conv1", 3),  # reads the graph input
        ("inception", "conv7", 7),  # behind an LRN
        ("flatten", "gemm1", 54),
        ("reshape_explicit", "matmul2", 10),
        ("left_product", "matmul1", 5),
        ("transposed", "convtranspose1", 6),
        ("one_dimensional", "conv2", 6),
        ("recurrent", "gru1", 6),
        ("padded_shortcut_old", "conv2", 4),
    ],
)
def test_a_consumer_reads_fewer_channels_through_a_gather(
    name: str, layer: str, columns: int
) -> None:
    proto, net = build(name)
    kept = rng(3).permutation(columns)[: columns // 2]
    removed = sorted(set(range(columns)) - set(kept.tolist()))
    reader = Consumer(layer, "", "", tuple((c,) for c in range(columns)))
    group = ChannelGroup("", columns, (), (reader,), (), None, None, ())  # type: ignore[arg-type]
    quiet = silenced(proto, group, removed)
    graph = graph_of(proto)
    gathered = gather_input(graph, layer, kept.tolist())
    after = checked(graph)
    assert [n.op_type for n in after.graph.node if gathered in n.output] == ["Gather"]
    assert len(after.graph.node) == len(proto.graph.node) + 1
    assert_same(quiet, after, net, 2, 3)
    # and with new numbers
    graph, expected = graph_of(proto), graph_of(quiet)
    (seen,) = [x for x in find_layers(expected)[0] if x.name == layer]
    bias = rng(4).normal(size=seen.shape[0])
    stage = seen.stage
    apply_chain(expected, seen, Chain((Stage(3 * stage.weight, bias, stage.geometry),)))
    gather_input(graph, layer, kept.tolist(), (3 * stage.weight[:, kept], bias))
    assert_same(checked(expected), checked(graph), net, 2)


def test_misuse_is_named() -> None:
    proto, _ = build("grouped")
    graph, groups = groups_of(proto)
    first, last = groups[0], groups[-1]
    before = checked(graph)
    with pytest.raises(ValueError, match="'conv4' cannot be cut: graph output y"):
        cut_channels(graph, last, [0])
    with pytest.raises(ValueError, match="'conv1' has channels 0 to 1"):
        cut_channels(graph, first, [0, 2])
    with pytest.raises(ValueError, match="nothing would be left of conv1_out"):
        cut_channels(graph, first, [])
    with pytest.raises(ValueError, match="'conv3' neither makes nor reads these channels"):
        cut_channels(graph, first, [0], {"conv3": (np.zeros(1), None)})
    with pytest.raises(ValueError, match="different searches"):
        cut_groups(graph, [(first, [0]), (groups_of(proto)[1][1], [0])])
    with pytest.raises(ValueError, match="'nowhere' is not a layer"):
        gather_input(graph, "nowhere", [0])
    with pytest.raises(ValueError, match="'conv2' has 4 groups"):
        gather_input(graph, "conv2", [0])
    with pytest.raises(ValueError, match="'conv1' reads channels 0 to 2"):
        gather_input(graph, "conv1", [3])
    with pytest.raises(ValueError, match=r"takes a weight of \(12, 1, 3, 3\), not \(12, 2, 3, 3\)"):
        cut_channels(groups_of(proto)[0], first, [0], {"conv2": (np.zeros((12, 2, 3, 3)), None)})
    assert checked(graph) == before
    cut_channels(graph, first, [0])
    with pytest.raises(ValueError, match="changed since its channel groups were found"):
        cut_channels(graph, first, [1])


def test_groups_fit_any_copy_of_their_graph() -> None:
    proto, net = build("residual")
    _, groups = groups_of(proto)
    copy = graph_of(proto)
    cut_channels(copy, groups[0], [0, 1])
    assert_same(silenced(proto, groups[0], [2, 3, 4, 5]), checked(copy), net, 2)
