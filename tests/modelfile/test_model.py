from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper

from onnx_lowrank.errors import ModelError, OptionError
from onnx_lowrank.modelfile.model import Model, atomic_write, load, save
from tests import fixtures_models as fm


def dressed() -> ModelProto:
    """A model with something in every field that a tool could lose."""
    proto = fm.classifier()
    proto.ir_version = 7
    proto.producer_name, proto.producer_version = "maker", "1.2"
    proto.domain, proto.model_version, proto.doc_string = "org.example", 3, "what it is"
    proto.graph.doc_string = "the graph"
    proto.graph.node[0].doc_string = "the node"
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    proto.metadata_props.add(key="labels", value="a,b")
    return proto


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


# round trips


def test_round_trip_keeps_every_byte(tmp_path: Path) -> None:
    proto = dressed()
    onnx.save(proto, tmp_path / "in.onnx")
    written = save(load(tmp_path / "in.onnx"), tmp_path / "out.onnx")
    payload = (tmp_path / "out.onnx").read_bytes()
    assert payload == proto.SerializeToString(deterministic=True)
    assert written == len(payload)
    again = onnx.load(tmp_path / "out.onnx")
    assert [(o.domain, o.version) for o in again.opset_import] == [("", 17), ("com.microsoft", 1)]
    assert again.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"


def test_model_proto_and_model_are_taken_as_they_are() -> None:
    proto = dressed()
    model = load(proto)
    assert model.proto is proto
    assert load(model) is model
    assert model.path is None
    assert model.bytes == proto.ByteSize()


def test_digest_is_of_the_contents(tmp_path: Path) -> None:
    onnx.save(dressed(), tmp_path / "in.onnx")
    assert load(tmp_path / "in.onnx").digest == load(dressed()).digest
    other = dressed()
    other.doc_string = "another"
    assert load(other).digest != load(dressed()).digest


def test_an_existing_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "out.onnx").write_bytes(b"old")
    save(load(dressed()), tmp_path / "out.onnx")
    assert onnx.load(tmp_path / "out.onnx").producer_name == "maker"
    assert names(tmp_path) == {"out.onnx"}


# external data


def test_external_data_stays_external(tmp_path: Path) -> None:
    path = fm.external(tmp_path, dressed())
    source = load(path)
    assert source.external
    assert source.bytes == path.stat().st_size + (tmp_path / "weights.bin").stat().st_size
    out = tmp_path / "out"
    out.mkdir()
    written = save(source, out / "copy.onnx", source=source)
    assert names(out) == {"copy.onnx", "copy.onnx.data"}
    assert written == sum(p.stat().st_size for p in out.iterdir())
    x, _ = fm.classified(4)
    expected = fm.run(dressed(), {"x": x})["y"]
    np.testing.assert_array_equal(fm.run(out / "copy.onnx", {"x": x})["y"], expected)


def test_compressed_external_model_is_external_too(tmp_path: Path) -> None:
    path = fm.external(tmp_path, fm.classifier())
    before = (path.read_bytes(), (tmp_path / "weights.bin").read_bytes())
    x, _ = fm.classified(200)
    result = fm.quick_compress(path, calib={"x": x}, target="macs=0.6")
    out = tmp_path / "small.onnx"
    written = result.save(out)
    assert (tmp_path / "small.onnx.data").stat().st_size > 0
    assert written == out.stat().st_size + (tmp_path / "small.onnx.data").stat().st_size
    assert written < path.stat().st_size + len(before[1])
    assert load(out).external
    expected = fm.run(fm.classifier(), {"x": x})["y"]
    assert fm.relative(fm.run(out, {"x": x})["y"], expected) < 0.1
    assert (path.read_bytes(), (tmp_path / "weights.bin").read_bytes()) == before


def test_external_data_of_the_input_is_not_overwritten(tmp_path: Path) -> None:
    path = fm.external(tmp_path, dressed())
    (tmp_path / "weights.bin").rename(tmp_path / "b.onnx.data")
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        tensor.external_data[0].value = "b.onnx.data"
    path.write_bytes(proto.SerializeToString())
    before = (tmp_path / "b.onnx.data").read_bytes()
    with pytest.raises(OptionError, match="holds the input's weights; name another output"):
        save(load(path), tmp_path / "b.onnx", source=load(path))
    assert (tmp_path / "b.onnx.data").read_bytes() == before
    assert not (tmp_path / "b.onnx").exists()


# writing in one step


def write_half(path: Path, error: Callable[[], BaseException]) -> None:
    with atomic_write(path) as file:
        file.write(b"half")
        raise error()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_atomic_write_leaves_nothing_behind(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        write_half(tmp_path / "out", error)
    assert names(tmp_path) == set()


def test_atomic_write_keeps_the_old_file_on_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"old")
    with pytest.raises(RuntimeError):
        write_half(tmp_path / "out", RuntimeError)
    assert (tmp_path / "out").read_bytes() == b"old"
    assert names(tmp_path) == {"out"}


def test_a_full_disk_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"out: cannot be written \(No space left on device\)"):
        write_half(tmp_path / "out", lambda: OSError(28, "No space left on device"))
    assert names(tmp_path) == set()


# refusals


def test_output_is_not_the_input_by_any_name(tmp_path: Path) -> None:
    path = tmp_path / "in.onnx"
    onnx.save(dressed(), path)
    (tmp_path / "soft.onnx").symlink_to(path)
    (tmp_path / "hard.onnx").hardlink_to(path)
    (tmp_path / "sub").mkdir()
    before = path.read_bytes()
    source = load(path)
    for other in ("in.onnx", "soft.onnx", "hard.onnx", "sub/../in.onnx"):
        with pytest.raises(OptionError, match="is the input itself; name another output"):
            save(source, tmp_path / other, source=source)
    assert path.read_bytes() == before
    assert (tmp_path / "soft.onnx").is_symlink()


def test_output_must_be_a_file_in_a_folder(tmp_path: Path) -> None:
    model = load(dressed())
    with pytest.raises(OptionError, match="is a folder; name a file in it"):
        save(model, tmp_path)
    with pytest.raises(OptionError, match="does not exist; create it first"):
        save(model, tmp_path / "no" / "out.onnx")
    (tmp_path / "file").touch()
    with pytest.raises(OptionError):
        save(model, tmp_path / "file" / "out.onnx")


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
    path.write_bytes(spoil(dressed().SerializeToString()))
    with pytest.raises(ModelError, match=message) as caught:
        load(path)
    assert "bad.onnx" in str(caught.value)


def test_unreadable_places(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        load(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="not a regular file"):
        load(tmp_path)


def test_a_model_without_opset_is_refused() -> None:
    proto = dressed()
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
    path = fm.external(tmp_path, dressed())
    spoil(tmp_path)
    with pytest.raises(ModelError, match=message):
        load(path)


@pytest.mark.parametrize("where", ["../weights.bin", "absolute"])
def test_external_data_outside_of_the_folder(tmp_path: Path, where: str) -> None:
    (tmp_path / "sub").mkdir()
    path = fm.external(tmp_path / "sub", dressed())
    outside = tmp_path / "weights.bin"
    (tmp_path / "sub" / "weights.bin").rename(outside)
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        tensor.external_data[0].value = str(outside) if where == "absolute" else where
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="is outside the model's folder"):
        load(path)


def test_a_proto_that_points_to_files_needs_its_path(tmp_path: Path) -> None:
    path = fm.external(tmp_path, dressed())
    proto = onnx.load(path, load_external_data=False)
    with pytest.raises(ModelError, match="pass the path of the model instead"):
        load(proto)
    model = Model(proto, tmp_path)
    np.testing.assert_array_equal(
        model.read(proto.graph.initializer[1]),
        onnx.numpy_helper.to_array(dressed().graph.initializer[1]),
    )
