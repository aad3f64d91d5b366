from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from onnx_lowrank.linalg import blas_threads
from onnx_lowrank.linalg.blas_threads import (
    ALONE,
    in_two,
    limited_blas,
    one_thread,
    side_by_side,
)
from tests.support import Array, rng


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    with threadpool_limits(limits=request.param, user_api="blas"):
        yield request.param


def in_use() -> dict[str, int]:
    """Threads of every loaded library of linear algebra, by file; some have one only."""
    found = (library for library in threadpool_info() if library["user_api"] == "blas")
    return {library["filepath"]: library["num_threads"] for library in found}


def test_results_have_the_order_of_the_items_and_the_same_bits(threads: int) -> None:
    before = in_use()
    matrices = [rng(i).normal(size=(40 + i, 40 + i)) for i in range(12)]

    def inverse(matrix: Array) -> bytes:
        assert set(in_use().values()) == {1}
        return np.linalg.inv(matrix @ matrix.T).tobytes()

    with threadpool_limits(limits=1, user_api="blas"):
        expected = [inverse(m) for m in matrices]
    told: list[int] = []
    assert side_by_side(inverse, matrices, [len(m) for m in matrices], told.append) == expected
    assert sum(told) == len(matrices)
    assert in_use() == before


def test_narrow_items_are_worked_on_at_once(threads: int) -> None:
    together = threading.Barrier(threads, timeout=20)
    side_by_side(lambda _: together.wait(), range(2 * threads), [1] * (2 * threads))


def test_a_very_wide_item_has_all_threads_and_nothing_beside_it(threads: int) -> None:
    before = in_use()
    busy: set[int] = set()

    def work(i: int) -> int:
        if i == 2:
            assert not busy
            assert in_use() == before
        busy.add(i)
        busy.discard(i)
        return i

    widths = [8, 8, ALONE, 8, 8]
    assert side_by_side(work, range(5), widths) == list(range(5))


def test_the_widest_is_begun_first(threads: int) -> None:
    begun: list[int] = []

    def work(i: int) -> int:
        begun.append(i)
        return i

    widths = [8, ALONE - 1, 16, ALONE - 1]
    assert side_by_side(work, range(4), widths) == list(range(4))
    assert set(begun[:2]) == {1, 3} if threads > 1 else begun == list(range(4))


def test_a_failure_is_told_and_nothing_more_is_begun(threads: int) -> None:
    before = in_use()
    begun: list[int] = []

    def work(i: int) -> None:
        begun.append(i)
        if i == 0:
            raise ValueError("0 cannot be done")
        threading.Event().wait(0.02)

    with pytest.raises(ValueError, match="0 cannot be done"):
        side_by_side(work, range(100), [1] * 100)
    assert len(begun) < 100
    assert in_use() == before
    assert side_by_side(work, [], []) == []


@pytest.mark.parametrize("most", [1, 2])
def test_two_things_are_done_at_once_where_a_core_is_idle(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blas_threads, "_most_threads", lambda: most)
    by: list[int] = []

    def work() -> None:
        by.append(threading.get_ident())

    with one_thread():
        in_two(work, work)
    assert len(by) == 2
    assert len(set(by)) == most


def test_two_things_are_done_in_turn_beside_other_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas_threads, "_most_threads", lambda: 2)

    def work(_: int) -> bool:
        by: list[int] = []
        in_two(lambda: by.append(threading.get_ident()), lambda: by.append(threading.get_ident()))
        return by == [threading.get_ident()] * 2

    with limited_blas(2):
        assert all(side_by_side(work, range(6), [8] * 6))


@pytest.mark.parametrize("fails", [0, 1])
def test_what_goes_wrong_in_one_of_two_things_is_told(
    fails: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blas_threads, "_most_threads", lambda: 2)

    def fail() -> None:
        raise ValueError("wrong")

    both = [lambda: None, lambda: None]
    both[fails] = fail
    with one_thread(), pytest.raises(ValueError, match="wrong"):
        in_two(*both)
