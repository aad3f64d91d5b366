from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper

from onnx_lowrank.analysis.accumulator import Accumulator
from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.chains.chain import Chain
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import find_layers
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.refit import behind_relu as refit_relu
from onnx_lowrank.refit.behind_relu import DrawnRows, ceiling_behind, fitted_behind_relu
from onnx_lowrank.refit.refit import Refit
from tests import fixtures_models as fm
from tests.refit.test_refit import CONVS, SEEN, UNSEEN, Case, halves
from tests.support import rng

RANK = 3


def compressed(proto: ModelProto | None = None) -> Case:
    case = Case(proto or fm.residual_net(), dict.fromkeys(CONVS[:3], RANK), kept=CONVS[3:])
    assert len(case.tasks) == 4
    return case


def rectified_error(case: Case, name: str) -> float:
    """Energy of it in a tensor inside of the net, on pictures that nothing was fitted to."""
    values = []
    for proto in (case.graph.to_model().proto, case.proto):
        shown = ModelProto()
        shown.CopyFrom(proto)
        shown.graph.output.append(helper.make_tensor_value_info(name, 1, None))
        values.append(fm.run(shown, {"x": UNSEEN})[name])
    return fm.relative(values[0], values[1]) ** 2


def test_it_is_better_behind_the_relu() -> None:
    linear, fitted = compressed(), compressed()
    linear.refit()
    done = fitted.refit(behind_relu=True)
    assert rectified_error(fitted, "a") < 0.97 * rectified_error(linear, "a")
    assert fitted.error() < linear.error()
    assert [r.behind_relu is not None for r in done] == [True, True, True, False]


def test_what_it_says_is_what_it_took() -> None:
    done = compressed().refit(behind_relu=True)
    found = [r.behind_relu for r in done if r.behind_relu is not None]
    assert all(b.error <= b.linear for b in found)
    assert any(b.error < 0.99 * b.linear for b in found)


def test_the_linear_solution_stays_where_nothing_is_gained() -> None:
    """Full rank: there is no error to trade."""
    case, again = (Case(fm.residual_net(), dict.fromkeys(CONVS)) for _ in range(2))
    done = again.refit(behind_relu=True)
    case.refit()
    assert again.error() < 1.1 * case.error() < 1e-4
    assert all(r.behind_relu.error < 1e-9 for r in done if r.behind_relu is not None)


def test_the_same_each_time() -> None:
    def result() -> tuple[list[Refit], bytes]:
        case = compressed()
        done = case.refit(behind_relu=True)
        return done, case.graph.to_model().proto.SerializeToString(deterministic=True)

    assert result() == result()


def test_few_rows_do_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer than columns; what was not drawn speaks through the moments."""
    monkeypatch.setattr(refit_relu, "BYTES", 64 * 4 * (27 + 24))
    linear, fitted = compressed(), compressed()
    linear.refit()
    fitted.refit(behind_relu=True)
    assert fitted.error() < 1.05 * linear.error()


def test_a_layer_is_not_solved_from_too_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    step = refit_relu._Fit.step
    monkeypatch.setattr(
        refit_relu._Fit, "step", lambda fit, chain: (steps.append(1), step(fit, chain))[1]
    )
    compressed().refit(behind_relu=True)
    assert steps
    steps.clear()
    monkeypatch.setattr(refit_relu, "ROWS_EACH", 10**9)
    compressed().refit(behind_relu=True)
    assert not steps


def test_a_layer_without_bias_is_left_to_the_linear_solution() -> None:
    done = compressed(fm.residual_net(bias=False)).refit(behind_relu=True)
    assert all(r.behind_relu is None for r in done)


def test_steps_of_another_kind_are_left_alone() -> None:
    layer = find_layers(Graph(load(fm.residual_net())))[0][0].value
    drawn = DrawnRows((1, 1, 1), 1, math.inf, rng(0))
    grouped = replace(layer.stage, geometry=replace(layer.stage.geometry, groups=3))
    moments = Moments(9, np.zeros((1, 27)), np.eye(27)[None])
    cut = halves(layer, RANK)
    assert fitted_behind_relu(Chain((grouped,)), layer.stage, cut, moments, drawn) is None
    whole = Chain((layer.stage,))
    assert fitted_behind_relu(whole, layer.stage, cut, moments.identity, drawn) is None


def test_rows_are_bounded_and_belong_together() -> None:
    drawn = DrawnRows((2, 2, 3), 4, 2.0, rng(1))
    x = np.arange(2 * 30_000 * 3, dtype=np.float32).reshape(2, 30_000, 3)
    for held in (False, False, True, False):
        part = x[:, drawn.draw(x.shape[1])]
        drawn.add(part, part[..., :2] - 5, part[..., 1:], held)
    (rows, wanted, given), held = drawn.taken()
    assert rows.shape == (2, 3 * refit_relu.ROWS // 4, 3)
    np.testing.assert_array_equal(wanted, np.clip(rows[..., :2] - 5, 0, 2))
    np.testing.assert_array_equal(given, rows[..., 1:])
    assert held[0].shape[1] == refit_relu.ROWS // 4
    assert not drawn.any


def test_features_are_what_the_last_stage_reads() -> None:
    """The error from patches is that of the chain as it runs."""
    case = Case(fm.residual_net(), {"conv0": RANK})
    task, random = case.tasks[0], rng(2)
    geometry, x = task.stage.outline.geometry, SEEN[:20]
    patches = geometry.patches(x)
    y = geometry.responses(fm.run(inner(case, "a0"), {"x": x})["a0"])
    moments = Accumulator(1, patches.shape[2])
    moments.update(patches)
    drawn = DrawnRows((1, 1, 1), 1, math.inf, random)
    drawn.add(patches, y, np.zeros_like(y), False)
    found = fitted_behind_relu(
        task.written.chain, task.stage.read(), task.cut, moments.moments(), drawn
    )
    assert found is not None
    made = fm.run(inner(case, "a0", compressed=True), {"x": x})["a0"]
    wanted = np.maximum(y, 0)
    left = np.maximum(geometry.responses(made), 0) - wanted
    error = float(np.sum(left**2) / np.sum((wanted - wanted.mean(axis=1)) ** 2))
    assert found[1].linear == pytest.approx(error, rel=1e-4)


def inner(case: Case, name: str, compressed: bool = False) -> ModelProto:
    shown = ModelProto()
    shown.CopyFrom(case.graph.to_model().proto if compressed else case.proto)
    shown.graph.output.append(helper.make_tensor_value_info(name, 1, None))
    return shown


def clipped(low: float | None, high: float | None, attributes: bool, **more: Any) -> ModelProto:
    numbers = {"low": low, "high": high}
    constants = {k: fm.float32(np.array(v)) for k, v in numbers.items() if v is not None}
    if attributes:
        values = {k: v for k, v in (("min", low), ("max", high)) if v is not None}
        nodes, constants = [helper.make_node("Clip", ["x"], ["y"], **values)], {}
    else:
        inputs = ["x", *("" if v is None else k for k, v in numbers.items())]
        nodes = [helper.make_node("Clip", inputs, ["y"])]
    shape: list[int | str] = ["N", 4]
    return fm.build(nodes, {"x": shape}, {"y": shape}, constants, **more)


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0.0, 6.0, 6.0),
        (0.0, None, math.inf),
        (None, 6.0, None),
        (-1.0, 1.0, None),
        (0.0, 0.0, None),
    ],
)
def test_ends_of_a_clip(low: float | None, high: float | None, wanted: float | None) -> None:
    assert ceiling_behind(Graph(load(clipped(low, high, attributes=False))), "x") == wanted


def test_ends_of_an_old_clip() -> None:
    proto = clipped(0.0, 6.0, attributes=True, opset=9)
    assert ceiling_behind(Graph(load(proto)), "x") == 6.0


def test_what_a_relu_is_not() -> None:
    graph = Graph(load(fm.residual_net()))
    assert ceiling_behind(graph, "a0") == math.inf
    assert ceiling_behind(graph, "b1") == math.inf
    assert ceiling_behind(graph, "b0") is None  # an Add
    assert ceiling_behind(graph, "a") is None  # two readers
    assert ceiling_behind(graph, "y") is None  # an output


def test_behind_a_ceiling() -> None:
    proto = fm.residual_net()
    for node in proto.graph.node:
        if node.op_type == "Relu":
            node.op_type = "Clip"
            node.input.extend(["zero", "one"])
    numbers = {"zero": np.zeros((), np.float32), "one": np.ones((), np.float32)}
    proto.graph.initializer.extend(
        helper.make_tensor(k, 1, [], v.reshape(-1)) for k, v in numbers.items()
    )
    linear, fitted = compressed(proto), compressed(proto)
    linear.refit()
    fitted.refit(behind_relu=True)
    assert rectified_error(fitted, "a") < 0.97 * rectified_error(linear, "a")
