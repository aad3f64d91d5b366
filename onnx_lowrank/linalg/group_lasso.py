"""Group lasso by accelerated proximal gradient descent (FISTA).

    M <- prox(A + (B - A R) / L),     prox: ||M_j|| shrinks by lam / L, to zero at most

with A ahead of M by its momentum, which restarts where it points uphill, and L the largest
eigenvalue of ``R``. The problem and the certificate are in
:mod:`onnx_lowrank.linalg.group_problem`, alternating minimisation in
:mod:`onnx_lowrank.linalg.group_lasso_reweighted`, the fast solver in
:mod:`onnx_lowrank.linalg.group_lasso_newton`.

Reference:
    Beck & Teboulle 2009, A fast iterative shrinkage-thresholding algorithm; O'Donoghue & Candes
    2015, Adaptive restart for accelerated gradient schemes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse.linalg import eigsh

from onnx_lowrank.linalg.group_problem import TINY, GroupLasso, Problem, require_positive
from onnx_lowrank.linalg.groups import Consumer

__all__ = ["Fista", "fista"]

Array = npt.NDArray[np.floating[Any]]

#: number of steps between two computations of the certificate
_EVERY = 10

#: largest matrix whose eigenvalues are computed directly
_DENSE = 64


class Fista:
    """Accelerated proximal gradient steps, with restarts where momentum points uphill.

    Args:
        problem: problem to minimise.
        lam: weight of the penalty.
        X: first solution ``(d, k)``.
    """

    def __init__(self, problem: Problem, lam: float, X: Array) -> None:
        self.X, self._ahead, self._t = X, X, 1.0
        self._problem, self._lam = problem, lam
        self._lipschitz = max(_largest_eigenvalue(R) for R in problem.R)

    def run(self, steps: int) -> Array:
        """Take some more steps; return ``X``."""
        problem, lipschitz = self._problem, self._lipschitz
        for _ in range(steps):
            moved = self._ahead + (problem.cross - problem.product(self._ahead)) / lipschitz
            norms = problem.groups.norms(moved)
            # the proximal map: shrink the norm of each group by lam / L
            kept = np.maximum(norms - self._lam / lipschitz, 0.0)
            scale = np.divide(kept, norms, out=np.zeros_like(norms), where=norms > 0)
            moved *= problem.groups.spread(scale)
            change = moved - self.X
            if np.vdot(self._ahead - moved, change) > 0:
                self._t = 1.0
            following = (1 + np.sqrt(1 + 4 * self._t**2)) / 2
            self._ahead = moved + (self._t - 1) / following * change
            self.X, self._t = moved, following
        return self.X


def fista(
    consumers: Sequence[Consumer],
    lam: float,
    *,
    penalties: Array | None = None,
    start: Sequence[Array] | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = 20_000,
) -> GroupLasso:
    """Solve by accelerated proximal gradient descent.

    Args:
        consumers: the maps that read the groups.
        lam: weight of the penalty, positive.
        penalties: factors ``p (G,)`` of the groups' penalties, positive; equal by default.
        start: first ``M (N, d)`` of each consumer; zero by default.
        tolerance: certificate at which to stop.
        max_iterations: largest number of steps.

    Raises:
        ValueError: shapes do not fit together, or ``lam``, a weight or a penalty is not positive.
    """
    problem = Problem.of(consumers, penalties)
    require_positive(lam)
    run = Fista(problem, lam, problem.start(start))
    iterations, certificate = 0, np.inf
    while iterations < max_iterations and certificate > tolerance:
        steps = min(_EVERY, max_iterations - iterations)
        X = run.run(steps)
        iterations += steps
        certificate = problem.distance(problem.cross - problem.product(X), X, lam)
    return problem.result(run.X, lam, certificate, iterations, tolerance)


def _largest_eigenvalue(R: Array) -> float:
    """Upper bound of the largest eigenvalue; for large matrices at most a percent above it."""
    if len(R) <= _DENSE:
        largest = float(np.linalg.eigvalsh(R)[-1])
    else:
        start = np.random.default_rng(0).normal(size=len(R))
        values = eigsh(R, 1, v0=start, tol=1e-3, return_eigenvectors=False)
        largest = float(values[0]) * 1.01
    return max(largest, TINY)
