"""The benchmark of selected samples on a small net."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from benchmarks.__main__ import parser
from benchmarks.commands import selected
from benchmarks.commands.selected import COMMAND
from benchmarks.rows import Cell
from benchmarks.tables import line
from tests.scripted_timer import taking


def test_cells_have_a_seed_each_where_seeds_matter() -> None:
    arguments = parser().parse_args(
        ["selected", "--models", "cifar10_resnet20", "--samples", "32", "64", "--seeds", "3"]
    )
    cells = selected.cells(arguments)
    assert len({c.key for c in cells}) == len(cells) == 2 * (3 + 1 + 1)
    assert {c.options["target"] for c in cells} == {0.5}


@pytest.mark.full
def test_a_row_and_what_follows_from_several(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    quick = partial(selected.onnx_lowrank.compress, passes="svd", repair="none", timer=taking(0.4))
    monkeypatch.setattr(selected.onnx_lowrank, "compress", quick)
    measure = selected.begin("digits_mlp", tmp_path, parser().parse_args(["selected"]))
    options = {"target": 0.5, "samples": 40, "by": "l21", "seed": 0}
    row = measure(Cell("selected", "digits_mlp", options))
    assert row.samples == {"calibration": 40, "test": 797}
    assert 0 < row.figures["loss"] < 0.5  # type: ignore[operator]
    assert line(row, COMMAND.columns).startswith("| digits_mlp | 0.5 | 40 | l21 | 0 |")
    drawn = [
        Cell("selected", "net", {**options, "by": "random", "seed": i}).measured(
            {"calibration": 40, "test": 100}, {"accuracy": value, "snr": 10.0}
        )
        for i, value in enumerate((0.5, 0.7))
    ]
    assert selected.scatter([row, *drawn]) == (
        "net, 40 at random, 2 seeds: top-1 60.0% ± 14.1%, SNR 10.0 dB ± 0.0 dB"
    )
