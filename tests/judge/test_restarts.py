"""Runs from where constants are first read give what runs of the whole model give."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from onnx import helper

from onnx_lowrank.judge import restarts
from onnx_lowrank.judge.observation import Observer
from onnx_lowrank.judge.restarts import Restarts
from onnx_lowrank.layers.variable_model import make_inputs
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.runtime.session import Feed, Session
from tests import fixtures_models as fm

DEPTH, WIDTH = 16, 6
X = fm.float32(np.random.default_rng(0).standard_normal((20, WIDTH)))


def deep(*, split: bool = False) -> Model:
    """Residual products one after another; an early tensor is an output too."""
    rng, nodes, x = np.random.default_rng(1), [], "x"
    weights = {f"w{i}": fm.float32(rng.standard_normal((WIDTH, WIDTH)) / 3) for i in range(DEPTH)}
    for i in range(DEPTH):
        nodes += [
            helper.make_node("MatMul", [x, f"w{i}"], [f"p{i}"]),
            helper.make_node("Add", [x, f"p{i}"], [f"s{i}"]),
        ]
        x = f"s{i}"
    if split:  # parts of a sequence cross every place
        nodes.insert(0, helper.make_node("SplitToSequence", ["x"], ["parts"], axis=1))
        nodes.append(helper.make_node("ConcatFromSequence", ["parts"], ["x again"], axis=1))
        nodes.append(helper.make_node("Add", [x, "x again"], ["y"]))
    else:
        nodes.append(helper.make_node("Relu", [x], ["y"]))
    shapes = {"y": ["N", WIDTH], "s1": ["N", WIDTH]}
    model = load(fm.build(nodes, {"x": ["N", WIDTH]}, shapes, weights))
    make_inputs(model.proto, list(weights))
    return model


class Counting(Observer):
    """Counts the nodes of what it opens."""

    opened_nodes: list[int]

    def part(self, model: Model) -> Session:
        self.opened_nodes.append(len(model.proto.graph.node))
        return super().part(model)


def tried(model: Model) -> tuple[Restarts, Counting, Any]:
    data = fm.dataset(model.proto, {"x": X})

    def feeds() -> Iterator[Feed]:
        return data.batches(7)

    observer = Counting(model, data, fm.ONE_THREAD, 7)
    observer.opened_nodes = []
    whole = fm.ONE_THREAD.session(model, lean=True)

    def wanted(constants: Feed) -> dict[str, Any]:
        runs = [observer.run(whole, feed, constants) for feed in feeds()]
        return {n: np.concatenate([r[n][0] for r in runs]) for n in runs[0]}

    return Restarts(model, observer, feeds), observer, wanted


def given(runs: Restarts, constants: Feed) -> dict[str, Any]:
    made = list(runs.runs(constants))
    assert all(set(feed) == {"x"} for feed, _ in made)
    return {n: np.concatenate([found[n][0] for _, found in made]) for n in made[0][1]}


def change(*layers: int) -> dict[str, Any]:
    return {f"w{i}": np.full((WIDTH, WIDTH), 0.1 * (i + 1), np.float32) for i in layers}


ORDERS = {
    "forwards": [change(i) for i in range(DEPTH)],
    "backwards": [change(i) for i in reversed(range(DEPTH))],
    "several": [change(3, 9), change(9, 12), {}, change(15), change(2, 15)],
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("split", [False, True])
def test_they_give_what_the_whole_model_gives(order: str, split: bool) -> None:
    runs, _, wanted = tried(deep(split=split))
    for constants in ORDERS[order]:
        found, right = given(runs, constants), wanted(constants)
        assert found.keys() == right.keys()
        for name, values in right.items():
            np.testing.assert_allclose(found[name], values, rtol=2e-5, atol=1e-6)


def test_layers_in_order_run_half_of_the_model() -> None:
    runs, observer, _ = tried(deep())
    sizes = []
    for constants in ORDERS["forwards"]:
        given(runs, constants)
        sizes.append(observer.opened_nodes[-1])
    assert sizes[-1] <= 0.2 * sizes[0]
    assert np.mean(sizes) < 0.65 * sizes[0]
    assert len(observer.opened_nodes) < DEPTH + 2


def test_what_does_not_fit_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "_ROOM", X.nbytes // 2)
    runs, observer, wanted = tried(deep())
    for constants in ORDERS["forwards"]:
        np.testing.assert_allclose(given(runs, constants)["y"], wanted(constants)["y"], rtol=2e-5)
    whole, tries = max(observer.opened_nodes), 1 / restarts._STEP
    assert observer.opened_nodes.count(whole) <= tries + 1  # it stays open in between
