from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import pytest
from onnx import helper

from onnx_lowrank.errors import ModelError
from onnx_lowrank.latency.operators import beside_products, layer_times, operator_times
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.modelfile.model import Model
from tests import fixtures_models as fm


def wide_exponentials() -> Model:
    """A product of 4 by 4, and a million exponentials."""
    weight = helper.make_tensor("w", 1, [4, 4], np.eye(4, dtype=np.float32).ravel())
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Expand", ["h", "shape"], ["wide"]),
        helper.make_node("Exp", ["wide"], ["y"]),
    ]
    shape = helper.make_tensor("shape", 7, [3], [250_000, 1, 4])
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", 1, [1, 4])],
        [helper.make_tensor_value_info("y", 1, [250_000, 1, 4])],
        [weight, shape],
    )  # fmt: skip
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))


def test_operators_have_the_time_that_they_take() -> None:
    feed = {"x": np.zeros((1, 4), np.float32)}
    times = operator_times(fm.ONE_THREAD, wide_exponentials(), feed)
    assert {"MatMul", "Expand", "Exp"} <= times.keys()
    assert list(times.values()) == sorted(times.values(), reverse=True)
    assert 1e-5 < times["Exp"] < 1
    beside = beside_products(times)
    assert "MatMul" not in beside
    assert beside["Exp"] > 0.1
    assert 0.9 < sum(beside.values()) < 1


def test_layers_have_the_time_of_what_they_became() -> None:
    """Kernels are found in fusions; of two names that fit, the longer is meant."""
    proto = fm.residual_net(channels=16, size=16)
    names = {"conv0": "net/c", "conv1": "net/c1", "conv3": "net/c10"}
    for node in proto.graph.node:
        node.name = names.get(node.name, node.name)
    feed = {"x": np.random.default_rng(0).standard_normal((8, 3, 16, 16)).astype(np.float32)}
    layers = [*names.values(), "not there"]
    times = layer_times(fm.ONE_THREAD, load(proto), feed, layers)
    assert times.keys() == set(names.values())
    # three inputs for sixteen
    assert times["net/c"] < times["net/c1"] + times["net/c10"]
    assert all(1e-7 < t < 1 for t in times.values())
    assert layer_times(fm.ONE_THREAD, load(proto), feed, []) == {}


def test_fused_products_are_products() -> None:
    times = {"FusedConv": 2.0, "FusedMatMul": 1.0, "Gemm": 1.0, "Softmax": 3.0, "Add": 1.0}
    assert beside_products(times) == {"Softmax": 3 / 8, "Add": 1 / 8}
    assert beside_products({}) == beside_products({"Add": 0.0}) == {}


def test_a_profile_that_cannot_be_written_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", full)
    with pytest.raises(ModelError, match=r"No space left on device.*TMPDIR"):
        operator_times(fm.ONE_THREAD, wide_exponentials(), {"x": np.zeros((1, 4), np.float32)})
