"""Clusters of equal size: the assignment step, and k subspaces for a start.

A grouped convolution needs groups of equal size. Given the error of each of ``n`` items in each of
``k`` clusters, the best assignment with ``n / k`` items a cluster is a linear assignment problem:
each cluster offers ``n / k`` places of the same price.

:func:`cluster_subspaces` groups rows that lie near the same subspace of dimension ``q``. With
``Y = P D Q^T`` the matrix ``P_r P_r^T`` of the ``r = k q`` leading singular vectors is block
diagonal by cluster where the subspaces are independent and the rows lie in them (the *shape
interaction matrix*); its squares are affinities. The ``k`` leading eigenvectors of the normalised
affinities place the rows, k-means with equal sizes groups them; then each cluster's best subspace
and the assignment in turn, which never raises the sum of squared distances.

Reference:
    Costeira & Kanade 1998, A multibody factorization method for independently moving objects;
    Ng, Jordan & Weiss 2001, On spectral clustering; Bradley & Mangasarian 2000, k-plane
    clustering; Elhamifar & Vidal 2013; Denton et al. 2014.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

__all__ = ["assign_equally", "cluster_subspaces"]

Array = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.intp]

#: largest number of rounds of assignment and fit
_ROUNDS = 50


def assign_equally(errors: Array) -> Labels:
    """Assign items to clusters of equal size, at the smallest sum of errors.

    Args:
        errors: error of each item in each cluster, ``(n, k)``.

    Returns:
        Cluster of each item, ``(n,)``.

    Raises:
        ValueError: ``k`` does not divide ``n``.
    """
    items, clusters = errors.shape
    if items % clusters:
        raise ValueError(f"{items} items do not fall into {clusters} clusters of equal size")
    size = items // clusters
    places = linear_sum_assignment(np.repeat(errors, size, axis=1))[1]
    labels: Labels = places // size
    return labels


def cluster_subspaces(rows: Array, clusters: int, dimension: int, seed: int) -> Labels:
    """Find clusters of equal size whose rows are near subspaces of ``dimension``.

    Args:
        rows: ``(n, m)``.
        clusters: ``k``, a divisor of ``n``.
        dimension: ``q``; reduced below ``n / k``, as any ``n / k`` rows lie in a subspace of that
            dimension.
        seed: random seed of the k-means centres.

    Raises:
        ValueError: ``k`` does not divide ``n``.
    """
    count = len(rows)
    if count % clusters:
        raise ValueError(f"{count} items do not fall into {clusters} clusters of equal size")
    if clusters == 1:
        return np.zeros(count, dtype=np.intp)
    dimension = max(min(dimension, count // clusters - 1), 1)
    gram = rows @ rows.T
    leading = np.linalg.eigh(gram)[1][:, ::-1][:, : clusters * dimension]
    affinity = (leading @ leading.T) ** 2
    degree = np.sqrt(np.maximum(affinity.sum(axis=1), np.finfo(np.float64).tiny))
    placed = np.linalg.eigh(affinity / np.outer(degree, degree))[1][:, -clusters:]
    norms = np.linalg.norm(placed, axis=1, keepdims=True)
    labels = _equal_means(placed / np.where(norms > 0, norms, 1.0), clusters, seed)
    best = np.inf
    for _ in range(_ROUNDS):
        errors = _distances(gram, labels, clusters, dimension)
        moved = assign_equally(errors)
        total = float(errors[np.arange(count), moved].sum())
        if not total < best * (1 - 1e-9):
            break
        best, labels = total, moved
    return labels


def _distances(gram: Array, labels: Labels, clusters: int, dimension: int) -> Array:
    """Squared distances ``(n, k)`` of rows of this Gram matrix to the clusters' subspaces."""
    errors = np.repeat(np.diag(gram)[:, None], clusters, axis=1)
    for k in range(clusters):
        own = labels == k
        values, vectors = np.linalg.eigh(gram[np.ix_(own, own)])
        values, vectors = values[-dimension:], vectors[:, -dimension:]
        alive = values > max(values[-1], 0.0) * len(gram) * np.finfo(np.float64).eps
        # coordinates along the singular directions, (X^T v / s) . x
        along = gram[:, own] @ (vectors[:, alive] / np.sqrt(values[alive]))
        errors[:, k] -= np.sum(along**2, axis=1)
    return np.maximum(errors, 0.0)


def _equal_means(points: Array, clusters: int, seed: int) -> Labels:
    """k-means with equal sizes, from centres far apart."""
    rng = np.random.default_rng(seed)
    centres = points[[int(rng.integers(len(points)))]]
    while len(centres) < clusters:
        gaps = np.min(np.sum((points[:, None] - centres) ** 2, axis=2), axis=1)
        centres = np.concatenate([centres, points[[int(np.argmax(gaps))]]])
    labels: Labels = np.full(len(points), -1, dtype=np.intp)
    for _ in range(_ROUNDS):
        moved = assign_equally(np.sum((points[:, None] - centres) ** 2, axis=2))
        if np.array_equal(moved, labels):
            break
        labels = moved
        centres = np.stack([points[labels == k].mean(axis=0) for k in range(clusters)])
    return labels
