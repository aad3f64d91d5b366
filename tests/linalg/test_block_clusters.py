from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_lowrank.linalg.block_clusters import Clusters, find_clusters
from tests.support import Array, quick, rng


def runs(order: npt.NDArray[np.intp], count: int) -> set[frozenset[int]]:
    return {frozenset(part.tolist()) for part in np.split(order, count)}


def planted(seed: int) -> tuple[Array, Clusters]:
    """Blocks of ranks (1, 2), three clusters of inputs by two of outputs."""
    random = rng(seed)
    clusters = Clusters(random.permutation(12), random.permutation(16), (3, 2))
    kernel = np.zeros((16, 12, 4))
    for rows in np.split(clusters.outputs, 2):
        for columns in np.split(clusters.inputs, 3):
            core = random.normal(size=(2, 1, 4))
            u, v = random.normal(size=(8, 2)), random.normal(size=(1, 4))
            kernel[np.ix_(rows, columns)] = np.einsum("np,pqt,qc->nct", u, core, v)
    return kernel, clusters


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("data", [False, True])
def test_planted_clusters_are_found(seed: int, noise: float, data: bool) -> None:
    kernel, wanted = planted(seed)
    kernel = kernel + noise * rng(seed, 1).normal(size=kernel.shape)
    sigma = None
    if data:  # each channel of its own variance, all taps correlated alike
        taps = 0.5 * np.eye(4) + 0.5
        sigma = np.kron(np.diag(rng(seed, 2).uniform(0.5, 2, size=12)), taps)
    found = find_clusters(kernel, sigma, (3, 2), (1, 2))
    assert runs(found.inputs, 3) == runs(wanted.inputs, 3)
    assert runs(found.outputs, 2) == runs(wanted.outputs, 2)


@pytest.mark.full
@quick(20)
@given(
    st.sampled_from([(8, 6, (2, 2)), (4, 12, (3, 4)), (6, 5, (1, 3))]),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.integers(1, 4),
    st.integers(0, 99),
)
def test_each_channel_is_there_once(
    layer: tuple[int, int, tuple[int, int]], ranks: tuple[int, int], starts: int, seed: int
) -> None:
    outputs, inputs, groups = layer
    kernel = rng(seed).normal(size=(outputs, inputs, 3))
    found = find_clusters(kernel, None, groups, ranks, starts, seed)
    assert sorted(found.inputs.tolist()) == list(range(inputs))
    assert sorted(found.outputs.tolist()) == list(range(outputs))
    assert found.groups == groups


def test_labels_make_runs() -> None:
    clusters = Clusters.of(np.array([1, 0, 1, 0]), np.array([0, 2, 1]), (2, 3))
    assert clusters.inputs.tolist() == [1, 3, 0, 2]
    assert clusters.outputs.tolist() == [0, 2, 1]
