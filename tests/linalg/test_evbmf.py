from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_lowrank.linalg.evbmf import evbmf
from tests.support import Array, quick, rng

SHAPES = [(30, 30), (40, 120), (120, 40), (64, 576), (20, 1000)]


def planted(
    shape: tuple[int, int],
    rank: int,
    snr: float,
    seed: int,
    noise: float = 1.0,
    exact: bool = False,
) -> Array:
    """Components of ``snr`` times the largest singular value of the noise, falling to ``snr``."""
    random = rng(seed)
    u, v = (np.linalg.qr(random.normal(size=(n, max(rank, 1))))[0][:, :rank] for n in shape)
    edge = noise * (math.sqrt(shape[0]) + math.sqrt(shape[1]))
    values = edge * snr * np.linspace(2.0, 1.0, rank)
    signal: Array = (u * values) @ v.T
    return signal if exact else signal + noise * random.normal(size=shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 3, 8])
@pytest.mark.parametrize("snr", [1.5, 3.0, 30.0])
def test_planted_rank_and_noise(shape: tuple[int, int], rank: int, snr: float) -> None:
    for seed, noise in itertools.product(range(3), (1.0, 1e-3)):
        found = evbmf(planted(shape, rank, snr, seed, noise))
        assert found.rank == rank
        # sampling error of a variance from the elements of the smaller part of the noise
        assert abs(found.noise / noise**2 - 1) < 6 * math.sqrt(2 / math.prod(shape)) + 0.03
        assert found.singular_values.shape == (rank,)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_shrunk_matrix_is_nearer_to_the_truth(shape: tuple[int, int]) -> None:
    for seed in range(3):
        matrix = planted(shape, 3, 1.5, seed)
        truth = planted(shape, 3, 1.5, seed, exact=True)
        u, values, v = np.linalg.svd(matrix, full_matrices=False)
        shrunk = (u[:, :3] * evbmf(matrix).singular_values) @ v[:3]
        truncated = (u[:, :3] * values[:3]) @ v[:3]
        assert np.linalg.norm(shrunk - truth) < np.linalg.norm(truncated - truth)
        assert np.linalg.norm(shrunk - truth) < 0.6 * np.linalg.norm(matrix - truth)


@pytest.mark.parametrize("shape", SHAPES)
def test_pure_noise_has_no_components(shape: tuple[int, int]) -> None:
    for seed in range(5):
        noise = rng(seed, 1).normal(size=shape)
        found = evbmf(noise)
        assert found.rank == 0
        assert found.singular_values.size == 0
        assert abs(found.noise / float(np.mean(noise**2)) - 1) < 1e-9


@quick(25)
@given(
    st.integers(2, 30),
    st.integers(2, 30),
    st.integers(0, 4),
    st.integers(0, 99),
    st.sampled_from([1e-12, 1e-3, 7.0, 1e12]),
)
def test_transpose_and_scale(rows: int, columns: int, rank: int, seed: int, scale: float) -> None:
    matrix = planted((rows, columns), min(rank, rows, columns), 2.0, seed)
    found, turned, scaled = evbmf(matrix), evbmf(matrix.T), evbmf(scale * matrix)
    assert found.rank == turned.rank == scaled.rank
    np.testing.assert_allclose(turned.singular_values, found.singular_values, rtol=1e-6)
    np.testing.assert_allclose(scaled.singular_values, scale * found.singular_values, rtol=1e-6)
    assert abs(turned.noise / found.noise - 1) < 1e-6
    assert abs(scaled.noise / (scale**2 * found.noise) - 1) < 1e-6


@quick(25)
@given(st.integers(2, 25), st.integers(2, 25), st.integers(0, 99))
def test_singular_values_in_any_order_serve_as_well(rows: int, columns: int, seed: int) -> None:
    matrix = planted((rows, columns), 1, 2.0, seed)
    values = np.linalg.svd(matrix, compute_uv=False)
    one, other = evbmf(matrix), evbmf(rng(seed).permutation(values), (rows, columns))
    assert one.rank == other.rank
    assert abs(one.noise / other.noise - 1) < 1e-9


def free_energy(noise: float, squares: Array, rows: int, columns: int) -> float:
    """Of a noise variance, with every component at its own minimum: by trying both for each."""
    total = 0.0
    for square in squares:
        empty = square / noise / columns + math.log(noise)
        best = empty
        rest = square - (rows + columns) * noise
        if rest**2 > 4 * rows * columns * noise**2 and rest > 0:
            # stationary: shrunk singular value times the observed one
            product = (rest + math.sqrt(rest**2 - 4 * rows * columns * noise**2)) / 2
            tau = product / (columns * noise)
            alpha = rows / columns
            best = min(best, empty + math.log1p(tau) + alpha * math.log1p(tau / alpha) - tau)
        total += best
    return total


@quick(15)
@given(st.integers(2, 12), st.integers(2, 20), st.integers(0, 3), st.integers(0, 99))
def test_no_other_noise_has_a_lower_free_energy(
    rows: int, extra: int, rank: int, seed: int
) -> None:
    shape = (rows, rows + extra)
    matrix = planted(shape, min(rank, rows // 2), 2.5, seed)
    squares = np.linalg.svd(matrix, compute_uv=False) ** 2
    found = evbmf(matrix)
    least = free_energy(found.noise, squares, *shape)
    # nowhere between the bounds of the theorem: the mean square, and the tail of half the values
    upper = float(squares.sum()) / math.prod(shape)
    most = math.ceil(rows / (1 + rows / shape[1])) - 1
    lower = float(squares[most:].mean()) / shape[1]
    for noise in np.geomspace(lower, upper, 2000):
        assert least <= free_energy(float(noise), squares, *shape) + 1e-7 * abs(least)


@pytest.mark.parametrize("shape", [(12, 12), (10, 40), (40, 10)])
def test_without_noise_the_rank_is_exact(shape: tuple[int, int]) -> None:
    random = rng(3)
    matrix = random.normal(size=(shape[0], 3)) @ random.normal(size=(3, shape[1]))
    found = evbmf(matrix)
    values = np.linalg.svd(matrix, compute_uv=False)
    assert found.rank == 3
    np.testing.assert_allclose(found.singular_values, values[:3], rtol=1e-9)
    assert found.noise < 1e-12 * values[0] ** 2


def test_zeros_have_no_components() -> None:
    found = evbmf(np.zeros((4, 7)))
    assert (found.rank, found.noise, found.singular_values.size) == (0, 0.0, 0)


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1)])
def test_a_vector_is_a_matrix(shape: tuple[int, int]) -> None:
    found = evbmf(rng(4).normal(size=shape))
    assert found.rank == 0  # nothing to tell noise from


@pytest.mark.parametrize(
    ("values", "shape"),
    [(np.ones(3), None), (np.ones(3), (2, 5)), (np.ones((2, 2)), (2, 2)), (np.ones(0), (2, 2))],
)
def test_misuse(values: Array, shape: tuple[int, int] | None) -> None:
    with pytest.raises(ValueError, match=r"a matrix"):
        evbmf(values, shape)
