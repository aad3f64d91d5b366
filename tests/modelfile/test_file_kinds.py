"""Files that are not what they were given for, told by their first bytes."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_lowrank.cli import main as cli
from onnx_lowrank.errors import DataError, ModelError
from onnx_lowrank.modelfile.file_kinds import other_kind
from onnx_lowrank.modelfile.loading import load
from tests import fixtures_models as fm

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 9\n"


def zipped(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, b"0" * 40)
    return stream.getvalue()


def tarred() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.onnx"))
    return stream.getvalue()


def saved(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def model() -> bytes:
    return fm.classifier().SerializeToString()


#: name, bytes, and what is said of them where a model is wanted
KINDS = {
    "pointer": (POINTER, "a git-lfs pointer; .* git lfs pull"),
    "zip": (zipped("model.onnx"), "a zip archive; unpack it first"),
    "empty zip": (zipped(), "a zip archive"),
    "torch": (zipped("archive/data.pkl"), "a PyTorch file; .* torch.onnx.export"),
    "keras": (zipped("metadata.json"), "a Keras file; .* tf2onnx"),
    "npz": (zipped("x.npy"), "an archive of NumPy arrays; give it as data, .* .npz"),
    "npy": (saved(np.ones(3)), "a NumPy array; give it as data"),
    "gzip": (gzip.compress(model()), "compressed by gzip; unpack it first"),
    "tar": (tarred(), "a tar archive; unpack it first"),
    "html": (b"<!DOCTYPE html><html>", "a web page or XML; download the file itself"),
    "html too": (b"\n\n  <HTML><head>", "a web page or XML"),
    "xml": (b'<?xml version="1.0"?>', "a web page or XML"),
    "ort": (
        b"\x1c\x00\x00\x00ORTM" + b"\0" * 40,
        r"a model in .* \(.ort\); give the ONNX model that",
    ),
    "tflite": (b"\x20\x00\x00\x00TFL3" + b"\0" * 40, "a TensorFlow Lite model; .* tf2onnx"),
    "saved model": (b"\x08\x01\x12\xb5\x8b\x04\n\x10\x12", "a TensorFlow SavedModel; .* tf2onnx"),
    "frozen graph": (b"\n\x1d\n\x05input\x12\x0bPlaceholder", "a TensorFlow graph or other proto"),
    "pickle": (pickle.dumps({"a": 1}), "a pickle, .* torch.onnx.export"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 40, "an HDF5 file, as Keras writes; .* tf2onnx"),
    "safetensors": (
        (60).to_bytes(8, "little") + b'{"a":{"dtype":"F32"}}',
        "a safetensors file: weights without a graph",
    ),
    "gguf": (b"GGUF\x03\x00\x00\x00", "a GGUF file"),
    "json": (b'{"irVersion": "8"}', "JSON or other text; give the binary file"),
    "picture": (b"\x89PNG\r\n\x1a\n", "a picture"),
    "empty": (b"", "an empty file; copy it again"),
}


@pytest.mark.parametrize("name", KINDS)
def test_models(name: str, tmp_path: Path) -> None:
    raw, said = KINDS[name]
    path = tmp_path / "in.onnx"
    path.write_bytes(raw)
    with pytest.raises(ModelError, match=rf"in\.onnx: not an ONNX model, but {said}"):
        load(path)


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
@pytest.mark.parametrize("name", ["pointer", "gzip", "html", "pickle", "safetensors", "empty"])
def test_data(
    name: str, suffix: str, tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"data{suffix}"
    path.write_bytes(KINDS[name][0])
    command = ["inspect", str(tiny / "tiny.onnx"), "--curves", "--calib", str(path)]
    assert cli.main(command) == DataError.exit_code
    said = capsys.readouterr().err
    kind = other_kind(path)
    assert kind is not None
    assert f"data{suffix}: not an array file, but {kind.as_data()}" in said
    assert "export it to ONNX" not in said


def test_broken_arrays_are_said_to_be_broken(tmp_path: Path, tiny: Path) -> None:
    for suffix, raw in ((".npz", zipped("x.npy")[:50]), (".npy", saved(np.ones(30))[:150])):
        path = tmp_path / f"data{suffix}"
        path.write_bytes(raw)
        with pytest.raises(DataError, match="cannot be read"):
            fm.dataset(onnx.load(tiny / "tiny.onnx"), path)


def test_weights_that_were_not_fetched(tmp_path: Path) -> None:
    path = tmp_path / "in.onnx"
    onnx.save(fm.classifier(), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    load(path)
    (tmp_path / "w.bin").write_bytes(POINTER)
    with pytest.raises(ModelError, match=r"'w\.bin' is a git-lfs pointer; .* git lfs pull"):
        load(path)


@pytest.mark.parametrize("producer", ["TFL3", "ORTM", "GGUF", "{", "\n", "PK\x03\x04", "<html>"])
def test_models_are_models_whoever_made_them(producer: str, tmp_path: Path) -> None:
    """Neither the name nor its length makes a model look like another file."""
    for length in (len(producer), 1, 10, 60, 200):
        proto = fm.classifier()
        proto.producer_name = producer.ljust(length)
        proto.ir_version = 10
        path = tmp_path / "in.onnx"
        onnx.save(proto, path)
        assert load(path).proto == proto
