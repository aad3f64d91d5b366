"""Models that people use keep what they are for, by their own measure, or are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

import onnx_lowrank
from benchmarks.bigger_nets import BIGGER, FOLDER
from benchmarks.user_measures import LINES
from onnx_lowrank.errors import GuardError
from tests import fixtures_models as fm
from tests.scripted_timer import taking

pytestmark = [pytest.mark.real, pytest.mark.slow]

READER = BIGGER["ppocrv5_rec"]
DRAWN, TESTED = 40, 60


@pytest.mark.skipif(
    not (READER.path.is_file() and fm.SHARED.joinpath("real").is_dir()),
    reason=f"{READER.path.name} is not in {FOLDER.name}, or its lines are not in ../shared/real",
)
def test_a_reader_of_lines_keeps_them_or_is_refused(tmp_path: Path) -> None:
    """A small squared error in the scores of 18,385 classes may leave no line as it was."""
    samples, output = READER.read(), tmp_path / "out.onnx"
    calib = {"x": samples["x"][:DRAWN]}
    tested = {name: samples[f"test.{name}"][:TESTED] for name in ("x", "labels")}
    try:
        result = onnx_lowrank.compress(
            READER.path, calib=calib, target="macs=0.7", seed=0, timer=taking(0.5)
        )
    except GuardError:
        return
    result.save(output)
    reference, new = (LINES.answer(path, tested) for path in (READER.path, output))
    found = LINES.figures(reference, new, tested)
    assert found["lines"] >= 0.9 * found["lines_before"]
