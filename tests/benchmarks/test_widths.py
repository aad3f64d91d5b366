"""The benchmark of ranks one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.__main__ import parser
from benchmarks.bound import CPU
from benchmarks.commands import widths
from benchmarks.commands.widths import LAYERS, Layer, compared, stack
from onnx_lowrank import inspect

SMALL = {"matrix": Layer(128, (5,)), "window": Layer(44, (6, 6), 3)}


@pytest.mark.parametrize("name", LAYERS)
def test_the_middle_leaves_half_of_the_macs(name: str, tmp_path: Path) -> None:
    layer = LAYERS[name]
    macs = []
    for rank in (None, layer.middle):
        proto = stack(layer, rank)
        onnx.checker.check_model(proto, full_check=True)
        onnx.save(proto, tmp_path / "m.onnx")
        macs.append(inspect(tmp_path / "m.onnx").cost.macs)
    assert layer.middle % 16 == 0
    assert macs[1] / macs[0] == pytest.approx(0.5, abs=0.01)


def test_times_are_set_beside_the_next_multiple() -> None:
    parts = {9: 3.0, 12: 5.0, 16: 2.0, 17: 9.0, 24: 3.0, 32: 1.0, 33: 7.0}
    assert compared(parts, 8, lambda r: r % 8 != 0) == pytest.approx(np.mean([1.5, 2.5, 3.0]))
    assert compared(parts, 16, lambda r: r % 16 == 8) == pytest.approx(3.0)


@pytest.mark.parametrize("name", SMALL)
def test_a_row(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(widths, "LAYERS", SMALL)
    arguments = parser().parse_args([
        "widths", "--provider", CPU, "--precisions", "float32", "--batches", "1",
        "--seconds", "0.001",
    ])  # fmt: skip
    arguments.models = [name]
    (cell,) = widths.cells(arguments)
    row = widths.begin(name, tmp_path, arguments)(cell)
    middle = SMALL[name].middle
    assert list(row.details["parts"]) == [str(r) for r in (8, *range(middle - 16, middle + 17))]
    assert row.figures["half_time"] == row.details["parts"][str(middle)]
    assert row.figures["original_ms"]
