"""Hidden units of recurrent nets pruned: the stacked problem of their readers, and whole models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from onnx_lowrank.engine.analyse import Analysis
from onnx_lowrank.pruning.pruner import Pruner
from tests import fixtures_models as fm
from tests.analyses import analysis_of
from tests.fixtures_recurrent import GATES, HIDDEN, STEPS, Kind, recurrent_net
from tests.support import Array, graph_of, relative, rng, run

MODELS = Path(__file__).resolve().parents[2] / "models"
KINDS = [Kind("LSTM", "bidirectional"), Kind("GRU", before_reset=True), Kind("RNN", "reverse")]


def samples(seed: int = 0, count: int = 60) -> Array:
    """Sequences ``(steps, count, inputs)``."""
    return fm.float32(rng(seed, 3).normal(size=(STEPS, count, 3)))


def analysed(proto: ModelProto) -> Analysis:
    feeds = [{"x": samples(seed, 2)} for seed in range(60)]
    return analysis_of(proto, "prune_channels{gather=false}", feeds)


def units(pruner: Pruner) -> list[str]:
    return [n for n, p in pruner.prunables.items() if p.group and p.group.producers[0].op in GATES]


def lost(pruner: Pruner, name: str, kept: list[int]) -> float:
    """Loss of keeping some units, reader by reader, by explicit least squares."""
    total = 0.0
    for layer, positions in pruner.prunables[name].readers:
        moments = pruner._prepared.moments[layer.name]
        weights, error, energy = layer.stage.matrices, 0.0, 0.0
        if moments.outputs is not None:
            weights = moments.outputs.weighed(weights, 1)
        for group, weight in enumerate(weights):
            sigma = moments.sigma(group)
            assert sigma is not None
            values, vectors = np.linalg.eigh(sigma)
            rows = (vectors * np.sqrt(values)).T  # rows with this covariance
            left = rows[:, positions[kept].reshape(-1)]
            y = rows @ weight.T
            error += float(np.sum((y - left @ np.linalg.lstsq(left, y, rcond=None)[0]) ** 2))
            energy += float(np.sum(y**2))
        whole = pruner._prepared.moments.totals.get(layer.name, 0.0)
        total += error / (whole if whole > 0 and moments.outputs is None else energy)
    return total


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.op)
def test_the_stacked_problem_of_all_readers_against_brute_force(kind: Kind) -> None:
    analysis = analysed(recurrent_net(kind)[0])
    pruner = analysis.pruner("params")
    (name,) = units(pruner)
    readers = [layer.name for layer, _ in pruner.prunables[name].readers]
    assert readers == [f"{kind.op.lower()}1 (states)", "matmul1"]
    found = pruner.orders[name]
    for count in range(1, HIDDEN):
        wanted = lost(pruner, name, sorted(found.order[:count].tolist()))
        assert abs(found.losses[count] - wanted) < 1e-6 * max(wanted, 1e-3)
    # the first unit to go is the best of all
    each = [lost(pruner, name, [i for i in range(HIDDEN) if i != j]) for j in range(HIDDEN)]
    assert found.order[-1] == int(np.argmin(each))


def silent(proto: ModelProto, unit: int, width: int) -> ModelProto:
    """The model whose readers do not hear one unit."""
    changed = ModelProto()
    changed.CopyFrom(proto)
    nodes = {n.name: n for n in changed.graph.node}
    node = next(n for n in changed.graph.node if n.op_type in GATES)
    for tensor in changed.graph.initializer:
        value = numpy_helper.to_array(tensor).copy()
        if tensor.name == node.input[2]:
            value[:, :, unit] = 0
        elif tensor.name == nodes["matmul1"].input[1]:
            value[unit::HIDDEN] = 0
            assert len(value) == width
        else:
            continue
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return changed


@pytest.mark.parametrize("kind", [*KINDS, Kind("GRU"), Kind("LSTM", peepholes=True),
                                  Kind("LSTM", start="constant")], ids=str)  # fmt: skip
def test_a_unit_that_nobody_hears_goes_first_and_changes_nothing(kind: Kind) -> None:
    proto = silent(recurrent_net(kind)[0], 3, HIDDEN * kind.directions)
    pruner = analysed(proto).pruner("params")
    (name,) = units(pruner)
    assert pruner.orders[name].order[-1] == 3
    assert pruner.orders[name].losses[HIDDEN - 1] < 1e-9
    graph = graph_of(proto)
    pruner.cuts.apply(graph, {name: np.array([0, 1, 2, 4])})
    small, feed = graph.to_model().proto, {"x": samples(9, 2)}
    assert relative(run(proto, feed)["y"], run(small, feed)["y"]) < 1e-4


def test_readers_are_solved_again_but_not_a_gate_that_reads_something_else() -> None:
    """Without ``linear_before_reset`` the third gate reads the states times the reset gate."""
    for before_reset in (False, True):
        proto, _ = recurrent_net(Kind("GRU", before_reset=before_reset))
        pruner = analysed(proto).pruner("params")
        (name,) = units(pruner)
        graph = graph_of(proto)
        pruner.cuts.apply(graph, {name: np.array([0, 1, 3])})
        made = graph.to_model().proto
        weights = []
        for model in (proto, made):
            (node,) = [n for n in model.graph.node if n.op_type == "GRU"]
            values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
            weights.append(values[node.input[2]].reshape(3, -1, values[node.input[2]].shape[2]))
        old = weights[0][:, [0, 1, 3]][:, :, [0, 1, 3]]
        same = [bool(np.allclose(old[gate], weights[1][gate], atol=1e-6)) for gate in range(3)]
        assert same == [False, False, not before_reset]


@pytest.mark.full
def test_a_budget_on_parameters_reaches_into_the_nodes() -> None:
    options: dict[str, Any] = {"passes": "prune_channels", "samples": 200}
    with np.load(MODELS / "digits.npz") as data:
        calib, test = {"image": data["image"][:300]}, data["test.image"][:300]
    result = fm.quick_compress(MODELS / "digits_lstm.onnx", calib=calib, target="params=0.6",
                               **options)  # fmt: skip
    assert result.report.after.parameters <= 0.6 * result.report.before.parameters
    sizes = [
        next(a.i for a in n.attribute if a.name == "hidden_size")
        for n in result.model.graph.node
        if n.op_type == "LSTM"
    ]
    assert len(sizes) == 3
    assert max(sizes) < 128
    with open(MODELS / "digits_lstm.onnx", "rb") as file:
        original = ModelProto.FromString(file.read())
    before, after = (run(p, {"image": test})["logits"] for p in (original, result.model))
    assert np.mean(before.argmax(1) == after.argmax(1)) > 0.97
