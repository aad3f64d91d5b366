"""The shape of the repository itself."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import onnx_lowrank
from onnx_lowrank import passes
from onnx_lowrank.passkit.base import Pass

ROOT = Path(__file__).parents[1]


def test_passes_folder_is_a_link_to_the_top_level() -> None:
    link = ROOT / "onnx_lowrank" / "passes"
    assert link.is_symlink()
    assert link.resolve() == ROOT / "passes"


def test_every_pass_file_is_listed_and_tested() -> None:
    files = {p.stem for p in (ROOT / "passes").glob("*.py")} - {"__init__"}
    assert files == {p.name for p in passes.BUILT_IN}
    for name in files:
        assert (ROOT / "tests" / "passes" / f"test_{name}.py").is_file(), name


def test_pass_files_open_with_the_agreed_headings() -> None:
    for cls in passes.BUILT_IN:
        text = importlib.import_module(cls.__module__).__doc__ or ""
        headings = ("Before:", "After:", "Conditions:", "Formula:", "Reference:")
        positions = [text.find(h) for h in headings]
        assert -1 not in positions, cls.name
        assert positions == sorted(positions), cls.name
        assert text.startswith(f"{cls.name}: ")


def test_built_in_passes_are_passes() -> None:
    assert all(issubclass(p, Pass) for p in passes.BUILT_IN)


def test_public_names_exist_and_are_sorted() -> None:
    assert sorted(onnx_lowrank.__all__) == list(onnx_lowrank.__all__)
    for name in onnx_lowrank.__all__:
        assert hasattr(onnx_lowrank, name), name


def test_the_version_is_the_same_everywhere() -> None:
    def first(file: str, pattern: str) -> tuple[str, ...]:
        found = re.search(pattern, (ROOT / file).read_text(encoding="utf-8"), re.M)
        assert found is not None, file
        return found.groups()

    (version,) = first("pyproject.toml", r'^version = "(.+)"$')
    released = first("CHANGELOG.md", r"^## \[(\d.*)\] - ([\d-]+)$")
    cited = first("CITATION.cff", r"^version: (.+)\ndate-released: (.+)$")
    assert released == cited
    assert released[0] == version
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
