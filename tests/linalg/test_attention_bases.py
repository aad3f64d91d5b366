"""Bases of attention heads: products stay, and what is left out is least."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from onnx_lowrank.linalg.attention_bases import score_bases, value_basis
from tests.support import rng

Array = npt.NDArray[Any]


def moment(seed: int, width: int = 8, rank: int | None = None) -> Array:
    draws = rng(seed).normal(size=(rank or 3 * width, width)) * np.logspace(0, -1, width)
    return np.asarray(draws.T @ draws / len(draws))


@pytest.mark.parametrize("ranks", [(None, None), (3, None), (None, 3), (2, 3)])
def test_products_of_queries_and_keys_stay(ranks: tuple[int | None, int | None]) -> None:
    query, key, _ = score_bases(moment(1, rank=ranks[0]), moment(2, rank=ranks[1]))
    np.testing.assert_allclose(query.T @ key, np.eye(8), rtol=0, atol=1e-9)


def test_errors_are_those_of_the_products_left_out() -> None:
    queries, keys = moment(3), moment(4)
    query, key, errors = score_bases(queries, keys)
    for left in range(9):
        lost = np.eye(8) - query[:left].T @ key[:left]
        error = np.trace(lost.T @ queries @ lost @ keys)
        np.testing.assert_allclose(errors[left], error, rtol=1e-6, atol=1e-12)


def test_no_other_product_of_that_rank_has_a_smaller_error() -> None:
    queries, keys = moment(5), moment(6)
    errors = score_bases(queries, keys)[2]
    # Eckart-Young, by the eigenvalues of the product
    singular = np.sort(np.linalg.eigvals(queries @ keys).real)[::-1]
    tails = np.append(np.cumsum(singular[::-1])[::-1], 0.0)
    np.testing.assert_allclose(errors, tails, rtol=1e-6, atol=1e-12)


def test_queries_and_keys_that_need_few_channels_lose_nothing_in_them() -> None:
    plane = rng(7).normal(size=(8, 3))
    errors = score_bases(plane @ plane.T, moment(8))[2]
    assert errors[3] < 1e-3 * errors[0]


def test_values_come_in_the_order_of_their_response() -> None:
    weight, covariance = rng(9).normal(size=(12, 8)), moment(10)
    basis = value_basis(weight.T @ weight, covariance)
    turned = basis @ covariance @ basis.T
    np.testing.assert_allclose(turned, np.diag(np.diag(turned)), rtol=0, atol=1e-9)
    read = weight @ np.linalg.inv(basis)
    response = np.sum(read**2, axis=0) * np.diag(turned)
    singular = np.linalg.eigvals(weight @ covariance @ weight.T).real
    np.testing.assert_allclose(response, np.sort(singular)[::-1][:8], rtol=1e-6)


@pytest.mark.parametrize("nothing", [True, False])
def test_heads_without_data_or_readers_stay_invertible(nothing: bool) -> None:
    zero, other = np.zeros((8, 8)), moment(11)
    basis = value_basis(zero, other) if nothing else value_basis(other, zero)
    assert max(np.abs(basis).max(), np.abs(np.linalg.inv(basis)).max()) < 1e3
    query, key, errors = score_bases(zero, other)
    np.testing.assert_allclose(query.T @ key, np.eye(8), rtol=0, atol=1e-6)
    assert np.isfinite(errors).all()
