"""Group lasso by alternating minimisation: ridge regressions reweighted by the groups' norms.

    ||M_j|| = min_eta (||M_j||^2 / eta + eta) / 2,      eta_j = sqrt(||M_j||^2 + eps)
    M = B (R + lam diag(1 / eta))^-1

in turn, ``eps`` falling towards 0. Each step lowers the objective for its ``eps``; no step size is
needed. Groups that leave only approach zero, the slower the nearer their residual correlation is to
``lam``; those for which zero is optimal given the others are reported as zero.

Reference:
    Daubechies, DeVore, Fornasier & Gunturk 2010, Iteratively reweighted least squares
    minimization for sparse recovery; Bach et al. 2012, Optimization with sparsity-inducing
    penalties, section 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.linalg import lapack
from onnx_lowrank.linalg.group_problem import TINY, GroupLasso, Problem, require_positive
from onnx_lowrank.linalg.groups import Consumer

__all__ = ["reweighted"]

Array = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.intp]

#: factor on eps in each iteration, and its smallest value relative to the first
_EPS_FALL, _EPS_FLOOR = 0.7, 1e-24


def reweighted(
    consumers: Sequence[Consumer],
    lam: float,
    *,
    penalties: Array | None = None,
    tolerance: float = 1e-4,
    max_iterations: int = 1000,
) -> GroupLasso:
    """Solve by alternating minimisation: ridge regressions, reweighted by the groups' norms.

    Args:
        consumers: the maps that read the groups.
        lam: weight of the penalty, positive.
        penalties: factors ``p (G,)`` of the groups' penalties, positive; equal by default.
        tolerance: certificate at which to stop.
        max_iterations: largest number of regressions.

    Raises:
        ValueError: shapes do not fit together, or ``lam``, a weight or a penalty is not positive.
    """
    problem = Problem.of(consumers, penalties)
    require_positive(lam)
    groups, cross = problem.groups, problem.cross
    # order of the norms if the inputs were white; gives eps its scale
    size = sum(float(np.trace(R)) for R in problem.R) / len(cross)
    typical = float(np.max(groups.norms(cross))) / max(size, TINY)
    eta = np.full(groups.count, max(typical, TINY))
    eps = first = typical**2
    kept, certificate, iterations = np.zeros_like(cross), np.inf, 0
    while iterations < max_iterations and certificate > tolerance:
        iterations += 1
        X = np.concatenate(
            [
                _ridge(R, lam / groups.spread(eta)[rows, 0], cross[rows])
                for R, rows in zip(problem.R, groups.rows, strict=True)
            ]
        )
        norms = groups.norms(X)
        kept = _without_zeros(problem, lam, X)
        certificate = problem.distance(cross - problem.product(kept), kept, lam)
        eps = max(eps * _EPS_FALL, first * _EPS_FLOOR)
        eta = np.maximum(np.sqrt(norms**2 + eps), TINY)
    return problem.result(kept, lam, certificate, iterations, tolerance)


def _ridge(R: Array, penalties: Array, cross: Array) -> Array:
    """Solve the ridge regression ``(R + diag(penalties))^-1 cross``."""
    return lapack.posv(R + np.diag(penalties), cross)


def _without_zeros(problem: Problem, lam: float, X: Array) -> Array:
    """``X`` with groups set to zero where that is their best value, given the others."""
    kept, residual = X.copy(), problem.cross - problem.product(X)
    for j in range(problem.groups.count):
        if problem.zero_is_best(j, residual, X, lam):
            kept[problem.groups.columns(np.array([j]))] = 0.0
    return kept
