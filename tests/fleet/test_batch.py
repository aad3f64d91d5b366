"""Batches: what is done, what is done again, and what lies where."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest

import onnx_lowrank
from onnx_lowrank.errors import DataError, OptionError
from onnx_lowrank.fleet import batch as flow
from onnx_lowrank.fleet.batch import Batch, Standing, batch
from onnx_lowrank.fleet.journal import JOURNAL, Journal
from onnx_lowrank.fleet.outcome import Outcome
from onnx_lowrank.fleet.worker import Order
from tests import fixtures_models as fm
from tests.fleet.fakes import CRASH, SCHEMA, Done, fails, written


def files(out: Path) -> list[str]:
    return sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())


def results(*names: str) -> list[str]:
    """What is in a folder of results with these models."""
    endings = ("", ".data", ".report.html", ".report.json")
    beside = [JOURNAL, "summary.html", "summary.json"]
    return sorted([*beside, *(n + e for n in names for e in endings)])


def statuses(made: Batch) -> dict[str, str]:
    return {row["model"]: row["status"] for row in made.summary["models"]}


def test_a_folder_is_mirrored(folder: Path, tmp_path: Path, done: Done) -> None:
    out = tmp_path / "new" / "out"
    told: list[Standing] = []
    made = batch(folder, out, target="macs=0.5", passes="svd", told=told.append, command="a b")
    assert done.names == ["a.onnx", "b.onnx", "c.onnx"]
    assert files(out) == results("a.onnx", "sub/b.onnx", "sub/c.onnx")
    assert not (out / ".work").exists()
    order = done.orders[1]
    assert (order.model, order.calibration) == (str(folder / "sub/b.onnx"), None)
    assert order.options == {"target": "macs=0.5", "passes": "svd"}
    assert order.command == "a b"
    assert told == [Standing(3, number, 0, 0) for number in range(4)]
    assert made.failed == 0
    assert made.page.is_file()
    assert onnx_lowrank.batch is batch


def test_data_beside_a_model_is_its_own(folder: Path, tmp_path: Path, done: Done) -> None:
    (folder / "a.npz").touch()
    (folder / "sub" / "b.npy").touch()
    batch(folder, tmp_path / "out")
    assert [o.calibration and Path(o.calibration).name for o in done.orders] == [
        "a.npz", "b.npy", None,
    ]  # fmt: skip
    batch(folder, tmp_path / "out2", calib=folder / "a.npz")
    assert {o.calibration for o in done.orders[3:]} == {str(folder / "a.npz")}


def test_the_cores_are_shared_out(
    folder: Path, tmp_path: Path, done: Done, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "cores", lambda: 8)
    for workers, threads in ((1, 8), (3, 2), (20, 1)):
        batch(folder, tmp_path / f"out{workers}", workers=workers)
        assert done.orders[-1].threads == threads


# the same again


def test_what_is_done_stays_done(folder: Path, tmp_path: Path, done: Done) -> None:
    batch(folder, tmp_path / "out", target="macs=0.5")
    told: list[Standing] = []
    made = batch(folder, tmp_path / "out", target="macs=0.5", workers=2, told=told.append)
    assert len(done.orders) == 3
    assert told[-1] == Standing(3, 3, 0, 3)
    assert set(statuses(made).values()) == {"done"}
    # where files lie does not matter, what is in them does
    moved = tmp_path / "moved"
    folder.rename(moved)
    batch(moved, tmp_path / "out", target="macs=0.5")
    assert len(done.orders) == 3


def _model(folder: Path, out: Path, options: dict[str, Any]) -> None:
    proto = onnx.load(folder / "sub" / "b.onnx")
    proto.producer_version = "2"
    onnx.save(proto, folder / "sub" / "b.onnx")


def _values(folder: Path, out: Path, options: dict[str, Any]) -> None:
    path = folder / "sub" / "weights.bin"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


def _data(folder: Path, out: Path, options: dict[str, Any]) -> None:
    (folder / "sub" / "b.npz").write_bytes(b"other")


def _result(folder: Path, out: Path, options: dict[str, Any]) -> None:
    (out / "sub" / "b.onnx.data").unlink()


def _line(folder: Path, out: Path, options: dict[str, Any]) -> None:
    lines = (out / JOURNAL).read_text().splitlines(keepends=True)
    (out / JOURNAL).write_text("".join(line for line in lines if '"sub/b.onnx"' not in line))


@pytest.mark.parametrize("change", [_model, _values, _data, _result, _line])
def test_what_has_changed_is_done_again(
    change: Callable[..., None], folder: Path, tmp_path: Path, done: Done
) -> None:
    onnx.save(
        fm.classifier(), folder / "sub" / "b.onnx", save_as_external_data=True,
        location="weights.bin", size_threshold=0,
    )  # fmt: skip
    (folder / "sub" / "b.npz").write_bytes(b"data")
    out = tmp_path / "out"
    batch(folder, out)
    change(folder, out, {})
    batch(folder, out)
    assert done.names == ["a.onnx", "b.onnx", "c.onnx", "b.onnx"]
    batch(folder, out)
    assert len(done.orders) == 4
    assert files(out) == results("a.onnx", "sub/b.onnx", "sub/c.onnx")


def test_other_options_make_all_of_it_again(folder: Path, tmp_path: Path, done: Done) -> None:
    out = tmp_path / "out"
    batch(folder, out, target="macs=0.5")
    batch(folder, out, target="macs=0.5", seed=1)
    assert len(done.orders) == 6
    # back again: what lies there was made with the others
    batch(folder, out, target="macs=0.5")
    assert len(done.orders) == 9
    batch(folder, out, target="macs=0.5", cache="elsewhere", time_limit="10min")
    assert len(done.orders) == 9


def test_code_of_the_user_counts_by_what_is_in_it(folder: Path, tmp_path: Path, done: Done) -> None:
    code = tmp_path / "score.py"
    for text in ("def f(outputs, labels): return 1.0", "def f(outputs, labels): return 2.0"):
        code.write_text(text)
        for _ in range(2):
            batch(folder, tmp_path / "out", metric=f"{code}:f", max_drop="1")
    assert len(done.orders) == 6


# what fails


def test_a_failure_stops_nothing_and_is_tried_again_on_demand(
    folder: Path, tmp_path: Path, done: Done
) -> None:
    out = tmp_path / "out"
    done.become = fails("a.onnx")
    made = batch(folder, out)
    assert statuses(made) == {"a.onnx": "failed", "sub/b.onnx": "done", "sub/c.ONNX": "done"}
    assert made.failed == 1
    assert files(out) == results("sub/b.onnx", "sub/c.onnx")
    batch(folder, out)
    assert len(done.orders) == 3
    made = batch(folder, out, retry_failed=True)
    assert done.names[3:] == ["a.onnx"]
    assert made.summary["models"][0]["attempts"] == 2
    done.become = lambda _: None
    made = batch(folder, out, retry_failed=True, memory_limit="2GiB")
    assert made.failed == 0
    assert made.summary["models"][0]["attempts"] == 3
    assert files(out) == results("a.onnx", "sub/b.onnx", "sub/c.onnx")
    batch(folder, out, retry_failed=True)
    assert len(done.orders) == 5


def test_a_result_goes_where_what_it_was_made_from_fails(
    folder: Path, tmp_path: Path, done: Done
) -> None:
    out = tmp_path / "out"
    batch(folder, out)
    done.become = fails("a.onnx")
    batch(folder, out, seed=1)
    assert files(out) == results("sub/b.onnx", "sub/c.onnx")


def test_the_log_of_a_crash_is_kept_until_it_is_done(
    folder: Path, tmp_path: Path, done: Done
) -> None:
    out = tmp_path / "out"

    def crash(order: Order) -> Outcome | None:
        Path(order.folder, "log.txt").write_text("last words")
        return CRASH if order.name == "b.onnx" else None

    done.become = crash
    made = batch(folder, out)
    assert (out / "sub" / "b.onnx.log").read_text() == "last words"
    assert made.summary["models"][1]["log"] == "sub/b.onnx.log"
    done.become = lambda _: None
    batch(folder, out, retry_failed=True)
    assert files(out) == results("a.onnx", "sub/b.onnx", "sub/c.onnx")


def test_an_interruption_keeps_what_is_done(folder: Path, tmp_path: Path, done: Done) -> None:
    out = tmp_path / "out"

    def interrupted(order: Order) -> Outcome | None:
        if order.name == "b.onnx":
            written(order)
            raise KeyboardInterrupt
        return None

    done.become = interrupted
    with pytest.raises(KeyboardInterrupt):
        batch(folder, out)
    assert files(out) == results("a.onnx")
    assert not (out / ".work").exists()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["counts"] == {"total": 3, "done": 1, "unchanged": 0, "failed": 0, "pending": 2}
    jsonschema.validate(summary, SCHEMA, cls=jsonschema.Draft202012Validator)
    done.become = lambda _: None
    batch(folder, out)
    assert done.names == ["a.onnx", "b.onnx", "b.onnx", "c.onnx"]


def test_a_torn_line_is_cut_off(folder: Path, tmp_path: Path, done: Done) -> None:
    out = tmp_path / "out"
    batch(folder, out)
    text = (out / JOURNAL).read_bytes()
    (out / JOURNAL).write_bytes(text[:-20])
    batch(folder, out)
    assert done.names[3:] == ["c.onnx"]
    lines = (out / JOURNAL).read_bytes().split(b"\n")
    assert [json.loads(line)["output"] for line in lines[:-1]] == [
        "a.onnx", "sub/b.onnx", "sub/c.onnx",
    ]  # fmt: skip
    (out / JOURNAL).write_bytes(b"{}\n" + text)
    with pytest.raises(OptionError, match=r"journal.jsonl, line 1: not an entry.* remove that"):
        batch(folder, out)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such locks")
def test_two_batches_in_one_folder(folder: Path, tmp_path: Path, done: Done) -> None:
    (tmp_path / "out").mkdir()
    with Journal(tmp_path / "out"), pytest.raises(OptionError, match="another batch writes into"):
        batch(folder, tmp_path / "out")
    batch(folder, tmp_path / "out")


# what is refused before anything is done


def test_what_makes_no_sense_is_refused(folder: Path, tmp_path: Path, done: Done) -> None:
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    shutil.copytree(folder, tmp_path / "twice")
    (tmp_path / "twice" / "a.ONNX").touch()
    manifest = tmp_path / "m.jsonl"
    manifest.write_text('{"model": "in/a.onnx", "output": "x.onnx"}\n'
                        '{"model": "in/a.onnx", "output": "x.onnx/y.onnx"}')  # fmt: skip
    for source, target, options, part in [
        (folder, out, {"sample": 3}, "did you mean samples?"),
        (folder, out, {"target": "macs=3"}, "3"),
        (folder, out, {"time_limit": "soon"}, "time limit 'soon'; write a time as 90s"),
        (folder, out, {"time_limit": -1}, "time limit must be more than 0"),
        (folder, out, {"memory_limit": "2 cows"}, "memory limit '2 cows'; write an amount"),
        (folder, out, {"memory_limit": 0.5}, "memory limit must be a whole number"),
        (folder, out, {"workers": 0}, "workers must be 1 or more"),
        (folder, out, {"workers": 2, "scheduler": "a:1"}, "workers and a scheduler at once"),
        (folder, out, {"metric": len}, "option metric is builtin_function_or_method"),
        (folder, out, {"calib": {"x": np.ones(3)}}, "option calib is dict"),
        (folder, out, {"calib": ["x"]}, "calib of a batch is a path"),
        (folder, folder, {}, "lies in the folder of results"),
        (folder, tmp_path, {}, "lies in the folder of results"),
        (folder, tmp_path / "file", {}, "cannot be made a folder"),
        (tmp_path / "empty", out, {}, "there is no .onnx file below it"),
        (tmp_path / "twice", out, {}, "would both be 'a.onnx'"),
        (tmp_path / "none", out, {}, "give a folder of models or a manifest"),
        (manifest, out, {}, "lies below another result"),
    ]:
        with pytest.raises(OptionError) as caught:
            batch(source, target, **options)
        assert part in str(caught.value)
    with pytest.raises(DataError, match="no such file or folder"):
        batch(folder, out, calib=str(tmp_path / "none.npz"))
    assert done.orders == []
    assert not out.exists()


def test_results_within_the_folder_are_no_models(folder: Path, done: Done) -> None:
    for _ in range(2):
        batch(folder, folder / "small")
    assert len(done.orders) == 3
