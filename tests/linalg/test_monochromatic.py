from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_lowrank.linalg.monochromatic import Monochromatic, monochromatic
from tests.support import Array, quick, relative, rng

#: (N, C, taps): colours, gray, a single tap, more channels than taps
SHAPES = [(12, 3, 9), (8, 1, 4), (6, 4, 1), (12, 7, 3)]
SHAPE = pytest.mark.parametrize("shape", SHAPES)
BALANCED = pytest.mark.parametrize("balanced", [False, True])


def covariance(d: int, seed: int, condition: float = 1e3) -> Array:
    q, _ = np.linalg.qr(rng(seed, 1).normal(size=(d, d)))
    sigma: Array = (q * np.geomspace(1, 1 / condition, d)) @ q.T
    return sigma


def example(shape: tuple[int, ...], seed: int, data: bool = True) -> tuple[Array, Array | None]:
    """Kernel and covariance."""
    kernel = rng(seed).normal(size=shape)
    return kernel, covariance(shape[1] * shape[2], seed) if data else None


def distance(difference: Array, sigma: Array | None) -> float:
    """``tr(D Sigma D^T)``."""
    flat = difference.reshape(len(difference), -1)
    return float(np.sum((flat if sigma is None else flat @ sigma) * flat))


def left(kernel: Array, sigma: Array | None, direction: Array) -> Array:
    """What one colour leaves of each output, ``(N,)``, by ordinary least squares."""
    _, channels, taps = kernel.shape
    root = np.eye(channels * taps) if sigma is None else np.linalg.cholesky(sigma)
    design = root.T @ np.kron(direction[:, None], np.eye(taps))
    wanted = root.T @ kernel.reshape(len(kernel), -1).T
    fitted = design @ np.linalg.lstsq(design, wanted, rcond=None)[0]
    residual: Array = np.sum((wanted - fitted) ** 2, axis=0)
    return residual


def planted(sizes: list[int], channels: int, taps: int, seed: int) -> tuple[Array, Array]:
    """A monochromatic kernel, and who reads which colour; signs are mixed."""
    random = rng(seed)
    labels = random.permutation(np.repeat(np.arange(len(sizes)), sizes))
    colours = random.normal(size=(len(sizes), channels))
    spatial = random.normal(size=(sum(sizes), taps))
    return colours[labels][:, :, None] * spatial[:, None], labels


@quick(40)
@given(
    st.sampled_from(SHAPES),
    st.sampled_from([1, 2, 3, 6]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 99),
)
def test_a_result_is_what_it_says(
    shape: tuple[int, ...], colours: int, balanced: bool, data: bool, seed: int
) -> None:
    balanced = balanced and shape[0] % colours == 0
    kernel, sigma = example(shape, seed, data)
    found = monochromatic(kernel, sigma, colours, balanced, starts=2, seed=seed)
    assert found.directions.shape == (colours, shape[1])
    assert found.spatial.shape == (shape[0], shape[2])
    np.testing.assert_allclose(np.linalg.norm(found.directions, axis=1), 1, rtol=1e-12)
    written = np.stack(
        [
            np.outer(found.directions[k], s)
            for k, s in zip(found.assignment, found.spatial, strict=True)
        ]
    )
    assert relative(written, found.to_kernel()) < 1e-14
    energy = distance(kernel, sigma)
    assert abs(found.error - distance(kernel - written, sigma)) < 1e-12 * energy
    assert found.sizes.sum() == shape[0]
    if balanced:
        assert set(found.sizes.tolist()) == {shape[0] // colours}
    assert np.all(np.diff(found.assignment[found.order]) >= 0)
    assert sorted(found.order.tolist()) == list(range(shape[0]))


@SHAPE
@BALANCED
@pytest.mark.parametrize("data", [False, True])
def test_no_single_step_helps_at_the_end(
    shape: tuple[int, ...], balanced: bool, data: bool
) -> None:
    # a certificate of the local optimum: assignment, spatial kernels and colours, each by an oracle
    kernel, sigma = example(shape, 3, data)
    found = monochromatic(kernel, sigma, 2, balanced, max_iterations=3000)
    assert found.converged
    energy = distance(kernel, sigma)
    table = np.stack([left(kernel, sigma, v) for v in found.directions], axis=1)
    reached = table[np.arange(len(kernel)), found.assignment].sum()
    assert abs(found.error - reached) < 1e-9 * energy
    if not balanced:
        assert reached <= table.min(axis=1).sum() + 1e-9 * energy
    root = np.eye(shape[1] * shape[2]) if sigma is None else np.linalg.cholesky(sigma)
    best = 0.0
    for k in np.unique(found.assignment):
        own = found.assignment == k
        design = np.concatenate(
            [root.T @ np.kron(np.eye(shape[1]), s[:, None]) for s in found.spatial[own]]
        )
        wanted = (kernel[own].reshape(own.sum(), -1) @ root).reshape(-1)
        fitted = design @ np.linalg.lstsq(design, wanted, rcond=None)[0]
        best += float(np.sum((wanted - fitted) ** 2))
    assert found.error <= best * (1 + 1e-5) + 1e-12 * energy


@BALANCED
def test_of_few_outputs_every_partition_is_no_better(balanced: bool) -> None:
    # with Sigma = I a cluster's best colour is an eigenvector, so all partitions can be tried
    for seed in range(8):
        kernel = rng(seed).normal(size=(6, 3, 5))
        grams = kernel @ kernel.swapaxes(1, 2)
        best = np.inf
        for labels in itertools.product(range(2), repeat=6):
            mask = np.array(labels) == 1
            if balanced and mask.sum() != 3:
                continue
            kept = sum(
                np.linalg.eigvalsh(grams[m].sum(axis=0))[-1] for m in (mask, ~mask) if m.any()
            )
            best = min(best, float(np.sum(kernel**2) - kept))
        found = monochromatic(kernel, None, 2, balanced, starts=12, max_iterations=1000)
        assert best - 1e-9 <= found.error <= best * (1 + 1e-4)


@pytest.mark.parametrize("data", [False, True])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sizes", [[4, 4, 4], [9, 2, 1], [2, 2, 2, 2, 2]])
def test_planted_colours_are_found_exactly(data: bool, seed: int, sizes: list[int]) -> None:
    kernel, labels = planted(sizes, 3, 9, seed)
    sigma = covariance(27, seed) if data else None
    for balanced in {False, len(set(sizes)) == 1}:
        found = monochromatic(kernel, sigma, len(sizes), balanced, starts=6)
        assert found.error < 1e-16 * distance(kernel, sigma)
        assert relative(kernel, found.to_kernel()) < 1e-7
        assert len({*zip(labels.tolist(), found.assignment.tolist(), strict=True)}) == len(sizes)


@SHAPE
@pytest.mark.parametrize("data", [False, True])
def test_a_colour_for_each_output_leaves_the_rank_one_residuals(
    shape: tuple[int, ...], data: bool
) -> None:
    kernel, sigma = example(shape, 5, data)
    found = monochromatic(kernel, sigma, shape[0], max_iterations=2000)
    singular = np.linalg.svd(kernel, compute_uv=False)
    if sigma is None:
        wanted = float(np.sum(singular[:, 1:] ** 2))
        assert abs(found.error - wanted) < 1e-9 * distance(kernel, sigma)
    if 1 in shape[1:]:  # every output is of rank one
        assert found.error < 1e-12 * distance(kernel, sigma)


@SHAPE
@BALANCED
def test_rounds_and_starts_never_raise_the_error(shape: tuple[int, ...], balanced: bool) -> None:
    for seed in range(3):
        kernel, sigma = example(shape, seed)
        energy = distance(kernel, sigma)

        def error(
            limit: int, starts: int, kernel: Array = kernel, sigma: Array | None = sigma
        ) -> float:
            return monochromatic(kernel, sigma, 2, balanced, starts, 0, limit).error

        by_rounds = [error(limit, 1) for limit in (1, 2, 3, 5, 9, 50)]
        by_starts = [error(50, starts) for starts in (1, 2, 4, 8)]
        for errors in (by_rounds, by_starts):
            assert all(b <= a + 1e-12 * energy for a, b in itertools.pairwise(errors))


def test_signs_and_scales_of_outputs_do_not_matter() -> None:
    kernel, sigma = example((12, 3, 9), 4)
    signs = rng(4).choice([-1.0, 1.0], size=12)
    one, two = (monochromatic(k, sigma, 3) for k in (kernel, kernel * signs[:, None, None]))
    np.testing.assert_array_equal(one.assignment, two.assignment)
    assert abs(one.error - two.error) < 1e-9 * one.error


def test_identity_covariance_is_weight_space() -> None:
    kernel, _ = example((12, 3, 9), 6)
    plain, measured = (monochromatic(kernel, s, 3) for s in (None, np.eye(27)))
    np.testing.assert_array_equal(plain.assignment, measured.assignment)
    assert relative(plain.to_kernel(), measured.to_kernel()) < 1e-6


def test_response_metric_wins_in_its_own_norm() -> None:
    for seed in range(10):
        kernel, sigma = example((16, 3, 9), seed)
        other = monochromatic(kernel, None, 4).to_kernel()
        assert monochromatic(kernel, sigma, 4).error < distance(kernel - other, sigma)


def test_the_same_seed_gives_the_same_colours() -> None:
    kernel, sigma = example((12, 3, 9), 7)
    one, two = (monochromatic(kernel, sigma, 4, starts=5, seed=3) for _ in range(2))
    np.testing.assert_array_equal(one.directions, two.directions)
    np.testing.assert_array_equal(one.spatial, two.spatial)


@pytest.mark.parametrize("data", [False, True])
@BALANCED
def test_dead_outputs_are_no_trouble(data: bool, balanced: bool) -> None:
    kernel, sigma = example((8, 3, 4), 8, data)
    kernel[::2] = 0.0
    found = monochromatic(kernel, sigma, 4, balanced)
    assert not found.to_kernel()[::2].any()
    nothing: Monochromatic = monochromatic(0 * kernel, sigma, 4, balanced)
    assert nothing.error == 0.0
    assert not nothing.to_kernel().any()


@pytest.mark.parametrize(
    ("colours", "balanced", "starts", "message"),
    [
        (0, False, 1, "0 colours"),
        (7, False, 1, "7 colours"),
        (4, True, 1, "equally among"),
        (2, False, 0, "1 or more"),
    ],
)
def test_misuse(colours: int, balanced: bool, starts: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        monochromatic(np.ones((6, 3, 4)), None, colours, balanced, starts)
