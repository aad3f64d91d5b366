from __future__ import annotations

import numpy as np
import pytest

from onnx_lowrank.linalg.groups import Groups


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
