"""The command in a process of its own."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.command_line import (
    Ended,
    compress,
    failure,
    parts_left,
    resident_bytes,
    write_samples,
)
from benchmarks.rows import Cell
from tests import fixtures_models as fm

MLP = fm.digits("mlp")
CELL = Cell("kept", "digits_mlp", {})
on_linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "calib.npz"
    with np.load(fm.DIGITS) as z:
        assert write_samples(path, {k: z[k][:60] for k in z.files}) == 60
    return path


def test_samples_are_written_without_labels(tmp_path: Path) -> None:
    x, labels = np.zeros((5, 2)), np.zeros(3)
    samples = {"x": x, "labels": labels, "test.x": x[:3], "test.labels": labels}
    for tested, names in ((False, ["x"]), (True, ["x", "test.x"])):
        assert write_samples(tmp_path / "a.npz", samples, tested=tested) == 5
        with np.load(tmp_path / "a.npz") as z:
            assert z.files == names


@pytest.mark.full
def test_a_model_that_is_written(tmp_path: Path, archive: Path) -> None:
    options = ["--calib", str(archive), "--target", "macs=0.7", "--passes", "svd", "--force"]
    ended = compress(MLP, tmp_path / "out.onnx", [*options, "--repair", "none"])
    assert (ended.code, ended.message) == (0, "")
    assert 0 < ended.report["seconds"]["calibrate"] < ended.seconds
    assert ended.cpu_seconds > 0.1
    left = parts_left(ended)
    assert 0 < left["macs"] <= 0.7
    assert left["bytes"] == (tmp_path / "out.onnx").stat().st_size / MLP.stat().st_size


@pytest.mark.full
@on_linux
def test_a_refusal_and_its_memory(tmp_path: Path) -> None:
    ended = compress(MLP, tmp_path / "out.onnx", ["--target", "macs=0.0001"])
    assert ended.code == 5
    assert "cannot go below" in ended.message
    assert not ended.message.startswith("error")
    assert ended.report == {}
    assert 5e7 < ended.peak_bytes < 2e9  # numpy and ONNX Runtime alone take 50 MB
    row = failure(CELL, ended)
    assert (row.status, row.message) == ("refused", ended.message)


def test_a_traceback_is_broken() -> None:
    row = failure(CELL, Ended(1, "Traceback\nKeyError: 'a'", 1.0, 1.0, 1.0, {}))
    assert row.status == "broken"
    assert row.message.endswith("KeyError: 'a'")
    assert "exit code -9" in failure(CELL, Ended(-9, "", 1.0, 1.0, 1.0, {})).message


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("warning: a\nerror: b: c\n", "b: c"),
        ("Traceback\nKeyError: 'error: x'\n", "Traceback\nKeyError: 'error: x'"),
    ],
)
def test_messages(said: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "command"
    script.write_text(f"#!/bin/sh\nprintf '%s' {shlex.quote(said)} >&2\nexit 3\n")
    script.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(script))
    ended = compress(MLP, tmp_path / "out.onnx", [])
    assert (ended.code, ended.message) == (3, message)


@pytest.mark.full
@on_linux
def test_a_profile_of_the_main_thread(tmp_path: Path) -> None:
    compress(MLP, tmp_path / "out.onnx", ["--target", "macs=2"], profile=tmp_path / "profile")
    assert (tmp_path / "profile").stat().st_size > 1000


@on_linux
def test_memory_of_children_counts() -> None:
    large = "x = b'1' * 10**8; print(flush=True); input()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {large!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        assert 1e8 < resident_bytes(process.pid) < 3e8
        process.stdin.write(b"\n")
        process.stdin.close()
        process.wait()
    assert resident_bytes(process.pid) == 0
