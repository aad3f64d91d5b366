from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_lowrank.linalg.bicluster import Bicluster, BlockSearch, bicluster
from onnx_lowrank.linalg.block_clusters import Clusters
from onnx_lowrank.linalg.cp_regression import CpProblem, Search
from onnx_lowrank.linalg.tucker import Tucker
from tests.support import Array, quick, relative, rng

#: N, C, taps, groups
LAYERS = [(8, 6, 3, (2, 2)), (6, 12, 2, (3, 2)), (12, 4, 4, (1, 3)), (4, 6, 1, (2, 1))]
RANKS: list[tuple[int, int] | int] = [(2, 2), (1, 3), (9, 9), 1, 3]
DATA = pytest.mark.parametrize("data", [False, True])


def covariance(d: int, seed: int) -> Array:
    q, _ = np.linalg.qr(rng(seed, 1).normal(size=(d, d)))
    sigma: Array = (q * np.geomspace(1, 1e-3, d)) @ q.T
    return sigma


def example(
    outputs: int, inputs: int, taps: int, seed: int, data: bool = True
) -> tuple[Array, Array | None]:
    """Kernel and covariance."""
    kernel = rng(seed).normal(size=(outputs, inputs, taps))
    return kernel, covariance(inputs * taps, seed) if data else None


def distance(difference: Array, sigma: Array | None) -> float:
    """``tr(D Sigma D^T)``."""
    flat = difference.reshape(len(difference), -1)
    return float(np.sum((flat if sigma is None else flat @ sigma) * flat))


def grouped(weight: Array, x: Array, groups: int) -> Array:
    """A convolution of one position: ``(N, C / groups, t)`` on ``(C, t)``; t = 1 is pointwise."""
    out, inp = len(weight) // groups, len(x) // groups
    rows = [
        np.einsum("nct,cs->ns" if weight.shape[2] == 1 else "nct,ct->n",
                  weight[g * out : (g + 1) * out], x[g * inp : (g + 1) * inp])
        for g in range(groups)
    ]  # fmt: skip
    stacked: Array = np.concatenate(rows)
    return stacked if stacked.ndim == 2 else stacked[:, None]


def ran(found: Bicluster, x: Array) -> Array:
    """The outputs for a patch ``(C, t)``, the way a chain of convolutions makes them."""
    g, h = found.clusters.groups
    hidden = grouped(found.reduce[:, :, None], x[found.clusters.inputs], g)[found.shuffle]
    hidden = grouped(found.core, hidden, found.core_groups)
    outputs: Array = grouped(found.expand[:, :, None], hidden, h)[found.inverse, 0]
    return outputs


def planted(
    outputs: int, inputs: int, taps: int, groups: tuple[int, int], ranks: tuple[int, int] | int,
    seed: int,
) -> Array:  # fmt: skip
    """Blocks of these ranks under a permutation of inputs and outputs."""
    random, (g, h) = rng(seed), groups
    kernel = np.zeros((outputs, inputs, taps))
    columns = random.permutation(inputs).reshape(g, -1)
    rows = random.permutation(outputs).reshape(h, -1)
    for own_rows, own_columns in itertools.product(rows, columns):
        q, p = (ranks, ranks) if isinstance(ranks, int) else ranks
        core = random.normal(size=(p, q, taps))
        if isinstance(ranks, int):
            core *= np.eye(ranks)[:, :, None]
        u, v = random.normal(size=(len(own_rows), p)), random.normal(size=(q, len(own_columns)))
        kernel[np.ix_(own_rows, own_columns)] = np.einsum("np,pqt,qc->nct", u, core, v)
    return kernel


@quick(10)
@given(
    st.sampled_from(LAYERS), st.sampled_from(RANKS), st.booleans(), st.integers(0, 2),
    st.integers(0, 99),
)  # fmt: skip
def test_a_result_is_what_it_says(
    layer: tuple[int, int, int, tuple[int, int]],
    ranks: tuple[int, int] | int,
    data: bool,
    rounds: int,
    seed: int,
) -> None:
    outputs, inputs, taps, (g, h) = layer
    kernel, sigma = example(outputs, inputs, taps, seed, data)
    found = bicluster(kernel, sigma, (g, h), ranks, BlockSearch(seed=seed, rounds=rounds))
    q, p = (ranks, ranks) if isinstance(ranks, int) else ranks
    assert found.reduce.shape == (g * h * q, inputs // g)
    assert found.core.shape == (h * g * p, 1 if isinstance(ranks, int) else q, taps)
    assert found.expand.shape == (outputs, g * p)
    composed = found.to_kernel()
    energy = distance(kernel, sigma)
    assert abs(found.error - distance(kernel - composed, sigma)) < 1e-12 * energy
    x = rng(seed, 2).normal(size=(inputs, taps))
    assert relative(np.einsum("nct,ct->n", composed, x), ran(found, x)) < 1e-10


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("ranks", RANKS)
@DATA
def test_the_last_factor_leaves_nothing_that_its_features_see(
    layer: tuple[int, int, int, tuple[int, int]], ranks: tuple[int, int] | int, data: bool
) -> None:
    outputs, inputs, taps, groups = layer
    kernel, sigma = example(outputs, inputs, taps, 1, data)
    found = bicluster(kernel, sigma, groups, ranks)
    left = kernel - found.to_kernel()
    size = outputs // groups[1]
    width = found.expand.shape[1]
    for i in range(groups[1]):
        # each feature's kernel, by what a unit of it makes of a patch
        rows = found.clusters.outputs[i * size : (i + 1) * size]
        for k in range(width):
            unit = np.zeros_like(found.expand)
            unit[i * size, k] = 1.0
            probe = Bicluster(found.clusters, found.reduce, found.core, unit, found.outer, 0.0)
            feature = probe.to_kernel()[rows[0]].reshape(-1)
            seen = feature if sigma is None else sigma @ feature
            scale = np.sqrt(max(feature @ seen, 0.0) * distance(kernel, sigma))
            assert np.abs(left[rows].reshape(size, -1) @ seen).max() <= 1e-6 * scale


@pytest.mark.parametrize("layer", LAYERS)
@DATA
def test_full_ranks_are_the_kernel_itself(
    layer: tuple[int, int, int, tuple[int, int]], data: bool
) -> None:
    outputs, inputs, taps, (g, h) = layer
    kernel, sigma = example(outputs, inputs, taps, 2, data)
    found = bicluster(kernel, sigma, (g, h), (inputs // g, outputs // h))
    assert relative(kernel, found.to_kernel()) < 1e-9
    sizes = sorted((inputs // g, outputs // h, taps))
    found = bicluster(kernel, sigma, (g, h), sizes[0] * sizes[1])
    assert relative(kernel, found.to_kernel()) < 1e-3


@pytest.mark.parametrize(
    ("layer", "ranks"),
    [
        ((12, 12, 3, (2, 2)), (2, 2)),
        ((24, 12, 9, (3, 2)), (1, 2)),
        ((16, 24, 9, (2, 4)), (2, 1)),
        ((12, 12, 3, (2, 2)), 2),
        ((12, 12, 3, (2, 2)), 1),
        ((10, 8, 2, (1, 2)), (3, 2)),
    ],
)
@pytest.mark.parametrize("seed", range(3))
@DATA
def test_planted_blocks_are_found_exactly(
    layer: tuple[int, int, int, tuple[int, int]],
    ranks: tuple[int, int] | int,
    seed: int,
    data: bool,
) -> None:
    outputs, inputs, taps, groups = layer
    kernel = planted(outputs, inputs, taps, groups, ranks, seed)
    sigma = covariance(inputs * taps, seed) if data else None
    found = bicluster(kernel, sigma, groups, ranks)
    # alternating least squares end near, a Tucker form at, the planted terms
    tolerance = 1e-8 if isinstance(ranks, int) else 1e-20
    assert found.error < tolerance * distance(kernel, sigma)
    assert relative(kernel, found.to_kernel()) < (1e-3 if isinstance(ranks, int) else 1e-8)


@DATA
def test_one_cluster_on_either_side_is_tucker_or_cp(data: bool) -> None:
    kernel, sigma = example(8, 6, 4, 3, data)
    energy = distance(kernel, sigma)
    for q, p in [(2, 3), (4, 4), (1, 1)]:
        found = bicluster(kernel, sigma, (1, 1), (q, p), BlockSearch(rounds=0))
        assert found.error <= Tucker(kernel, sigma).pair(q, p, 4).error + 1e-10 * energy
    found = bicluster(kernel, sigma, (1, 1), 3, BlockSearch(rounds=0))
    terms = CpProblem(kernel, sigma).solve(3, Search(2, 0, 50))
    assert found.error <= terms.error + 1e-10 * energy


@pytest.mark.parametrize("ranks", [(2, 2), 2])
def test_response_metric_is_never_worse_in_its_own_norm(ranks: tuple[int, int] | int) -> None:
    for seed in range(4):
        kernel, sigma = example(8, 6, 3, seed)
        plain = bicluster(kernel, None, (2, 2), ranks, BlockSearch(rounds=0)).to_kernel()
        found = bicluster(kernel, sigma, (2, 2), ranks, BlockSearch(rounds=0))
        assert found.error <= distance(kernel - plain, sigma) * (1 + 1e-9)
        assert found.error < 0.9 * distance(kernel - plain, sigma)


@pytest.mark.parametrize("ranks", [(2, 2), 3])
@DATA
def test_rounds_never_raise_the_error_and_find_something(
    ranks: tuple[int, int] | int, data: bool
) -> None:
    for seed in range(2):
        kernel, sigma = example(8, 6, 3, seed, data)
        errors = [
            bicluster(kernel, sigma, (2, 2), ranks, BlockSearch(rounds=r)).error for r in (0, 1, 3)
        ]
        assert all(b <= a * (1 + 1e-9) for a, b in itertools.pairwise(errors))
        if data:
            assert errors[-1] < 0.97 * errors[0]


@pytest.mark.full
@pytest.mark.parametrize("ranks", [(2, 2), 2])
def test_rounds_end_where_the_gradient_vanishes(ranks: tuple[int, int] | int) -> None:
    kernel, sigma = example(4, 4, 2, 5)
    given_clusters = Clusters(np.arange(4), np.arange(4), (2, 2))
    slopes = []
    for rounds in (0, 400):
        found = bicluster(
            kernel, sigma, (2, 2), 1 if isinstance(ranks, int) else (1, 1),
            BlockSearch(rounds=rounds), given_clusters,
        )  # fmt: skip
        square = 0.0
        for name in ("reduce", "core"):
            factor: Array = getattr(found, name)
            for at in np.ndindex(factor.shape):
                moved = []
                for step in (1e-5, -1e-5):
                    changed = factor.copy()
                    changed[at] += step
                    parts = {"reduce": found.reduce, "core": found.core, name: changed}
                    other = Bicluster(
                        found.clusters, parts["reduce"], parts["core"], found.expand,
                        found.outer, 0.0,
                    )  # fmt: skip
                    moved.append(distance(kernel - other.to_kernel(), sigma))
                square += ((moved[0] - moved[1]) / 2e-5) ** 2
        slopes.append(np.sqrt(square))
    assert slopes[1] < 1e-3 * slopes[0]


def test_clusters_that_are_given_are_kept() -> None:
    kernel, sigma = example(8, 6, 3, 6)
    mine = Clusters(rng(0).permutation(6), rng(1).permutation(8), (3, 2))
    assert bicluster(kernel, sigma, (3, 2), (1, 2), clusters=mine).clusters is mine


def test_the_same_seed_gives_the_same_blocks() -> None:
    kernel, sigma = example(8, 6, 3, 7)
    one, two = (bicluster(kernel, sigma, (2, 2), 2, BlockSearch(4, 3)) for _ in range(2))
    for name in ("reduce", "core", "expand"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


@pytest.mark.parametrize("ranks", [(2, 2), 2])
@DATA
def test_dead_channels_and_kernels_of_zeros_are_no_trouble(
    ranks: tuple[int, int] | int, data: bool
) -> None:
    kernel, sigma = example(8, 6, 3, 8, data)
    kernel[::2], kernel[:, ::3] = 0.0, 0.0
    found = bicluster(kernel, sigma, (2, 2), ranks)
    assert found.error < distance(kernel, sigma)
    assert not bicluster(0 * kernel, sigma, (2, 2), ranks).to_kernel().any()


@pytest.mark.parametrize(
    ("groups", "ranks", "message"),
    [
        ((4, 2), (1, 1), "do not divide 6 inputs"),
        ((2, 3), (1, 1), "do not divide 6 inputs and 8 outputs"),
        ((0, 2), (1, 1), "do not divide"),
        ((2, 2), (0, 1), "1 or more"),
        ((2, 2), 0, "1 or more"),
    ],
)
def test_misuse(groups: tuple[int, int], ranks: tuple[int, int] | int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bicluster(np.ones((8, 6, 3)), None, groups, ranks)


@DATA
def test_terms_that_repeat_are_no_trouble(data: bool) -> None:
    # blocks of rank one, many more terms asked for: the features are linearly dependent
    kernel = planted(64, 32, 9, (2, 2), 1, 0)
    sigma = covariance(32 * 9, 0) if data else None
    for ranks in (12, (16, 32)):
        found = bicluster(kernel, sigma, (2, 2), ranks, BlockSearch(1, rounds=2))
        assert found.error < 1e-8 * distance(kernel, sigma)


def test_clusters_of_another_number_are_refused() -> None:
    other = Clusters(np.arange(6), np.arange(8), (2, 4))
    with pytest.raises(ValueError, match=r"given are \(2, 4\), not \(3, 2\)"):
        bicluster(np.ones((8, 6, 3)), None, (3, 2), 1, clusters=other)
