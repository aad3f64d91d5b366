from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_lowrank.errors import ModelError
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.modelfile.model import Model
from tests import fixtures_models as fm


def test_model_proto_and_model_are_taken_as_they_are() -> None:
    proto = fm.dressed()
    model = load(proto)
    assert model.proto is proto
    assert load(model) is model
    assert model.path is None
    assert model.bytes == proto.ByteSize()


def _truncated(payload: bytes) -> bytes:
    return payload[: len(payload) // 2]


def _random(payload: bytes) -> bytes:
    return np.random.default_rng(0).bytes(len(payload))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_truncated, "not an ONNX model, or truncated"),
        (_random, "not an ONNX model"),
        (lambda _: b"", "not an ONNX model, but an empty file; copy it again"),
        (lambda _: b"a text file\n", "not an ONNX model"),
    ],
    ids=["truncated", "random", "empty", "text"],
)
def test_broken_files(tmp_path: Path, spoil: Callable[[bytes], bytes], message: str) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(spoil(fm.dressed().SerializeToString()))
    with pytest.raises(ModelError, match=message) as caught:
        load(path)
    assert "bad.onnx" in str(caught.value)


def test_unreadable_places(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        load(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="not a regular file"):
        load(tmp_path)


def test_a_model_without_opset_is_refused() -> None:
    proto = fm.dressed()
    del proto.opset_import[:]
    with pytest.raises(ModelError, match="declares no opset"):
        load(proto)


def _missing(folder: Path) -> None:
    (folder / "weights.bin").unlink()


def _short(folder: Path) -> None:
    os.truncate(folder / "weights.bin", 100)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(_missing, "'weights.bin' is missing"), (_short, "'weights.bin' is too short")],
    ids=["missing", "short"],
)
def test_broken_external_files(tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    path = fm.external(tmp_path, fm.dressed())
    spoil(tmp_path)
    with pytest.raises(ModelError, match=message):
        load(path)


@pytest.mark.parametrize("where", ["../weights.bin", "absolute"])
def test_external_data_outside_of_the_folder(tmp_path: Path, where: str) -> None:
    (tmp_path / "sub").mkdir()
    path = fm.external(tmp_path / "sub", fm.dressed())
    outside = tmp_path / "weights.bin"
    (tmp_path / "sub" / "weights.bin").rename(outside)
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        tensor.external_data[0].value = str(outside) if where == "absolute" else where
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="is outside the model's folder"):
        load(path)


def test_a_proto_that_points_to_files_needs_its_path(tmp_path: Path) -> None:
    path = fm.external(tmp_path, fm.dressed())
    proto = onnx.load(path, load_external_data=False)
    with pytest.raises(ModelError, match="pass the path of the model instead"):
        load(proto)
    model = Model(proto, tmp_path)
    np.testing.assert_array_equal(
        model.read(proto.graph.initializer[1]),
        onnx.numpy_helper.to_array(fm.dressed().graph.initializer[1]),
    )
