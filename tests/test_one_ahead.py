"""Items that are made while the one before is worked on."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from onnx_lowrank.one_ahead import one_ahead


def test_the_next_item_is_made_meanwhile_and_no_more() -> None:
    asked = [threading.Event() for _ in range(5)]

    def items() -> Iterator[int]:
        for number, event in enumerate(asked):
            event.set()
            yield number

    found = []
    for number in one_ahead(items()):
        found.append(number)
        if number + 1 < len(asked):
            assert asked[number + 1].wait(10)
        assert not any(event.is_set() for event in asked[number + 2 :])
    assert found == list(range(5))


def test_what_fails_in_the_making_fails_where_it_is_asked_for() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("no more")

    made = one_ahead(items())
    assert next(made) == 1
    with pytest.raises(ValueError, match="no more"):
        next(made)


def test_no_item_is_no_item() -> None:
    assert list(one_ahead(iter(()))) == []
    assert list(one_ahead(iter((None, None)))) == [None, None]


def test_who_stops_early_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    made = one_ahead(iter(range(100)))
    assert next(made) == 0
    made.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
