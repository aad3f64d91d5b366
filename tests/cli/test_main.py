from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_lowrank.cli import commands as cli_commands
from onnx_lowrank.engine import build, tell
from onnx_lowrank.errors import ModelError
from tests import fixtures_models as fm

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def arguments(tiny: Path, tmp_path: Path) -> list[str]:
    """A compression that works: ``compress IN OUT --calib ...``."""
    return [
        "compress", str(tiny / "tiny.onnx"), str(tmp_path / "out.onnx"),
        "--calib", str(tiny / "data.npz"), "--target", "macs=0.6", "--threads", "1",
    ]  # fmt: skip


# compress


def test_compress(arguments: list[str], tmp_path: Path, capsys: Capture) -> None:
    report = tmp_path / "report.json"
    assert fm.command([*arguments, "--report", str(report)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "first" in out
    assert "svd" in out
    size = (tmp_path / "out.onnx").stat().st_size
    assert f"wrote {tmp_path / 'out.onnx'}, {size:,} bytes" in out.replace("\n", "")
    onnx.checker.check_model(str(tmp_path / "out.onnx"), full_check=True)
    data = json.loads(report.read_text(encoding="utf-8"))
    assert data["model"]["after"]["bytes"] == size
    assert data["accuracy"]["samples"] == 100
    assert {p.name for p in tmp_path.iterdir()} == {"out.onnx", "report.json"}


def test_the_report_is_a_page_where_its_name_says_so(
    arguments: list[str], tmp_path: Path, capsys: Capture
) -> None:
    report = tmp_path / "report.html"
    assert fm.command([*arguments, "-q", "--report", str(report)]) == 0
    text = report.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert f"--report {report}" in text
    assert capsys.readouterr() == ("", "")


def test_quiet_prints_nothing(arguments: list[str], tmp_path: Path, capsys: Capture) -> None:
    assert fm.command([*arguments, "-q"]) == 0
    assert capsys.readouterr() == ("", "")
    assert (tmp_path / "out.onnx").is_file()


def test_options_reach_the_library(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    got: dict[str, Any] = {}

    def fake(_: str, **options: Any) -> Any:
        got.update(options)
        raise ModelError("enough")

    monkeypatch.setattr(cli_commands, "compress", fake)
    more = [
        "--include", "a*", "--include", "b*", "--exclude", "c", "--passes", "svd", "--samples",
        "9", "--seed", "4", "--repair", "last", "--force", "--ranks", "ratio=0.5", "--resize",
        "32x48", "--crop", "24", "--mean", "1,2,3", "--channel-order", "BGR", "--input-shape",
        "x:1,3,8,8", "--input-shape", "a:b:2", "--target", "latency=0.7", "--batch", "4",
        "--timing-limit", "9.5", "--cache", "",
    ]  # fmt: skip
    assert fm.command([*arguments, *more]) == ModelError.exit_code
    assert got["include"] == ["a*", "b*"]
    assert got["exclude"] == ["c"]
    assert (got["passes"], got["samples"], got["seed"]) == ("svd", 9, 4)
    assert (got["repair"], got["force"], got["ranks"]) == ("last", True, "ratio=0.5")
    assert got["input_shapes"] == {"x": (1, 3, 8, 8), "a:b": (2,)}
    assert got["target"] == ["macs=0.6", "latency=0.7"]
    assert (got["batch"], got["timing_limit"], got["cache"]) == (4, 9.5, "")
    assert (got["resize"], got["crop"], got["mean"]) == ((32, 48), 24, (1.0, 2.0, 3.0))
    assert got["channel_order"] == "BGR"


# what goes wrong


Change = Callable[[list[str], Path], list[str]]


def _set(position: int, value: str) -> Change:
    return lambda a, _: [*a[:position], value, *a[position + 1 :]]


def _more(*extra: str) -> Change:
    return lambda a, _: [*a, *extra]


def _onto_itself(a: list[str], _: Path) -> list[str]:
    return [*a[:2], a[1], *a[3:]]


def _garbage(a: list[str], folder: Path) -> list[str]:
    (folder / "bad.onnx").write_bytes(b"this is no model")
    return [*a[:1], str(folder / "bad.onnx"), *a[2:]]


def _narrow(a: list[str], folder: Path) -> list[str]:
    np.savez(folder / "narrow.npz", x=np.ones((9, 5), np.float32))
    return [*a[:4], str(folder / "narrow.npz"), *a[5:]]


@pytest.mark.parametrize(
    ("change", "code", "part"),
    [
        (_set(6, "macs=2"), 2, "write macs=R"),
        (_more("--passes", "magic"), 2, "no pass named 'magic'"),
        (_more("--passes", "svd{rank=1}"), 2, "svd has no option 'rank'"),
        (_more("--passes", "fold_batchnorm"), 2, "no factorization"),
        (_more("--provider", "Tea"), 2, "provider 'Tea'"),
        (_more("--samples", "0"), 2, "samples must be 1 or more"),
        (_more("--samples", "-1"), 2, "samples must be 1 or more"),
        (_more("--samples", "many"), 2, "--samples"),
        (_more("--seed", "-1"), 2, "seed must be 0 or more"),
        (_more("--batch", "0"), 2, "batch must be 1 or more"),
        (_more("--effort", "none"), 2, "give one of: quick, normal, thorough"),
        (_more("--timing-limit", "nan"), 2, "timing limit must be more than 0 seconds"),
        (_more("--timing-limit", "-1"), 2, "timing limit must be more than 0 seconds"),
        (_set(6, "macs=60"), 2, "'60' without a sign would mean 6000 %; write 60% or 0.6"),
        (_more("--threads", "-1"), 2, "threads"),
        (_more("--ranks", "fair"), 2, "rank rule 'fair'"),
        (_more("--resize", "big"), 2, "size 'big'"),
        (_more("--mean", "a,b"), 2, "--mean 'a,b'"),
        (_more("--input-shape", "x=3"), 2, "--input-shape 'x=3'; write name:1,3,224,224"),
        (_more("--no-such-option"), 2, "--no-such-option"),
        (lambda *_: ["compress"], 2, "IN, OUT"),
        (lambda *_: [], 2, "COMMAND"),
        (lambda *_: ["squeeze"], 2, "squeeze"),
        (_set(1, "none.onnx"), 3, "none.onnx: no such file"),
        (_garbage, 3, "bad.onnx: not an ONNX model"),
        (_onto_itself, 2, "is the input itself; name another output"),
        (_set(2, "/no/such/folder/out.onnx"), 2, "/no/such/folder does not exist"),
        (_set(4, "none.npz"), 4, "none.npz"),
        (_narrow, 4, "'x'"),
        (_set(6, "macs=0.001"), 5, "these passes cannot go below"),
    ],
)
def test_errors_are_one_line_and_a_code(
    change: Change, code: int, part: str, arguments: list[str], tmp_path: Path, capsys: Capture
) -> None:
    fm.refused(change(arguments, tmp_path), capsys, code, part)
    assert not (tmp_path / "out.onnx").exists()
    assert not list(tmp_path.glob(".*"))


def test_the_guard_has_code_5_and_force_overrules_it(
    arguments: list[str], tmp_path: Path, capsys: Capture
) -> None:
    fm.refused(arguments, capsys, 5, "nothing was written", "--force", ratio=1.5)
    assert not (tmp_path / "out.onnx").exists()
    assert fm.command([*arguments, "--force", "-q"], 1.5) == 0
    assert (tmp_path / "out.onnx").is_file()


def test_brackets_in_names_are_not_markup(capsys: Capture) -> None:
    fm.refused(["inspect", "[bold]a[/bold].onnx"], capsys, 3, "[bold]a[/bold].onnx")


@pytest.mark.parametrize("place", ["report", "output"])
def test_what_cannot_be_written_stops_before_the_work(
    place: str, arguments: list[str], tmp_path: Path, capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(cli_commands, "compress", lambda *_, **__: pytest.fail("began the work"))
    missing = str(tmp_path / "no" / "file")
    if place == "report":
        arguments += ["--report", missing]
    else:
        arguments[2] = missing
    fm.refused(arguments, capsys, 2, f"{tmp_path / 'no'} does not exist")


def test_interruption(
    arguments: list[str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for module, place in ((build, "refit"), (tell, "validate_models")):
        with monkeypatch.context() as patch:
            patch.setattr(module, place, interrupted)
            assert fm.command(arguments) == 130
        assert capsys.readouterr() == ("", "interrupted; nothing was written\n")
        assert list(tmp_path.iterdir()) == []


def test_interruption_while_writing(
    arguments: list[str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    assert fm.command(arguments) == 130
    assert capsys.readouterr().err == "interrupted; nothing was written\n"
    assert list(tmp_path.iterdir()) == []


# a process of its own


def python_m(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-m", "onnx_lowrank", *argv],
        cwd=fm.ROOT, text=True, capture_output=True, timeout=120, check=False,
    )  # fmt: skip


def test_python_m(arguments: list[str], tmp_path: Path) -> None:
    done = python_m(*arguments, "--force")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert "top-1 of 100" in done.stdout
    assert (tmp_path / "out.onnx").is_file()
    failed = python_m("inspect", "none.onnx")
    assert (failed.returncode, failed.stdout) == (3, "")
    assert failed.stderr == "error: none.onnx: no such file; check the path\n"


# warnings


def test_warnings_have_no_source_lines(
    arguments: list[str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warned(*_: Any, **__: Any) -> None:
        warnings.warn("divide by zero encountered in divide", RuntimeWarning, stacklevel=1)
        warnings.warn("mind [the] gap\nand more", UserWarning, stacklevel=1)
        raise ModelError("enough")

    monkeypatch.setattr(cli_commands, "compress", warned)
    before = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert fm.command(arguments) == ModelError.exit_code
    assert capsys.readouterr().err == "warning: mind [the] gap\nerror: enough\n"
    assert warnings.showwarning is before
    with pytest.raises(RuntimeWarning):  # where tests make errors of them, they stay errors
        fm.command(arguments)
