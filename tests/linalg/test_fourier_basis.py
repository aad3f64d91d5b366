from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import linalg

from onnx_lowrank.linalg.fourier_basis import _swaps, fourier_basis
from tests.support import Array, quick, relative, rng


def covariance(n: int, seed: int) -> Array:
    root = rng(seed).normal(size=(n, n)) * np.geomspace(1, 0.1, n)
    product: Array = root @ root.T
    return product


def circulant(n: int, seed: int) -> Array:
    """A circulant covariance, a different energy for each frequency."""
    spectrum = rng(seed).permutation(np.geomspace(1, 0.01, n // 2 + 1))
    full = spectrum[np.minimum(np.arange(n), n - np.arange(n))]
    matrix: Array = linalg.circulant(np.fft.ifft(full).real)
    return matrix


def explained(energies: Array) -> float:
    return float(np.cumsum(energies).sum())


@quick(40)
@given(st.integers(1, 12), st.integers(0, 99), st.booleans())
def test_a_basis_is_what_it_says(n: int, seed: int, seriate: bool) -> None:
    matrix = covariance(n, seed)
    basis = fourier_basis(matrix, seriate)
    np.testing.assert_allclose(basis.columns.T @ basis.columns, np.eye(n), rtol=0, atol=1e-12)
    found = np.diag(basis.columns.T @ matrix @ basis.columns)
    np.testing.assert_allclose(basis.energies, found, rtol=0, atol=1e-12 * np.trace(matrix))
    assert np.all(np.diff(basis.energies) <= 0)
    assert sorted(basis.order.tolist()) == list(range(n))
    assert set(np.abs(basis.signs).tolist()) == {1.0}
    if not seriate:
        assert (basis.order.tolist(), set(basis.signs.tolist())) == (list(range(n)), {1.0})
    placed = (basis.signs[:, None] * basis.columns)[basis.order]
    for column, f in zip(placed.T, basis.frequencies, strict=True):
        # one frequency and its mirror alone in the spectrum
        spectrum = np.abs(np.fft.fft(column))
        spectrum[[f, -f]] = 0.0
        assert spectrum.max() < 1e-12 * n


@pytest.mark.parametrize("n", [5, 6, 9, 16])
@pytest.mark.parametrize("seriate", [False, True])
def test_of_a_circulant_covariance_it_is_the_principal_components(n: int, seriate: bool) -> None:
    matrix = circulant(n, n)
    basis = fourier_basis(matrix, seriate)
    turned = basis.columns.T @ matrix @ basis.columns
    assert np.abs(turned - np.diag(np.diag(turned))).max() < 1e-13
    np.testing.assert_allclose(basis.energies, np.linalg.eigvalsh(matrix)[::-1], rtol=1e-10)


def test_a_planted_order_and_signs_are_found() -> None:
    # a ring with one dominant correlation length, mixed up
    for n, seed in [(8, 0), (13, 1), (24, 2)]:
        gaps = np.minimum(np.arange(n), n - np.arange(n))
        ring = linalg.circulant(np.exp(-0.5 * (gaps / 3.0) ** 2)) + 1e-3 * np.eye(n)
        random = rng(seed)
        order, signs = random.permutation(n), random.choice([-1.0, 1.0], size=n)
        mixed = (ring * np.outer(signs, signs))[np.ix_(order, order)]
        best = explained(np.linalg.eigvalsh(ring)[::-1])
        assert explained(fourier_basis(mixed, seriate=False).energies) < best * (1 - 1e-3)
        assert explained(fourier_basis(mixed).energies) > best * (1 - 1e-9)


@quick(25)
@given(st.integers(2, 14), st.integers(0, 99))
def test_never_better_than_principal_components_nor_worse_than_as_it_comes(
    n: int, seed: int
) -> None:
    matrix = covariance(n, seed)
    free, plain = fourier_basis(matrix), fourier_basis(matrix, seriate=False)
    best = np.cumsum(np.linalg.eigvalsh(matrix)[::-1])
    for basis in (free, plain):
        assert np.all(np.cumsum(basis.energies) <= best * (1 + 1e-12))
    assert explained(free.energies) >= explained(plain.energies)


@quick(25)
@given(st.integers(1, 12), st.integers(0, 99))
def test_whole_pairs_are_a_circulant_projection_of_n_numbers(n: int, seed: int) -> None:
    basis = fourier_basis(covariance(n, seed))
    for rank in range(n + 1):
        projection = basis.columns[:, :rank] @ basis.columns[:, :rank].T
        placed = (projection * np.outer(basis.signs, basis.signs))[np.ix_(basis.order, basis.order)]
        shifted = np.roll(placed, (1, 1), (0, 1))
        assert basis.is_circulant(rank) == bool(np.abs(placed - shifted).max() < 1e-9)
        if basis.is_circulant(rank):
            again = linalg.circulant(basis.generator(rank))
            assert relative(placed, again) < 1e-12
        else:
            with pytest.raises(ValueError, match="separates the two"):
                basis.generator(rank)


@quick(30)
@given(st.integers(2, 9), st.integers(0, 99))
def test_swaps_end_where_no_swap_helps(n: int, seed: int) -> None:
    random = rng(seed)
    a, b = (m + m.T for m in random.normal(size=(2, n, n)))

    def agreement(p: npt.NDArray[np.intp]) -> float:
        return float(np.sum(a[np.ix_(p, p)] * b))

    places = _swaps(a, b)
    assert sorted(places.tolist()) == list(range(n))
    reached = agreement(places)
    assert reached >= agreement(np.arange(n)) - 1e-12
    for i in range(n):
        for j in range(i):
            other = places.copy()
            other[[i, j]] = places[[j, i]]
            assert agreement(other) <= reached + 1e-9 * np.sum(np.abs(a @ b))
