"""The commands ``plan`` and ``apply``, and ``compress --plan``."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_lowrank.cli import commands as cli_commands
from onnx_lowrank.errors import ModelError
from onnx_lowrank.planning.plan import Plan
from tests import fixtures_models as fm

Capture = pytest.CaptureFixture[str]
Change = Callable[[dict[str, Any]], Any]

PASSES = "fold_batchnorm,svd,prune_channels"


class Files:
    """A model, its data, and where results go."""

    def __init__(self, tiny: Path, folder: Path) -> None:
        self.model, self.data = tiny / "tiny.onnx", tiny / "data.npz"
        self.plan, self.out, self.twin = folder / "p.json", folder / "o.onnx", folder / "t.onnx"
        self.data_options = ["--calib", str(self.data), "--threads", "1"]
        self.options = [*self.data_options, "--target", "macs=0.4", "--passes", PASSES]

    def planning(self, *more: str) -> list[str]:
        return ["plan", str(self.model), str(self.plan), *self.options, *more]

    def applying(self, *more: str) -> list[str]:
        return ["apply", str(self.model), str(self.plan), str(self.out), *self.data_options, *more]

    def edit(self, change: Change) -> None:
        data = json.loads(self.plan.read_text(encoding="utf-8"))
        change(data)
        self.plan.write_text(json.dumps(data), encoding="utf-8")


@pytest.fixture
def files(tiny: Path, tmp_path: Path) -> Files:
    return Files(tiny, tmp_path)


@pytest.fixture
def planned(files: Files) -> Files:
    assert fm.command(files.planning("-q")) == 0
    return files


def test_plan_then_apply_is_compress(files: Files, capsys: Capture) -> None:
    assert fm.command(files.planning()) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for part in ("plan for macs=0.4: layers", "groups of channels", "cut", "frozen", "all",
                 f"wrote {files.plan}"):  # fmt: skip
        assert part in out.replace("\n", "") or part in out
    assert fm.command(files.applying()) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "channels are left" in out
    plan = files.plan.with_name("again.json")
    twin = ["compress", str(files.model), str(files.twin), *files.options, "--plan", str(plan)]
    assert fm.command([*twin, "-q"]) == 0
    assert capsys.readouterr() == ("", "")
    assert files.out.read_bytes() == files.twin.read_bytes()
    assert files.plan.read_bytes() == plan.read_bytes()
    props = {p.key: p.value for p in onnx.load(files.out).metadata_props}
    assert props["onnx_lowrank.plan"] == Plan.load(plan).digest
    assert len(list(files.plan.parent.iterdir())) == 4


def test_the_table_adds_up(planned: Files, capsys: Capture) -> None:
    assert fm.command(planned.planning()) == 0
    plan = Plan.load(planned.plan)
    (total,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("all")]
    macs = sum(d.macs_before for d in plan.decisions), sum(d.macs_after for d in plan.decisions)
    assert total.split()[1:5] == ["2", f"{macs[0]:,}", f"{macs[1]:,}", f"{macs[1] / macs[0]:.3f}"]
    assert macs[1] <= 0.4 * macs[0]


def test_quiet(files: Files, capsys: Capture) -> None:
    assert fm.command(files.planning("-q")) == 0
    assert fm.command(files.applying("-q")) == 0
    assert capsys.readouterr() == ("", "")
    assert files.out.is_file()


def test_apply_takes_seed_and_samples_from_the_plan(files: Files) -> None:
    more = ["--seed", "7", "--samples", "90"]
    assert fm.command(files.planning("-q", *more)) == 0
    assert fm.command(files.applying("-q")) == 0
    twin = ["compress", str(files.model), str(files.twin), *files.options, "-q", *more]
    assert fm.command(twin) == 0
    assert files.out.read_bytes() == files.twin.read_bytes()


def test_report_of_apply(planned: Files) -> None:
    report = planned.plan.with_name("r.json")
    assert fm.command(planned.applying("-q", "--report", str(report))) == 0
    data = json.loads(report.read_text(encoding="utf-8"))
    assert data["plan"] == Plan.load(planned.plan).digest
    assert {g["decision"] for g in data["groups"]} >= {"cut", "frozen"}


def test_options_of_apply_reach_the_library(
    planned: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: dict[str, Any] = {}

    def fake(_: Any, plan: Plan, **options: Any) -> Any:
        got.update(options, plan=plan)
        raise ModelError("enough")

    monkeypatch.setattr(cli_commands, "apply", fake)
    more = ["--force", "--crop", "24", "--input-shape", "x:1,64", "--batch", "4"]
    assert fm.command(planned.applying(*more)) == ModelError.exit_code
    assert got["plan"] == Plan.load(planned.plan)
    assert (got["force"], got["threads"], got["batch"]) == (True, 1, 4)
    assert (got["input_shapes"], got["crop"]) == ({"x": (1, 64)}, 24)


def test_other_data_is_noted(planned: Files, capsys: Capture) -> None:
    other = planned.plan.with_name("other.npz")
    np.savez(other, x=fm.classified(200)[0][::-1])
    command = ["apply", str(planned.model), str(planned.plan), str(planned.out), "--calib",
               str(other), "--threads", "1"]  # fmt: skip
    assert fm.command(command) == 0
    assert "the calibration data is not that of the plan" in capsys.readouterr().out


# what goes wrong


def _first(**changes: Any) -> Change:
    return lambda data: data["decisions"][0].update(changes)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda d: d.update(model="0" * 64), "the plan is of another model: its SHA-256 is 0000"),
        (lambda d: d.update(passes=["magic"]), "no pass named 'magic'"),
        (_first(layer="third"), "layer 'third'"),
        (_first(decision="keeep"), 'decisions[0] ("first"): decision is "keeep"'),
        (_first(decision="factorize", method="cp", rank=3), "first: method 'cp' is not among"),
        (_first(decision="factorize", method="svd", variant="odd", rank=3), "no variant 'odd'"),
        (_first(decision="factorize", method="svd", rank=0), "it should be 1 or more"),
        (lambda d: d["groups"][0].update(kept=[0, 99]), "channel numbers below 64"),
        (lambda d: d["groups"][0].update(name="nobody"), "'nobody'"),
        (lambda d: d["groups"][-1].update(decision="cut", kept=[0]), "'second'"),
        (lambda d: d.pop("groups"), "plan lacks the field 'groups'"),
        (lambda d: d.update(extra=[1]), 'the unknown field "extra"'),
    ],
)
def test_bad_plans_are_one_line_and_code_2(
    change: Change, part: str, planned: Files, capsys: Capture
) -> None:
    planned.edit(change)
    fm.refused(planned.applying(), capsys, 2, part)
    assert not planned.out.exists()


@pytest.mark.parametrize("text", ["", "{", '{"schema": 2}', "[" * 100000, "\x00"])
def test_no_plan_at_all(text: str, files: Files, capsys: Capture) -> None:
    files.plan.write_text(text, encoding="utf-8")
    fm.refused(files.applying(), capsys, 2, "plan")
    assert not files.out.exists()


def test_a_plan_of_another_model(planned: Files, capsys: Capture) -> None:
    other = planned.plan.with_name("other.onnx")
    onnx.save(fm.classifier(decay=0.7), other)
    command = ["apply", str(other), str(planned.plan), str(planned.out), *planned.data_options]
    ours, theirs = (hashlib.sha256(f.read_bytes()).hexdigest() for f in (planned.model, other))
    fm.refused(command, capsys, 2, "another model", ours[:16], theirs[:16])


def test_files_that_are_kept(planned: Files, capsys: Capture) -> None:
    """Nothing that is read is written over."""
    model, data, plan = str(planned.model), str(planned.data), str(planned.plan)
    before = [f.read_bytes() for f in (planned.model, planned.data, planned.plan)]
    out = str(planned.out)
    for command in (
        ["plan", model, model, *planned.options],
        ["plan", model, data, *planned.options],
        ["plan", model, f"{planned.plan.parent}", *planned.options],
        ["plan", model, f"{planned.plan}/no/where.json", *planned.options],
        ["apply", model, plan, model, *planned.data_options],
        ["apply", model, plan, plan, *planned.data_options],
        ["apply", model, plan, data, *planned.data_options],
        ["apply", model, plan, out, *planned.data_options, "--report", plan],
        ["apply", model, plan, out, *planned.data_options, "--report", out],
        ["compress", model, out, *planned.options, "--plan", model],
        ["compress", model, out, *planned.options, "--plan", data],
        ["compress", model, out, *planned.options, "--plan", out],
        ["compress", model, out, *planned.options, "--plan", "r.json", "--report", "r.json"],
    ):
        fm.refused(command, capsys, 2)
    assert [f.read_bytes() for f in (planned.model, planned.data, planned.plan)] == before
    assert not planned.out.exists()


def test_a_plan_is_written_whole_or_not_at_all(
    files: Files, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    files.plan.write_text("of yesterday", encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        assert fm.command(files.planning("-q")) == 130
    assert capsys.readouterr().err == "interrupted; nothing was written\n"
    assert files.plan.read_text(encoding="utf-8") == "of yesterday"  # atomic
    assert list(files.plan.parent.iterdir()) == [files.plan]
    assert fm.command(files.planning("-q")) == 0
    assert Plan.load(files.plan).target == "macs=0.4"


@pytest.mark.full
def test_a_refused_result_leaves_no_plan(files: Files, capsys: Capture) -> None:
    command = ["compress", str(files.model), str(files.out), *files.options,
               "--plan", str(files.plan)]  # fmt: skip
    fm.refused(command, capsys, 5, "nothing was written", ratio=1.5)
    assert not files.plan.exists()
    assert fm.command(files.planning("-q")) == 0  # planning measures nothing
    fm.refused(files.applying(), capsys, 5, "nothing was written", ratio=1.5)
    assert fm.command(files.applying("-q", "--force"), 1.5) == 0


def test_budget_of_a_plan(files: Files, capsys: Capture) -> None:
    fm.refused(files.planning("--target", "params=0.0001"), capsys, 5)
    assert not files.plan.exists()


def test_explain_prune_channels(capsys: Capture) -> None:
    assert fm.command(["explain", "prune-channels"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    for part in ("Before:", "method=obs:", "Reference:", "Options:", "    method = 'obs'",
                 "    gather = True", "    keep = 0.0"):  # fmt: skip
        assert part in out
