from __future__ import annotations

import numpy as np
import pytest

from onnx_lowrank.linalg import lapack
from onnx_lowrank.linalg.cholesky import cholesky, factored, inverse_of


@pytest.mark.parametrize("rank", [5, 3, 0])
def test_semi_definite_matrices_have_a_factor(rank: int) -> None:
    rows = np.random.default_rng(rank).normal(size=(5, rank))
    matrix = rows @ rows.T
    factor = cholesky(matrix)
    np.testing.assert_array_equal(factor, np.tril(factor))
    scale = max(float(np.trace(matrix)), 1.0)
    np.testing.assert_allclose(factor @ factor.T, matrix, rtol=0, atol=1e-8 * scale)


@pytest.mark.parametrize("rounding", [1e-7, 1e-5])
def test_what_rounding_made_indefinite_has_one(rounding: float) -> None:
    matrix = np.diag([1.0, 1.0, -rounding])
    factor = cholesky(matrix)
    np.testing.assert_allclose(factor @ factor.T, matrix, rtol=0, atol=2e-4)


def test_nothing_has_a_factor() -> None:
    assert cholesky(np.zeros((0, 0))).shape == (0, 0)


def test_what_is_far_from_it_has_none() -> None:
    with pytest.raises(np.linalg.LinAlgError, match="not positive semi-definite"):
        cholesky(np.diag([1.0, -1.0]))


@pytest.mark.parametrize("size", [0, 1, 7])
def test_the_inverse_is_that_of_the_whole(size: int) -> None:
    rows = np.random.default_rng(size).normal(size=(20, size))
    matrix = rows.T @ rows
    found = inverse_of(cholesky(matrix))
    np.testing.assert_allclose(found @ matrix, np.eye(size), rtol=0, atol=1e-10)
    np.testing.assert_array_equal(found, found.T)


@pytest.mark.parametrize("rank", [40, 12, 0])
def test_in_place_it_is_the_same(rank: int) -> None:
    rows = np.random.default_rng(rank).normal(size=(30, rank))
    matrix = rows @ rows.T
    factor, right = cholesky(matrix), rows[:, :3] @ np.ones((min(rank, 3), 2))
    found = lapack.potrs(factored(matrix.copy()), right)
    np.testing.assert_array_equal(found, lapack.potrs(factor, right))


def test_in_place_what_is_far_from_it_has_none() -> None:
    with pytest.raises(np.linalg.LinAlgError, match="not positive semi-definite"):
        factored(np.diag([1.0, -1.0]))
