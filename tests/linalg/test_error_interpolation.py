from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_lowrank.linalg.error_interpolation import interpolated_errors, interpolated_gain
from tests.support import quick, rng


@quick(40)
@given(st.integers(1, 6), st.integers(0, 99))
def test_it_meets_its_points_and_never_rises(count: int, seed: int) -> None:
    random = rng(seed)
    at = np.cumsum(random.uniform(0.5, 20, size=count))
    errors = np.cumprod(random.uniform(0.01, 1, size=count))
    wanted = np.linspace(at[0], 2 * at[-1], 200)
    curve = interpolated_errors(at.tolist(), errors.tolist(), wanted.tolist())
    np.testing.assert_allclose(
        interpolated_errors(at.tolist(), errors.tolist(), at.tolist()), errors, rtol=1e-12
    )
    assert np.all(np.diff(curve) <= 1e-12 * curve[:-1])
    for x, e in zip(wanted, curve, strict=True):
        if x <= at[-1]:
            before, after = errors[at <= x][-1], errors[at >= x][0]
            assert after * (1 - 1e-9) <= e <= before * (1 + 1e-9)


def test_an_exponential_decay_is_exact_inside_and_half_as_steep_beyond() -> None:
    curve = interpolated_errors(
        [3, 5, 12], list(np.exp([-0.3, -0.5, -1.2])), [3.0, 7.5, 12.0, 40.0]
    )
    np.testing.assert_allclose(np.log(curve), [-0.3, -0.75, -1.2, -1.2 - 0.05 * 28], rtol=1e-12)


def test_one_point_is_a_bound() -> None:
    assert interpolated_errors([4], [0.25], [4, 8, 100]).tolist() == [0.25, 0.25, 0.25]


@pytest.mark.parametrize(
    ("at", "errors", "wanted", "message"),
    [
        ([1, 2], [0.1, 0.2], [1], "must not rise"),
        ([1, 2], [0.1, 0.0], [1], "must be positive"),
        ([2, 3], [0.2, 0.1], [1], "below 2"),
    ],
)
def test_misuse(at: list[float], errors: list[float], wanted: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        interpolated_errors(at, errors, wanted)


def test_a_gain_is_geometric_between_ranks_and_that_of_the_nearest_beyond() -> None:
    at, gains = [8, 24, 64], [0.4, 0.9, 0.8]
    assert [interpolated_gain(at, gains, r) for r in at] == pytest.approx(gains, rel=1e-14)
    assert interpolated_gain(at, gains, 192**0.5) == pytest.approx(0.6, rel=1e-14)
    assert [interpolated_gain(at, gains, r) for r in (1, 100)] == pytest.approx([0.4, 0.8])
    assert interpolated_gain([8], [0.7], 3) == pytest.approx(0.7)
