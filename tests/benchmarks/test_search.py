"""The benchmark of searches on a small net, its figures against the model itself."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import parser
from benchmarks.commands import search
from benchmarks.commands.search import COMMAND, NEEDS, Need
from benchmarks.nets import NETS, SHARED
from benchmarks.rows import Cell
from benchmarks.tables import line
from onnx_lowrank.engine.api import Result
from tests.scripted_timer import taking


def test_a_row_says_what_was_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[Result] = []
    compress = search.onnx_lowrank.compress

    def remembered(*args: Any, **options: Any) -> Result:
        made.append(compress(*args, timer=taking(0.4), **options))
        return made[-1]

    monkeypatch.setattr(search.onnx_lowrank, "compress", remembered)
    quick = {"passes": "svd", "repair": "none"}
    need = Need("digits_mlp", "--max-drop 1%", {"max_drop": 0.01, **quick})
    monkeypatch.setattr(search, "NEEDS", (need,))
    measure = search.begin("digits_mlp", tmp_path, Namespace(cache=""))
    row = measure(Cell("search", "digits_mlp", {"asked": need.name, "samples": 100}))
    (result,) = made
    accuracy = result.report.validation.accuracy
    assert accuracy is not None
    assert row.details["found"] == result.plan.target
    assert row.figures["accuracy_before"] == accuracy.reference
    assert row.figures["accuracy"] == accuracy.new
    assert row.figures["macs"] == result.report.macs_ratio < 0.7
    assert row.samples == {"calibration": 100, "test": accuracy.samples}
    assert "is the least with a drop of 1 points" in row.details["notes"][0]
    text = line(row, COMMAND.columns)
    assert text.count("|") == len(COMMAND.columns) + 1
    assert "| 2.50x | 2.50x |" in text


def test_needs_are_of_models_that_there_are() -> None:
    for need in NEEDS:
        assert NETS[need.model].path == SHARED / "models" / f"{need.model}.onnx"


def test_cells_are_those_of_the_needs() -> None:
    arguments = parser().parse_args(["search"])
    assert len(search.cells(arguments)) == len(NEEDS)
    arguments.needs = ["--target latency=0.5"]
    assert [cell.model for cell in search.cells(arguments)] == ["cifar10_resnet56"]
