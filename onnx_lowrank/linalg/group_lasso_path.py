"""Group lasso for a given number of groups: a search for the penalty, or a walk down them.

The number of groups that are not zero rises as ``lam`` falls (with rare exceptions). Every solve
starts at the nearest known solution. Below 1e-4 of the penalty at which all groups are zero there
is almost no error left, and solves get slow; groups that have not entered by then are ranked by
their residual correlation.

After least squares on the support, backward elimination
(:mod:`onnx_lowrank.linalg.group_elimination`) nearly always left less error at the same count, and
is faster: on synthetic inputs the lasso's was 1 to 6 % higher with penalties ``1 / ||W_j||`` and 27
to 260 % higher with equal ones; on the pixels of digits it was about twice to seven times as high.

Reference:
    Yuan & Lin 2006; Friedman, Hastie & Tibshirani 2010, Regularization paths for generalized
    linear models via coordinate descent (warm starts); He, Zhang & Sun 2017 (the penalty raised
    until the number of channels is as wished).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.linalg.group_lasso import fista
from onnx_lowrank.linalg.group_lasso_newton import Solution
from onnx_lowrank.linalg.group_lasso_reweighted import reweighted
from onnx_lowrank.linalg.group_problem import TINY, GroupLasso, Problem
from onnx_lowrank.linalg.groups import Consumer, Groups

__all__ = ["SOLVERS", "path", "select_groups", "weight_penalties"]

Array = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.intp]

#: solvers that a walk may use; all reach the same optimum, the first by far the soonest
SOLVERS = ("newton", "fista", "reweighted")

#: smallest norm of a group's weights that counts, relative to the largest
_WEAKEST = 1e-6

#: smallest penalty tried, relative to the one at which all groups are zero
_LEAST = 1e-4

#: factor on the penalty while it is too high, and narrowest interval of its logarithm
_FALL, _NARROW = 0.7, 1e-4


def weight_penalties(consumers: Sequence[Consumer], weights: Sequence[Array]) -> Array:
    """Penalties ``p_j = 1 / sqrt(sum_c weight_c ||W_c,j||^2) (G,)``; finite for zero weights.

    Args:
        consumers: the maps that read the groups.
        weights: map ``W (N, d)`` of each consumer that is to be reproduced.
    """
    squares = [
        consumer.weight * Groups.of(consumer.widths).norms(np.asarray(W, dtype=np.float64).T) ** 2
        for consumer, W in zip(consumers, weights, strict=True)
    ]
    norms = np.sqrt(np.sum(squares, axis=0))
    penalties: Array = 1 / np.maximum(norms, max(_WEAKEST * float(norms.max()), TINY))
    return penalties


def select_groups(
    consumers: Sequence[Consumer],
    keep: int,
    *,
    penalties: Array | None = None,
    tolerance: float = 1e-3,
    max_searches: int = 12,
) -> GroupLasso:
    """Search for the penalty at which ``keep`` groups are not zero.

    Where there is none (ties, or inputs without information), the support has the largest groups
    of the solution with the fewest groups above ``keep``, by norm and then by residual
    correlation; weights and certificate are that solution's.

    Args:
        consumers: the maps that read the groups.
        keep: number of groups.
        penalties: factors ``p (G,)`` of the groups' penalties, positive; equal by default.
        tolerance: certificate of each solve.
        max_searches: largest number of penalties tried after one with ``keep`` groups or more.

    Raises:
        ValueError: shapes do not fit together, a weight or penalty is not positive, or ``keep`` is
            not between 1 and G.
    """
    problem = Problem.of(consumers, penalties)
    _require_counts([keep], problem.groups)
    above, best = _nothing(problem), None
    while best is None and above.lam > above.top * _LEAST:
        found = Solution(problem, above.lam * _FALL, above.X, tolerance)
        above, best = (found, None) if found.count < keep else (above, found)
    for _ in range(max_searches):
        if best is None or best.count == keep or math.log(above.lam / best.lam) < _NARROW:
            break
        # where the count should pass keep, drawn towards the middle of the interval
        part = 0.125 + 0.75 * (best.count - keep + 0.5) / (best.count - above.count + 1)
        start = best.X if part < 0.5 else above.X
        found = Solution(problem, best.lam * (above.lam / best.lam) ** part, start, tolerance)
        above, best = (found, best) if found.count < keep else (above, found)
    chosen = best or above
    return replace(chosen.result(tolerance), support=chosen.leading(keep))


def path(
    consumers: Sequence[Consumer],
    keeps: Sequence[int],
    *,
    penalties: Array | None = None,
    ratio: float = 0.85,
    tolerance: float = 1e-2,
    solver: str = "newton",
) -> list[Indices]:
    """Find supports of several sizes in one walk down the penalties.

    Each support has the largest groups, by norm, of the first solution with enough groups; a
    search for the penalty with exactly as many would cost several solves each. The supports need
    not be nested.

    Args:
        consumers: the maps that read the groups.
        keeps: numbers of groups, in any order; the number of all groups needs no solve.
        penalties: factors ``p (G,)`` of the groups' penalties, positive; equal by default.
        ratio: ratio of each penalty to the one before.
        tolerance: certificate of each solve.
        solver: one of :data:`SOLVERS`; those that are published are here to be compared with.

    Raises:
        ValueError: shapes do not fit together, a weight or penalty is not positive, a count is not
            between 1 and G, or there is no such solver.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver {solver!r}; it should be one of {', '.join(SOLVERS)}")
    problem = Problem.of(consumers, penalties)
    _require_counts(keeps, problem.groups)
    everything = problem.groups.count
    supports: dict[int, Indices] = {everything: np.arange(everything)}
    current = _nothing(problem)
    for keep in sorted(set(keeps) - {everything}):
        while current.count < keep and current.lam > current.top * _LEAST:
            lam, start = current.lam * ratio, current.X
            if solver != "newton":
                solve = fista if solver == "fista" else reweighted
                found = solve(consumers, lam, penalties=penalties, tolerance=tolerance)
                start = problem.start(found.weights)
            rounds = 30 if solver == "newton" else 0  # else it is solved already
            current = Solution(problem, lam, start, tolerance, rounds)
        supports[keep] = current.leading(keep)
    return [supports[keep] for keep in keeps]


def _nothing(problem: Problem) -> Solution:
    """The zero solution, at the smallest penalty where it is optimal."""
    lam = max(float(problem.groups.norms(problem.cross).max()), TINY)
    return Solution(problem, lam, np.zeros_like(problem.cross), np.inf, 0)


def _require_counts(keeps: Sequence[int], groups: Groups) -> None:
    count = groups.count
    for keep in keeps:
        if not 1 <= keep <= count:
            raise ValueError(f"keep is {keep}; it must be from 1 to the {count} groups there are")
