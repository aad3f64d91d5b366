"""Oracle approximating shrinkage of a covariance towards a multiple of the identity.

With fewer rows than columns the sample covariance has null directions that unseen data does not
share.

Reference:
    Chen, Wiesel, Eldar & Hero 2010, Shrinkage algorithms for MMSE covariance estimation.
"""

from __future__ import annotations

__all__ = ["shrinkage"]


def shrinkage(trace: float, square: float, d: int, count: int) -> tuple[float, float]:
    """The weight ``rho`` of the identity, and what it is multiplied with.

    Args:
        trace: trace of the sample covariance ``(d, d)``.
        square: sum of the squares of its elements.
        d: number of columns.
        count: number of rows.
    """
    mu = trace / d
    numerator = (1 - 2 / d) * square + (mu * d) ** 2
    denominator = (count + 1 - 2 / d) * (square - mu**2 * d)
    # never below what keeps a Cholesky factor in float64 well defined
    rho = min(max(numerator / denominator, 1e-9), 1.0) if denominator > 0 else 1.0
    return rho, mu
