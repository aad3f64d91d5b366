"""The pruning benchmark on a small net: its figures against figures got without it."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from benchmarks import pruning
from benchmarks.pruning_cells import NETS, PARTS, Cell, cells
from benchmarks.pruning_measure import answers, measure, nearest_share
from benchmarks.pruning_tables import HEADER, line, picture
from onnx_lowrank.planning.registry import parse_list
from tests import fixtures_models as fm

ROOT = Path(__file__).parents[2]
CELL = Cell("mnist", "digits_mlp", "params=0.4", "pruning", "fold_batchnorm,prune_channels")


@pytest.fixture(scope="module")
def row(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of the small net; its model is left in the folder that the row names."""
    folder = tmp_path_factory.mktemp("cell")
    found = measure(replace(CELL, samples=300), NETS["digits_mlp"], fm.DIGITS, folder, None, 0.0)
    return {**found, "folder": folder}


@pytest.mark.parametrize("part", PARTS)
def test_cells_are_told_apart_and_can_be_run(part: str) -> None:
    found = list(PARTS[part]())
    assert len({cell.key for cell in found}) == len(found) > 0
    for cell in found:
        assert cell.part == part
        assert cell.model in NETS
        assert re.fullmatch(r"(params|macs)=0\.\d+", cell.target)
    for passes in {cell.passes for cell in found} - {""}:
        assert len(parse_list(passes).prunings) <= 1
    assert sum(len(cells(part, net)) for net in NETS) == len(found)


def test_ways_choose_cells() -> None:
    found = cells("chains", "cifar10_resnet20", ["obs parallel, solve", "random, as they are"])
    assert {cell.name for cell in found} == {"obs parallel, solve", "random, as they are"}
    assert {(c.name.startswith("obs"), "solve=False" in c.passes) for c in found} == {
        (True, False), (False, True)
    }  # fmt: skip
    assert {cell.repair for cell in found} == {"none"}


def test_figures_are_those_of_the_model(row: dict[str, Any]) -> None:
    with np.load(fm.DIGITS) as archive:
        x, labels = archive["test.image"], archive["test.labels"]
    wrong = []
    for path in (fm.digits("mlp"), row["folder"] / "out.onnx"):
        session = onnxruntime.InferenceSession(str(path))
        wrong.append(session.run(None, {"image": x})[0].argmax(1) != labels)
    assert row["tested"] == len(labels) == 797
    assert (row["wrong_before"], row["wrong"]) == (wrong[0].sum(), wrong[1].sum())
    assert row["differ"] >= int((wrong[0] != wrong[1]).sum())
    assert 0.2 < row["params"] <= 0.4
    assert all(0 < left <= size for left, size in row["groups"].values())
    json.dumps({k: v for k, v in row.items() if k != "folder"}, allow_nan=False)


def test_answers_do_not_hang_on_the_batch(tmp_path: Path) -> None:
    with np.load(fm.DIGITS) as archive:
        x = archive["test.image"][:120]
    path = Path(fm.digits("mlp"))
    one_by_one = [answers(path, {"image": x[i : i + 1]})[0] for i in range(len(x))]
    assert answers(path, {"image": x}).tolist() == one_by_one


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    asked = replace(CELL, target="params=0.00001", samples=50)
    found = measure(asked, NETS["digits_mlp"], fm.DIGITS, tmp_path, None, 0.0)
    assert "params=1e-05" in found["refused"]
    peerless = replace(CELL, passes="", name="onnxsim L2")
    found = measure(peerless, NETS["digits_mlp"], fm.DIGITS, tmp_path, None, 0.0)
    assert found["refused"] == "onnxsim is not at hand"
    assert line(found).count("|") == len(HEADER) + 1


def test_known_rows_are_not_measured_again() -> None:
    known = {CELL.key: {"seen": 1}}
    assert list(pruning.measured([CELL], known, None, 0.0)) == [{"seen": 1}]


@pytest.mark.parametrize("ratio", [0.9, 0.7, 0.5, 0.3])
def test_nearest_share(ratio: float) -> None:
    """What is left falls in steps, as whole channels do; no step is nearer than the one found."""

    def left(share: float) -> float:
        return (1 - np.floor(share * 20) / 20) ** 2

    found = left(nearest_share(left, ratio))
    assert abs(found - ratio) == pytest.approx(
        min(abs(left(s) - ratio) for s in np.arange(0, 1, 0.01)), rel=0, abs=1e-12
    )


def test_line() -> None:
    row = {
        "model": "net", "target": "macs=0.5", "name": "pruning", "samples": None, "macs": 0.49,
        "params": 0.6, "tested": 200, "wrong_before": 4, "wrong": 7, "differ": 5, "seconds": 3.2,
        "speedup": {"batch 1": 1.5, "batch 16": 1.25},
    }  # fmt: skip
    assert line(row) == (
        "| net | macs=0.5 | pruning | all | 0.490 | 0.600 | 2.00 -> 3.50 % | +1.50 | 2.50 % "
        "| 1.50x | 1.25x | 3 |"
    )
    assert line(row).count("|") == len(HEADER) + 1


def test_picture_is_the_same_each_time(tmp_path: Path) -> None:
    rows = [
        {"model": net, "name": "random, as they are", "params": left, "wrong": w, "tested": 100}
        for net in ("one", "two")
        for left, w in ((0.5, 10), (0.2, 40))
    ]
    rows.append({"model": "two", "name": "random, as they are", "refused": "why"})
    picture(tmp_path / "a.svg", rows)
    picture(tmp_path / "b" / "a.svg", rows)
    drawn = (tmp_path / "a.svg").read_bytes()
    assert (tmp_path / "b" / "a.svg").read_bytes() == drawn
    assert all(word in drawn for word in (b">one<", b">two<", b"random, as they are"))


def test_documented_commands_are_understood() -> None:
    text = (ROOT / "docs" / "pruning.md").read_text(encoding="utf-8")
    commands = re.findall(r"^.*python -m benchmarks\.pruning(.*)$", text, re.M)
    assert commands
    for options in commands:
        pruning.parser().parse_args(shlex.split(options))
