"""The JSON form of rows, the table maker, and the loop that both hang on."""

from __future__ import annotations

import argparse
import ast
import json
import re
import shlex
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main, parser
from benchmarks.command import Command, measured, run
from benchmarks.commands import COMMANDS
from benchmarks.figures import UNITS
from benchmarks.rows import SCHEMA, STATUSES, Cell, FormError, Results, Row
from benchmarks.tables import accuracy, asked, figure, head, line, model

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
CELL = Cell("models", "net", {"target": 0.5, "method": "m"})
ROW = CELL.measured(
    {"calibration": 8, "test": 40},
    {"macs": 0.5, "snr": float("inf"), "accuracy_before": 0.9, "accuracy": 0.85},
    errors={"a": 0.1},
)
COLUMNS = (
    model(), asked("MACs asked", "target"), figure("MACs left", "macs"), accuracy(),
    figure("SNR", "snr", "{:.1f} dB", unbounded="exact"),
)  # fmt: skip


def test_keys_tell_cells_apart() -> None:
    assert CELL.key == Cell("models", "net", {"method": "m", "target": 0.5}).key == ROW.key
    others = [
        replace(CELL, command="alone"),
        replace(CELL, model="other"),
        replace(CELL, options={"target": 0.4, "method": "m"}),
    ]
    assert len({CELL.key, *(c.key for c in others)}) == 4


def test_a_row_has_figures_with_units_machine_and_versions() -> None:
    data = json.loads(json.dumps(ROW.to_dict(), allow_nan=False))
    assert data["figures"]["macs"] == {"value": 0.5, "unit": "part of the original"}
    assert data["figures"]["snr"] == {"value": None, "unit": "dB"}
    assert data["machine"]["cores"] >= 1
    assert data["versions"].keys() >= {"python", "onnxruntime", "onnx-lowrank"}
    assert Row.from_dict(data) == ROW


@pytest.mark.parametrize(
    ("status", "figures", "told"),
    [("measured", {"speed": 1.0}, "no unit is known of .'speed'."), ("done", {}, "status 'done'")],
)
def test_rows_that_say_nothing_known_are_refused(
    status: str, figures: dict[str, float], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        CELL.ended(status, "why", figures)


def test_a_figure_that_is_not_a_number_is_left_out() -> None:
    assert CELL.measured({}, {"snr": float("nan"), "macs": 1.0}).figures == {"macs": 1.0}


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    results = Results(tmp_path / "new" / "rows.json")
    assert results.rows == {}
    results.add(ROW)
    newer = CELL.measured({"test": 40}, {"macs": 0.4})
    results.add(newer)
    results.add(Cell("models", "other", {}).ended("refused", "too small"))
    assert list(Results(results.path).rows.values()) == list(results.rows.values())
    assert Results(results.path).rows[CELL.key] == newer
    assert [p.name for p in results.path.parent.iterdir()] == ["rows.json"]


@pytest.mark.parametrize("text", ['{"rows": []}', "[]", '{"schema": 0, "rows": []}'])
def test_files_of_another_form_are_refused(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(SystemExit):
        main(["models", "--out", str(path)])
    assert "does not hold rows of schema 1; move it away" in capsys.readouterr().err
    assert path.read_text() == text


def test_lines() -> None:
    assert head(COLUMNS) == (
        "| model | MACs asked | MACs left | top-1 | SNR |\n|---|---|---|---|---|"
    )
    assert line(ROW, COLUMNS) == "| net | 0.5 | 0.50 | 90.0% -> 85.0% of 40 | exact |"
    refused = CELL.ended("refused", "0.9 is the least", {"macs": 0.9})
    assert line(refused, COLUMNS) == "| net | 0.5 | 0.90 | refused: 0.9 is the least |  |"
    broken = CELL.ended("broken", "Traceback:\n  ...\nKeyError: 'a'\n")
    assert line(broken, COLUMNS) == "| net | 0.5 | broken: KeyError: 'a' |  |  |"


def _command(path: Path, seen: list[str]) -> Command:
    """A benchmark of two models with two cells each, that notes what it does."""

    def begin(name: str, folder: Path, arguments: argparse.Namespace) -> Any:
        assert folder.is_dir()
        seen.append(name)
        return lambda cell: cell.measured({}, {"macs": cell.options["target"]})

    def cells(arguments: argparse.Namespace) -> list[Cell]:
        return [Cell("x", name, {"target": t}) for name in arguments.models for t in (0.5, 0.25)]

    return Command(
        "x", "Nothing.", ["a", "b"], ["a", "b"], (model(), figure("MACs", "macs")), cells, begin,
        path_of=lambda name: path / name,
        close=lambda rows, _: seen.append(f"{len(rows)} rows"),
    )  # fmt: skip


def test_known_cells_are_told_and_others_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).touch()
    seen: list[str] = []
    command = _command(tmp_path, seen)
    arguments = argparse.Namespace(models=["a"], again=False, out=tmp_path / "rows.json", page=None)
    run(command, arguments)
    assert seen == ["a", "2 rows"]
    (tmp_path / "a").unlink()  # what is known needs no model
    arguments.models = ["a", "b"]
    run(command, arguments)
    assert seen == ["a", "2 rows", "b", "4 rows"]
    assert len(Results(arguments.out).rows) == 4
    assert capsys.readouterr().out.splitlines()[-1] == "| b | 0.25 |"


PAGE = "# Page\n\n<!-- benchmark x -->\n\n{}Text.\n\n| other |\n"


def test_a_page_shows_what_is_known(tmp_path: Path) -> None:
    page, rows = tmp_path / "page.md", tmp_path / "rows.json"
    Results(rows).add(Cell("x", "b", {"target": 0.25}).measured({}, {"macs": 0.2}))
    arguments = argparse.Namespace(models=["a", "b"], again=False, out=rows, page=page)
    table = "| model | MACs |\n|---|---|\n| a |  |\n| a |  |\n| b |  |\n| b | 0.20 |\n"
    for before in ("", "| model |\n| a |\n\n", table + "\n"):
        page.write_text(PAGE.format(before), encoding="utf-8")
        run(_command(tmp_path, []), arguments)
        assert page.read_text(encoding="utf-8") == PAGE.format(table + "\n")
    page.write_text("# Page\n", encoding="utf-8")
    with pytest.raises(FormError, match="has no line <!-- benchmark x -->"):
        run(_command(tmp_path, []), arguments)


def test_models_that_are_not_at_hand_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "b").touch()
    arguments = argparse.Namespace(models=["a", "b"])
    assert [r.model for r in measured(_command(tmp_path, []), arguments, {})] == ["b", "b"]
    assert "a is left out" in capsys.readouterr().out


def test_help_names_every_benchmark_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    for name, command in COMMANDS.items():
        assert f"{name} {command.summary}" in told
        assert re.fullmatch(r"[A-Z][^.]*\.", command.summary)


@pytest.mark.parametrize("name", COMMANDS)
def test_defaults_are_understood_and_give_cells_that_differ(name: str) -> None:
    arguments = parser().parse_args([name])
    cells = COMMANDS[name].cells(arguments)
    assert len({cell.key for cell in cells}) == len(cells)
    assert {cell.command for cell in cells} <= {name}
    assert [c.model for c in cells] == sorted(
        (c.model for c in cells), key=arguments.models.index
    )  # so that a model is begun once
    assert arguments.out == Path(f"benchmarks/results/{name}.json")


def test_documented_commands_are_understood() -> None:
    pages = [BENCHMARKS / "README.md", ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    seen = set()
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for options in re.findall(r"^ +\S*python -m benchmarks (.+)$", text, re.M):
            seen.add(parser().parse_args(shlex.split(options)).name)
        for name in re.findall(r"`python -m benchmarks (\w+)`", text):
            seen.add(name)
    assert seen == set(COMMANDS)


def test_the_form_of_rows_is_documented() -> None:
    text = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    assert f'"schema": {SCHEMA}' in text
    named = set(re.findall(r"`(\w+)`", text))
    assert {*ROW.to_dict(), *STATUSES} <= named
    table = text.partition("| figure | unit |")[2].partition("\n\n")[0]
    units = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", table, re.M))
    assert units == UNITS


def test_benchmarks_import_public_names_only() -> None:
    looked_at = 0
    for path in BENCHMARKS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                if node.module.split(".")[0] == "onnx_lowrank":
                    public = import_module(node.module).__all__
                    assert {alias.name for alias in node.names} <= set(public), path.name
                    looked_at += 1
            elif isinstance(node, ast.Attribute) and not isinstance(node.value, ast.Call):
                own = isinstance(node.value, ast.Name) and node.value.id == "self"
                assert own or not re.match(r"_[^_]", node.attr), f"{path.name}: {node.attr}"
    assert looked_at > 10
