"""Derivatives of a recurrent node's state by its gates, against finite differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import helper

from onnx_lowrank.analysis.gates import GateSquares, reads_gates
from onnx_lowrank.chains.state_geometry import StateGeometry
from onnx_lowrank.layers import find_layers, state_products
from onnx_lowrank.linalg.gate_metric import GateMetric
from tests.fixtures_recurrent import HIDDEN, Kind, recurrent_net
from tests.support import Array, graph_of, relative, rng, run

STEP = 1e-6


def sigmoid(a: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-a)))


def lstm(a: Array, b: Array, state: Array, cell: Array) -> tuple[Array, Array]:
    i, o, f, g = np.split(a + b, 4, axis=-1)
    cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(cell), cell


def gru(a: Array, b: Array, state: Array, cell: Array) -> tuple[Array, Array]:
    (az, ar, an), (bz, br, bn) = np.split(a, 3, axis=-1), np.split(b, 3, axis=-1)
    z, r = sigmoid(az + bz), sigmoid(ar + br)
    return (1 - z) * np.tanh(an + r * bn) + z * state, cell


def rnn(a: Array, b: Array, state: Array, cell: Array) -> tuple[Array, Array]:
    return np.tanh(a + b), cell


STEPS: dict[str, Callable[[Array, Array, Array, Array], tuple[Array, Array]]] = {
    "LSTM": lstm, "GRU": gru, "RNN": rnn
}  # fmt: skip


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("op", STEPS)
def test_against_finite_differences(op: str, biased: bool) -> None:
    proto, net = recurrent_net(Kind(op, biased=biased, before_reset=True))
    graph = graph_of(proto)
    (layer,) = [la for la in find_layers(graph)[0] if la.value.recurrent]
    (states,) = state_products(graph, [layer])
    x = net.feed(3)["x"].astype(float)
    inner, outer = layer.stage, states.stage
    zero = np.zeros(inner.outputs)
    state, cell = np.zeros((3, HIDDEN)), np.zeros((3, HIDDEN))
    made, squares = [], np.zeros((2, inner.outputs))
    for row in x:
        a = row @ inner.weight.T + (zero if inner.bias is None else inner.bias)
        b = state @ outer.weight.T + (zero if outer.bias is None else outer.bias)
        for k, shift in enumerate(STEP * np.eye(inner.outputs)):
            for half, pair in enumerate(((shift, 0 * shift), (0 * shift, shift))):
                ends = [
                    STEPS[op](a + s * pair[0], b + s * pair[1], state, cell)[0] for s in (1, -1)
                ]
                squares[half, k] += np.sum(((ends[0] - ends[1]) / (2 * STEP)) ** 2)
        state, cell = STEPS[op](a, b, state, cell)
        made.append(state)
    reader = GateSquares(graph, layer, states, 3)
    reader.update(x, np.stack(made)[:, None], 3)
    metrics = reader.metrics()
    for half, name in enumerate((layer.name, states.name)):
        wanted = np.maximum(squares[half] / squares[half].mean(), 1e-4)
        assert relative(wanted, metrics[name].weights.reshape(-1)) < 1e-6
    # and what is written down of it is all there is to it
    again = GateSquares(graph, layer, states, 3)
    again.sums.restore(reader.sums.state())
    assert (again.metrics()[states.name].weights == metrics[states.name].weights).all()
    with pytest.raises(ValueError, match="for"):
        again.sums.restore({**reader.sums.state(), "sums": np.zeros(2)})


def test_both_directions_and_layouts_agree() -> None:
    proto, net = recurrent_net(Kind("GRU", "bidirectional"))
    graph = graph_of(proto)
    (layer,) = [la for la in find_layers(graph)[0] if la.value.recurrent]
    (states,) = state_products(graph, [layer])
    x = net.feed()["x"]
    shown = graph.extract(graph.input_types(), ["states0"]).proto
    y = run(shown, {"x": x})["states0"]
    reader = GateSquares(graph, layer, states, 2)
    reader.update(x, y, 2)
    first, _ = recurrent_net(Kind("GRU", "bidirectional", batch_first=True))
    turned = graph_of(first)
    (layer2,) = [la for la in find_layers(turned)[0] if la.value.recurrent]
    (states2,) = state_products(turned, [layer2])
    other = GateSquares(turned, layer2, states2, 2)
    other.update(x.swapaxes(0, 1), np.moveaxis(y, 2, 0), 2)
    for name, metric in reader.metrics().items():
        assert relative(metric.weights, other.metrics()[name].weights) < 1e-6


@pytest.mark.parametrize("before_reset", [False, True])
def test_reset_gates_of_both_kinds_by_runs_of_the_node(before_reset: bool) -> None:
    """A shift of the last step's gates moves the last state; the node itself is run."""
    proto, net = recurrent_net(Kind("GRU", before_reset=before_reset, start="constant"))
    graph = graph_of(proto)
    (layer,) = [la for la in find_layers(graph)[0] if la.value.recurrent]
    (states,) = state_products(graph, [layer])
    start = graph.constant(layer.nodes[0].inputs[5].name)
    assert start is not None
    inner, outer, x = layer.stage, states.stage, net.feed()["x"][0].astype(float)
    n, state = inner.outputs // 3, start[0].astype(float)
    assert inner.bias is not None
    assert outer.bias is not None

    def step(shift: Array) -> Array:
        a = x @ inner.weight.T + inner.bias + shift
        b = state @ outer.weight.T
        z = sigmoid(a[:, :n] + b[:, :n] + outer.bias[:n])
        r = sigmoid(a[:, n : 2 * n] + b[:, n : 2 * n] + outer.bias[n : 2 * n])
        last = slice(2 * n, None)
        if before_reset:
            read = r * (b[:, last] + outer.bias[last])
        else:
            read = (r * state) @ outer.weight[last].T + outer.bias[last]
        return np.asarray((1 - z) * np.tanh(a[:, last] + read) + z * state)

    made = step(np.zeros(3 * n))
    one = run(graph.extract(graph.input_types(), ["states0"]).proto, net.feed())["states0"][0, 0]
    assert relative(made, one) < 1e-5  # the step is the node's
    wanted = [np.sum(((step(s) - step(-s)) / (2 * STEP)) ** 2) for s in STEP * np.eye(3 * n)]
    reader = GateSquares(graph, layer, states, 2)
    found, _ = reader._squares(
        x @ inner.weight.T + inner.bias, state @ outer.weight.T + outer.bias, made, state,
        outer.weight,
    )  # fmt: skip
    assert relative(np.array(wanted), found.sum(axis=0)) < 1e-5


@pytest.mark.parametrize(("activations", "able"), [(["Relu"], True), (["Elu"], False)])
def test_other_activations_have_no_metric(activations: list[str], able: bool) -> None:
    proto, _ = recurrent_net(Kind("RNN"))
    (node,) = [n for n in proto.graph.node if n.op_type == "RNN"]
    node.attribute.append(helper.make_attribute("activations", activations))
    graph = graph_of(proto)
    (states,) = state_products(graph, [la for la in find_layers(graph)[0] if la.value.recurrent])
    assert reads_gates(graph, states) is able


def test_peepholes_have_no_metric() -> None:
    graph = graph_of(recurrent_net(Kind(peepholes=True))[0])
    (states,) = state_products(graph, [la for la in find_layers(graph)[0] if la.value.recurrent])
    assert not reads_gates(graph, states)


def test_a_metric_scales_outputs_and_back() -> None:
    metric = GateMetric.of(rng(1).uniform(0.5, 2, size=(2, 3)))
    assert metric is not None
    values = rng(2).normal(size=(2, 4, 3))
    assert relative(values, metric.plain(metric.weighed(values, 2), 2)) < 1e-12
    weight = rng(3).normal(size=(6, 5))
    grouped = metric.weighed(weight.reshape(2, 3, 5), 1).reshape(6, 5)
    assert relative(grouped, metric.weighed(weight, 0)) < 1e-12
    mask = np.array([True, False, True, True, False, True])
    assert (
        relative(metric.weighed(weight, 0)[mask], metric.taken(mask).weighed(weight[mask], 0))
        < 1e-12
    )
    assert GateMetric.of(np.zeros((1, 3))) is None
    assert GateMetric.of(np.full((1, 3), np.nan)) is None


@pytest.mark.parametrize("from_zeros", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_states_of_the_step_before(batch_first: bool, from_zeros: bool) -> None:
    y = rng(4).normal(size=(3, 2, 2, 5))  # steps, directions, batch, hidden
    wanted = [[], []]
    for batch in range(2):
        for step in range(3):
            for d, before in enumerate((step - 1, step + 1)):
                if 0 <= before < 3:
                    wanted[d].append(y[before, d, batch])
                elif from_zeros:
                    wanted[d].append(np.zeros(5))
    geometry = StateGeometry(
        groups=2, backwards=(False, True), batch_first=batch_first, from_zeros=from_zeros
    )
    given = np.moveaxis(y, 2, 0) if batch_first else y
    found = geometry.patches(given)
    assert (found == np.array(wanted)).all()
    assert geometry.positions(given.shape) == 2 + from_zeros
    assert geometry.rows(given.shape) == 6
    index = np.array([0, 1])
    assert (geometry.patches(given, index).reshape(2, 2, 2, 5)
            == found.reshape(2, 2, -1, 5)[:, :, index]).all()  # fmt: skip
