from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_lowrank.analysis.accumulator import Accumulator
from onnx_lowrank.analysis.moments import Moments, response_error
from tests.support import Array, quick, relative, rng


def correlated(seed: int, groups: int, count: int, width: int) -> Array:
    """Rows ``(groups, count, width)`` with covariance and mean, in float32 as those of models."""
    random = rng(seed)
    mixing = random.normal(size=(groups, width, width))
    rows = random.normal(size=(groups, count, width)) @ mixing + 3 * random.normal(size=width)
    return rows.astype(np.float32).astype(np.float64)


def accumulated(rows: Array, cuts: list[int] | None = None) -> Accumulator:
    sums = Accumulator(rows.shape[0], rows.shape[2])
    for part in np.split(rows, cuts or [], axis=1):
        sums.update(part)
    return sums


def covariances(rows: Array) -> Array:
    return np.stack([np.cov(group.T, bias=True, ddof=None) for group in rows])


def assert_measures(sums: Accumulator, rows: Array, tolerance: float = 1e-6) -> None:
    assert sums.count == rows.shape[1]
    assert relative(rows.mean(axis=1), sums.mean) < 1e-12
    assert relative(covariances(rows), sums.covariance) < tolerance


@quick(30)
@given(
    st.integers(1, 3),
    st.integers(2, 5),
    st.lists(st.integers(0, 60), max_size=5).map(sorted),
    st.integers(0, 99),
)
def test_any_chunking_gives_numpys_moments(
    groups: int, width: int, cuts: list[int], seed: int
) -> None:
    rows = correlated(seed, groups, 60, width)
    assert_measures(accumulated(rows, cuts), rows)


@pytest.mark.parametrize("cut", [3, 8, 20])
def test_a_state_holds_the_rows_that_wait(cut: int) -> None:
    rows = correlated(7, 2, 40, 8)
    lots = [rows[:, i : i + 1] for i in range(40)]
    whole, before, after = (Accumulator(2, 8) for _ in range(3))
    for number, lot in enumerate(lots):
        whole.update(lot)
        (before if number < cut else after).update(lot)
        if number == cut - 1:
            after.restore(before.state())
    np.testing.assert_array_equal(after.covariance, whole.covariance)
    np.testing.assert_array_equal(after.mean, whole.mean)
    assert_measures(whole, rows)
    with pytest.raises(ValueError, match="rows"):
        after.restore(whole.state() | {"waiting": rows[:1, :2]})


def test_rows_that_wait_are_copies() -> None:
    rows = correlated(8, 1, 3, 8)
    sums, lot = Accumulator(1, 8), rows.copy()
    sums.update(lot)
    lot[:] = 0
    assert_measures(sums, rows)


def test_more_rows_than_one_product_takes() -> None:
    rows = correlated(0, 1, 2 * Accumulator.CHUNK + 17, 3)
    assert_measures(accumulated(rows), rows)


@quick(15)
@given(st.integers(0, 40), st.integers(0, 99))
def test_merge_is_the_moments_of_both(first: int, seed: int) -> None:
    rows = correlated(seed, 2, 40, 3)
    one, two = accumulated(rows[:, :first]), accumulated(rows[:, first:])
    before = one.mean.copy(), one.covariance
    assert_measures(one.merge(two), rows)
    np.testing.assert_array_equal(one.mean, before[0])
    np.testing.assert_array_equal(one.covariance, before[1])


def test_merge_of_nothing_is_nothing() -> None:
    both = Accumulator(1, 2).merge(Accumulator(1, 2))
    assert both.count == 0
    assert not both.covariance.any()


def test_leading_columns_alone() -> None:
    rows = correlated(1, 2, 50, 5)
    assert_measures(accumulated(rows).leading(3), rows[:, :, :3])


@pytest.mark.parametrize("offset", [1e2, 1e4])
def test_float32_with_a_large_offset(offset: float) -> None:
    # the textbook E[x^2] - E[x]^2 in float32 would lose all digits of this variance
    rows = (correlated(2, 1, 5000, 4) + offset).astype(np.float32)
    sums = accumulated(rows, [100, 1000, 1001])
    wanted = covariances(rows.astype(np.float64))
    assert relative(wanted, sums.covariance) < 1e-5


def test_means_that_drift_between_chunks() -> None:
    rows = correlated(3, 1, 400, 3)
    rows[:, 200:] += 50
    rows = rows.astype(np.float32).astype(np.float64)
    assert_measures(accumulated(rows, [200]), rows)


@quick(20)
@given(st.lists(st.integers(0, 30), max_size=4).map(sorted), st.integers(0, 99))
def test_responses_alone_have_variances(cuts: list[int], seed: int) -> None:
    rows = correlated(seed, 2, 30, 3)
    sums = Accumulator(2, 0, 3)
    for part in np.split(rows, cuts, axis=1):
        sums.update(part)
    wanted = rows.var(axis=1)
    np.testing.assert_allclose(sums.variances, wanted, rtol=1e-6)
    assert not Accumulator(2, 0, 3).variances.any()


@quick(30)
@given(
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 4),
    st.lists(st.integers(0, 60), max_size=5).map(sorted),
    st.integers(0, 99),
)
def test_responses_beside_inputs(
    groups: int, width: int, outputs: int, cuts: list[int], seed: int
) -> None:
    rows = correlated(seed, groups, 60, width + outputs)
    first, second = (Accumulator(groups, width, outputs) for _ in range(2))
    for number, part in enumerate(np.split(rows, cuts, axis=1)):
        (second if number % 2 else first).update(part[:, :, :width], part[:, :, width:])
    whole, sums = covariances(rows), first.merge(second)
    assert relative(rows.mean(axis=1), sums.mean) < 1e-12
    assert relative(whole[:, :width, :width], sums.covariance) < 1e-6
    assert relative(whole[:, width:, :width], sums.cross) < 1e-6
    variances = whole[:, range(width, width + outputs), range(width, width + outputs)]
    np.testing.assert_allclose(sums.variances, variances, rtol=1e-6)


@pytest.mark.parametrize("count", [2, 5, 20, 500])
def test_shrinkage_keeps_trace_and_axes_and_is_positive_definite(count: int) -> None:
    sums = accumulated(correlated(4, 2, count, 8))
    moments = sums.moments()
    assert moments.count == count
    np.testing.assert_array_equal(moments.mean, sums.mean)
    for g in range(2):
        sample, shrunk = sums.covariance[g], moments.sigma(g)
        assert shrunk is not None
        assert abs(np.trace(shrunk) - np.trace(sample)) < 1e-10 * np.trace(sample)
        assert np.linalg.eigvalsh(shrunk)[0] > 0
        # a convex combination with mu I, so off-diagonal elements shrink by one factor
        off = ~np.eye(8, dtype=bool)
        factors = shrunk[off] / sample[off]
        np.testing.assert_allclose(factors, factors[0], rtol=1e-9, atol=0)
        assert 0 <= factors[0] < 1
        assert shrunk[0, 0] == pytest.approx(
            factors[0] * sample[0, 0] + (1 - factors[0]) * np.trace(sample) / 8, rel=1e-9
        )


def test_shrinkage_is_that_of_the_paper() -> None:
    # Chen et al. 2010, equation (23)
    sums = accumulated(correlated(8, 1, 9, 5))
    sample, n, p = sums.covariance[0], 9, 5
    square, trace = float(np.trace(sample @ sample)), float(np.trace(sample))
    rho = ((1 - 2 / p) * square + trace**2) / ((n + 1 - 2 / p) * (square - trace**2 / p))
    assert 0.05 < rho < 1
    shrunk = sums.moments().sigma(0)
    assert shrunk is not None
    assert relative((1 - rho) * sample + rho * trace / p * np.eye(p), shrunk) < 1e-12


def test_shrinkage_fades_with_data() -> None:
    random, mixing = rng(5), np.diag(np.geomspace(1, 30, 6))
    wanted = mixing @ mixing
    weights, errors = [], []
    for count in (10, 100, 10_000):
        sums = accumulated(random.normal(size=(1, count, 6)) @ mixing)
        covariance = sums.moments().sigma(0)
        assert covariance is not None
        weights.append(float(np.linalg.norm(covariance - sums.covariance[0])))
        errors.append(relative(wanted, covariance))
    assert weights[0] > weights[1] > weights[2]
    assert errors[2] < 0.05


def test_shrinkage_beats_the_sample_with_few_rows() -> None:
    # the reason for it: nearer to the truth on average, where rows are fewer than columns
    width, truth = 12, np.diag(np.linspace(1, 2, 12))
    plain, shrunk = [], []
    for seed in range(20):
        sums = accumulated(rng(seed).normal(size=(1, 8, width)) @ np.sqrt(truth))
        covariance = sums.moments().sigma(0)
        assert covariance is not None
        plain.append(relative(truth, sums.covariance[0]))
        shrunk.append(relative(truth, covariance))
    assert np.mean(shrunk) < 0.5 * np.mean(plain)


@pytest.mark.parametrize("value", [0.0, 0.1, -3e4])
def test_a_constant_input_says_nothing(value: float) -> None:
    rows = np.full((2, 5000, 3), value, np.float32)
    moments = accumulated(rows, [7]).moments()
    assert moments.sigma(0) is None
    assert moments.mean is not None
    np.testing.assert_allclose(moments.mean, value, rtol=1e-6)


def test_response_error_is_the_mean_square_response() -> None:
    rows = correlated(6, 2, 300, 4)
    difference = rng(7).normal(size=(2, 3, 4))
    moments = Moments(300, rows.mean(axis=1), covariances(rows))
    centred = rows - rows.mean(axis=1, keepdims=True)
    wanted = float(np.sum(np.mean((centred @ difference.transpose(0, 2, 1)) ** 2, axis=1)))
    assert abs(response_error(difference, moments) - wanted) < 1e-12 * wanted
    assert moments.energy(difference) == response_error(difference, moments)
    plain = float(np.sum(difference**2))
    assert abs(response_error(difference, moments.identity) - plain) < 1e-12 * plain


def test_bytes_held() -> None:
    assert Moments().bytes == 0
    assert Moments(1, np.zeros((2, 3)), np.zeros((2, 3, 3))).bytes == 8 * (6 + 18)
