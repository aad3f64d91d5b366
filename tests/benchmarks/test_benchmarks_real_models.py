"""The benchmark of real files, on a small one: what it says, against what is so."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks import real_models
from benchmarks.real_data import REAL, Real
from benchmarks.real_models import HEADER, examine, line, watched
from onnx_lowrank.engine.api import Result
from onnx_lowrank.engine.inspection import inspect
from tests import fixtures_models as fm

MLP = fm.digits("mlp")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    fm.without_clock(monkeypatch)


def data(count: int = 40) -> dict[str, Any]:
    with np.load(fm.DIGITS) as z:
        return {k: z[k][:count] for k in z.files}


@pytest.mark.usefixtures("quick")
def test_compressed() -> None:
    row = examine(MLP, "macs=0.7", Real(data, 30))
    assert row["verdict"] == "compressed"
    assert row["layers"] == row["eligible"] == len(inspect(MLP).layers) == 3
    assert sum(row["decisions"].values()) == 3
    assert sum(row["left"].values()) + row["decisions"]["factorize"] == 3
    assert 0 < row["macs"] <= 0.7
    assert 0 < row["bytes"] < 1
    assert (row["data"], row["samples"], row["speedup"]) == (True, 40, 2.0)
    cells = line("digits_mlp", row).split(" | ")
    assert len(cells) == len(HEADER)
    assert cells[-2:] == ["2.00x", f"{row['seconds']:.0f} |"]


@pytest.mark.usefixtures("quick")
def test_without_data() -> None:
    row = examine(MLP, "macs=0.7", Real())
    assert (row["verdict"], row["data"]) == ("compressed", False)
    assert "8 random" in line("digits_mlp", row)


@pytest.mark.usefixtures("quick")
def test_refused() -> None:
    row = examine(MLP, "macs=0.0001", Real())
    assert row["verdict"] == "refused"
    assert row["why"].startswith("BudgetError: ")
    assert len(line("digits_mlp", row).split(" | ")) == len(HEADER)


@pytest.mark.usefixtures("quick")
def test_a_traceback_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("nothing to divide by")

    monkeypatch.setattr(real_models.onnx_lowrank, "compress", broken)
    row = examine(MLP, "macs=0.7", Real())
    assert row["verdict"] == "broken"
    assert row["why"].startswith("Traceback")
    assert "broken: ZeroDivisionError: nothing to divide by" in line("digits_mlp", row)


@pytest.mark.usefixtures("quick")
def test_a_contract_not_kept_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def renamed(self: Result, path: Path) -> None:
        other = onnx.load(MLP)
        other.graph.node[-1].output[0] = other.graph.output[0].name = "other"
        other.opset_import[0].version += 1
        onnx.save(other, path)

    monkeypatch.setattr(Result, "save", renamed)
    row = examine(MLP, "macs=0.7", Real())
    assert (row["verdict"], row["why"]) == (
        "broken", "its outputs are others; its opsets are others"
    )  # fmt: skip


def test_no_model_takes_longer_than_the_limit() -> None:
    start = time.perf_counter()
    row = watched(MLP, "macs=0.7", 0.05)
    assert row == {"verdict": "unfinished", "why": "not done after 0 s"}
    assert time.perf_counter() - start < 10


def test_every_real_model_has_data() -> None:
    names = {p.stem for p in (fm.SHARED / "models").glob("*.onnx")}
    assert names <= set(REAL)
    assert all(real.read is not None for real in REAL.values())
