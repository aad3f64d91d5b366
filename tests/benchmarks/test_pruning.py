"""The benchmark of pruning on a small net: its figures against figures got without it."""

from __future__ import annotations

import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from benchmarks.__main__ import parser
from benchmarks.commands.pruning import COMMAND, answers, begin, cells
from benchmarks.nets import NETS
from benchmarks.onnxsim_peer import nearest_share
from benchmarks.pruning_cells import MODELS, PARTS, pruning_cell
from benchmarks.pruning_picture import picture
from benchmarks.rows import Row
from benchmarks.tables import line
from onnx_lowrank.planning.registry import parse_list
from tests import fixtures_models as fm

NO_PEER = Namespace(onnxsim=None, seconds=0.0)
PASSES = "fold_batchnorm,prune_channels"


def pruned(folder: Path, target: str, way: str, passes: str, samples: int = 300) -> Row:
    cell = pruning_cell("mnist", "digits_mlp", target, way, passes, samples=samples)
    return begin("digits_mlp", folder, NO_PEER)(cell)


@pytest.mark.parametrize("part", PARTS)
def test_cells_are_told_apart_and_can_be_run(part: str) -> None:
    found = list(PARTS[part]())
    assert len({cell.key for cell in found}) == len(found) > 0
    for cell in found:
        assert cell.options["part"] == part
        assert cell.model in MODELS
        assert re.fullmatch(r"(params|macs)=0\.\d+", cell.options["target"])
    for passes in {cell.options["passes"] for cell in found} - {""}:
        assert len(parse_list(passes).prunings) <= 1
    assert len(cells(parser().parse_args(["pruning", "--parts", part]))) == len(found)


def test_ways_choose_cells() -> None:
    ways = ["obs parallel, solve", "random, as they are"]
    options = ["--parts", "chains", "--models", "cifar10_resnet20", "--ways", *ways]
    found = cells(parser().parse_args(["pruning", *options]))
    assert {cell.options["way"] for cell in found} == set(ways)
    assert {
        (c.options["way"].startswith("obs"), "solve=False" in c.options["passes"]) for c in found
    } == {(True, False), (False, True)}
    assert {cell.options["repair"] for cell in found} == {"none"}


@pytest.mark.full
def test_figures_are_those_of_the_model(tmp_path: Path) -> None:
    row = pruned(tmp_path, "params=0.4", "pruning", PASSES)
    with np.load(fm.DIGITS) as archive:
        x, labels = archive["test.image"], archive["test.labels"]
    wrong = []
    for path in (fm.digits("mlp"), tmp_path / "out.onnx"):
        session = onnxruntime.InferenceSession(str(path))
        wrong.append(session.run(None, {"image": x})[0].argmax(1) != labels)
    figures = {k: v for k, v in row.figures.items() if v is not None}
    assert row.samples == {"calibration": 300, "test": len(labels)}
    assert (figures["wrong_before"], figures["wrong"]) == (wrong[0].sum(), wrong[1].sum())
    assert figures["differ"] >= int((wrong[0] != wrong[1]).sum())
    assert 0.2 < figures["params"] <= 0.4
    assert all(0 < left <= size for left, size in row.details["groups"].values())


def test_answers_do_not_hang_on_the_batch() -> None:
    with np.load(fm.DIGITS) as archive:
        x = archive["test.image"][:120]
    path = Path(fm.digits("mlp"))
    one_by_one = [answers(path, {"image": x[i : i + 1]})[0] for i in range(len(x))]
    assert answers(path, {"image": x}).tolist() == one_by_one


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    row = pruned(tmp_path, "params=0.00001", "pruning", PASSES, 50)
    assert row.status == "refused"
    assert "params=1e-05" in row.message
    peerless = pruned(tmp_path, "params=0.4", "onnxsim L2", "")
    assert "no interpreter with onnxsim" in peerless.message
    assert line(peerless, COMMAND.columns).count("|") == len(COMMAND.columns) + 1
    assert NETS["digits_mlp"].path.is_file()


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
    cell = pruning_cell("cifar", "net", "macs=0.5", "pruning", "p", samples=None)
    figures: dict[str, Any] = {
        "macs": 0.49, "params": 0.6, "wrong_before": 4, "wrong": 7, "differ": 5, "seconds": 3.2,
        "speedup_threads1_batch1": 1.5, "speedup_threads1_batch16": 1.25,
    }  # fmt: skip
    text = line(cell.measured({"test": 200}, figures), COMMAND.columns)
    assert text == (
        "| cifar | net | macs=0.5 | pruning | all | 0.490 | 0.600 | 2.00 -> 3.50 % | +1.50 "
        "| 2.50 % | 1.50x | 1.25x | 3 |"
    )
    assert text.count("|") == len(COMMAND.columns) + 1


@pytest.mark.full
def test_picture_is_the_same_each_time(tmp_path: Path) -> None:
    rows = []
    for net in ("one", "two"):
        for left, wrong in ((0.5, 10), (0.2, 40)):
            cell = pruning_cell("chains", net, f"params={left}", "random, as they are", "p")
            rows.append(cell.measured({"test": 100}, {"params": left, "wrong": wrong}))
    refused = pruning_cell("chains", "two", "params=0.1", "random, as they are", "p")
    rows.append(refused.ended("refused", "why"))
    picture(tmp_path / "a.svg", rows)
    picture(tmp_path / "b" / "a.svg", rows)
    drawn = (tmp_path / "a.svg").read_bytes()
    assert (tmp_path / "b" / "a.svg").read_bytes() == drawn
    assert all(word in drawn for word in (b">one<", b">two<", b"random, as they are"))
