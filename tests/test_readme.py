"""What the README and the pages in ``docs/`` show is run, as it stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from onnx_lowrank.cli.main import main
from onnx_lowrank.passes import BUILT_IN
from onnx_lowrank.passkit.base import Factorization
from tests import fixtures_models as fm

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.M | re.S)


def commands(page: Path) -> list[list[str]]:
    return [shlex.split(line) for block in blocks(page, "sh") for line in block.splitlines()]


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the models; no clock refuses what takes microseconds."""
    fm.without_clock(monkeypatch)
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("clone")
def test_commands_that_only_look_run() -> None:
    looking = [c for c in commands(README) if c[1] in ("inspect", "passes", "explain")]
    assert looking
    for command in looking:
        if "--curves" not in command:
            assert main(command[1:]) == 0, shlex.join(command)


@pytest.mark.full
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_run_in_their_order(page: Path, clone: Path) -> None:
    for command in commands(page):
        assert command[0] == "onnx-lowrank"
        assert main(command[1:]) == 0, shlex.join(command)
    assert page != README or (clone / "small.onnx").is_file()


@pytest.mark.full
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_runs(page: Path, clone: Path) -> None:
    for program in blocks(page, "python"):
        exec(compile(program, page.name, "exec"), {})
    assert page != README or (clone / "small.onnx").is_file()


def test_there_is_something_to_run() -> None:
    assert len(commands(README)) >= 7
    assert blocks(README, "python")


def test_links_lead_somewhere() -> None:
    for page in [*PAGES, *ROOT.glob("examples/*/README.md"), ROOT / "benchmarks" / "README.md"]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", [README, ROOT / "docs" / "methods.md"], ids=lambda p: p.name)
def test_every_factorization_has_a_row(page: Path) -> None:
    rows = re.findall(r"^\| `(\w+)`", page.read_text(encoding="utf-8"), flags=re.M)
    assert {p.name for p in BUILT_IN if issubclass(p, Factorization)} <= set(rows)


def test_ci_runs_the_test_command_of_the_readme() -> None:
    text = README.read_text(encoding="utf-8")
    command = next(line.strip() for line in text.splitlines() if " -m pytest" in line)
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert command in lines
    assert f"{command.rpartition('&& ')[2]} -m full" in lines
