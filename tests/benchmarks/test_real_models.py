"""The benchmark of real files, on a small one: what it says, against what is so."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks.commands import real_models
from benchmarks.commands.real_models import COMMAND, examine, watched
from benchmarks.real_data import REAL, Real
from benchmarks.rows import Cell, Row
from benchmarks.tables import line
from onnx_lowrank.engine.api import Result
from onnx_lowrank.engine.inspection import inspect
from onnx_lowrank.latency.timer import RuntimeTimer
from tests import fixtures_models as fm
from tests.scripted_timer import pair

MLP = fm.digits("mlp")
CELL = Cell("real_models", "digits_mlp", {"target": "macs=0.7"})


def told(row: Row) -> str:
    return line(row, COMMAND.columns)


def data(count: int = 40) -> dict[str, Any]:
    with np.load(fm.DIGITS) as z:
        return {k: z[k][:count] for k in z.files}


@pytest.fixture
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results take half of the time, and nothing is measured."""
    monkeypatch.setattr(RuntimeTimer, "models", lambda *_: (pair(0.5),))


@pytest.mark.full
@pytest.mark.usefixtures("no_clock")
def test_compressed() -> None:
    row = examine(MLP, CELL, Real(data, 30))
    figures = {k: v or 0.0 for k, v in row.figures.items()}
    assert row.status == "measured"
    assert figures["layers"] == figures["eligible"] == len(inspect(MLP).layers) == 3
    assert sum(row.details["decisions"].values()) == 3
    assert sum(row.details["left"].values()) + figures["factorized"] == 3
    assert 0 < figures["macs"] <= 0.7
    assert 0 < figures["bytes"] < 1
    assert row.samples == {"calibration": 30, "test": 40}
    assert figures["speedup_threads1_batch1"] == 2.0
    cells = told(row).split(" | ")
    assert len(cells) == len(COMMAND.columns)
    assert cells[-2:] == ["2.00x", f"{figures['seconds']:.0f} |"]


@pytest.mark.usefixtures("no_clock")
def test_without_data() -> None:
    row = examine(MLP, CELL, Real())
    assert (row.status, row.samples["calibration"]) == ("measured", 0)
    assert "8 random" in told(row)


@pytest.mark.usefixtures("no_clock")
def test_refused() -> None:
    row = examine(MLP, Cell("real_models", "digits_mlp", {"target": "macs=0.0001"}), Real())
    assert row.status == "refused"
    assert row.message.startswith("BudgetError: ")
    assert told(row).startswith("| digits_mlp | 3 | refused: BudgetError: ")


@pytest.mark.usefixtures("no_clock")
def test_a_traceback_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("nothing to divide by")

    monkeypatch.setattr(real_models.onnx_lowrank, "compress", broken)
    row = examine(MLP, CELL, Real())
    assert row.status == "broken"
    assert row.message.startswith("Traceback")
    assert "broken: ZeroDivisionError: nothing to divide by" in told(row)


@pytest.mark.usefixtures("no_clock")
def test_a_contract_not_kept_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def renamed(self: Result, path: Path) -> None:
        other = onnx.load(MLP)
        other.graph.node[-1].output[0] = other.graph.output[0].name = "other"
        other.opset_import[0].version += 1
        onnx.save(other, path)

    monkeypatch.setattr(Result, "save", renamed)
    row = examine(MLP, CELL, Real())
    assert row.status == "broken"
    assert row.message == "its outputs have changed; its opsets have changed"


def test_no_model_takes_longer_than_the_limit() -> None:
    start = time.perf_counter()
    row = watched(MLP, CELL, 0.05)
    assert (row.status, row.message) == ("unfinished", "not done after 0 s")
    assert time.perf_counter() - start < 10


@pytest.mark.full
def test_a_file_has_a_process_of_its_own() -> None:
    row = watched(MLP, Cell("real_models", "digits_mlp", {"target": "macs=0.0001"}), 60)
    assert (row.status, row.model) == ("refused", "digits_mlp")


def test_every_real_model_has_data() -> None:
    names = {p.stem for p in (fm.SHARED / "models").glob("*.onnx")}
    assert names <= set(REAL)
    assert all(real.read is not None for real in REAL.values())
