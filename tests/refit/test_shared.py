"""Layers that read the same patches are solved together, from fewer sums, to the same weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper

from onnx_lowrank.analysis.accumulator import Accumulator
from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.chains.chain import Chain, Stage
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import find_layers
from onnx_lowrank.layers.writer import apply_chain
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.refit.regression import RIDGES, Regression, best_ridge
from onnx_lowrank.refit.shared import Batch, shared_tasks
from onnx_lowrank.refit.task import LazyStage, Task
from tests import fixtures_models as fm
from tests.support import Array, relative, rng

WIDTH = 6


def attention(outputs: int = 10) -> ModelProto:
    """Three products of one tensor, and one behind their sum with a residual branch."""
    random = rng(0)
    weights = {f"w{i}": fm.float32(random.normal(size=(WIDTH, outputs))) for i in range(3)}
    weights |= {f"c{i}": fm.float32(random.normal(size=outputs)) for i in range(3)}
    weights["w3"] = fm.float32(random.normal(size=(outputs, WIDTH)))
    weights["c3"] = fm.float32(random.normal(size=WIDTH))
    nodes = []
    for i in range(3):
        nodes.append(helper.make_node("MatMul", ["x", f"w{i}"], [f"m{i}"], name=f"dense{i}"))
        nodes.append(helper.make_node("Add", [f"m{i}", f"c{i}"], [f"y{i}"], name=f"bias{i}"))
    nodes.append(helper.make_node("Sum", ["y0", "y1", "y2"], ["s"], name="sum"))
    nodes.append(helper.make_node("Tanh", ["s"], ["t"], name="tanh"))
    nodes.append(helper.make_node("MatMul", ["t", "w3"], ["m3"], name="dense3"))
    nodes.append(helper.make_node("Add", ["m3", "c3"], ["b3"], name="bias3"))
    nodes.append(helper.make_node("Add", ["b3", "x"], ["y"], name="residual"))
    return fm.build(nodes, {"x": ["N", 5, WIDTH]}, {"y": ["N", 5, WIDTH]}, weights)


def _alone(stage: Stage, _: Moments) -> Chain:
    return Chain((stage,))


def tasks_of(proto: ModelProto, rows: dict[str, Array] | None = None) -> tuple[Graph, list[Task]]:
    graph, tasks = Graph(load(proto)), []
    for layer in find_layers(graph)[0]:
        stage = layer.stage
        kept = (rows or {}).get(layer.name)
        part = stage if kept is None else replace(stage, weight=stage.weight[kept], bias=None)
        written = apply_chain(graph, layer, Chain((stage,)))
        stages = LazyStage.of(part), LazyStage.of(layer)
        tasks.append(Task(written, stages[0], _alone, layer.input, stages[1], layer.input, kept))
    return graph, tasks


def data(seed: int, count: int = 400, noise: float = 0.3) -> tuple[Array, Array]:
    """The input of the original model, and that of the compressed one."""
    random = rng(seed)
    first = fm.float32(random.normal(size=(count, 5, WIDTH)) + 2)
    return first, fm.float32(first + noise * random.normal(size=first.shape))


def batches(tensors: dict[str, Array], current: Array) -> list[Batch]:
    return [
        Batch({k: v[i : i + 40] for k, v in tensors.items()}, {"x": current[i : i + 40]}, held)
        for i, held in ((i, i % 200 == 160) for i in range(0, len(current), 40))
    ]


def test_layers_of_one_tensor_are_put_together() -> None:
    graph, tasks = tasks_of(attention())
    groups = shared_tasks(graph, tasks)
    assert [[t.name for t in g.tasks] for g in groups] == [
        ["dense0", "dense1", "dense2"],
        ["dense3"],
    ]
    assert groups[0].reads == ("x",)
    assert groups[0].wanted == ("x",)  # what they should answer is computed from it
    assert groups[1].reads == ("t", "x")
    assert groups[1].wanted == ("y",)


def test_few_outputs_are_read_as_they_are() -> None:
    graph, tasks = tasks_of(attention(outputs=2))
    (group, _) = shared_tasks(graph, tasks)
    assert group.wanted == ("y0", "y1", "y2")


def direct(x: Array, y: Array) -> Regression:
    """By numpy, from all rows at once, in float64."""
    a, b = (v.reshape(-1, v.shape[-1]).astype(np.float64) for v in (x, y))
    mean = a.mean(axis=0), b.mean(axis=0)
    a, b = a - mean[0], b - mean[1]
    return Regression(
        len(a), (a.T @ a)[None], (b.T @ a)[None], float(np.sum(b * b)), mean[0][None], mean[1][None]
    )


@pytest.mark.parametrize("outputs", [2, 10], ids=["read", "computed"])
@pytest.mark.parametrize("masked", [False, True])
def test_both_ways_give_the_regression_of_the_rows(outputs: int, masked: bool) -> None:
    rows = {"dense1": np.arange(outputs) % 2 == 0} if masked else {}
    graph, tasks = tasks_of(attention(outputs), rows)
    group = shared_tasks(graph, tasks)[0]
    first, now = data(1)
    answers = {}
    for n, task in enumerate(tasks[:3]):
        stage = task.original.read()
        assert stage.bias is not None
        answers[f"y{n}"] = fm.float32(first @ stage.matrices[0].T + stage.bias)
    drawn = [None] * 3
    lots = batches({"x": first, **answers}, now)
    for sums, held in zip(group.sums(iter(lots), 400, rng(0), drawn), (False, True), strict=True):
        x = np.concatenate([b.current["x"] for b in lots if b.held == held])
        for n, task in enumerate(group.tasks):
            y = np.concatenate([b.original[f"y{n}"] for b in lots if b.held == held])
            wanted = direct(x, y if task.rows is None else y[..., task.rows])
            found = group.regression(n, sums)
            assert found.count == wanted.count
            for name in ("inputs", "cross", "input_mean", "output_mean"):
                assert relative(getattr(wanted, name), getattr(found, name)) < 1e-5, name
            assert found.energy == pytest.approx(wanted.energy, rel=1e-5)


def test_rows_with_nan_count_for_nothing() -> None:
    graph, tasks = tasks_of(attention())
    group = shared_tasks(graph, tasks)[0]
    first, now = data(2)
    clean = group.sums(iter(batches({"x": first[40:]}, now[40:])), 400, rng(0), [None] * 3)
    first[:40, :, 0] = np.nan
    now[40 * 5 : 40 * 5 + 1] = np.inf
    first[40 * 5 : 40 * 5 + 1] = 0
    fit, held = group.sums(iter(batches({"x": first}, now)), 400, rng(0), [None] * 3)
    assert fit.count + held.count == (400 - 41) * 5
    assert fit.finite
    assert held.finite
    assert relative(clean[0].merge(clean[1]).covariance, fit.merge(held).covariance) < 0.05


# the regression alone


def problem(seed: int, condition: float, count: int, constant: bool = False) -> dict[str, Any]:
    random = rng(seed)
    x = random.normal(size=(2 * count, 12)) @ np.diag(np.geomspace(1, 1 / condition, 12))
    x = x @ np.linalg.qr(random.normal(size=(12, 12)))[0] + 3
    if constant:
        x[:, 5] = 7.0
    weights = random.normal(size=(4, 12))
    y = x @ weights.T + 0.1 * random.normal(size=(2 * count, 4)) + 1
    start = weights + 0.3 * random.normal(size=weights.shape)
    return {"x": fm.float32(x), "y": fm.float32(y), "start": start[None]}


def streamed(x: Array, y: Array) -> Regression:
    sums = Accumulator(1, x.shape[1], y.shape[1])
    for i in range(0, len(x), 37):
        sums.update(x[None, i : i + 37], y[None, i : i + 37])
    energy = float(sums.variances.sum()) * sums.count
    mean = sums.mean
    width = x.shape[1]
    return Regression(
        sums.count, sums.scatter, sums.cross_scatter, energy, mean[:, :width], mean[:, width:]
    )


@pytest.mark.parametrize("condition", [1.0, 1e3, 1e6])
@pytest.mark.parametrize(("count", "constant"), [(2000, False), (2000, True), (8, False)])
def test_errors_on_held_out_rows_are_those_of_the_rows(
    condition: float, count: int, constant: bool
) -> None:
    p = problem(3, condition, count, constant)
    halves = [streamed(p["x"][i::2], p["y"][i::2]) for i in range(2)]
    ridge, before, after = best_ridge(halves[0], halves[1], p["start"])
    assert ridge in RIDGES
    assert after <= before
    x, y = (p[k].astype(np.float64) for k in "xy")
    energy = halves[1].energy / halves[1].count
    for tried, said in ((np.inf, before), (ridge, after)):
        weights = halves[0].solved(p["start"], tried)
        made = (x[1::2] - x[0::2].mean(0)) @ weights[0].T
        left = (y[1::2] - y[0::2].mean(0)) - made
        wanted = float(np.mean(np.sum(left**2, axis=1)))
        # sums of 1,000 rows in float32 round up to 1e-6 of what the error is a difference of: some
        # kernels of linear algebra more than others
        terms = energy + float(np.mean(np.sum(made**2, axis=1)))
        assert said == pytest.approx(wanted, rel=1e-5, abs=1e-6 * terms)


@pytest.mark.parametrize("ridge", [1e-5, 1e-2, 1.0])
def test_the_solution_is_the_minimum_under_its_ridge(ridge: float) -> None:
    p = problem(4, 1e2, 500)
    sums = streamed(p["x"], p["y"])
    x, y = (v.astype(np.float64) - v.mean(0, dtype=np.float64) for v in (p["x"], p["y"]))
    unit = np.trace(x.T @ x) / 12
    augmented = np.vstack([x, np.sqrt(ridge * unit) * np.eye(12)])
    wanted = np.linalg.lstsq(
        augmented, np.vstack([y, np.sqrt(ridge * unit) * p["start"][0].T]), rcond=None
    )[0].T
    # products in float32 round, and the condition of the system enlarges it
    bound = np.finfo(np.float32).eps * np.linalg.cond(augmented) ** 2
    assert relative(wanted, sums.solved(p["start"], ridge)[0]) < max(bound, 1e-6)
