"""A fleet whose models are done at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnx_lowrank.fleet import batch as flow
from tests.fleet.fakes import Done, models


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> Done:
    fake = Done()
    monkeypatch.setattr(flow, "run_here", fake)
    return fake


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return models(tmp_path / "in", "a.onnx", "sub/b.onnx", "sub/c.ONNX", ".hidden/d.onnx")
