"""Products of rows in three parts are those of all at once."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_lowrank.analysis import block
from onnx_lowrank.analysis.block import Block, block_of
from onnx_lowrank.linalg import blas_threads
from onnx_lowrank.linalg.blas_threads import one_thread
from tests.support import rng


def made(width: int, outputs: int, groups: int = 2) -> Block:
    rows = rng(0).normal(3.0, 1.0, size=(groups, 500, width + outputs)).astype(np.float32)
    with one_thread():
        found = block_of(rows, width)
    assert found is not None
    return found


@pytest.mark.parametrize(("width", "outputs"), [(128, 16), (129, 0), (1, 5), (2, 1)])
def test_in_halves_and_at_once(width: int, outputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block, "_WORK", np.inf)
    whole = made(width, outputs)
    monkeypatch.setattr(block, "_WORK", 0)
    found = made(width, outputs)
    scale = np.abs(whole.scatter).max()
    np.testing.assert_allclose(found.scatter, whole.scatter, atol=1e-6 * scale)
    np.testing.assert_allclose(found.cross, whole.cross, atol=1e-6 * scale)
    np.testing.assert_array_equal(found.scatter, found.scatter.swapaxes(1, 2))
    np.testing.assert_array_equal(found.squares, whole.squares)


def test_bits_do_not_depend_on_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    def bits(most: int) -> tuple[bytes, bytes]:
        monkeypatch.setattr(blas_threads, "_most_threads", lambda: most)
        found = made(300, 40)
        return found.scatter.tobytes(), found.cross.tobytes()

    assert bits(1) == bits(2)
