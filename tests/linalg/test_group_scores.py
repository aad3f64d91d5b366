from __future__ import annotations

import numpy as np
import pytest

from onnx_lowrank.linalg.group_scores import (
    debias,
    energy_scores,
    magnitude_scores,
    random_scores,
    reconstruction_error,
    top_groups,
)
from tests.linalg.test_group_lasso import blocks, example
from tests.support import rng


@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("columns", [[0], [1, 4, 5], [0, 1, 2, 3, 4, 5]])
def test_debias_is_ridge_regression_on_samples(ridge: float, columns: list[int]) -> None:
    # oracle: least squares on the samples, the ridge as rows of its own
    random = rng(4)
    x, y = random.normal(size=(40, 6)) @ random.normal(size=(6, 6)), random.normal(size=(40, 3))
    R, B = x.T @ x / 40, y.T @ x / 40
    rho = ridge * np.trace(R) / 6
    stacked = np.vstack([x[:, columns], np.sqrt(40 * rho) * np.eye(len(columns))])
    targets = np.vstack([y, np.zeros((len(columns), 3))])
    expected = np.linalg.lstsq(stacked, targets, rcond=None)[0].T
    kept = np.array(columns)
    found = debias(R, B, kept, ridge)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
    residual = y - x[:, columns] @ found.T
    error = reconstruction_error(R, B, found, kept, float(np.sum(y**2)) / 40)
    assert abs(error - np.sum(residual**2) / 40) < 1e-10


def test_errors_of_a_perfect_map_are_not_negative() -> None:
    R, _ = example(1, [1] * 8, 5, condition=1e6)
    W = rng(6).normal(size=(5, 8))
    energy = float(np.sum((W @ R) * W))
    error = reconstruction_error(R, W @ R, W, np.arange(8), energy)
    assert 0 <= error < 1e-14 * energy


def test_plain_rankings() -> None:
    widths = [2, 1, 3]
    W = rng(7).normal(size=(4, 6))
    parts = blocks(W, widths)
    l1, l2 = magnitude_scores(W, widths, "l1"), magnitude_scores(W, widths)
    np.testing.assert_allclose(l1, [np.abs(p).sum() for p in parts], rtol=1e-14)
    np.testing.assert_allclose(l2, [np.sqrt(np.sum(p**2)) for p in parts], rtol=1e-14)
    R = np.diag([1.0, 3.0, 5.0, 1.0, 2.0, 6.0])
    np.testing.assert_allclose(energy_scores(R, widths), [2.0, 5.0, 3.0], rtol=1e-14)
    assert list(random_scores(widths, 1)) == list(random_scores(widths, 1))
    assert list(random_scores(widths, 1)) != list(random_scores(widths, 2))
    assert list(top_groups(np.array([1.0, 3.0, 2.0, 3.0]), 2)) == [1, 3]
    assert list(top_groups(np.array([2.0, 1.0, 2.0, 2.0]), 2)) == [0, 2]


def test_misuse_is_refused() -> None:
    R, B = example(3, [2, 2], 8)
    with pytest.raises(ValueError, match="ridge"):
        debias(R, B, np.arange(2), -1.0)
