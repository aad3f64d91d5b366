"""The benchmark of compressed models under other execution providers, on the processor's."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.__main__ import parser
from benchmarks.bound import CPU, BoundModel, best_ms, device_name, in_precision
from benchmarks.command_line import Ended
from benchmarks.commands import provider
from benchmarks.commands.kept import ALL
from benchmarks.tables import line
from tests import fixtures_models as fm

NAME = "digits_vgg"


def test_cells() -> None:
    arguments = parser().parse_args(["provider", "--models", NAME, "--batches", "1", "16"])
    found = [(c.model, c.options["precision"], c.options["batch"])
             for c in provider.cells(arguments)]  # fmt: skip
    assert found == [
        (NAME, precision, batch) for precision in ("float32", "float16") for batch in (1, 16)
    ]


def test_a_row(tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    shutil.copy(ALL[NAME].path, made / f"{NAME}.onnx")
    arguments = parser().parse_args([
        "provider", "--models", NAME, "--batches", "2", "--precisions", "float32",
        "--provider", CPU, "--compressed", str(made), "--seconds", "0.01",
    ])  # fmt: skip
    (cell,) = provider.cells(arguments)
    row = provider.begin(NAME, tmp_path, arguments)(cell)
    assert row.status == "measured"
    assert row.details["device"] == ""
    figures = {name: value or 0.0 for name, value in row.figures.items()}
    assert figures["speedup"] == pytest.approx(figures["original_ms"] / figures["new_ms"])
    assert line(row, provider.COMMAND.columns).startswith(f"| {NAME} | macs=0.7 | float32 | 2 |")


def test_what_the_library_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []

    def refuse(model: Path, output: Path, options: list[str]) -> Ended:
        asked[:] = options
        return Ended(5, "macs=0.1 cannot be met", 1.0, 1.0, 1.0, {})

    monkeypatch.setattr(provider, "compress", refuse)
    arguments = parser().parse_args([
        "provider", "--models", NAME, "--provider", CPU, "--target", "macs=0.1", "--samples", "20",
    ])  # fmt: skip
    row = provider.begin(NAME, tmp_path, arguments)(provider.cells(arguments)[0])
    assert (row.status, row.message) == ("refused", "macs=0.1 cannot be met")
    assert asked[2:] == ["--seed", "0", "--force", "--samples", "20", "--target", "macs=0.1"]


def test_a_folder_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["provider", "--compressed", "nowhere"])
    assert "nowhere is no folder" in capsys.readouterr().err


def test_inputs_have_open_axes_filled_in() -> None:
    float32, int64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [], "g", [value("x", float32, ["n", 3, "h"]), value("ids", int64, ["n", "words"])], []
    )
    feed = provider.inputs_of(onnx.helper.make_model(graph), 4, 7)
    assert {k: (v.shape, v.dtype.name) for k, v in feed.items()} == {
        "x": ((4, 3, 7), "float32"), "ids": ((4, 7), "int64"),
    }  # fmt: skip
    assert feed["ids"].min() == feed["ids"].max() == 1
    assert np.std(feed["x"]) > 0.1


def test_half_precision_keeps_inputs_and_outputs() -> None:
    proto = onnx.load(ALL[NAME].path)
    before = proto.SerializeToString()
    half = in_precision(proto, "float16")
    assert proto.SerializeToString() == before
    assert half.graph.input == proto.graph.input
    assert half.graph.output == proto.graph.output
    kinds = {t.data_type for t in half.graph.initializer if len(t.dims) > 1}
    assert kinds == {onnx.TensorProto.FLOAT16}
    assert in_precision(proto, "float32") is proto


def test_models_take_turns() -> None:
    proto = fm.residual_net()
    feed = provider.inputs_of(proto, 1, 8)
    models = [BoundModel(proto, feed, CPU) for _ in range(2)]
    for copies in (False, True):
        one, two = best_ms(models, 0.05, copies=copies)
        assert 0.1 < one / two < 10


def test_only_cards_have_names() -> None:
    assert device_name(CPU) == ""
