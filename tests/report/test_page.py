from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from onnx_lowrank.engine.validate import opened
from onnx_lowrank.judge.disagreements import Disagreement
from onnx_lowrank.judge.reading import Reading
from onnx_lowrank.judge.verdict import Estimate, ReadingVerdict, Verdict
from onnx_lowrank.planning.plan import Decision
from onnx_lowrank.report.charts import Bar, bars
from onnx_lowrank.report.page import page
from onnx_lowrank.report.report import LayerLoss, Report
from onnx_lowrank.report.stages import Stage
from tests import fixtures_models as fm
from tests.report.test_report import EMPTY, REPORT
from tests.scripted_timer import pair, taking

X, LABELS = fm.classified(300)
SCHEMA = json.loads(
    resources.files("onnx_lowrank.report").joinpath("report.schema.json").read_text("utf8")
)
ODD = "<b>&\"'</b>"
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None
)


def estimate(value: float) -> Estimate:
    return Estimate(value, value - 0.05, value + 0.05)


def full() -> Report:
    """A report with something in every part, and names that would break a page."""
    reading = ReadingVerdict(
        Reading(ODD, "kl", why=ODD), estimate(0.1), estimate(0.98), {}, "samples"
    )
    worst = Disagreement(7, 0.5, ODD, ((ODD, ODD, "class 2"),), "data:image/png;base64,AAAA")
    validation = replace(
        REPORT.validation,
        verdict=Verdict(100, estimate(0.1), (reading,)),
        disagreements=(worst,),
    )
    layers = tuple(
        Decision(name, "Conv", "factorize", "svd", "", rank, 0.01, macs, macs // 2, 9, 3, ODD)
        for name, rank, macs in (("m", 8, 1000), ("z" * 50, 16, 900), (ODD, 4, 5_000_000))
    )
    stages = tuple(
        Stage(name, size, pairs, estimate(0.0), estimate(0.99))
        for name, size, pairs in (("original", 100, ()), ("both", 30, (pair(0.5),)))
    )
    return replace(
        REPORT,
        decisions=layers,
        validation=validation,
        stages=stages,
        costliest=(LayerLoss(ODD, 0.01, 0.02, 8),),
        layer_times={ODD: (0.2, None), "m": (0.1, 0.05)},
    )


class Seen(HTMLParser):
    """Tags of a page, and what stands open in the wrong order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


REPORTS = {"full": full(), "plain": REPORT, "empty": EMPTY}


@pytest.mark.parametrize("name", REPORTS)
def test_a_page_is_whole_and_alone(name: str) -> None:
    text = page(REPORTS[name].to_dict("onnx-lowrank compress a b"))
    seen = Seen(text)
    assert "http" not in text.replace('http-equiv="Content-Security-Policy"', "")
    links = {k: v for _, attrs in seen.tags for k, v in attrs.items() if k in ("src", "href")}
    assert all(str(v).startswith("data:image/png;base64,") for v in links.values())
    assert "onnx-lowrank compress a b" in text
    assert ">nan" not in text
    ids = [attrs["id"] for _, attrs in seen.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for tag, attrs in seen.tags:
        if tag == "svg":
            assert attrs["role"] == "img"
            assert set(str(attrs["aria-labelledby"]).split()) <= set(ids)
        if tag == "img":
            assert attrs["alt"]
    assert sum(t == "caption" for t, _ in seen.tags) == sum(t == "table" for t, _ in seen.tags)


def test_names_cannot_break_a_page() -> None:
    text = page(full().to_dict(ODD))
    assert "<b>" not in text
    assert text.count("&lt;b&gt;") > 10
    assert "… " not in text
    assert "…" + "z" * 29 in text


def test_the_page_says_what_the_json_says() -> None:
    text = page(full().to_dict())
    for part in ("5 M", "data:image/png;base64,AAAA", "class scores", "0.2",
                 "98.00 % [93.00 %, 103.00 %]", "2.00x", "a note", "sample 7", "1a", "2b", "3c",
                 "a &lt;CPU&gt;", "95.00 %", "-1.00 points", "prefers-color-scheme: dark",
                 "@media print"):  # fmt: skip
        assert part in text, part


def test_charts() -> None:
    rows = [Bar("a", 1.0, "one", 2.0), Bar("b", 0.5, "half", span=(0.25, 4.0))]
    text = str(bars("x", "some", rows))
    widths = [float(w) for w in re.findall(r'<rect class="bar"[^>]* width="([\d.]+)"', text)]
    (ghost,) = (float(w) for w in re.findall(r'<rect class="ghost"[^>]* width="([\d.]+)"', text))
    assert widths == [ghost / 2, ghost / 4]
    low, high = re.findall(r'class="span" d="M([\d.]+) .*H([\d.]+)m', text)[0]
    assert (float(high) - 210) / (float(low) - 210) == pytest.approx(16)
    assert "<desc" in text
    assert "a: one; b: half" in text
    assert bars("x", "none", []) == ""
    assert "inf" not in str(
        bars("x", "odd", [Bar("a", float("inf"), "", span=(0.0, float("nan")))])
    )


# the form of JSON


def check_form(data: dict[str, Any]) -> None:
    jsonschema.validate(data, SCHEMA, cls=jsonschema.Draft202012Validator)


def test_the_form_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for report in REPORTS.values():
        check_form(json.loads(report.to_json("a command")))


@pytest.mark.parametrize("key", sorted(REPORT.to_dict()))
def test_what_is_missing_or_new_is_refused(key: str) -> None:
    data = json.loads(REPORT.to_json())
    del data[key]
    with pytest.raises(jsonschema.ValidationError, match=f"'{key}' is a required property"):
        check_form(data)
    with pytest.raises(jsonschema.ValidationError, match="Additional properties"):
        check_form({**json.loads(REPORT.to_json()), f"{key}s": 1})


@pytest.mark.parametrize(
    "options",
    [{}, {"quantize": "dynamic"}, {"quantize": "static"}, {"calib": None, "force": True},
     {"ranks": "error=0.01", "target": None}, {"max_drop": 0.05, "target": None}],
)  # fmt: skip
def test_real_reports_have_the_form(options: dict[str, Any]) -> None:
    usual = {"calib": {"x": X, "labels": LABELS}, "target": "macs=0.6"}
    result = fm.quick_compress(fm.classifier(), **{**usual, **options})
    data = json.loads(result.report.to_json("cmd"))
    check_form(data)
    Seen(page(data))
    basis = data["basis"]
    assert basis["plan"] == result.plan.digest
    assert basis["model"] == result.plan.model
    assert {"processor", "runtime", "provider", "python", "onnx", "numpy"} <= set(
        basis["surroundings"]
    )
    times = [(la["before_ms"], la["after_ms"]) for la in data["layers"]]
    assert len(times) == 2
    assert all(before > 0 for before, _ in times)


def test_names_that_a_profile_cannot_hold_cost_no_result() -> None:
    proto = fm.classifier()
    proto.graph.node[0].name = 'a "quoted" \\ name <i>'
    result = fm.quick_compress(proto, calib={"x": X}, target="macs=0.6", quantize="dynamic")
    data = result.report.to_dict()
    check_form(json.loads(json.dumps(data, allow_nan=False)))
    assert data["layers"][0]["name"] == 'a "quoted" \\ name <i>'
    assert "<i>" not in page(data)


def test_checks_have_the_form() -> None:
    proto = fm.classifier()
    two = opened(proto, proto, {"x": X, "labels": LABELS}, {"threads": 1})
    whole = two.check(two.compared(), 0.01, "", taking(0.5)).to_dict("cmd")
    none = two.check(None, None, "output 'y' is missing", taking(0.5)).to_dict()
    for data in (whole, none):
        check_form(json.loads(json.dumps(data, allow_nan=False)))
        Seen(page(data))
    assert "Passed: at most 1.00 % may be lost" in page(whole)
    assert "Failed: output &#39;y&#39; is missing" in page(none)
    assert [p["batch"] for p in whole["latency"]] == [1, 16]
    assert whole["model"]["before"] == {**whole["model"]["after"], "latency_ms": 1.0}


# in a browser


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install chromium-headless-shell")
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_is_drawn(dark: bool, tmp_path: Path) -> None:
    """Without an error on the console, and its tables sort by what their headers say."""
    clicks = """<script>
    const heads = document.querySelectorAll("table.sortable")[0].tHead.rows[0].cells;
    const names = () => [...document.querySelectorAll("table.sortable")[0].tBodies[0].rows].map(
      row => row.cells[0].textContent.length).join();
    const seen = [names()];
    for (const place of [6, 6, 0]) { heads[place].firstElementChild.click(); seen.push(names()); }
    document.title = [...seen, heads[0].getAttribute("aria-sort"),
      getComputedStyle(document.body).backgroundColor,
      document.documentElement.scrollWidth].join(";");
    </script></body>"""
    file = tmp_path / "out.html"
    file.write_text(page(full().to_dict("a")).replace("</body>", clicks), encoding="utf8")
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
        "--window-size=1000,2000", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
        f"--screenshot={tmp_path / 'page.png'}",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}", file.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    title = re.search("<title>(.*?)</title>", done.stdout)
    assert title is not None
    given, rising, falling, by_name, sorted_, colour, width = title[1].split(";")
    assert given == f"1,50,{len(ODD)}"
    assert rising == f"50,1,{len(ODD)}"
    assert falling == f"{len(ODD)},1,50"
    assert sorted(by_name) == sorted(given)
    assert sorted_ == "ascending"
    assert colour == ("rgb(13, 17, 23)" if dark else "rgb(255, 255, 255)")
    assert int(width) <= 1000, "nothing stands beyond the page"
