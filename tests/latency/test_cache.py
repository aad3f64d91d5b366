from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from onnx_lowrank.latency.cache import LatencyCache

HERE = {"processor": "tea kettle", "threads": "1"}


def saved(folder: Path, **seconds: float) -> LatencyCache:
    cache = LatencyCache(folder, HERE)
    for key, value in seconds.items():
        cache.put(key, value)
    cache.save()
    return cache


def test_what_is_saved_is_found_again(tmp_path: Path) -> None:
    first = saved(tmp_path / "made" / "on demand", a=0.25, b=1e-9)
    again = LatencyCache(tmp_path / "made" / "on demand", HERE)
    assert again.path == first.path
    assert (again.get("a"), again.get("b"), again.get("c")) == (0.25, 1e-9, None)
    assert [p.name for p in first.path.parent.iterdir()] == [first.path.name]


def test_what_is_not_saved_is_known_to_one_cache_alone(tmp_path: Path) -> None:
    cache = LatencyCache(tmp_path, HERE)
    cache.put("a", 1.0)
    assert cache.get("a") == 1.0
    assert LatencyCache(tmp_path, HERE).get("a") is None


@pytest.mark.parametrize("key", ["processor", "threads", "runtime"])
def test_another_machine_knows_nothing_of_it(tmp_path: Path, key: str) -> None:
    saved(tmp_path, a=1.0)
    other = LatencyCache(tmp_path, {**HERE, key: "other"})
    assert other.get("a") is None
    other.put("a", 2.0)
    other.save()
    assert LatencyCache(tmp_path, HERE).get("a") == 1.0


def test_two_runs_at_once_keep_what_both_measured(tmp_path: Path) -> None:
    one, two = LatencyCache(tmp_path, HERE), LatencyCache(tmp_path, HERE)
    one.put("a", 1.0)
    two.put("b", 2.0)
    one.save()
    two.save()
    both = LatencyCache(tmp_path, HERE)
    assert (both.get("a"), both.get("b")) == (1.0, 2.0)


def test_nothing_new_writes_nothing(tmp_path: Path) -> None:
    cache = LatencyCache(tmp_path, HERE)
    cache.save()
    assert not cache.path.exists()


def _json(**changes: Any) -> bytes:
    return json.dumps({"schema": 1, "about": HERE, "seconds": {"a": 1.0}, **changes}).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"[]",
        b"null",
        b"[" * 200_000,
        _json(schema=0),
        _json(schema=None),
        _json(about={**HERE, "threads": "2"}),
        _json(about=None),
        _json(seconds=[["a", 1.0]]),
        _json(seconds=None),
        *(_json(seconds={"a": v}) for v in (0.0, -1.0, math.inf, math.nan, "1", True, None, [])),
    ],
)
def test_foreign_and_broken_files_count_as_absent(tmp_path: Path, content: bytes) -> None:
    path = LatencyCache(tmp_path, HERE).path
    path.write_bytes(content)
    cache = LatencyCache(tmp_path, HERE)
    assert cache.get("a") is None
    cache.put("b", 2.0)
    cache.save()
    assert LatencyCache(tmp_path, HERE).get("b") == 2.0


def test_one_bad_entry_does_not_spoil_the_others(tmp_path: Path) -> None:
    path = LatencyCache(tmp_path, HERE).path
    path.write_bytes(_json(seconds={"a": "soon", "b": 2.0}))
    cache = LatencyCache(tmp_path, HERE)
    assert (cache.get("a"), cache.get("b")) == (None, 2.0)


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = saved(tmp_path / "file" / "folder", a=1.0)
    assert cache.get("a") == 1.0
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_folder_in_place_of_the_file_is_no_error(tmp_path: Path) -> None:
    LatencyCache(tmp_path, HERE).path.mkdir()
    assert saved(tmp_path, a=1.0).get("a") == 1.0
