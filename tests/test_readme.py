"""What the README and the pages in ``docs/`` show is run, as it stands there."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from onnx_lowrank.cli.main import main
from onnx_lowrank.latency.timer import RuntimeTimer
from onnx_lowrank.passes import BUILT_IN
from onnx_lowrank.passkit.base import Factorization, Pass
from tests.scripted_timer import ScriptedTimer
from tests.stand_ins import STAND_INS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.M | re.S)


def shown_files(page: Path) -> dict[str, str]:
    """Files that a page shows under their names, as ```` ```python title="losses.py" ````."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r'^```\w+ title="([\w.]+)"\n(.*?)^```', text, flags=re.M | re.S)
    return dict(found)


def commands(page: Path) -> list[list[str]]:
    return [shlex.split(line) for block in blocks(page, "sh") for line in block.splitlines()]


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the models; times are scripted, and are not kept for other tests."""
    scripted = ScriptedTimer()
    for name in ("layers", "chains", "models"):
        told = getattr(scripted, name)
        monkeypatch.setattr(RuntimeTimer, name, lambda self, *a, told=told: told(*a))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    return tmp_path


#: module that the programs of a page need beside ours
EXTRAS = {"olive.md": "olive"}


@pytest.mark.full
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_run_in_their_order(page: Path, clone: Path) -> None:
    if page.name in STAND_INS:
        STAND_INS[page.name](clone)
    for name, text in shown_files(page).items():
        (clone / name).write_text(text, encoding="utf-8")
    for command in commands(page):
        assert command[0] == "onnx-lowrank"
        assert main(command[1:]) == 0, shlex.join(command)
    assert page != README or (clone / "small.onnx").is_file()


@pytest.mark.full
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_runs(page: Path, clone: Path) -> None:
    needed = EXTRAS.get(page.name)
    if needed and find_spec(needed) is None:
        pytest.skip(f"the extra {needed} is not installed")
    for program in blocks(page, "python"):
        exec(compile(program, page.name, "exec"), {})
    assert page != README or (clone / "small.onnx").is_file()


def test_there_is_something_to_run() -> None:
    assert len(commands(README)) >= 7
    assert blocks(README, "python")
    recipes = [page for page in PAGES if page.parent.name == "recipes"]
    assert {page.name for page in recipes} == set(STAND_INS)
    assert all(len(commands(page)) >= 2 for page in recipes)


def test_links_lead_somewhere() -> None:
    others = [*ROOT.glob("examples/*/README.md"), ROOT / "benchmarks" / "README.md"]
    for page in [*PAGES, *others, ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize(("page", "kind"), [("passes.md", Pass), ("methods.md", Factorization)])
def test_every_pass_has_a_row(page: str, kind: type[Pass]) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)`", text, flags=re.M)
    assert {p.name for p in BUILT_IN if issubclass(p, kind)} <= set(rows)


def test_rooms_are_listed_as_the_contract_of_imports_does() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \| (.+) \|$", text, flags=re.M)
    contract = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("layers = [")[2]
    lines = re.findall(r'^  "(\w+)",$', contract, flags=re.M)
    rooms = [name for name in lines if (ROOT / "onnx_lowrank" / name).is_dir()]
    assert [name for name, _ in listed] == rooms
    for name, sentence in listed:
        told = import_module(f"onnx_lowrank.{name}").__doc__
        assert told is not None
        assert sentence == told.splitlines()[0]


def test_ci_runs_the_test_command_of_the_readme() -> None:
    text = README.read_text(encoding="utf-8")
    command = next(line.strip() for line in text.splitlines() if " -m pytest" in line)
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert command in lines
    assert f"{command.rpartition('&& ')[2]} -m full" in lines
