from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_lowrank.linalg.nested_losses import nested_losses
from onnx_lowrank.linalg.phase_covariance import PhaseCovariance, mean_variance, solved, taken
from onnx_lowrank.linalg.shrinkage import shrinkage
from tests.support import quick, relative, rng

Array = npt.NDArray[np.floating[Any]]


def example(seed: int, groups: int, widths: list[int], rows: int = 40) -> tuple[Any, Array]:
    """A covariance of phases, and the rows that it is of; groups have columns of each phase."""
    random = rng(seed)
    d = groups * sum(widths)
    starts = np.cumsum([0, *widths])
    blocks, columns, parts = [], [], []
    total = rows * len(widths)
    for start, width in zip(starts, widths, strict=False):
        at = (np.arange(groups)[:, None] * sum(widths) + start + np.arange(width)).reshape(-1)
        part = np.zeros((rows, d))
        part[:, at] = 1.5 + random.normal(size=(rows, len(at))).cumsum(axis=1)
        blocks.append(part[:, at].T @ part[:, at] / total)
        columns.append(at)
        parts.append(part)
    x = np.concatenate(parts)
    return PhaseCovariance(tuple(blocks), tuple(columns), x.mean(axis=0)), x


cases = given(
    st.integers(0, 99),
    st.integers(1, 4),
    st.lists(st.integers(0, 3), min_size=1, max_size=4).filter(any),
)


@quick(40)
@cases
def test_it_is_the_covariance_of_the_rows(seed: int, groups: int, widths: list[int]) -> None:
    sigma, x = example(seed, groups, widths)
    dense = np.cov(x.T, bias=True).reshape(len(sigma), -1)
    assert relative(np.asarray(sigma), dense) < 1e-12
    rows = rng(seed).normal(size=(2, 3, len(sigma)))
    assert relative(rows @ sigma, rows @ dense) < 1e-12
    assert abs(mean_variance(sigma) / mean_variance(dense) - 1) < 1e-12
    assert abs(sigma.square / float(np.vdot(dense, dense)) - 1) < 1e-9
    changed = np.asarray(sigma.times(0.7, 0.1))
    assert relative(changed, 0.7 * dense + 0.1 * np.eye(len(dense))) < 1e-12


@quick(40)
@cases
def test_columns_taken_in_any_order(seed: int, groups: int, widths: list[int]) -> None:
    sigma, _ = example(seed, groups, widths)
    columns = rng(seed).permutation(len(sigma))[: 1 + len(sigma) // 2]
    wanted = np.asarray(sigma)[np.ix_(columns, columns)]
    assert relative(np.asarray(taken(sigma, columns)), wanted) < 1e-12


@quick(40)
@cases
def test_solutions_are_those_of_the_dense_matrix(seed: int, groups: int, widths: list[int]) -> None:
    sigma, _ = example(seed, groups, widths)
    right = rng(seed).normal(size=(len(sigma), 2))
    wanted = np.linalg.solve(np.asarray(sigma) + 1e-3 * np.eye(len(sigma)), right)
    assert relative(solved(sigma, 1e-3, right.copy()), wanted) < 1e-9


def test_a_matrix_that_is_not_positive_definite_is_refused() -> None:
    sigma = PhaseCovariance((np.eye(1), np.eye(1)), (np.array([0]), np.array([1])), np.ones(2))
    with pytest.raises(np.linalg.LinAlgError, match="positive definite"):
        sigma.solve(np.ones((2, 1)))


@quick(40)
@given(
    st.integers(0, 99),
    st.integers(1, 5),
    st.lists(st.integers(0, 3), min_size=2, max_size=4).filter(any),
    st.booleans(),
)
def test_nested_losses_are_those_of_the_dense_matrix(
    seed: int, groups: int, widths: list[int], again: bool
) -> None:
    sigma, _ = example(seed, groups, widths)
    weight = rng(seed).normal(size=(3, len(sigma)))
    width = sum(widths)
    order = rng(seed + 1).permutation(groups)
    columns = (order[:, None] * width + np.arange(width)).reshape(-1)
    sigma, weight = taken(sigma, columns), weight[:, columns]
    dense = np.asarray(sigma)
    losses = nested_losses(weight, sigma, width, again)
    assert relative(losses, nested_losses(weight, dense, width, again)) < 1e-8
    for keep in range(groups + 1):
        kept, out = slice(0, keep * width), slice(keep * width, None)
        left = weight.copy()
        left[:, kept] = 0
        if again:  # what is left out is made by what is kept, as far as it can be
            inner = np.linalg.lstsq(dense[kept, kept], dense[kept, out], rcond=None)[0]
            left[:, kept] = -weight[:, out] @ inner.T
        wanted = float(np.sum((left @ dense) * left))
        assert abs(losses[keep] - wanted) < 1e-8 * losses[0]


def test_shrinkage_grows_as_rows_become_few() -> None:
    of = [shrinkage(6.0, 20.0, 3, count)[0] for count in (1000, 100, 10, 1)]
    assert 0 < of[0] < of[1] < of[2] <= of[3] <= 1
