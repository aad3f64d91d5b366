"""The ablation on a small net: its figures against figures got without it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from benchmarks import ablation
from benchmarks.ablation import HEADER, STEPS, key_of, line, measured
from benchmarks.methods import ends
from benchmarks.models import MODELS
from onnx_lowrank import compress
from onnx_lowrank.engine.api import DEFAULT_PASSES
from onnx_lowrank.planning.refit_modes import REPAIRS
from onnx_lowrank.planning.registry import parse_list
from tests import fixtures_models as fm

NET = replace(MODELS["digits_mlp"], calibration=300)
CELLS = [(0.3, step) for step in ("planned ranks", "last stages solved again")]


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [dict(r) for r in measured("digits_mlp", NET, CELLS, {})]


def test_steps_build_on_each_other() -> None:
    repairs = [options["repair"] for options in STEPS.values()]
    assert repairs == ["none"] * 3 + ["last", "chain", "relu", "relu", "relu"]
    assert set(repairs) == set(REPAIRS)
    *_, weighed, pruned = STEPS.values()
    assert weighed["rounds"] == 1
    (pruning,) = parse_list(pruned["passes"]).prunings
    assert pruning.options.gain == 1
    (default,) = parse_list(DEFAULT_PASSES).prunings
    assert default.options.gain == 2


def test_figures_are_those_of_the_model(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    options: dict[str, Any] = {"samples": 300, "threads": 1, "target": "macs=0.3", "force": True}
    result = compress(fm.digits("mlp"), calib=fm.DIGITS, repair="last", **options)
    result.save(tmp_path / "out.onnx")
    with np.load(fm.DIGITS) as archive:
        x, labels = archive["test.image"], archive["test.labels"]
    found = []
    for path in (fm.digits("mlp"), tmp_path / "out.onnx"):
        session = onnxruntime.InferenceSession(str(path))
        found.append(session.run(None, {session.get_inputs()[0].name: x})[0].argmax(axis=1))
    row = rows[1]
    assert row["samples"] == len(x)
    assert row["accuracy_before"] == np.mean(found[0] == labels)
    assert row["accuracy"] == np.mean(found[1] == labels)
    assert row["agreement"] == np.mean(found[0] == found[1])
    assert row["macs"] == result.report.macs_ratio <= 0.3
    assert row["speedup"] == {}


def test_the_plan_is_shared_and_the_repair_is_not(rows: list[dict[str, Any]]) -> None:
    assert rows[0]["macs"] == rows[1]["macs"]
    assert rows[0]["snr_db"] < rows[1]["snr_db"]


def test_known_rows_are_not_measured_again(rows: list[dict[str, Any]]) -> None:
    known = {key_of(r): json.loads(json.dumps(r)) for r in rows}
    assert list(known) == [f"digits_mlp/0.3/{step}" for _, step in CELLS]
    gone = replace(NET, path=Path("nowhere"))
    assert list(measured("digits_mlp", gone, CELLS, known)) == rows


def test_first_and_last_layer_stay_where_ranks_are_not_planned() -> None:
    assert ends(fm.digits("mlp")) == ["/fc1/Gemm", "/fc3/Gemm"]


def test_lines_have_the_columns_of_the_header(rows: list[dict[str, Any]]) -> None:
    for row in (rows[0], {**rows[0], "speedup": {"1": 1.5, "16": 1.25}}):
        assert line(row).count("|") == len(HEADER) + 1
    assert "| 1.50x | 1.25x |" in line({**rows[0], "speedup": {"1": 1.5, "16": 1.25}})


def test_a_result_is_timed_where_that_is_asked_for() -> None:
    (row,) = measured("digits_mlp", NET, [(0.3, "planned ranks")], {}, 0.05)
    assert set(row["speedup"]) == {"1", "16"}
    assert all(value > 0 for value in row["speedup"].values())


def test_defaults() -> None:
    found = ablation.parser().parse_args([])
    assert (found.steps, found.ratios, found.seconds) == (list(STEPS), [0.5, 0.33], 0.0)
