from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_lowrank.errors import OptionError
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.modelfile.saving import save
from tests import fixtures_models as fm


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_round_trip_keeps_every_byte(tmp_path: Path) -> None:
    proto = fm.dressed()
    onnx.save(proto, tmp_path / "in.onnx")
    written = save(load(tmp_path / "in.onnx"), tmp_path / "out.onnx")
    payload = (tmp_path / "out.onnx").read_bytes()
    assert payload == proto.SerializeToString(deterministic=True)
    assert written == len(payload)
    again = onnx.load(tmp_path / "out.onnx")
    assert [(o.domain, o.version) for o in again.opset_import] == [("", 17), ("com.microsoft", 1)]
    assert again.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"


def test_an_existing_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "out.onnx").write_bytes(b"old")
    save(load(fm.dressed()), tmp_path / "out.onnx")
    assert onnx.load(tmp_path / "out.onnx").producer_name == "maker"
    assert names(tmp_path) == {"out.onnx"}


def test_external_data_stays_external(tmp_path: Path) -> None:
    path = fm.external(tmp_path, fm.dressed())
    source = load(path)
    assert source.external
    assert source.bytes == path.stat().st_size + (tmp_path / "weights.bin").stat().st_size
    out = tmp_path / "out"
    out.mkdir()
    written = save(source, out / "copy.onnx", source=source)
    assert names(out) == {"copy.onnx", "copy.onnx.data"}
    assert written == sum(p.stat().st_size for p in out.iterdir())
    x, _ = fm.classified(4)
    expected = fm.run(fm.dressed(), {"x": x})["y"]
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
    path = fm.external(tmp_path, fm.dressed())
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


def test_output_is_not_the_input_by_any_name(tmp_path: Path) -> None:
    path = tmp_path / "in.onnx"
    onnx.save(fm.dressed(), path)
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
    model = load(fm.dressed())
    with pytest.raises(OptionError, match="is a folder; name a file in it"):
        save(model, tmp_path)
    with pytest.raises(OptionError, match="does not exist; create it first"):
        save(model, tmp_path / "no" / "out.onnx")
    (tmp_path / "file").touch()
    with pytest.raises(OptionError):
        save(model, tmp_path / "file" / "out.onnx")
