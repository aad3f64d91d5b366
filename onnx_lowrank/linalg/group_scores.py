"""Which groups of inputs to keep: plain rankings; and least squares on what is kept.

The same inputs as the group lasso, ``R = E[x x^T]`` and ``B = E[y x^T]``. On given columns S the
best map, with a ridge ``rho`` in units of the mean diagonal of ``R``, and its error are

    M_S = B_S (R_SS + rho I)^-1
    E||Y - M_S X_S||^2 = E||Y||^2 - 2 tr(M_S B_S^T) + tr(M_S R_SS M_S^T)

Several consumers of the same groups are solved one by one, each with its own columns of the groups
kept (``Consumer.columns``).

Reference:
    Li et al. 2017, Pruning filters for efficient convnets (magnitude); He, Zhang & Sun 2017,
    Channel pruning for accelerating very deep neural networks (least squares after).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import linalg

from onnx_lowrank.linalg.groups import Groups

__all__ = [
    "debias",
    "energy_scores",
    "magnitude_scores",
    "random_scores",
    "reconstruction_error",
    "regularised",
    "top_groups",
]

Array = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.intp]


def debias(R: Array, B: Array, columns: Indices, ridge: float) -> Array:
    """``M_S (N, |S|)``, the least-squares map on these columns.

    Args:
        R: ``E[x x^T] (d, d)``.
        B: ``E[y x^T] (N, d)``.
        columns: S.
        ridge: in units of the mean diagonal of ``R``, all of it, whatever the columns.

    Raises:
        ValueError: a ridge below 0.
        numpy.linalg.LinAlgError: ``R_SS`` is singular; a ridge above 0 helps.
    """
    regular = regularised(R, ridge)[np.ix_(columns, columns)]
    factor = linalg.cho_factor(regular, lower=True, overwrite_a=True, check_finite=False)
    solution: Array = linalg.cho_solve(factor, B[:, columns].T, check_finite=False).T
    return np.ascontiguousarray(solution)


def reconstruction_error(
    R: Array, B: Array, weights: Array, columns: Indices, energy: float
) -> float:
    """``E||Y - M_S X_S||^2``.

    Exact for any weights; from moments, so accurate to about 1e-16 of ``energy``.

    Args:
        R: ``E[x x^T] (d, d)``.
        B: ``E[y x^T] (N, d)``.
        weights: ``M_S (N, |S|)``.
        columns: S.
        energy: ``E||Y||^2``.
    """
    fitted = weights @ R[np.ix_(columns, columns)]
    return max(energy + float(np.vdot(fitted - 2 * B[:, columns], weights)), 0.0)


def magnitude_scores(
    W: Array, widths: Sequence[int] | Indices, norm: Literal["l1", "l2"] = "l2"
) -> Array:
    """``(G,)``: norm of each group's block of the weights ``W (N, d)``."""
    groups = Groups.of(widths)
    if norm == "l2":
        return groups.norms(np.asarray(W, dtype=np.float64).T)
    return groups.sums(np.abs(W).sum(axis=0, dtype=np.float64))


def energy_scores(R: Array, widths: Sequence[int] | Indices) -> Array:
    """``(G,)``: mean square of each group's inputs, from the diagonal of ``R (d, d)``."""
    groups = Groups.of(widths)
    means: Array = groups.sums(np.diag(R).astype(np.float64)) / groups.widths[0]
    return means


def random_scores(widths: Sequence[int] | Indices, seed: int) -> Array:
    """``(G,)``: numbers without meaning."""
    return np.random.default_rng(seed).random(Groups.of(widths).count)


def top_groups(scores: Array, keep: int) -> Indices:
    """The ``keep`` highest, rising; of equal ones the first."""
    return np.sort(np.argsort(-scores, kind="stable")[:keep])


def regularised(R: Array, ridge: float) -> Array:
    """``R + rho I (d, d)``, ``rho`` in units of the mean diagonal.

    Raises:
        ValueError: a ridge below 0.
    """
    if ridge < 0:
        raise ValueError(f"ridge {ridge} must not be negative")
    regular = np.array(R, dtype=np.float64, order="C")
    regular[np.diag_indices(len(regular))] += ridge * float(np.trace(regular)) / len(regular)
    return regular
