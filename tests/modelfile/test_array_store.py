from __future__ import annotations

import gc
import io
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from onnx_lowrank.errors import DataError, ModelError
from onnx_lowrank.modelfile import array_store
from onnx_lowrank.modelfile.array_store import ALIGNMENT, ArrayStore, Slot

ARRAYS: list[npt.NDArray[Any]] = [
    np.full((2, 3), 7, np.float32),
    np.arange(5),
    np.array(3, np.int64),
    np.zeros((0, 4), np.float16),
    np.arange(6).astype(ml_dtypes.bfloat16).reshape(2, 3),
    np.array([["a", "long"], ["", "text"]]),
    np.array([True, False]),
    np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1),
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
def test_arrays_come_back_in_any_order(memory: int, count: int, files: list[IO[bytes]]) -> None:
    store = ArrayStore("things", memory)
    stored = [store.add(a) for a in ARRAYS]
    assert len(files) == count
    for i in (5, 0, 7, 3, 3, 1, 2, 6, 4):
        for found in (store.read(stored[i]), store.view(stored[i])):
            assert found.dtype == ARRAYS[i].dtype
            np.testing.assert_array_equal(found, ARRAYS[i], strict=True)


def test_reading_between_writings(files: list[IO[bytes]]) -> None:
    store = ArrayStore("things")
    slots: list[Any] = []
    for i, values in enumerate(ARRAYS):
        slots.append(store.add(values))
        for slot, wanted in zip(slots[: i + 1], ARRAYS, strict=False):
            np.testing.assert_array_equal(store.view(slot), wanted, strict=True)
    assert len(files) == 1


def test_threads_read_at_once() -> None:
    store = ArrayStore("things")
    slots = [store.write(np.full(1 << 18, i, np.uint8)) for i in range(8)]

    def read(number: int) -> bool:
        wanted = number % len(slots)
        if number % 10 == 0:
            store.write(np.zeros(1 << 16, np.uint8))
        return bool((store.read(slots[wanted]) == wanted).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(400)))


def test_held_arrays_count_against_the_memory(files: list[IO[bytes]]) -> None:
    store = ArrayStore("things", 100)
    held = np.zeros(60, np.int8)
    assert store.add(held) is held
    assert not files
    assert isinstance(store.add(np.zeros(60, np.int8)), Slot)
    assert len(files) == 1
    small = np.zeros(40, np.int8)
    assert store.add(small) is small
    assert isinstance(store.add(np.zeros(1, np.int8)), Slot)


def test_what_is_released_gives_its_place(files: list[IO[bytes]]) -> None:
    store = ArrayStore("things", 8)
    held, first, second = (store.add(np.full(8, i, np.uint8)) for i in range(3))
    assert isinstance(first, Slot)
    store.release(first)
    other = store.add(np.full(5, 3, np.uint8))  # of another size
    again = store.add(np.full((2, 4), 4, np.uint8))
    assert isinstance(other, Slot)
    assert isinstance(again, Slot)
    assert again.offset == first.offset != other.offset
    assert [store.read(s).max() for s in (second, other, again)] == [2, 3, 4]
    store.release(held)
    small = np.zeros(8, np.uint8)
    assert store.add(small) is small
    assert len(files) == 1


def test_arrays_are_aligned_and_views_are_read_only() -> None:
    store = ArrayStore("things")
    slots = [store.write(np.arange(n, dtype=np.uint8)) for n in (1, 3, ALIGNMENT, 5)]
    assert all(slot.offset % ALIGNMENT == 0 for slot in slots)
    assert len({slot.offset for slot in slots}) == 4
    assert not store.view(slots[0]).flags.writeable
    copy = store.read(slots[0])
    copy[:] = 9
    assert store.view(slots[0]).tolist() == [0]
    assert b"".join(store.pieces(slots[1].offset, 3)) == bytes([0, 1, 2])


def test_objects_are_held_and_never_pickled(files: list[IO[bytes]]) -> None:
    store = ArrayStore("things")
    texts = np.array(["a", "b"], object)
    assert store.add(texts) is texts
    with pytest.raises(TypeError, match="without pickle"):
        store.write(texts)
    assert not files


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"1234567", "truncated"), (b"123456789", "longer than its header declares")],
)
def test_a_stream_must_be_as_long_as_its_array(content: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ArrayStore("things").copy(io.BytesIO(content), np.dtype("u4"), (2,), fortran=False)


def test_a_stream_is_copied_in_its_order() -> None:
    values = np.arange(6, dtype=np.int16).reshape(2, 3)
    store = ArrayStore("things")
    stream = io.BytesIO(values.tobytes("F"))
    slot = store.copy(stream, values.dtype, values.shape, fortran=True)
    np.testing.assert_array_equal(store.view(slot), values, strict=True)
    np.testing.assert_array_equal(store.read(slot), values, strict=True)


def test_the_file_goes_with_the_last_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/proc/self/maps").exists():
        pytest.skip("needs /proc")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = ArrayStore("things")
    values = store.view(store.add(np.arange(9)))
    del store
    gc.collect()
    assert values.tolist() == list(range(9))
    assert str(tmp_path) in Path("/proc/self/maps").read_text()
    assert not any(tmp_path.iterdir())
    del values
    gc.collect()
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("error", [DataError, ModelError])
def test_a_full_disk_is_told(error: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(array_store.shutil, "disk_usage", lambda _: usage)
    store = ArrayStore("the things", error=error)
    store.write(np.zeros(10, np.int8))
    with pytest.raises(error, match=r"the things do not fit .*11 bytes are needed, .*TMPDIR"):
        store.write(np.zeros(11, np.int8))
