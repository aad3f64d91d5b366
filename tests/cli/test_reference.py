"""The option reference is what the declarations say."""

from __future__ import annotations

from onnx_lowrank.cli.reference import reference
from tests import fixtures_models as fm

PAGE = fm.ROOT / "docs" / "options.md"


def test_the_page_is_generated() -> None:
    """Otherwise: python -m onnx_lowrank.cli.reference > docs/options.md."""
    assert PAGE.read_text(encoding="utf-8") == reference()


def test_every_command_with_options_is_there() -> None:
    text = reference()
    for command in ("compress", "plan", "apply", "sweep", "inspect", "validate"):
        assert f"## `onnx-lowrank {command} " in text
    assert "| `--max-drop 1%` | `max_drop` |" in text
    assert "| `--report FILE` |  |" in text
