"""The command ``batch``."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from onnx_lowrank.cli import batch as cli_batch
from onnx_lowrank.cli import main as cli
from onnx_lowrank.engine.options import CompressOptions
from onnx_lowrank.fleet import batch as flow
from onnx_lowrank.fleet import dask
from onnx_lowrank.fleet.journal import JOURNAL
from onnx_lowrank.fleet.outcome import Outcome, ended_by
from onnx_lowrank.fleet.worker import Order
from onnx_lowrank.options import from_keywords, keywords_from
from tests import fixtures_models as fm
from tests.fleet.fakes import Done, models

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> Done:
    fake = Done()
    monkeypatch.setattr(flow, "run_here", fake)
    return fake


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return models(tmp_path / "in", "a.onnx", "b.onnx")


def crash(order: Order) -> Outcome | None:
    return ended_by(-11, "[words]") if order.name == "b.onnx" else None


def test_options_reach_every_model_as_they_were_given(
    folder: Path, tmp_path: Path, done: Done, capsys: Capture
) -> None:
    command = [
        "batch", str(folder), str(tmp_path / "out"), "--target", "macs=0.5", "--target",
        "params=0.5", "--passes", "svd", "--samples", "9", "--input-shape", "x:1,64", "--mean",
        "1,2,3", "--force", "--cache", "", "--workers", "2", "--time-limit", "10min",
        "--memory-limit", "2GiB", "--max-drop", "1%", "--target", "size",
    ]  # fmt: skip
    assert cli.main(command) == 0
    assert done.orders[0].options == {
        "target": ["macs=0.5", "params=0.5", "size"], "passes": "svd", "samples": 9,
        "input_shapes": ["x:1,64"], "mean": "1,2,3", "force": True, "cache": "", "max_drop": "1%",
    }  # fmt: skip
    assert done.orders[0].command.startswith(f"onnx-lowrank batch {folder} ")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["run"]["limits"] == {"seconds": 600, "bytes": 2 << 30}
    out, err = capsys.readouterr()
    assert err == ""
    assert "a.onnx" in out
    assert "0.500" in out
    assert "99.0%" in out
    assert "2 done\n" in out
    assert f"wrote {tmp_path / 'out' / 'summary.html'}" in out.replace("\n", "")


def test_failures_end_with_a_code_of_their_own(
    folder: Path, tmp_path: Path, done: Done, capsys: Capture
) -> None:
    done.become = crash
    command = ["batch", str(folder), str(tmp_path / "out")]
    fm.refused(
        [*command, "-q"], capsys, 7, "1 of 2 models failed", "summary.html", "--retry-failed"
    )
    assert cli.main(command) == 7
    out, _ = capsys.readouterr()
    assert "1 done, 1 failed" in out
    assert "ended by SIGSEGV: [words]" in out
    done.become = lambda _: None
    assert cli.main([*command, "-q", "--retry-failed"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("extra", "part"),
    [
        (["--time-limit", "soon"], "write a time as 90s, 10min or 2h"),
        (["--time-limit", "0"], "'0' is nothing; write a time"),
        (["--memory-limit", "2GB2"], "write an amount as 500MB or 2GiB"),
        (["--workers", "0"], "workers must be 1 or more"),
        (["--target", "macs=7"], "7"),
        (["--mean", "1,x"], "write numbers as 0.5,0.5,0.5"),
    ],
)
def test_wrong_options_start_nothing(
    extra: list[str], part: str, folder: Path, tmp_path: Path, done: Done, capsys: Capture
) -> None:
    fm.refused(["batch", str(folder), str(tmp_path / "out"), *extra], capsys, 2, part)
    assert done.orders == []
    assert not (tmp_path / "out").exists()


def test_a_terminal_shows_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    terminal = Console(force_terminal=True, file=io.StringIO())
    monkeypatch.setattr(cli_batch, "Console", lambda **_: terminal)
    monkeypatch.setattr(cli_batch.Bars, "update", lambda self, task, **k: shown.append(k))
    with cli_batch._standing(False) as show:
        show(flow.Standing(9, 5, 2, 3))
    assert shown == [{"total": 6, "completed": 2, "description": "2 failed"}]


def test_the_page_on_fleets_shows_commands_that_make_sense(
    tmp_path: Path, done: Done, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (fm.ROOT / "docs" / "fleets.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(json|bash)\n(.*?)^```", page, flags=re.M | re.S)
    (tmp_path / "fleet.jsonl").write_text("".join(text for kind, text in blocks if kind == "json"))
    (tmp_path / "models").symlink_to(fm.ROOT / "models")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dask, "run_on", lambda _, orders, limits: done(orders, limits, 1))
    shown = [shlex.split(text) for kind, text in blocks if kind == "bash"]
    ran = [command for command in shown if command[1] == "batch"]
    assert len(ran) == 3
    (one,) = [command for command in shown if command[1] != "batch"]
    given = keywords_from(CompressOptions, cli._parser().parse_args(one[1:]))
    assert from_keywords(CompressOptions, given).job().scheduler == "10.0.0.1:8786"
    for number, command in enumerate(ran):
        assert command[:2] == ["onnx-lowrank", "batch"]
        out = command.index("small")
        command[out] += str(number)
        assert cli.main([*command[1:], "-q"]) == 0
    nets = len(list((fm.ROOT / "models").glob("*.onnx")))
    assert len(done.orders) == 2 * nets + 2
    assert done.orders[nets].options == {
        "target": "params=0.3", "passes": "fold_batchnorm,svd", "samples": 200,
    }  # fmt: skip


@pytest.mark.full
@pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_ends_the_processes_and_the_same_command_goes_on(
    number: signal.Signals, code: int, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    # the first model is done at once, the second takes a minute
    work = """
import json, os, sys, time
json.loads(sys.stdin.readline()); order = json.loads(sys.stdin.readline())
os.mkdir(order["folder"] + "/made")
open(order["folder"] + "/made/" + order["name"], "w").write(str(os.getpid()))
if order["name"] == "b.onnx":
    time.sleep(60)
outcome = {"status": "done", "cause": "", "error": "", "exit_code": 0, "reason": "",
           "figures": {}, "files": [order["name"]], "seconds": 0, "peak_bytes": None}
open(order["folder"] + "/outcome.json", "w").write(json.dumps(outcome))
"""
    program = (
        # a shell starts commands in the background with Ctrl-C ignored
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from onnx_lowrank.cli.main import main; from onnx_lowrank.fleet import process; "
        f"process._PROGRAM = {work!r}; sys.exit(main({['batch', str(folder), str(out)]!r}))"
    )
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE) as process:
        end = time.monotonic() + 60
        while not list(out.glob(".work/*/made/b.onnx")) and time.monotonic() < end:
            time.sleep(0.05)
        (written,) = out.glob(".work/*/made/b.onnx")
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    assert process.returncode == code
    assert said.decode() == (
        "interrupted; 1 of 2 models are settled, and the same command goes on from there\n"
    )
    assert sorted(p.name for p in out.iterdir()) == [
        "a.onnx", JOURNAL, "summary.html", "summary.json",
    ]  # fmt: skip
    assert not written.exists()
    assert len((out / JOURNAL).read_text().splitlines()) == 1
