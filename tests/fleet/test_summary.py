"""The summary of a batch: its form, and its page."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from onnx_lowrank.cli.main import main
from onnx_lowrank.fleet.batch import batch
from onnx_lowrank.fleet.outcome import Outcome
from onnx_lowrank.fleet.worker import Order
from tests.fleet.fakes import CRASH, FIGURES, SCHEMA, Done, fails
from tests.report.test_page import CHROMIUM, Seen


def test_the_summary_has_its_form_and_the_page_says_the_same(
    folder: Path, tmp_path: Path, done: Done
) -> None:
    out = tmp_path / "out"
    outcomes = {
        "b.onnx": CRASH,
        "c.onnx": Outcome("unchanged", reason="nothing <to> gain",
                          figures={"before": FIGURES["before"], "after": FIGURES["before"]}),
    }  # fmt: skip

    def become(order: Order) -> Outcome | None:
        Path(order.folder, "made").mkdir()
        Path(order.folder, "log.txt").write_text("words")
        found = outcomes.get(order.name)
        if found is None:
            shutil.rmtree(Path(order.folder, "made"))
        return found

    done.become = become
    (folder / "a.onnx").rename(folder / "a #1.onnx")
    made = batch(folder, out, target="macs=0.5", command="onnx-lowrank batch", time_limit=9)
    data = json.loads((out / "summary.json").read_text())
    assert data == made.summary
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(data, SCHEMA, cls=jsonschema.Draft202012Validator)
    assert data["totals"]["before"]["macs"] == 200
    assert data["totals"]["after"]["macs"] == 150
    assert data["run"]["limits"] == {"seconds": 9, "bytes": None}
    text = (out / "summary.html").read_text()
    seen = Seen(text)
    assert "http" not in text.replace('http-equiv="Content-Security-Policy"', "")
    links = [attrs["href"] for tag, attrs in seen.tags if tag == "a"]
    assert links == [
        "a%20%231.onnx.report.html", "a%20%231.onnx.report.json", "sub/b.onnx.log",
    ]  # fmt: skip
    for part in ("1 done, 1 unchanged, 1 failed", "ended by SIGSEGV: last &lt;words&gt;",
                 "nothing &lt;to&gt; gain", "99.00 % [98.00 %, ]", "failed: crash", "139",
                 "prefers-color-scheme: dark", 'class="sortable"', "9 seconds"):  # fmt: skip
        assert part in text, part
    assert re.search(r'data-value="50">50</td>', text)


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes on Linux alone")
def test_a_name_that_is_no_text_stops_nothing(
    folder: Path, tmp_path: Path, done: Done, capsys: pytest.CaptureFixture[str]
) -> None:
    name = os.fsdecode(b"caf\xe9.onnx")
    (folder / "a.onnx").rename(folder / name)
    assert main(["batch", str(folder), str(tmp_path / "out")]) == 0
    assert "caf?.onnx" in capsys.readouterr().out
    assert done.orders[0].name == name
    assert (tmp_path / "out" / name).is_file()
    page = (tmp_path / "out" / "summary.html").read_text(encoding="utf-8")
    assert "caf?.onnx" in page
    assert 'href="caf%E9.onnx.report.html"' in page
    assert main(["batch", str(folder), str(tmp_path / "out"), "-q"]) == 0
    assert len(done.orders) == 3


@pytest.mark.parametrize("key", ["counts", "models", "seconds", "totals"])
def test_the_schema_refuses_another_form(
    key: str, folder: Path, tmp_path: Path, done: Done
) -> None:
    data = dict(batch(folder, tmp_path / "out").summary)
    with pytest.raises(jsonschema.ValidationError, match="Additional properties"):
        jsonschema.validate({**data, f"{key}s": 1}, SCHEMA, cls=jsonschema.Draft202012Validator)
    del data[key]
    with pytest.raises(jsonschema.ValidationError, match="is a required property"):
        jsonschema.validate(data, SCHEMA, cls=jsonschema.Draft202012Validator)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install chromium-headless-shell")
def test_the_page_sorts_in_a_browser(folder: Path, tmp_path: Path, done: Done) -> None:
    done.become = fails("b.onnx")
    text = batch(folder, tmp_path / "out").page.read_text()
    clicks = """<script>
    const table = document.querySelector("table.sortable"), heads = table.tHead.rows[0].cells;
    const names = () => [...table.tBodies[0].rows].map(row => row.cells[0].textContent).join();
    const seen = [names()];
    for (const name of ["status", "MACs before", "model", "model"]) {
      [...heads].find(h => h.textContent === name).firstElementChild.click(); seen.push(names());
    }
    document.title = [...seen, document.documentElement.scrollWidth].join(";");
    </script></body>"""
    (tmp_path / "page.html").write_text(text.replace("</body>", clicks))
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
        "--window-size=1000,900", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
        (tmp_path / "page.html").as_uri(),
    ]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in ran.stderr
    title = re.search("<title>(.*?)</title>", ran.stdout)
    assert title is not None
    given, by_status, by_macs, rising, falling, width = title[1].split(";")
    assert given == rising == "a.onnx,sub/b.onnx,sub/c.ONNX"
    assert by_status == "a.onnx,sub/c.ONNX,sub/b.onnx"
    assert by_macs == "a.onnx,sub/c.ONNX,sub/b.onnx", "what has no figure comes last"
    assert falling == "sub/c.ONNX,sub/b.onnx,a.onnx"
    assert int(width) <= 1000, "nothing stands beyond the page"
