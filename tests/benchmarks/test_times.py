"""The benchmark of time and memory on a small net."""

from __future__ import annotations

import cProfile
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest

from benchmarks.__main__ import parser
from benchmarks.command_line import Ended
from benchmarks.commands import times
from benchmarks.commands.kept import ALL
from benchmarks.commands.times import ASKS, COMMAND, Ask, hot_spots, pass_seconds, ratios
from benchmarks.rows import Cell, Results
from benchmarks.tables import line
from tests import fixtures_models as fm

CELL = Cell("time", "digits_vgg", {"target": "macs=0.5", "samples": 1000, "profile": False})
FIGURES = {
    "seconds": 20.0, "cpu_seconds": 30.0, "passes": 100.0, "peak_bytes": 1.5e9, "macs": 0.4,
    "speedup_threads1_batch1": 2.0, "promise_batch1": 0.8, "snr": 40.0,
}  # fmt: skip
BEFORE = CELL.measured({"calibration": 1000}, FIGURES, steps={"plan": 12.0, "refit": 8.0})
NOW = CELL.measured(
    {"calibration": 1000}, {**FIGURES, "seconds": 5.0, "peak_bytes": 3e8, "snr": float("inf")},
    steps={"plan": 1.0, "refit": 3.5, "validate": 0.5},
)  # fmt: skip


@pytest.mark.full
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read in /proc")
def test_a_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ask = Ask("digits_mlp", 60, 6, target="macs=0.6")
    monkeypatch.setattr(times, "_BY_MODEL", {ask.model: ask})
    arguments = parser().parse_args(["time", "--seconds", "0.02", "--profile"])
    arguments.models = ["digits_mlp"]
    command = times.compress

    def quick(model: Path, output: Path, options: list[str], profile: Path) -> Ended:
        assert options[2:] == [
            "--samples", "60", "--seed", "0", "--force", "--target", "macs=0.6",
        ]  # fmt: skip
        less = ["--passes", "svd", "--repair", "none"]
        return command(model, output, [*options, *less], profile=profile)

    monkeypatch.setattr(times, "compress", quick)
    (cell,) = times.cells(arguments)
    row = times.begin("digits_mlp", tmp_path, arguments)(cell)
    found = {name: value or 0.0 for name, value in row.figures.items()}
    assert row.status == "measured"
    assert row.samples == {"calibration": 60, "test": 100}
    assert 0 < sum(row.details["steps"].values()) < found["seconds"]
    assert found["passes"] == pytest.approx(found["seconds"] / found["pass_seconds"], rel=0.1)
    assert found["peak_bytes"] > 1e8  # SciPy and ONNX Runtime alone
    assert found["macs"] <= 0.6
    for batch in (1, 16):
        promise = found["macs"] * found[f"speedup_threads1_batch{batch}"]
        assert found[f"promise_batch{batch}"] == pytest.approx(promise, rel=1e-9)
    assert len(row.details["hot_spots"]) == 25
    assert line(row, COMMAND.columns).startswith("| digits_mlp | macs=0.6 | 60 | ")


def test_a_line_of_the_table() -> None:
    cells = line(BEFORE, COMMAND.columns).strip("| ").split(" | ")
    assert cells == [
        "digits_vgg", "macs=0.5", "1000", "20", "<= 6", "30", "100.0", "1.50", "",
        "plan 12.0, refit 8.0", "0.40", "2.00x", "0.80", "", "", "40.0 dB",
    ]  # fmt: skip


def test_ratios_to_an_earlier_row() -> None:
    assert ratios(BEFORE, NOW) == [
        "digits_vgg", "20.0 -> 5.0 (0.25)", "30.0 -> 30.0 (1.00)", "100.0 -> 100.0 (1.00)",
        "1.50 -> 0.30 (0.20)", "0.400 -> 0.400 (1.00)", "2.00x -> 2.00x (1.00)", "", "",
        "plan 12.0 -> 1.0, refit 8.0 -> 3.5, validate 0.0 -> 0.5",
    ]  # fmt: skip


def test_rows_are_set_beside_those_of_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier = Results(tmp_path / "earlier.json")
    earlier.add(BEFORE)
    other = Cell("time", "other", {}).measured({}, {})
    arguments = parser().parse_args(["time", "--against", str(earlier.path)])
    COMMAND.close([NOW, other], arguments)
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 3
    assert "20.0 -> 5.0 (0.25)" in lines[2]


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["time", "--against", str(tmp_path / "no.json")])
    assert "is not there; name a file of rows" in capsys.readouterr().err


def test_hot_spots_are_those_of_a_profile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = cProfile.Profile()
    profile.enable()
    fm.digits("mlp")
    sum(i * i for i in range(1_000_000))
    profile.disable()
    profile.dump_stats(tmp_path / "p")
    (own, calls, name), _ = hot_spots(tmp_path / "p", 2)
    assert own > 0
    assert calls == 1_000_001
    assert name.endswith("<genexpr>")
    row = CELL.measured({}, {}, hot_spots=[[1.234, 7, "linalg/cp.py:3 als"]])
    COMMAND.close([row], parser().parse_args(["time"]))
    assert "| 1.23 | 7 | linalg/cp.py:3 als |" in capsys.readouterr().out


def test_a_pass_is_over_all_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    run: list[int] = []
    session = Mock(run=lambda _, feed: run.append(len(feed["x"])))
    session.get_inputs.return_value = [SimpleNamespace(name="x", shape=["N", 2])]
    monkeypatch.setattr(times, "open_session", lambda _: session)
    assert pass_seconds(Path("x.onnx"), {"x": np.zeros((40, 2))}) > 0
    assert run == [16, 16, 16, 8]  # the first one warms up


def test_asks_are_of_models_that_are_known() -> None:
    assert {ask.model for ask in ASKS} <= set(ALL)
    chosen = times.cells(parser().parse_args(["time", "--samples", "9"]))
    assert {cell.options["samples"] for cell in chosen} == {9}
