"""What the README shows is run, as it stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from onnx_lowrank.cli import main

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.M | re.S)


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_commands_run_in_their_order(clone: Path) -> None:
    commands = [shlex.split(line) for block in blocks("sh") for line in block.splitlines()]
    assert len(commands) >= 7
    for command in commands:
        assert command[0] == "onnx-lowrank"
        assert main(command[1:]) == 0, shlex.join(command)
    assert (clone / "small.onnx").is_file()


def test_python_runs(clone: Path) -> None:
    programs = blocks("python")
    assert programs
    for program in programs:
        exec(compile(program, "README.md", "exec"), {})
    assert (clone / "small.onnx").is_file()


def test_ci_runs_the_test_command_of_the_readme() -> None:
    command = next(line.strip() for line in TEXT.splitlines() if line.endswith("-m pytest"))
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
