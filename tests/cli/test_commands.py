from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_lowrank._version import __version__
from onnx_lowrank.cli import main as cli
from onnx_lowrank.passes import BUILT_IN
from tests import fixtures_models as fm

Capture = pytest.CaptureFixture[str]


def test_inspect(tiny: Path, capsys: Capture) -> None:
    assert cli.main(["inspect", str(tiny / "tiny.onnx")]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "first" in out
    assert "4,608 MACs" in out
    assert cli.main(["inspect", str(fm.digits("vit")), "--all"]) == 0
    assert "node_MatMul_71 " in capsys.readouterr().out
    fm.refused(["inspect", "x", "--all", "--curves"], capsys, 2, "--all goes without --curves")
    assert cli.main(["inspect", str(tiny / "tiny.onnx"), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["model"]["macs"] == 4608
    assert [la["name"] for la in data["layers"]] == ["first", "second"]


@pytest.fixture
def worse(tiny: Path, tmp_path: Path) -> Path:
    """The classifier with its first class favoured, so that it is wrong at times."""
    proto = onnx.load(tiny / "tiny.onnx")
    for tensor in proto.graph.initializer:
        if tensor.name == "b2":
            bias = onnx.numpy_helper.to_array(tensor).copy()
            bias[0] += 2.0
            tensor.CopyFrom(onnx.numpy_helper.from_array(bias, "b2"))
    onnx.save(proto, tmp_path / "worse.onnx")
    return tmp_path / "worse.onnx"


def test_validate(tiny: Path, worse: Path, capsys: Capture) -> None:
    command = ["validate", str(tiny / "tiny.onnx"), str(worse), "--data", str(tiny / "data.npz")]
    assert cli.main(command) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "top-1 of 100 samples: 100.00% ->" in out
    assert cli.main([*command, "--json"]) == 0
    drop = json.loads(capsys.readouterr().out)["accuracy"]["drop"]
    assert 0.01 < drop < 0.5
    assert cli.main([*command, "-q", "--max-drop", "50%"]) == 0
    assert capsys.readouterr() == ("", "")
    fm.refused(
        [*command, "-q", "--max-drop", "1%"], capsys, 6, "accuracy fell by", "allowed: 1 % (0.01)"
    )
    fm.refused([*command, "-q", "--max-drop", "0.01"], capsys, 6, "accuracy fell by", "(0.01)")
    assert cli.main([*command, "--max-drop", "50%"]) == 0
    assert "largest accuracy loss allowed: 50 % (0.5)" in capsys.readouterr().out
    for text, part in {
        "low": "--max-drop 'low' is no fraction",
        "5": "--max-drop '5' without a sign would mean 500 %; write 5% or 0.05",
        "1": "write 1% or 0.01",
        "-1": "is negative",
        "nan": "is no fraction",
        "100%": "would allow a loss of 100 %",
        "500%": "is more than the whole",
    }.items():
        fm.refused([*command, "-q", f"--max-drop={text}"], capsys, 2, part)


def test_validate_without_labels(tiny: Path, worse: Path, tmp_path: Path, capsys: Capture) -> None:
    np.savez(tmp_path / "x.npz", x=fm.classified(50)[0])
    command = ["validate", str(tiny / "tiny.onnx"), str(worse), "--data", str(tmp_path / "x.npz")]
    fm.refused([*command, "-q", "--max-drop", "1%"], capsys, 6, "the top class changed in")


def test_validate_writes_a_report_also_where_it_fails(
    tiny: Path, worse: Path, tmp_path: Path, capsys: Capture
) -> None:
    model, report = tiny / "tiny.onnx", tmp_path / "check.json"
    command = ["validate", str(model), str(worse), "--data", str(tiny / "data.npz"), "-q"]
    command += ["--max-drop", "1%"]
    fm.refused([*command, "--report", str(report)], capsys, 6, "accuracy fell by")
    data = json.loads(report.read_text(encoding="utf-8"))
    assert data["kind"] == "validate"
    assert data["gate"]["allowed"] == 0.01
    assert data["gate"]["failed"].startswith("accuracy fell by")
    assert data["basis"]["command"].startswith("onnx-lowrank validate ")
    assert data["basis"]["command"].endswith(f"--report {report}")
    assert data["latency"][0]["speedup"] == 2
    # a page; and where the models cannot be compared at all
    page = tmp_path / "check.html"
    assert fm.command([*command[:-2], "--report", str(page)]) == 0
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    proto = onnx.load(worse)
    proto.graph.output[0].name = proto.graph.node[-1].output[0] = "z"
    onnx.save(proto, worse)
    fm.refused([*command, "--report", str(report)], capsys, 6, "lacks the outputs y")
    data = json.loads(report.read_text(encoding="utf-8"))
    assert data["gate"]["failed"] == "the new model lacks the outputs y"
    assert data["validation"] is None
    fm.refused([*command, "--report", str(model)], capsys, 2, "is the input itself")
    fm.refused([*command, "--report", str(worse)], capsys, 2, "another file of this command")


def test_passes_and_explain(capsys: Capture) -> None:
    assert cli.main(["passes"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert [line.split(":")[0] for line in out.splitlines()] == [p.name for p in BUILT_IN]
    for name in ("spatial_svd", "spatial-svd"):
        assert cli.main(["explain", name]) == 0
        out = capsys.readouterr().out
        for part in ("Before:", "Reference:", "split = 'both'"):
            assert part in out
    fm.refused(["explain", "magic"], capsys, 2, "no pass named 'magic'; choose from")


def test_version_and_help(capsys: Capture) -> None:
    for option, part in (("--version", __version__), ("--help", "exit codes:")):
        with pytest.raises(SystemExit) as left:
            cli.main([option])
        assert left.value.code == 0
        assert part in capsys.readouterr().out


@pytest.mark.parametrize("command", [[], ["compress"]])
def test_help_has_colours_on_a_terminal_alone(
    command: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)

    def told() -> str:
        with pytest.raises(SystemExit):
            cli.main([*command, "--help"])
        return capsys.readouterr().out

    plain = told()
    assert "\x1b" not in plain
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")  # as rich takes a terminal
    coloured = told()
    assert "\x1b[36m" in coloured
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == plain
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[\d;]*3\d", told())
