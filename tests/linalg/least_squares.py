"""Oracles for choices of groups: the best map on given columns, and its error."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.intp]


def debias(R: Array, B: Array, columns: Indices, ridge: float) -> Array:
    """``B_S (R_SS + rho I)^-1``, ``rho`` in units of the mean diagonal of all of ``R``."""
    rho = ridge * np.trace(R) / len(R)
    chosen = R[np.ix_(columns, columns)] + rho * np.eye(len(columns))
    solution: Array = np.linalg.solve(chosen, B[:, columns].T).T
    return solution


def reconstruction_error(
    R: Array, B: Array, weights: Array, columns: Indices, energy: float
) -> float:
    """``E||Y - M_S X_S||^2`` for ``M_S (N, |S|)``, ``energy`` being ``E||Y||^2``."""
    fitted = weights @ R[np.ix_(columns, columns)]
    return max(energy + float(np.vdot(fitted - 2 * B[:, columns], weights)), 0.0)


def top_groups(scores: Array, keep: int) -> Indices:
    """The ``keep`` highest, rising; of equal ones the first."""
    return np.sort(np.argsort(-scores, kind="stable")[:keep])
