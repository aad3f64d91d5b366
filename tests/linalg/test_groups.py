from __future__ import annotations

import numpy as np
import pytest

from onnx_lowrank.linalg.groups import Consumer, Groups


def test_sums_and_columns() -> None:
    groups = Groups.of([2, 1, 3])
    assert list(groups.columns(np.array([2, 0]))) == [3, 4, 5, 0, 1]
    assert list(groups.columns(np.array([], dtype=np.intp))) == []
    rows = np.arange(12.0).reshape(6, 2)
    expected = [np.linalg.norm(rows[:2]), np.linalg.norm(rows[2]), np.linalg.norm(rows[3:])]
    np.testing.assert_allclose(groups.norms(rows), expected, rtol=1e-14)
    assert list(groups.spread(np.array([1.0, 2.0, 3.0]))[:, 0]) == [1, 1, 2, 3, 3, 3]


@pytest.mark.parametrize("widths", [[], [4, 0], [2, -1], [[1, 2]]])
def test_widths_that_are_none_are_refused(widths: list[int]) -> None:
    with pytest.raises(ValueError, match="widths"):
        Groups.of(widths)


def test_several_matrices_stand_one_after_the_other() -> None:
    groups = Groups.of([2, 1], [1, 3])
    assert groups.count == 2
    assert groups.rows == [slice(0, 3), slice(3, 7)]
    assert list(groups.columns(np.array([1]))) == [2, 4, 5, 6]
    assert list(groups.columns(np.array([0, 1]))) == list(range(7))
    values = np.arange(7.0)
    assert list(groups.sums(values)) == [0 + 1 + 3, 2 + 4 + 5 + 6]
    np.testing.assert_allclose(groups.norms(values[:, None]) ** 2, [10.0, 81.0], rtol=1e-14)
    assert list(groups.spread(np.array([1.0, 2.0]))[:, 0]) == [1, 1, 2, 1, 2, 2, 2]
    assert groups.restricted(np.array([1])).widths.tolist() == [[1], [3]]
    with pytest.raises(ValueError, match="same groups"):
        Groups.of([2, 1], [3])


def test_a_consumer_knows_its_columns() -> None:
    consumer = Consumer(np.eye(6), np.ones((1, 6)), [1, 2, 3])
    assert list(consumer.columns(np.array([0, 2]))) == [0, 3, 4, 5]
