"""A sweep as a page and as JSON."""

from __future__ import annotations

import json
import math
import re
import subprocess
from dataclasses import replace
from importlib import resources
from pathlib import Path

import jsonschema
import pytest

from onnx_lowrank.report.charts import Dot, scatter
from onnx_lowrank.report.sweep import Point, Sweep, with_front
from onnx_lowrank.report.sweep_page import sweep_page
from tests.report.test_page import CHROMIUM, ODD, Seen

SCHEMA = json.loads(
    resources.files("onnx_lowrank.report").joinpath("sweep.schema.json").read_text("utf8")
)


def point(part: float, accuracy: float | None, target: str = "") -> Point:
    return Point(
        target or f"macs={part}", part, part, part, part, accuracy, accuracy, 20.0, front=False
    )


FOUND = with_front(
    Sweep(
        "ab12", 500, 0.985,
        (point(0.8, 0.99), point(0.5, 0.97), point(0.6, 0.95), point(0.2, 0.9, ODD)),
        (("macs=0.01", ODD),),
    )
)  # fmt: skip
PLAIN = replace(
    FOUND, accuracy=None,
    points=tuple(replace(p, accuracy=None, agreement=None) for p in FOUND.points),
)  # fmt: skip


@pytest.mark.parametrize("found", [FOUND, PLAIN])
def test_json_is_as_published(found: Sweep) -> None:
    data = json.loads(json.dumps(found.to_dict("onnx-lowrank sweep"), allow_nan=False))
    jsonschema.validate(data, SCHEMA, jsonschema.Draft202012Validator)
    assert data["quality"] == found.axis[0]
    for key in SCHEMA["required"]:
        less = {k: v for k, v in data.items() if k != key}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(less, SCHEMA, jsonschema.Draft202012Validator)


@pytest.mark.parametrize("found", [FOUND, PLAIN])
def test_the_page_says_what_the_data_say(found: Sweep) -> None:
    text = sweep_page(found, ODD)
    assert Seen(text).tags
    assert ODD not in text  # escaped
    assert "http" not in text.replace("http-equiv", "")
    for p in found.points[:3]:
        assert f">{p.target}<" in text
    assert text.count("<circle") == 3 * (4 + (found.accuracy is not None))
    beaten = 1 if found is FOUND else 3  # without labels all are alike, and the least is best
    assert text.count('<circle class="beaten"') == 3 * beaten
    assert "20.0" in text


def test_nothing_to_draw() -> None:
    exact = replace(FOUND, points=(replace(point(0.5, None), snr_db=None),), accuracy=None)
    assert exact.quality == math.inf
    text = sweep_page(exact)
    assert "<circle" not in text
    assert "exact" in text
    assert scatter("a", "", "", "", (), True) == ""


def test_places_of_dots() -> None:
    drawn = scatter(
        "a", "t", "cost", "quality",
        [Dot("one", 0.5, 0.9, True), Dot("two", 1.0, 0.95, False, original=True)], True,
    )  # fmt: skip
    (left, low), (right, high) = (
        (float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', drawn)
    )
    assert right == 340
    assert left == pytest.approx((58 + 340) / 2, abs=0.1)
    assert 0 < high < low < 240
    assert "one: 0.500, 90.0 %; two: 1.000, 95.0 %" in drawn
    assert 'class="original"' in drawn


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install chromium-headless-shell")
def test_the_page_is_drawn(tmp_path: Path) -> None:
    assert CHROMIUM is not None
    file, picture = tmp_path / "sweep.html", tmp_path / "sweep.png"
    file.write_text(sweep_page(FOUND, "onnx-lowrank sweep"), encoding="utf8")
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
        "--window-size=1200,1000", f"--user-data-dir={tmp_path / 'profile'}",
        f"--screenshot={picture}", file.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert picture.stat().st_size > 10_000
    assert "CONSOLE" not in done.stderr
