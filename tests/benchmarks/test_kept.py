"""The benchmark of what models keep: its figures against figures got without it."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import onnxruntime
import pytest

from benchmarks.__main__ import parser
from benchmarks.command_line import Ended
from benchmarks.commands import kept
from benchmarks.commands.kept import ALL, ASKS, COMMAND, Ask
from benchmarks.nets import Array
from benchmarks.rows import Cell
from benchmarks.tables import line
from benchmarks.user_measures import (
    BOXES,
    LINES,
    RIGHT,
    SAME,
    SCORES,
    SENTENCES,
    SNR,
    batches,
    open_session,
)
from tests import fixtures_models as fm

ASK = Ask("digits_mlp", "macs=0.6", RIGHT, 0.5)
CELL = Cell("kept", "digits_mlp", {"target": "macs=0.6", "samples": 80})


def classes_of(path: Path) -> Array:
    with np.load(fm.DIGITS) as z:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return np.asarray(session.run(None, {"image": z["test.image"]})[0]).argmax(1)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "_BY_CELL", {("digits_mlp", "macs=0.6"): ASK})


@pytest.mark.usefixtures("asked")
@pytest.mark.full
def test_a_row_is_what_users_measure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first call is refused, so that the second one forces the result."""
    calls: list[list[str]] = []
    command = kept.compress

    def refused_once(model: Path, output: Path, options: list[str]) -> Ended:
        calls.append(options)
        if "--force" not in options:
            return Ended(5, "it is slower", 7.0, 1.0, 1.0, {})
        return command(model, output, [*options, "--passes", "svd", "--repair", "none"])

    monkeypatch.setattr(kept, "compress", refused_once)
    row = kept.begin("digits_mlp", tmp_path, Namespace())(CELL)
    first = ["--samples", "80", "--seed", "0", "--target", "macs=0.6"]
    assert [call[2:] for call in calls] == [first, [*first, "--force"]]
    before, after = classes_of(ALL["digits_mlp"].path), classes_of(tmp_path / "out.onnx")
    with np.load(fm.DIGITS) as z:
        labels = z["test.labels"]
    assert row.status == "measured"
    assert row.figures["accuracy_before"] == np.mean(before == labels)
    assert row.figures["accuracy"] == np.mean(after == labels)
    assert row.figures["agreement"] == np.mean(before == after)
    assert 0.3 < (row.figures["macs"] or 0) <= 0.6
    assert row.figures["seconds"] == 7.0
    assert row.samples == {"calibration": 80, "test": 797}
    with np.load(tmp_path / "calibration.npz") as z:
        assert z.files == ["image"]
    assert line(row, COMMAND.columns).endswith("| 80 / 797 | 7 | refused: it is slower |")


@pytest.mark.usefixtures("asked")
def test_a_budget_that_cannot_be_met(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ended = Ended(5, "macs: no less than 0.9", 7.0, 1.0, 1.0, {})
    monkeypatch.setattr(kept, "compress", lambda *_: ended)
    row = kept.begin("digits_mlp", tmp_path, Namespace())(CELL)
    assert (row.status, row.message) == ("refused", ended.message)
    assert "| right first class | refused: macs: no less than 0.9 |" in line(row, COMMAND.columns)


def told(figures: dict[str, float], target: str, model: str, **details: Any) -> list[str]:
    cell = Cell("kept", model, {"target": target, "samples": None})
    row = cell.measured({"calibration": 9, "test": 8}, figures, **details)
    return line(row, COMMAND.columns).strip("| ").split(" | ")


def test_lines_of_the_table() -> None:
    lines = {"lines_before": 0.985, "lines": 0.974, "macs": 0.699, "params": 0.8, "seconds": 61.0}
    assert told(lines, "macs=0.7", "ppocrv5_rec", refusal="") == [
        "ppocrv5_rec", "macs=0.7", "lines read exactly", "98.5%", "97.4%", ">= 97.5%", "no", "",
        "0.70", "0.80", "9 / 8", "61", "written",
    ]  # fmt: skip
    boxes = {"boxes": 40, "boxes_matched": 0.95, "snr_boxes": 41.0, "snr_scores": 9.54}
    assert told(boxes, "macs=0.7", "yolov8n_320")[3:8] == [
        "", "95.0%", ">= 95.0%", "yes", "of 40, boxes 41.0 dB, scores 9.5 dB",
    ]  # fmt: skip
    equal = {"snr": float("inf")}
    assert told(equal, "macs=0.7", "vit_s_focus")[4:7] == ["exact", ">= 26.0 dB", "yes"]


def test_a_cell_that_is_not_measured_shows_what_is_asked() -> None:
    row = Cell("kept", "open_nsfw", {"target": "macs=0.7", "samples": None}).measured({}, {})
    text = line(row, COMMAND.columns)
    assert text.startswith("| open_nsfw | macs=0.7 | scores within 0.02 |  |  | >= 99.0% |  |")


def test_asks_are_of_models_and_targets_once() -> None:
    assert len({(ask.model, ask.target) for ask in ASKS}) == len(ASKS)
    assert {ask.model for ask in ASKS} <= set(ALL)
    chosen = kept.cells(parser().parse_args(["kept", "--models", "ppocrv5_rec"]))
    assert [cell.options["target"] for cell in chosen] == ["macs=0.7", "macs=0.5"]


def test_measures_of_outputs() -> None:
    reference = np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8], [0.6, 0.4]], np.float32)
    new = reference + np.array([[0, 0.01], [0, 0.03], [0, -0.02], [-0.3, 0]], np.float32)
    tested = {"labels": np.array([0, 0, 1, 0])}
    found = RIGHT.figures(reference, new, tested)
    assert found["accuracy_before"] == 1.0
    assert found["accuracy"] == found["agreement"] == 0.5
    assert SCORES.figures(reference, new, tested)["scores_kept"] == 0.75
    assert found["snr"] == SAME.figures(reference, new, {})["snr"] == SNR.figures(
        reference, new, {}
    )["snr"]  # fmt: skip
    assert "accuracy" not in SAME.figures(reference, new, {})


def test_measures_of_lines_sentences_and_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.user_measures.characters", lambda: ["", "a", "b"])
    reference, new = np.array([[1, 2], [2, 0]]), np.array([[1, 2], [0, 0]])
    texts = {"labels": np.array(["a b", "b"])}
    assert LINES.figures(reference, new, texts) == {"lines_before": 1.0, "lines": 0.5}

    angles = np.array([0, 0, 0, 0.1, 0.5, 1.0])  # three pairs, from like to unlike
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    likeness = {"labels": np.array([5.0, 3.0, 1.0])}
    found = SENTENCES.figures(vectors, vectors[[2, 1, 0, 5, 4, 3]], likeness)
    assert (found["sts_before"], found["sts"]) == pytest.approx((100, -100), abs=1e-9)

    picture = np.array([[10, 10, 4, 4, 0.9, 0.0], [30, 30, 4, 4, 0.0, 0.9]]).T[None]
    moved = picture.copy()
    moved[0, 0, 1] += 2
    found = BOXES.figures(picture, moved, {})
    assert (found["boxes"], found["boxes_matched"]) == (2, 0.5)
    assert found["snr_scores"] == float("inf") > found["snr_boxes"]


def test_names_of_figures() -> None:
    for measure in {ask.measure for ask in ASKS}:
        figures = {measure.figure: 0.5, **{name: 1.0 for name, _ in measure.besides}}
        row = CELL.measured({}, figures)  # whose units are known
        assert row.figures == figures


def test_a_model_is_run_as_many_samples_at_a_time_as_it_takes() -> None:
    samples = ALL["digits_mlp"].read()
    session = open_session(ALL["digits_mlp"].path)
    assert [len(feed["image"]) for feed in batches(session, samples)] == [16] * 62 + [8]
    (spec,) = session.get_inputs()
    fixed = Mock()
    fixed.get_inputs.return_value = [SimpleNamespace(name="image", shape=[2, *spec.shape[1:]])]
    found = [feed["image"] for feed in batches(fixed, {"image": samples["image"][:6]})]
    np.testing.assert_array_equal(np.stack(found).reshape(6, *spec.shape[1:]), samples["image"][:6])
