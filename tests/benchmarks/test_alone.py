"""The benchmark of methods alone: the weights of layers, and the lists of passes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks.commands import alone
from benchmarks.nets import Net
from onnx_lowrank.passkit.base import Factorization
from onnx_lowrank.planning.registry import available
from tests import fixtures_models as fm


def test_in_front_of_a_sum_an_error_weighs_less(tmp_path: Path) -> None:
    proto, x = fm.residual_net(), fm.pictures(400)
    onnx.save(proto, tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", **{"x": x, "test.x": x[:8]})
    net = Net(tmp_path / "net.onnx", dict, None)
    weights = alone.layer_weights(net, tmp_path / "data.npz")

    for name in ("b0", "b1", "c0", "c1"):
        proto.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    seen = fm.run(proto, {"x": x})
    spread = {name: seen[name].var(axis=(0, 2, 3)).sum() for name in seen}
    expected = {"conv0": 1.0, "conv1": spread["b0"] / spread["b1"],
                "conv2": spread["c0"] / spread["c1"], "conv3": 1.0}  # fmt: skip
    # the moments are shrunk by what 19,600 rows leave in doubt
    assert weights == pytest.approx(expected, rel=0.01, abs=0)


def test_every_factorization_is_run_alone() -> None:
    lists = alone.lists_of_passes()
    names = {n for n, cls in available().items() if issubclass(cls, Factorization)}
    assert lists.keys() == {*names, "default", "all but bicluster"}
    for name in names:
        assert lists[name] == f"fold_batchnorm,{name}"
        assert (name in lists["all but bicluster"].split(",")) == (name != "bicluster")
