from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_lowrank.linalg.equal_clusters import assign_equally, cluster_subspaces
from tests.support import Array, quick, rng


def partition(labels: npt.NDArray[np.intp]) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(labels == k).tolist()) for k in np.unique(labels)}


@quick(30)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_no_equal_assignment_is_better(clusters: int, size: int, seed: int) -> None:
    if clusters * size > 7:
        size = 2
    items = clusters * size
    errors = rng(seed).normal(size=(items, clusters))
    labels = assign_equally(errors)
    assert np.bincount(labels, minlength=clusters).tolist() == [size] * clusters
    # oracle: every way to fill the places
    totals = [
        sum(errors[i, place // size] for i, place in enumerate(order))
        for order in itertools.permutations(range(items))
    ]
    assert abs(errors[np.arange(items), labels].sum() - min(totals)) < 1e-12


@pytest.mark.parametrize(
    ("clusters", "size", "dimension", "width"), [(2, 4, 1, 6), (3, 5, 2, 8), (4, 6, 3, 40)]
)
@pytest.mark.parametrize("seed", range(5))
def test_planted_subspaces_are_found(
    clusters: int, size: int, dimension: int, width: int, seed: int
) -> None:
    random = rng(seed, clusters)
    planted = random.permutation(np.arange(clusters * size) // size)
    bases = random.normal(size=(clusters, dimension, width))
    rows: Array = np.stack([random.normal(size=dimension) @ bases[k] for k in planted])
    assert partition(cluster_subspaces(rows, clusters, dimension, 0)) == partition(planted)


@quick(20)
@given(
    st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(1, 9), st.integers(0, 99)
)
def test_sizes_are_equal_whatever_the_rows(
    clusters: int, size: int, dimension: int, width: int, seed: int
) -> None:
    random = rng(seed)
    rows = random.normal(size=(clusters * size, width))
    rows[random.random(len(rows)) < 0.3] = 0.0
    labels = cluster_subspaces(rows, clusters, dimension, seed)
    assert np.bincount(labels, minlength=clusters).tolist() == [size] * clusters


def test_unequal_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="5 items do not fall into 2"):
        assign_equally(np.zeros((5, 2)))
    with pytest.raises(ValueError, match="5 items do not fall into 2"):
        cluster_subspaces(np.ones((5, 3)), 2, 1, 0)
