"""Rows of a benchmark in one JSON file, so that what is measured once is known the next time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["head", "known_rows", "write_rows"]


def known_rows(path: Path) -> dict[str, Any]:
    """Rows by key; none where there is no file."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def write_rows(path: Path, rows: Mapping[str, Any]) -> None:
    """All rows, in the place of those that were there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=1))


def head(columns: Sequence[str]) -> str:
    """The first two lines of a table."""
    return f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"
