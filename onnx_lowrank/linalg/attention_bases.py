"""Bases in which the channels of an attention head can be left out one after the other.

*Queries and keys* count by their products ``q^T k`` alone. With second moments ``Q`` of the queries
and ``K`` of the keys, the keys' under the metric in which an error of a score reaches the output,

    Q^(1/2) K^(1/2) = U D V^T,    q' = D^(1/2) U^T Q^(-1/2) q,    k' = D^(1/2) V^T K^(-1/2) k

leave all products as they are, and of all approximations by r products that of the first r channels
has the least error, ``sum_(j > r) D_j^2`` (Eckart-Young). Both sides are equally large.

*Values* are mixed over positions before they are read, which commutes with any map of channels.
With the covariance ``C`` of the mixed values and ``G = W^T W`` of the layer that reads them

    C^(1/2) G C^(1/2) = U D^2 U^T,    v' = D^(1/2) U^T C^(-1/2) v,    W' = W C^(1/2) U D^(-1/2)

are the principal directions of the response, strongest first.

Reference:
    Eckart & Young 1936. Martens & Grosse 2015, Optimizing neural networks with Kronecker-factored
    approximate curvature (errors of scores as a product of two moments).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["score_bases", "value_basis"]

Array = npt.NDArray[np.floating[Any]]

#: least eigenvalue of a moment, in units of its mean: directions without data stay invertible
_LEAST = 1e-4
#: means up to this are those of a head that nothing reads, or that never varies
_NOTHING = float(np.finfo(np.float32).tiny)


def score_bases(queries: Array, keys: Array) -> tuple[Array, Array, Array]:
    """Bases of queries and keys, most important channel first.

    Args:
        queries: second moment ``(d, d)`` of the queries.
        keys: moment ``(d, d)`` of the keys under the metric of the scores' errors.

    Returns:
        ``Tq (d, d)`` and ``Tk (d, d)`` with ``Tq^T Tk = I``, and errors ``(d + 1,)`` of the scores
        by number of channels left.
    """
    (left, back), (right, forth) = _roots(queries), _roots(keys)
    u, singular, vt = np.linalg.svd(left @ right)
    scale = np.sqrt(singular)[:, None]
    errors = np.concatenate([np.cumsum(np.square(singular)[::-1])[::-1], [0.0]])
    return scale * (u.T @ back), scale * (vt @ forth), errors


def value_basis(gram: Array, covariance: Array) -> Array:
    """Basis ``(d, d)`` of the values, most important channel first.

    Args:
        gram: ``W^T W (d, d)`` of the layer that reads the mixed values.
        covariance: ``(d, d)`` of the mixed values.
    """
    root, inverse = _roots(covariance)
    energies, directions = np.linalg.eigh(root @ gram @ root)
    energies, directions = energies[::-1], directions[:, ::-1]
    mean = float(energies.mean())
    scale = np.maximum(energies, _LEAST * mean if mean > _NOTHING else 1.0) ** 0.25
    basis: Array = scale[:, None] * (directions.T @ inverse)
    return basis


def _roots(moment: Array) -> tuple[Array, Array]:
    """Symmetric square root of a moment, and its inverse."""
    values, vectors = np.linalg.eigh((moment + moment.T) / 2)
    mean = float(np.trace(moment)) / len(moment)
    roots = np.sqrt(np.maximum(values, _LEAST * mean if mean > _NOTHING else 1.0))
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T
