"""Boxes on pictures of a few places."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.detections import Detections, detections, matches, overlaps
from benchmarks.nets import Array


def output(*places: tuple[tuple[float, ...], tuple[float, ...]]) -> Array:
    """The output for boxes (middle, size) with a score for each class, (4 + classes, places)."""
    return np.array([(*box, *scores) for box, scores in places]).T


def boxes(*corners: tuple[float, ...], classes: tuple[int, ...] = ()) -> Detections:
    return Detections(
        np.array(corners, float).reshape(-1, 4),
        np.array(classes or (0,) * len(corners), int),
    )


def test_overlaps() -> None:
    square = np.array([[0.0, 0.0, 2.0, 2.0]])
    others = np.array([[0, 0, 2, 2], [1, 0, 3, 2], [1, 1, 3, 3], [2, 0, 4, 2], [5, 5, 5, 5.0]])
    np.testing.assert_allclose(overlaps(square, others), [[1, 1 / 3, 1 / 7, 0, 0]], atol=1e-12)
    assert overlaps(others[4:], others[4:]) == 0  # of no area


def test_boxes_are_those_of_sure_places_the_surest_first() -> None:
    found = detections(output(
        ((10, 10, 4, 2), (0.3, 0.1)), ((50, 50, 4, 4), (0.2, 0.8)), ((90, 90, 4, 4), (0.25, 0.1)),
    ))  # fmt: skip
    np.testing.assert_array_equal(found.boxes, [[48, 48, 52, 52], [8, 9, 12, 11]])
    np.testing.assert_array_equal(found.classes, [1, 0])


def test_suppression_is_within_a_class() -> None:
    near, far = (10.5, 10, 4, 4), (13.5, 10, 4, 4)
    found = detections(output(
        ((10, 10, 4, 4), (0.9, 0.0)),
        (near, (0.8, 0.0)),  # goes: the first one is surer
        (near, (0.0, 0.7)),  # of another class
        (far, (0.6, 0.0)),  # overlaps too little
    ))  # fmt: skip
    np.testing.assert_array_equal(found.classes, [0, 1, 0])
    np.testing.assert_array_equal(found.boxes[:, 0], [8, 8.5, 11.5])


def test_what_is_suppressed_suppresses_nothing() -> None:
    row = [((10 + 1.2 * i, 10, 4, 4), (0.9 - 0.1 * i,)) for i in range(3)]
    found = detections(output(*row))
    np.testing.assert_allclose(found.boxes[:, 0], [8, 10.4], atol=1e-12)


def test_no_boxes() -> None:
    nothing = detections(output(((10, 10, 4, 4), (0.1,))))
    one = boxes((0, 0, 10, 10))
    assert len(nothing.boxes) == 0
    assert matches(nothing, one) == matches(one, nothing) == matches(nothing, nothing) == 0


@pytest.mark.parametrize(
    ("new", "found"),
    [
        (boxes((0, 0, 10, 10)), 1),
        (boxes((0, 0, 10, 9.1)), 1),
        (boxes((0, 0, 10, 8.9)), 0),
        (boxes((0, 0, 10, 10), classes=(1,)), 0),
        (boxes((20, 0, 30, 10), (0, 0, 10, 10)), 2),
    ],
)
def test_matches(new: Detections, found: int) -> None:
    assert matches(boxes((0, 0, 10, 10), (20, 0, 30, 10)), new) == found


def test_a_box_matches_one_box_alone() -> None:
    twins = boxes((0, 0, 10, 10), (0, 0, 10, 9.5))
    assert matches(twins, boxes((0, 0, 10, 9.7))) == 1
    assert matches(twins, twins) == 2
