from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_lowrank.linalg.output_metric import OutputMetric, interpolated
from tests.support import quick, rng

Array = npt.NDArray[np.floating[Any]]


def softmax(scores: Array) -> Array:
    raised = np.exp(scores - scores.max(axis=-1, keepdims=True))
    probabilities: Array = raised / raised.sum(axis=-1, keepdims=True)
    return probabilities


def shares(classes: int, seed: int = 0) -> Array:
    return softmax(3 * rng(seed).normal(size=classes))


# the metric


@quick(20)
@given(classes=st.integers(1, 7), seed=st.integers(0, 99), axis=st.sampled_from([0, 1, -1]))
def test_its_factor_is_that_of_the_dense_matrix(classes: int, seed: int, axis: int) -> None:
    metric = OutputMetric(shares(classes, seed))
    factor = metric.weighed(np.eye(classes), 0)
    np.testing.assert_allclose(factor.T @ factor, metric.matrix, rtol=0, atol=1e-14)
    values = rng(seed, 1).normal(size=(classes,) * 3)
    by_hand = np.moveaxis(np.tensordot(factor, values, (1, axis)), 0, axis)
    np.testing.assert_allclose(metric.weighed(values, axis), by_hand, rtol=0, atol=1e-14)


@quick(20)
@given(classes=st.integers(1, 7), seed=st.integers(0, 99))
def test_what_is_weighed_comes_back(classes: int, seed: int) -> None:
    metric = OutputMetric(shares(classes, seed))
    values = rng(seed, 1).normal(size=(3, classes, 2))
    np.testing.assert_allclose(metric.plain(metric.weighed(values, 1), 1), values, rtol=1e-9)


def test_half_of_a_squared_error_is_the_divergence_that_it_causes() -> None:
    scores, error = rng(0).normal(size=6), rng(1).normal(size=6)
    p = softmax(scores)
    metric = OutputMetric(p)
    gaps = []
    for size in (1e-2, 1e-3):
        e = size * (error - p @ error)  # a shift is seen a little, and by the metric alone
        divergence = float(np.sum(p * np.log(p / softmax(scores + e))))
        gaps.append(abs(0.5 * float(np.sum(metric.weighed(e, 0) ** 2)) - divergence))
    assert gaps[0] < 1e-5
    assert gaps[1] < gaps[0] / 500  # third order


def test_a_shift_of_all_scores_hardly_counts() -> None:
    metric = OutputMetric(shares(50))
    assert np.sum(metric.weighed(np.ones(50), 0) ** 2) == pytest.approx(1e-4, rel=1e-6)


def test_it_bounds_the_mean_of_what_single_samples_have() -> None:
    p = softmax(4 * rng(0).normal(size=(40, 5)))
    mean = np.mean([np.diag(row) - np.outer(row, row) for row in p], axis=0)
    bound = OutputMetric(p.mean(axis=0)).matrix
    assert np.linalg.eigvalsh(bound - mean).min() > -1e-15


@pytest.mark.parametrize("weights", [[0.5, 0.5, 0.0], [0.7, 0.7], [1.5, -0.5], [np.nan, 1.0]])
def test_weights_that_are_no_shares_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="positive and have the sum 1"):
        OutputMetric(np.array(weights))


# the shares


def likelihood(part: float, first: Array, second: Array) -> float:
    return sum(
        float(other @ np.log((1 - part) * mean + part / len(mean)))
        for mean, other in ((first, second), (second, first))
    )


@pytest.mark.full
@quick(20)
@given(seed=st.integers(0, 99), spread=st.floats(0.1, 4), noise=st.floats(0.05, 2))
def test_the_part_of_unseen_classes_makes_both_halves_most_likely(
    seed: int, spread: float, noise: float
) -> None:
    random = rng(seed)
    common = spread * random.normal(size=9)
    first, second = (softmax(common + noise * random.normal(size=9)) for _ in range(2))
    found = interpolated(first, second, 10_000)
    grid = np.linspace(1e-4, 1, 10_000)
    best = grid[np.argmax([likelihood(part, first, second) for part in grid])]
    mixed = (1 - best) * (first + second) / 2 + best / 9
    assert np.abs(found - mixed).max() < 0.01


def test_halves_that_agree_are_believed() -> None:
    mean = shares(6)
    np.testing.assert_allclose(interpolated(mean, mean, 10**6), mean, rtol=1e-3)


def test_halves_that_share_no_class_are_not() -> None:
    first, second = np.array([0.5, 0.5, 0, 0]), np.array([0, 0, 0.5, 0.5])
    np.testing.assert_allclose(interpolated(first, second, 100), 0.25, rtol=1e-6)


def test_a_class_of_probability_0_keeps_a_weight() -> None:
    mean = np.array([0.6, 0.4, 0.0])
    found = interpolated(mean, mean, 1000)
    assert 0 < found[2] < 1e-3
    assert found.sum() == pytest.approx(1, abs=1e-12)
    assert np.isfinite(OutputMetric(found).plain(np.ones((3, 2)), 0)).all()
