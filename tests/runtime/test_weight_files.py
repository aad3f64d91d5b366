"""Weights in a file of their own make no difference but to memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnx_lowrank.layers.variable_model import make_inputs
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.runtime import weight_files
from onnx_lowrank.runtime.runtime import Runtime
from onnx_lowrank.runtime.weight_files import weights_in_file
from tests import fixtures_models as fm

WIDTH = 1200
X = fm.float32(np.random.default_rng(0).standard_normal((3, WIDTH)))

needs_posix = pytest.mark.skipif(os.name != "posix", reason="files in use cannot be removed here")


def wide(element: int = TensorProto.FLOAT) -> ModelProto:
    """A large weight, a small one, and a large one that is stored as numbers, not as bytes."""
    rng = np.random.default_rng(1)
    dtype = helper.tensor_dtype_to_np_dtype(element)
    weights = {
        "large": (rng.standard_normal((WIDTH, WIDTH)) / 30).astype(dtype),
        "small": rng.standard_normal(WIDTH).astype(dtype),
        "listed": rng.standard_normal((200, WIDTH)).astype(dtype),
    }
    nodes = [
        helper.make_node("Cast", ["x"], ["cast"], to=element),
        helper.make_node("MatMul", ["cast", "large"], ["p"]),
        helper.make_node("Add", ["p", "small"], ["s"]),
        helper.make_node("ReduceMax", ["listed"], ["m"], keepdims=0),
        helper.make_node("Add", ["s", "m"], ["t"]),
        helper.make_node("Cast", ["t"], ["y"], to=TensorProto.FLOAT),
    ]
    proto = fm.build(nodes, {"x": ["N", WIDTH]}, {"y": ["N", WIDTH]}, weights)
    for tensor in proto.graph.initializer:
        if tensor.name == "listed" and element == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).reshape(-1).tolist()
            tensor.ClearField("raw_data")
            tensor.float_data.extend(values)
    return proto


def few(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    monkeypatch.setattr(weight_files, "_WORTH", 10**9)


def no_room(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "is not there"))


def no_posix(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    monkeypatch.setattr(weight_files.os, "name", "nt")


@needs_posix
@pytest.mark.parametrize("element", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_results_are_the_same(
    element: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(weight_files, "_WORTH", 1 << 20)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    proto = wide(element)
    before = proto.SerializeToString(deterministic=True)
    with weights_in_file(proto) as (light, folder):
        assert folder is not None
        assert light.ByteSize() < len(before) / 2
        assert [t.name for t in light.graph.initializer] == [
            t.name for t in proto.graph.initializer
        ]
    assert proto.SerializeToString(deterministic=True) == before
    session = Runtime().session(load(proto))
    assert not list(tmp_path.iterdir())  # gone, and the session runs
    few(monkeypatch, tmp_path)
    whole = Runtime().session(load(proto))
    np.testing.assert_array_equal(session.run({"x": X})["y"], whole.run({"x": X})["y"])


@pytest.mark.parametrize("where", [few, no_room, no_posix])
def test_the_model_itself_where_no_file_is_of_use(
    where: Callable[[pytest.MonkeyPatch, Path], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    proto = wide()
    with monkeypatch.context() as patch:
        where(patch, tmp_path)
        with weights_in_file(proto) as (light, folder):
            assert light is proto
            assert folder is None


def test_weights_that_are_inputs_too_can_be_given() -> None:
    model = load(wide())
    make_inputs(model.proto, ["large"])
    session = Runtime().session(model)
    zero = session.run({"x": X}, constants={"large": np.zeros((WIDTH, WIDTH), np.float32)})["y"]
    assert np.ptp(zero, axis=0).max() == 0
    given = session.run({"x": X})["y"]
    np.testing.assert_allclose(given, fm.run(wide(), {"x": X})["y"], rtol=1e-4, atol=1e-4)
