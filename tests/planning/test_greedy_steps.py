from __future__ import annotations

import numpy as np
import pytest

from onnx_lowrank.planning.greedy_steps import best_step


@pytest.mark.parametrize(
    ("gains", "prices", "allowed", "wanted"),
    [
        ([1.0, 6.0, 4.0], [1.0, 3.0, 1.0], [True, True, True], 2),
        ([1.0, 6.0, 4.0], [1.0, 3.0, 1.0], [True, True, False], 1),
        ([2.0, 4.0, 1.0], [1.0, 2.0, 1.0], [True, True, True], 0),  # of equal ones the first
        ([-1.0, -6.0, -1.0], [1.0, 3.0, 4.0], [True, True, True], 2),  # the least loss for it
        ([1.0, 6.0], [1.0, 0.0], [True, False], 0),  # no price is asked of what is not allowed
        ([1.0, 6.0], [1.0, 1.0], [False, False], None),
        ([], [], [], None),
    ],
)
def test_the_step_of_most_gain_for_its_price(
    gains: list[float], prices: list[float], allowed: list[bool], wanted: int | None
) -> None:
    assert best_step(np.array(gains), np.array(prices), np.array(allowed, bool)) == wanted
