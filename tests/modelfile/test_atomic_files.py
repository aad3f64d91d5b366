from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from onnx_lowrank.errors import ModelError
from onnx_lowrank.modelfile.atomic_files import atomic_write


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def write_half(path: Path, error: Callable[[], BaseException]) -> None:
    with atomic_write(path) as file:
        file.write(b"half")
        raise error()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_atomic_write_leaves_nothing_behind(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        write_half(tmp_path / "out", error)
    assert names(tmp_path) == set()


def test_atomic_write_keeps_the_old_file_on_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"old")
    with pytest.raises(RuntimeError):
        write_half(tmp_path / "out", RuntimeError)
    assert (tmp_path / "out").read_bytes() == b"old"
    assert names(tmp_path) == {"out"}


def test_a_full_disk_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"out: cannot be written \(No space left on device\)"):
        write_half(tmp_path / "out", lambda: OSError(28, "No space left on device"))
    assert names(tmp_path) == set()
