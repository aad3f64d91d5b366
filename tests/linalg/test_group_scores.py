from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_lowrank.linalg import group_scores
from onnx_lowrank.linalg.group_scores import (
    debias,
    energy_scores,
    magnitude_scores,
    obs_elimination,
    random_scores,
    reconstruction_error,
    top_groups,
)
from onnx_lowrank.linalg.groups import Groups
from tests.linalg.test_group_lasso import blocks, example
from tests.support import Array, quick, rng


def least_error(R: Array, B: Array, widths: Sequence[int], support: Sequence[int]) -> float:
    """``E||Y - M_S X||^2 - E||Y||^2`` of the best ``M_S``."""
    columns = Groups.of(widths).columns(np.array(sorted(support), dtype=np.intp))
    solved = np.linalg.solve(R[np.ix_(columns, columns)], B[:, columns].T)
    return -float(np.sum(solved.T * B[:, columns]))


@given(st.integers(1, 9), st.lists(st.integers(1, 4), min_size=1, max_size=9), st.integers(0, 99))
@quick(30)
def test_each_removal_is_the_cheapest(outputs: int, widths: list[int], seed: int) -> None:
    # oracle: least squares again without each group in turn
    R, B = example(outputs, widths, seed)
    found = obs_elimination(R, B, widths, 0.0)
    left = set(range(len(widths)))
    energy = -least_error(R, B, widths, sorted(left))
    assert sorted(found.order) == sorted(left)
    for j, increase in list(zip(found.order, found.increases, strict=True))[:-1]:
        before = least_error(R, B, widths, sorted(left))
        rises = [least_error(R, B, widths, sorted(left - {i})) - before for i in left]
        assert abs(increase - min(rises)) < 1e-9 * energy
        left -= {int(j)}
        assert abs(least_error(R, B, widths, sorted(left)) - before - increase) < 1e-9 * energy
        assert list(found.support(len(left))) == sorted(left)
    assert abs(found.increases.sum() - energy) < 1e-9 * energy


@pytest.mark.parametrize("gathered", [1, 5, 7, 1000])
def test_when_updates_are_applied_does_not_matter(
    gathered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths = [3, 1, 2] * 7
    R, B = example(50, widths, 1)
    expected = obs_elimination(R, B, widths, 1e-3)
    monkeypatch.setattr(group_scores, "_GATHERED", gathered)
    found = obs_elimination(R, B, widths, 1e-3)
    assert list(found.order) == list(expected.order)
    np.testing.assert_allclose(found.increases, expected.increases, rtol=1e-8, atol=0)


def test_an_elimination_may_stop_early() -> None:
    widths = [2] * 12
    R, B = example(6, widths, 2)
    whole, part = (obs_elimination(R, B, widths, 1e-6, keep) for keep in (1, 5))
    assert list(part.order[:7]) == list(whole.order[:7])
    assert sorted(part.order) == list(range(12))
    assert list(part.support(5)) == list(whole.support(5))
    assert list(obs_elimination(R, B, widths, 1e-6, 12).support(12)) == list(range(12))


def test_of_two_equal_inputs_one_goes_for_nothing() -> None:
    random = rng(3)
    x = random.normal(size=(500, 6))
    x[:, 4] = x[:, 1]
    R = x.T @ x / 500
    W = random.normal(size=(3, 6)) + 1
    energy = float(np.sum((W @ R) * W))
    with pytest.raises(np.linalg.LinAlgError):
        obs_elimination(R * (1 - 1e-3 * np.eye(6)), W @ R, [1] * 6, 0.0)
    found = obs_elimination(R, W @ R, [1] * 6, 1e-9)
    assert found.order[0] in {1, 4}
    assert found.increases[0] < 1e-6 * energy
    assert found.increases[1] > 1e-3 * energy


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
        obs_elimination(R, B, [2, 2], -1.0)
    with pytest.raises(ValueError, match="ridge"):
        debias(R, B, np.arange(2), -1.0)
    with pytest.raises(ValueError, match="keep"):
        obs_elimination(R, B, [2, 2], 0.0, 0)
    with pytest.raises(ValueError, match="columns"):
        obs_elimination(R, B, [2, 3], 0.0)
