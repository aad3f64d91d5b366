from __future__ import annotations

import tempfile
from typing import IO, Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from onnx_lowrank.modelfile.spool import Spool

ITEMS: list[dict[str, npt.NDArray[Any]]] = [
    {"a": np.full((2, 3), i, np.float32), "b": np.arange(i + 1)} for i in range(6)
]


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> list[IO[bytes]]:
    """The temporary files that are opened."""
    opened: list[IO[bytes]] = []
    make = tempfile.TemporaryFile

    def recorded(*args: Any, **options: Any) -> Any:
        opened.append(make(*args, **options))
        return opened[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", recorded)
    return opened


@pytest.mark.parametrize(("memory", "count"), [(10**6, 0), (100, 1), (0, 1)])
def test_items_come_back_in_any_order(memory: int, count: int, files: list[IO[bytes]]) -> None:
    store = Spool(memory)
    for item in ITEMS:
        store.append(item)
    assert len(files) == count
    assert len(store) == len(ITEMS)
    for i in (5, 0, 3, 3, 1):
        assert store[i].keys() == ITEMS[i].keys()
        for name, values in store[i].items():
            np.testing.assert_array_equal(values, ITEMS[i][name], strict=True)


def test_reading_between_appends(files: list[IO[bytes]]) -> None:
    store = Spool(0)
    for i, item in enumerate(ITEMS):
        store.append(item)
        np.testing.assert_array_equal(store[i]["b"], item["b"], strict=True)
        # the file is left in its middle
        np.testing.assert_array_equal(store[0]["a"], ITEMS[0]["a"], strict=True)
    for i, item in enumerate(ITEMS):
        for name, values in item.items():
            np.testing.assert_array_equal(store[i][name], values, strict=True)
    assert len(files) == 1


def test_once_full_it_stays_on_disk(files: list[IO[bytes]]) -> None:
    store = Spool(100)
    store.append({"a": np.zeros(200, np.int8)})
    store.append({"a": np.zeros(1, np.int8)})
    assert len(files) == 1
    assert files[0].seek(0, 2) > 200


def test_held_arrays_count_against_the_memory(files: list[IO[bytes]]) -> None:
    store = Spool(100)
    store.append({"a": np.zeros(60, np.int8)})
    assert not files
    store.append({"a": np.zeros(60, np.int8)})
    assert len(files) == 1


def test_scalars_and_empty_items() -> None:
    store = Spool(0)
    store.append({})
    store.append({"s": np.array(3, np.int64), "e": np.zeros((0, 4), np.float16)})
    assert store[0] == {}
    np.testing.assert_array_equal(store[1]["s"], np.array(3, np.int64), strict=True)
    np.testing.assert_array_equal(store[1]["e"], np.zeros((0, 4), np.float16), strict=True)


def test_bfloat16_keeps_its_type_on_disk() -> None:
    values = np.arange(5).astype(ml_dtypes.bfloat16)
    store = Spool(0)
    store.append({"a": values})
    assert store[0]["a"].dtype == values.dtype
    np.testing.assert_array_equal(store[0]["a"].astype(np.float32), np.arange(5, dtype=np.float32))
