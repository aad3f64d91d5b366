from __future__ import annotations

from pathlib import Path

from onnx_lowrank.runtime.caches import CacheOptions


def test_the_default_folder_is_the_users(tmp_path: Path) -> None:
    folder = CacheOptions().folder("latency")
    assert folder is not None
    assert folder.is_absolute()
    assert folder.name == "latency"
    assert "onnx-lowrank" in folder.parts
    assert CacheOptions(tmp_path).folder("moments") == tmp_path / "moments"
    assert CacheOptions("").folder("moments") is None
