"""The ablation on a small net: its figures against figures got without it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from benchmarks.__main__ import parser
from benchmarks.command import measured
from benchmarks.commands.ablation import COMMAND, STEPS
from benchmarks.figures import speedup_name
from benchmarks.nets import NETS
from benchmarks.rows import Row
from benchmarks.tables import line
from benchmarks.ways import WAYS, options_of
from onnx_lowrank.engine.option_groups import DEFAULT_PASSES
from onnx_lowrank.planning.refit_modes import DRAFTED, REPAIRS
from onnx_lowrank.planning.registry import parse_list
from tests import fixtures_models as fm

TWO = ["planned ranks", "last stages solved again"]


def rows_of(*options: str) -> list[Row]:
    arguments = parser().parse_args(
        ["ablation", "--models", "digits_mlp", "--ratios", "0.3", *options]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETS, "digits_mlp", replace(NETS["digits_mlp"], calibration=300))
        return list(measured(COMMAND, arguments, {}))


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return rows_of("--steps", *TWO)


def test_steps_build_on_each_other() -> None:
    repairs = [options["repair"] for options in STEPS.values()]
    assert repairs == ["none"] * 3 + ["last", "chain", "relu", "relu", "relu"]
    assert set(repairs) == set(REPAIRS) - {DRAFTED}
    *_, alone, pruned, weighed = STEPS.values()
    assert [s["effort"] for s in (alone, pruned, weighed)] == ["quick", "normal", "thorough"]
    assert not parse_list(alone["passes"]).prunings
    assert parse_list(DEFAULT_PASSES).prunings


@pytest.mark.full
def test_figures_are_those_of_the_model(rows: list[Row], tmp_path: Path) -> None:
    options: dict[str, Any] = {"samples": 300, "target": "macs=0.3", "force": True}
    result = fm.quick_compress(fm.digits("mlp"), calib=fm.DIGITS, **STEPS[TWO[1]], **options)
    result.save(tmp_path / "out.onnx")
    with np.load(fm.DIGITS) as archive:
        x, labels = archive["test.image"], archive["test.labels"]
    found = []
    for path in (fm.digits("mlp"), tmp_path / "out.onnx"):
        session = onnxruntime.InferenceSession(str(path))
        found.append(session.run(None, {session.get_inputs()[0].name: x})[0].argmax(axis=1))
    row = rows[1]
    assert row.samples == {"calibration": 300, "test": len(x)}
    assert row.figures["accuracy_before"] == np.mean(found[0] == labels)
    assert row.figures["accuracy"] == np.mean(found[1] == labels)
    assert row.figures["agreement"] == np.mean(found[0] == found[1])
    assert row.figures["macs"] == result.report.macs_ratio <= 0.3
    assert speedup_name(1, 1) not in row.figures


@pytest.mark.full
def test_the_plan_is_shared_and_the_repair_is_not(rows: list[Row]) -> None:
    assert [row.options["step"] for row in rows] == TWO
    last, repaired = (row.figures for row in rows)
    assert last["macs"] == repaired["macs"]
    assert (last["snr"] or 0) < (repaired["snr"] or 0)


def test_first_and_last_layer_stay_where_ranks_are_not_planned() -> None:
    uniform = options_of(WAYS["weight space, uniform"], 0.3, fm.digits("mlp"))
    assert uniform["exclude"] == ["/fc1/Gemm", "/fc3/Gemm"]
    assert uniform["ranks"] == "ratio=0.31"
    quick = {"effort": "quick"}
    assert options_of(quick, 0.3, fm.digits("mlp")) == {**quick, "target": "macs=0.3"}


@pytest.mark.full
def test_a_result_is_timed_where_that_is_asked_for(rows: list[Row]) -> None:
    (row,) = rows_of("--steps", "planned ranks", "--seconds", "0.05")
    for batch in (1, 16):
        assert (row.figures[speedup_name(1, batch)] or 0) > 0
    for each in (*rows, row):
        assert line(each, COMMAND.columns).count("|") == len(COMMAND.columns) + 1
