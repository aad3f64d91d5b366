"""The benchmark of searches on a small net, its figures against the model itself."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import search
from benchmarks.models import MODELS, SHARED
from benchmarks.search import HEADER, NEEDS, Need, line, measure
from tests import fixtures_models as fm

NET = MODELS["digits_mlp"]


def test_a_row_says_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    fm.without_clock(monkeypatch, 0.4)
    row = measure(Need("digits_mlp", "--max-drop 1%", 300, {"max_drop": 0.01}), NET)
    options: dict[str, Any] = {"calib": fm.DIGITS, "samples": 300, "max_drop": 0.01}
    result = fm.quick_compress(NET.path, **options, cache="", force=True)
    accuracy = result.report.validation.accuracy
    assert accuracy is not None
    assert row["found"] == result.plan.target
    assert (row["accuracy_before"], row["accuracy"]) == (accuracy.reference, accuracy.new)
    assert row["macs"] == result.report.macs_ratio < 0.5
    assert row["speedup"] == {"1": 2.5}
    assert "is the least with a drop of 1 points" in row["notes"][0]
    text = line(row)
    assert text.count("|") == len(HEADER) + 1
    assert "| 2.50x |  |" in text


def test_needs_are_of_models_that_there_are() -> None:
    for need in NEEDS:
        benchmark = search._benchmark(need.model)
        assert benchmark.path.parent == SHARED / "models"
        assert benchmark.path.stem == need.model


def test_defaults() -> None:
    found = search.parser().parse_args([])
    assert len(list(search._chosen(found.models, found.needs))) == len(NEEDS)
    assert not list(search._chosen(found.models, ["--min-snr 30dB"]))
