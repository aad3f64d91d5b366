from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from onnx_lowrank.engine.api import sweep
from onnx_lowrank.engine.option_groups import DEFAULT_RATIOS
from onnx_lowrank.errors import ModelError, OptionError
from onnx_lowrank.latency.pairs import LatencyPair
from onnx_lowrank.planning.refit_modes import DEFAULT_REPAIR
from onnx_lowrank.report.sweep import Point, Sweep, fronts
from tests import fixtures_models as fm
from tests.scripted_timer import ScriptedTimer, pair, taking


def quick_sweep(model: Any, **options: Any) -> Sweep:
    return sweep(model, **{"timer": taking(0.5), "threads": 1, **options})


def point(cost: float, accuracy: float | None, *, target: str = "", **more: Any) -> Point:
    given_ = {"agreement": accuracy, "snr_db": 20.0, "front": False, **more}
    return Point(target or f"macs={cost:g}", cost, cost, cost, cost, accuracy, **given_)


# the front


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_front(places: Sequence[tuple[int, int]]) -> None:
    front = [p for p, f in zip(places, fronts(places), strict=True) if f]
    for cost, quality in front:  # nothing is at least as good in both, but its equals
        assert {p for p in places if p[0] <= cost and p[1] >= quality} == {(cost, quality)}
    for cost, quality in set(places) - set(front):  # something on the front is
        assert any(c <= cost and q >= quality for c, q in front)


# for real


@pytest.fixture(scope="module")
def swept(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, Path]:
    folder = tmp_path_factory.mktemp("swept") / "new" / "models"
    ratios = (0.9, 0.6, 0.4, 0.01)
    data = tiny / "data.npz"
    return quick_sweep(tiny / "tiny.onnx", calib=data, ratios=ratios, models=folder), folder


@pytest.mark.full
def test_points(swept: tuple[Sweep, Path], tiny: Path) -> None:
    found, _ = swept
    assert [p.target for p in found.points] == ["macs=0.9", "macs=0.6", "macs=0.4"]
    assert (found.samples, found.accuracy) == (100, 1.0)
    (target, reason), = found.missed  # fmt: skip
    assert target == "macs=0.01"
    assert "these passes cannot go below" in reason
    asked = {"target": "macs=0.4", "repair": DEFAULT_REPAIR}
    alone = fm.quick_compress(tiny / "tiny.onnx", calib=tiny / "data.npz", **asked)
    report, last = alone.report, found.points[-1]
    assert last.macs == report.macs_ratio <= 0.4
    assert last.bytes == report.after.bytes / report.before.bytes
    assert last.params == report.after.parameters / report.before.parameters
    (output,) = report.validation.outputs
    assert report.validation.accuracy is not None
    assert last.accuracy == report.validation.accuracy.new
    assert (last.agreement, last.snr_db) == (output.top1_agreement, output.snr_db)
    # without a clock all take half of the time: the best of all is the front
    best = max(p.quality for p in found.points)
    assert [p.front for p in found.points] == [p.quality == best for p in found.points]


def test_models(swept: tuple[Sweep, Path]) -> None:
    found, folder = swept
    names = {f"macs-{r:g}.onnx" for r in (0.9, 0.6, 0.4)}
    assert {p.name for p in folder.iterdir()} == names
    x, labels = fm.classified(400)
    for p in found.points:
        path = folder / f"{p.target.replace('=', '-')}.onnx"
        onnx.checker.check_model(str(path), full_check=True)
        right = fm.run(path, {"x": x[300:]})["y"].argmax(1) == labels[300:]
        assert p.accuracy == pytest.approx(right.mean(), rel=0, abs=0.011)  # rounding of a tie


def test_json(swept: tuple[Sweep, Path]) -> None:
    found, _ = swept
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False), parse_constant=pytest.fail)
    assert data["schema"] == 2
    assert data["missed"][0]["target"] == "macs=0.01"
    assert [Point(**p) for p in data["points"]] == list(found.points)
    assert len(data["model"]) == 64


def test_equal_outputs_are_no_infinity() -> None:
    found = Sweep("ab", 9, None, (point(0.5, None, agreement=None, snr_db=None),), ())
    assert found.points[0].quality == math.inf
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert json.loads(text)["points"][0]["snr_db"] is None


@pytest.mark.full
def test_no_classes_and_no_labels() -> None:
    found = quick_sweep(fm.residual_net(), calib={"x": fm.pictures(40)}, ratios=[0.7, 0.5])
    assert found.accuracy is None
    for p in found.points:
        assert (p.accuracy, p.agreement) == (None, None)
        assert p.quality == p.snr_db
    assert found.quality == math.inf
    assert found.points[0].quality > found.points[1].quality


class ByBatch(ScriptedTimer):
    """Finds models to gain with the batch."""

    def models(self, *_: Any) -> tuple[LatencyPair, ...]:
        return tuple(replace(pair(0.9 / b), batch=b) for b in (1, 4, 16))


def test_the_batch_that_counts(tiny: Path) -> None:
    (first,) = quick_sweep(tiny / "tiny.onnx", ratios=[0.6], timer=ByBatch()).points
    assert first.latency == pytest.approx(0.9, rel=1e-12, abs=0)


def test_slower_and_worse_than_the_original_is_not_on_the_front(tiny: Path) -> None:
    data = tiny / "data.npz"
    found = quick_sweep(tiny / "tiny.onnx", calib=data, ratios=[0.6], timer=taking(1.5))
    assert [p.front for p in found.points] == [False]


def test_what_makes_no_sense(tiny: Path, tmp_path: Path) -> None:
    for options, part in (
        ({"ratios": []}, "no budget to try; give --ratios 0.9,0.5"),
        ({"ratios": [1.5]}, "write macs=R"),
        ({"budget": "flops"}, r"target 'flops=0\.9'"),
    ):
        with pytest.raises(OptionError, match=part):
            quick_sweep(tiny / "tiny.onnx", **options)
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match=r"file: cannot be made .*; name another"):
        quick_sweep(tiny / "tiny.onnx", models=tmp_path / "file")


def test_ratios_fall() -> None:
    assert list(DEFAULT_RATIOS) == sorted(DEFAULT_RATIOS, reverse=True)


# for people


def printed(found: Sweep) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    found.print(console)
    return console.export_text()


def test_table() -> None:
    points = (point(0.5, 0.98, front=True), point(0.4, 0.9, snr_db=None))
    found = Sweep("ab", 500, 0.99, points, (("macs=0.1", "reach [0.2]"),))
    text = printed(found)
    assert "500 samples" in text
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}
    assert rows["original"] == ["1", "1", "1", "1", "99.00%"]
    assert rows["macs=0.5"] == ["0.500"] * 4 + ["98.00%", "98.00%", "20.0", "dB"]
    assert rows["macs=0.4"][-1] == "exact"
    assert "macs=0.1: reach [0.2]" in text
    assert "original" not in printed(replace(found, accuracy=None))


# pictures


POINTS = (point(0.8, 0.99), point(0.5, 0.97), point(0.6, 0.95), point(0.2, 0.9))


def test_svg(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = Sweep("ab", 500, 0.985, POINTS, ())
    found.plot(tmp_path / "a.svg")
    found.plot(tmp_path / "b.SVG")
    raw = (tmp_path / "a.svg").read_bytes()
    assert raw == (tmp_path / "b.SVG").read_bytes()
    text = raw.decode()
    for once in ("time left", "MACs left", "bytes left", "top-1 accuracy (500 samples)", "others",
                 ">original<", "the best for their cost"):  # fmt: skip
        assert text.count(once) == 1, once
    # of every panel what is on its front has its name; 0.6 is beaten by 0.5
    for target, panels in (("0.8", 3), ("0.5", 3), ("0.2", 3), ("0.6", 0)):
        assert text.count(f">macs={target}<") == panels
    other = replace(found, points=POINTS[:3])
    other.plot(tmp_path / "c.svg")
    assert (tmp_path / "c.svg").read_bytes() != raw
    assert {p.name for p in tmp_path.iterdir()} == {"a.svg", "b.SVG", "c.svg"}


def test_each_panel_has_its_own_front(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    slow = replace(POINTS[1], target="slow", latency=0.9)
    Sweep("ab", 9, 0.985, (POINTS[0], slow), ()).plot(tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert text.count(">slow<") == 2
    assert text.count(">macs=0.8<") == 3


@pytest.mark.parametrize(
    ("points", "axis", "original"),
    [
        ([point(0.5, None, agreement=0.9)], "same first class (9 samples)", True),
        ([point(0.5, None, snr_db=31.0), point(0.7, None, snr_db=None)], "SNR, dB", False),
    ],
)
def test_without_labels(points: list[Point], axis: str, original: bool, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    Sweep("ab", 9, None, tuple(points), ()).plot(tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert axis in text
    assert (">original<" in text) == original


def test_png(tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib.image")
    Sweep("ab", 500, 0.985, POINTS, ()).plot(tmp_path / "a.png")
    picture = np.asarray(matplotlib.imread(tmp_path / "a.png"))
    assert picture.shape[1] > 2 * picture.shape[0]
    for colour in ("#0072B2", "#D55E00"):  # the front, the original
        rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        assert np.sum(np.abs(picture[:, :, :3] - rgb).max(axis=2) < 0.01) > 50


def test_what_cannot_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = point(0.5, None, agreement=None, snr_db=None)
    for points in ((), (exact,)):
        with pytest.raises(OptionError, match="nothing to draw"):
            Sweep("ab", 9, None, points, ()).plot(tmp_path / "a.svg")
    found = Sweep("ab", 500, 0.985, POINTS, ())
    with pytest.raises(OptionError, match=r"a\.pdf: pictures are \.png or \.svg"):
        found.plot(tmp_path / "a.pdf")
    with pytest.raises(ModelError):
        found.plot(tmp_path / "no" / "a.svg")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(OptionError, match=r'pip install "onnx-lowrank\[plot\]"'):
        found.plot(tmp_path / "a.svg")
