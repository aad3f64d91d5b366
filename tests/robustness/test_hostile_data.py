"""Calibration data made to harm: one line that says what to do, nothing written, little memory."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from PIL import Image

from onnx_lowrank.errors import DataError
from onnx_lowrank.modelfile import array_store
from onnx_lowrank.modelfile.array_store import ArrayStore
from onnx_lowrank.samples import archives
from onnx_lowrank.samples.dataset import ImageOptions, InputSpec, load_dataset
from tests import fixtures_models as fm
from tests.robustness.victims import floats, memory_below

Capture = pytest.CaptureFixture[str]
Files = dict[str, bytes]

X = floats(0, 40, 64)


def refuse(data: Path, folder: Path, capsys: Capture, *parts: str) -> None:
    """``compress`` refuses the data, in little memory, and writes nothing."""
    onnx.save(fm.classifier(), folder / "in.onnx")
    out = folder / "out.onnx"
    argv = ["compress", str(folder / "in.onnx"), str(out), "--calib", str(data)]
    with memory_below(48 << 20):
        fm.refused(argv, capsys, 4, *parts)
    assert not [p for p in folder.iterdir() if "out.onnx" in p.name]


def npy(header: str, payload: bytes = b"", version: int = 1) -> bytes:
    """A .npy file with this header, well-formed or not."""
    text = header.encode("latin1")
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + payload


def described(shape: str, descr: str = "'<f4'", fortran: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n"


def npz(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, payload in members.items():
            archive.writestr(f"{name}.npy", payload)
    return file.getvalue()


#: of those below, what no disk takes
LARGE = ("gigantic", "overflow to nothing", "overflow to the true size")
#: headers, and what follows them
HEADERS: dict[str, bytes] = {
    "gigantic": npy(described("(1099511627776, 64)")),
    "overflow to nothing": npy(described("(4294967296, 4294967296)")),
    "overflow to the true size": npy(described("(288230376151711745, 64)"), X[:1].tobytes()),
    "negative": npy(described("(-2, -64)"), X[:2].tobytes()),
    "too long": npy(described("(2, 64)"), X.tobytes()),
    "too short": npy(described("(99, 64)"), X.tobytes()),
    "type of no bytes": npy(described("(2, 64)", "'|V0'")),
    "objects": npy(described("(2, 64)", "'|O'"), b"\x80\x04."),
    "unknown type": npy(described("(2, 64)", "'<q77'")),
    "type of nonsense": npy(described("(2, 64)", "[[[]]]")),
    "not closed": npy("{'descr': '<f4', (((((((\n"),
    "code": npy("{'descr': __import__('os').abort(), 'shape': ()}\n"),
    "deep": npy("(" * 9000 + ")" * 9000),
    "minuses": npy("-" * 9000 + "1"),
    "bytes of no text": npy(""),
    "python 2": npy(described("(2L, 64L)"), X[:1].tobytes()),
    "long header": npy(" " * 60_000 + described("(2, 64)"), X[:2].tobytes()),
    "version 2": npy(described("(2, 64)") + " " * 70_000, X[:2].tobytes(), version=2),
    "header of 4 GiB": b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(100),
    "version 9": b"\x93NUMPY\x09\x00" + bytes(100),
}


@pytest.mark.parametrize("suffix", ["npy", "npz", "mapped"])
@pytest.mark.parametrize("case", HEADERS)
def test_headers(
    case: str, suffix: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if suffix == "mapped":
        monkeypatch.setattr(archives, "MAP_IN_PLACE", 0)
    path = tmp_path / ("a.npz" if suffix == "npz" else "a.npy")
    path.write_bytes(npz(x=HEADERS[case]) if suffix == "npz" else HEADERS[case])
    refuse(
        path, tmp_path, capsys, "do not fit" if case in LARGE and suffix != "mapped" else path.name
    )


def zeros(rows: int) -> bytes:
    return npy(described(f"({rows}, 64)")) + bytes(rows * 256)


def test_zip_bombs_do_not_fill_the_disk(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An archive of 20 kB with 20 MB in it, on a disk of 10."""
    content = npz(x=zeros(80_000))
    assert len(content) < 50_000
    (tmp_path / "a.npz").write_bytes(content)
    usage = type("Usage", (), {"free": 10 << 20})
    monkeypatch.setattr(array_store.shutil, "disk_usage", lambda _: usage)
    refuse(tmp_path / "a.npz", tmp_path, capsys, "20,480,000 bytes are needed", "TMPDIR")


def test_bombs_behind_a_small_header_are_not_unpacked(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.npz").write_bytes(npz(x=npy(described("(2, 64)")) + bytes(50 << 20)))
    written = 0
    copy = ArrayStore.copy

    def watched(self: ArrayStore, *arguments: Any) -> Any:
        nonlocal written
        try:
            return copy(self, *arguments)
        finally:
            written = self._end

    monkeypatch.setattr(ArrayStore, "copy", watched)
    refuse(tmp_path / "a.npz", tmp_path, capsys, "longer than its header declares")
    assert written < 4096


@pytest.mark.full
def test_large_headers_are_not_read(tmp_path: Path, capsys: Capture) -> None:
    """numpy looks at the length of a header once it has it in memory."""
    bomb = b"\x93NUMPY\x02\x00" + struct.pack("<I", 200 << 20) + bytes(200 << 20)
    (tmp_path / "a.npz").write_bytes(npz(x=bomb))
    refuse(tmp_path / "a.npz", tmp_path, capsys, "its header has 209715200 bytes")


def saved(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X.astype(np.int32)}, "expects float32, found int32; convert it"),
        ({"x": X.astype(np.complex64)}, "expects float32, found complex64"),
        ({"x": X.astype("U4")}, "found str"),
        ({"x": np.zeros(40, [("a", "f4", 64)])}, "expects float32, found void"),
        ({"x": X[:, :5]}, "expects the shape (N, 64), found (40, 5)"),
        ({"x": np.where(X > 3, np.nan, X)}, "NaN or infinity"),
        ({"x": np.full((4, 64), 1e300)}, "NaN or infinity as float32"),
        ({"y": X}, "expected arrays named x, found y"),
    ],
    ids=["int", "complex", "text", "struct", "shape", "nan", "overflow", "name"],
)
def test_arrays_that_do_not_fit(
    arrays: dict[str, Any], message: str, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "a.npz").write_bytes(saved(**arrays))
    refuse(tmp_path / "a.npz", tmp_path, capsys, message)


def test_mixed_shapes_in_a_folder(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "f").mkdir()
    np.save(tmp_path / "f" / "0.npy", X)
    np.save(tmp_path / "f" / "1.npy", X[:, :9])
    refuse(tmp_path / "f", tmp_path, capsys, "1.npy", "found (40, 9)")


# protobufs


def tensor(change: Callable[[TensorProto], None]) -> bytes:
    made = onnx.numpy_helper.from_array(X[:1], "x")
    change(made)
    payload: bytes = made.SerializeToString()
    return payload


def elsewhere(proto: TensorProto) -> None:
    proto.ClearField("raw_data")
    proto.data_location = TensorProto.EXTERNAL
    proto.external_data.add(key="location", value="secret.bin")


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.dims.__setitem__(0, 2**40),
        lambda t: t.dims.__setitem__(0, -1),
        lambda t: t.dims.__setitem__(0, 2**62 + 1),
        lambda t: setattr(t, "data_type", 99),
        lambda t: setattr(t, "data_type", 0),
        elsewhere,
    ],
    ids=["gigantic", "negative", "overflow", "type 99", "type 0", "elsewhere"],
)
def test_tensors(change: Callable[[TensorProto], None], tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "input_0.pb").write_bytes(tensor(change))
    (folder / "secret.bin").write_bytes(bytes(256))
    refuse(folder, tmp_path, capsys, "input_0.pb: not a TensorProto, or truncated", "write it")


# images


PIXELS = (InputSpec("x", np.dtype(np.float32), (None, 3, 8, 8)),)


def png(size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("1", size).save(file, "PNG")
    return file.getvalue()


def postscript() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "EPS")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (png((20_000, 10_000)), "not an image, .*200000000 pixels"),
        (png((15_000, 8_000)), "at most 100,000,000 pixels, found .* (8000, 15000)"),
        (png((60_000, 2)), "at most 100,000,000 pixels, found .* (64, 1920000)"),
        (png((64, 64))[:-30], "not an image, or truncated"),
        (png((64, 64))[:40], "not an image, or truncated"),
        (postscript(), "not an image, or truncated"),
        (b"GIF89a" + bytes(40), "not an image, or truncated"),
    ],
    ids=["bomb", "large", "long", "truncated", "cut off", "postscript", "gif"],
)
def test_images(content: bytes, message: str, tmp_path: Path) -> None:
    """Postscript would be given to another program, whatever the name of the file."""
    (tmp_path / "a.png").write_bytes(content)
    pattern = message.replace("(", r"\(").replace(")", r"\)")
    with memory_below(8 << 20), pytest.raises(DataError, match=pattern):
        load_dataset(tmp_path, PIXELS, images=ImageOptions(resize=64, crop=8)).feed(0)


# places


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "f/a.npy", "f/input_0.pb"])
def test_pipes_are_not_waited_for(name: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "f").mkdir()
    os.mkfifo(tmp_path / name)
    data = tmp_path / (name if name[0] == "a" else "f")
    refuse(data, tmp_path, capsys, "not a regular file")


@pytest.mark.parametrize("name", ["a" * 5000, "a" * 5000 + ".npz", "a" * 5000 + ".py:f"])
def test_long_names(name: str, tmp_path: Path, capsys: Capture) -> None:
    refuse(Path(name), tmp_path, capsys, "a" * 5000)


def test_folders_named_like_files(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "a.npz").mkdir()
    refuse(tmp_path / "a.npz", tmp_path, capsys, "not a regular file")


def test_folders_that_may_not_be_read(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").mkdir()

    def refused(*_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("onnx_lowrank.samples.sources.array_files", refused)
    refuse(tmp_path / "f", tmp_path, capsys, "f: cannot be read (Permission denied)")
