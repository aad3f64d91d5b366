from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from onnx_lowrank.fleet import worker
from onnx_lowrank.fleet.options import Limits
from onnx_lowrank.fleet.outcome import Outcome
from onnx_lowrank.fleet.process import run_limited
from onnx_lowrank.fleet.worker import MADE, Order, carried_out
from tests import fixtures_models as fm
from tests.scripted_timer import taking

QUICK: dict[str, Any] = {
    "target": "macs=0.6", "passes": "svd", "effort": "quick", "samples": 60, "cache": "",
}  # fmt: skip


def outcome_of(order: Order, ratio: float = 0.5) -> Outcome:
    """The outcome where the result takes ``ratio`` of the original's time."""
    return carried_out(order, taking(ratio))


@pytest.fixture
def order(tiny: Path, tmp_path: Path) -> Order:
    model, data = str(tiny / "tiny.onnx"), str(tiny / "data.npz")
    return Order(model, "small.onnx", data, QUICK, str(tmp_path), 1, "the command")


def test_the_result_and_its_receipts(order: Order, tmp_path: Path) -> None:
    outcome = outcome_of(order)
    assert outcome.status == "done", outcome.reason
    assert outcome.files == (
        "small.onnx.report.html", "small.onnx.report.json", "small.onnx",
    )  # fmt: skip
    made = {p.name for p in (tmp_path / MADE).iterdir()}
    assert made == set(outcome.files)
    report = json.loads((tmp_path / MADE / "small.onnx.report.json").read_text())
    assert report["basis"]["command"] == "the command"
    assert "the command" in (tmp_path / MADE / "small.onnx.report.html").read_text()
    after = outcome.figures["after"]
    assert after["macs"] == report["model"]["after"]["macs"] <= 0.6 * 4608
    assert after["bytes"] == (tmp_path / MADE / "small.onnx").stat().st_size
    assert outcome.figures["kept"] == report["validation"]["judged"][0]["kept"]
    assert outcome.figures["latency"] == {"batch": 1, "before_ms": 1.0, "after_ms": 0.5}
    assert outcome.seconds > 0
    assert Outcome.of(json.loads(json.dumps(outcome.to_dict()))) == outcome


def test_weights_in_files_are_written_so(order: Order, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = fm.external(tmp_path / "in", fm.classifier())
    outcome = outcome_of(replace(order, model=str(path)))
    assert outcome.files[-1] == "small.onnx"
    assert "small.onnx.data" in outcome.files
    onnx.load(tmp_path / MADE / "small.onnx")


def test_texts_are_read_as_on_the_command_line(order: Order) -> None:
    texts = {"input_shapes": ["x:60,64"], "max_drop": None, "mean": "1,2,3", "resize": "8x9"}
    outcome = outcome_of(replace(order, options={**QUICK, **texts, "samples": "many"}), taking(0.5))
    assert (outcome.error, outcome.exit_code) == ("OptionError", 2)
    assert outcome.reason.startswith("option samples")
    assert (
        outcome_of(
            replace(order, options={**QUICK, "input_shapes": ["z:1"]}), taking(0.5)
        ).exit_code
        == 2
    )


def test_a_model_without_gain_is_copied(order: Order, tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    proto = fm.build([node], {"x": ["n", 4]}, {"y": ["n", 4]}, {})
    onnx.save(proto, tmp_path / "plain.onnx")
    plain = replace(order, model=str(tmp_path / "plain.onnx"), calibration=None)
    outcome = outcome_of(replace(plain, options={"passes": "svd"}))
    assert outcome.status == "unchanged"
    assert outcome.reason.startswith("nothing can be gained: ")
    assert onnx.load(tmp_path / MADE / "small.onnx") == proto
    assert outcome.figures["before"] == outcome.figures["after"]
    asked = outcome_of(plain)
    assert (asked.status, asked.cause, asked.exit_code) == ("failed", "refused", 5)


@pytest.mark.parametrize(
    ("change", "error", "code"),
    [
        ({"model": "none.onnx"}, "ModelError", 3),
        ({"calibration": "none.npz"}, "DataError", 4),
        ({"options": {**QUICK, "target": "macs=0.0001"}}, "BudgetError", 5),
    ],
)
def test_what_is_refused(change: dict[str, Any], error: str, code: int, order: Order) -> None:
    outcome = outcome_of(replace(order, **change))
    assert (outcome.cause, outcome.error, outcome.exit_code) == ("refused", error, code)
    assert outcome.reason
    assert not Path(order.folder, MADE).exists()


def test_a_slower_result_is_refused(order: Order) -> None:
    outcome = outcome_of(order, 3.0)
    assert (outcome.error, outcome.exit_code) == ("GuardError", 5)


@pytest.mark.parametrize(
    ("error", "cause", "code", "part"),
    [
        (MemoryError(), "memory-limit", 137, "fewer --workers"),
        (ZeroDivisionError("by\nzero"), "internal", 1, "unexpected ZeroDivisionError: by; the log"),
    ],
)
def test_what_nobody_expected(
    error: Exception, cause: str, code: int, part: str, order: Order,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def broken(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(worker, "compress_or_leave", broken)
    outcome = outcome_of(order)
    assert (outcome.cause, outcome.exit_code) == (cause, code)
    assert part in outcome.reason
    assert ("Traceback" in capfd.readouterr().err) == (cause == "internal")


@pytest.mark.full
def test_in_a_process(order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real one, from a folder in which a module lies that it must not import."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "onnx.py").write_text("raise SystemExit(9)")
    # force, as its clock is a real one
    outcome = run_limited(replace(order, options={**QUICK, "force": True}), Limits(120, 4 << 30))
    assert outcome is not None
    assert outcome.status == "done", (outcome, (tmp_path / "log.txt").read_text())
    assert outcome.peak_bytes is not None
    assert outcome.peak_bytes > 20 << 20
    assert set(outcome.files) == set(os.listdir(tmp_path / MADE))
