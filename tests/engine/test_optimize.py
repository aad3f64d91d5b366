from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import onnx_lowrank
from onnx_lowrank import optimize
from onnx_lowrank.errors import (
    DataError,
    GuardError,
    LowRankError,
    ModelError,
    NothingAppliesError,
    OptionError,
)
from tests import fixtures_models as fm
from tests.scripted_timer import taking

X, LABELS = fm.classified(300)
QUICK: dict[str, Any] = {"threads": 1, "effort": "quick", "passes": "svd"}


def optimized(model: Any, calibration: Any = None, **options: Any) -> onnx.ModelProto:
    return optimize(
        model, calibration, **{"timer": taking(0.5), "target": "macs=0.6", **QUICK, **options}
    )


def nothing_to_take_apart() -> onnx.ModelProto:
    node = helper.make_node("Relu", ["x"], ["y"])
    return fm.build([node], {"x": ["n", 4]}, {"y": ["n", 4]}, {})


@pytest.fixture
def untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all places where something might be written: nothing may appear there."""
    folder = tmp_path / "untouched"
    folder.mkdir()
    for name in ("XDG_CACHE_HOME", "HOME", "TMPDIR"):
        monkeypatch.setenv(name, str(folder))
    monkeypatch.chdir(folder)
    return folder


def test_a_proto_becomes_what_compress_makes_and_nothing_is_written(untouched: Path) -> None:
    proto = fm.classifier()
    before = proto.SerializeToString(deterministic=True)
    made = optimized(proto, {"x": X})
    assert proto.SerializeToString(deterministic=True) == before
    same = fm.quick_compress(proto, calib={"x": X}, target="macs=0.6", passes="svd").model
    assert made.SerializeToString(deterministic=True) == same.SerializeToString(deterministic=True)
    assert len(made.SerializeToString()) < len(before)
    onnx.checker.check_model(made, full_check=True)
    assert fm.relative(fm.run(made, {"x": X})["y"], fm.run(proto, {"x": X})["y"]) < 0.2
    assert list(untouched.iterdir()) == []


@pytest.mark.parametrize("name", ["tiny.onnx_data", "tiny.onnx.data", "weights.bin"])
def test_values_beside_a_path_are_read_and_the_result_has_them_inside(
    name: str, tmp_path: Path
) -> None:
    proto = fm.classifier()
    path = tmp_path / "tiny.onnx"
    onnx.save(fm.classifier(), path, save_as_external_data=True, location=name, size_threshold=0)
    files = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert files.keys() == {"tiny.onnx", name}
    made = optimized(path, {"x": X})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == files
    for file in (path, tmp_path / name):
        file.unlink()
    assert fm.relative(fm.run(made, {"x": X})["y"], fm.run(proto, {"x": X})["y"]) < 0.2


def test_a_cache_is_used_where_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def told(_: Any, **options: Any) -> Any:
        seen.append(options["cache"])
        raise DataError("enough")

    monkeypatch.setattr("onnx_lowrank.engine.optimize.compress", told)
    for named in ({}, {"cache": "here"}):
        with pytest.raises(DataError):
            optimize(fm.classifier(), **named)
    assert seen == ["", "here"]


@pytest.mark.parametrize("options", [{}, {"calibration": {"x": np.ones((40, 4), np.float32)}}])
def test_a_model_without_gain_comes_back_as_it_is(options: dict[str, Any]) -> None:
    proto = nothing_to_take_apart()
    with pytest.warns(UserWarning, match="is returned as it is: nothing can be gained: "):
        made = optimize(proto, timer=taking(0.5), **QUICK, **options)
    assert made is not proto
    assert made == proto


def test_a_slower_result_is_left_where_nothing_was_asked(tmp_path: Path) -> None:
    path = fm.external(tmp_path, fm.classifier())
    with pytest.warns(UserWarning, match=r"big\.onnx is returned as it is: .* takes 2 ms"):
        made = optimize(path, timer=taking(2.0), **QUICK)
    (tmp_path / "weights.bin").unlink()
    feed = {"x": X[:9]}
    np.testing.assert_array_equal(fm.run(made, feed)["y"], fm.run(fm.classifier(), feed)["y"])


def _missing(folder: Path) -> Any:
    return folder / "none.onnx"


def _no_model(folder: Path) -> Any:
    (folder / "bad.onnx").write_bytes(b"this is no model")
    return folder / "bad.onnx"


def _without_its_data(folder: Path) -> Any:
    path = fm.external(folder, fm.classifier())
    (folder / "weights.bin").unlink()
    return path


def _refers_to_files(folder: Path) -> Any:
    return onnx.load(fm.external(folder, fm.classifier()), load_external_data=False)


@pytest.mark.parametrize(
    ("model", "options", "error", "part"),
    [
        (_missing, {}, ModelError, "no such file"),
        (_no_model, {}, ModelError, "not an ONNX model"),
        (_without_its_data, {}, ModelError, "'weights.bin' is missing"),
        (_refers_to_files, {}, ModelError, "pass the path"),
        (lambda _: 3, {}, OptionError, "model is int; give a path or an onnx.ModelProto"),
        (lambda _: b"\x08\x08", {}, OptionError, "onnx.load_from_string makes one of bytes"),
        (lambda _: fm.classifier(), {"sample": 3}, OptionError, "did you mean samples?"),
        (lambda _: fm.classifier(), {"calib": "x.npz"}, OptionError, "at once"),
        (lambda _: fm.classifier(), {"calibration": {"z": X}}, DataError, "found z"),
        (lambda _: fm.classifier(), {"timer": taking(2.0)}, GuardError, "takes 2 ms"),
        (lambda _: nothing_to_take_apart(), {"calibration": None, "target": "size=0.5"},
         NothingAppliesError, "no "),
    ],
)  # fmt: skip
def test_what_fails_is_one_typed_error(
    model: Any, options: dict[str, Any], error: type[LowRankError], part: str, tmp_path: Path
) -> None:
    given = model(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(LowRankError) as caught:
            optimized(given, **{"calibration": {"x": X}, **options})
    assert type(caught.value) is error
    assert part in str(caught.value)


def test_the_options_are_those_of_compress() -> None:
    assert onnx_lowrank.optimize is optimize
    text = os.linesep.join(str(optimize.__doc__).splitlines())
    for name in ("target: What is left", "min_kept: Smallest part", "force: "):
        assert name in text
