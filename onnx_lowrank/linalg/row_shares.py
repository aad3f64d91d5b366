"""Shares of the rows of a table, from how often each was read: no row that may come is lost.

    p_v  =  max(n_v - D, 0) / n  +  r / V,       r = 1 - sum_v max(n_v - D, 0) / n

Of ``n`` readings, ``n_v`` of row v, each row gives up the discount ``D``, and what is given up is
shared out among all V rows alike. The discount is that of most likelihood where each reading in
turn is left out and foreseen from the others, ``D = n_1 / (n_1 + 2 n_2)`` with ``n_k`` the number
of rows that were read k times. So ``r`` is nearly the share ``n_1 / n`` of rows that were read
once, which is what Good and Turing expect of rows never seen. Where no row was read once, or all of
them, Laplace's rule of succession gives the least that a row never seen may come with,
``r >= 1 / (n + 1)``.

Reference:
    Ney, Essen & Kneser 1994, On structuring probabilistic dependences in stochastic language
    modelling; Good 1953, The population frequencies of species and the estimation of population
    parameters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["row_shares"]


def row_shares(counts: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float64]:
    """Shares ``(V,)`` of rows that were read ``counts (V,)`` times; all positive, of sum 1."""
    counts = np.asarray(counts, np.float64)
    total = float(counts.sum())
    if not total:
        return np.full(len(counts), 1 / len(counts))
    once, twice = (int(np.count_nonzero(counts == k)) for k in (1, 2))
    discount = once / (once + 2 * twice) if once else 0.0
    kept = np.maximum(counts - discount, 0) / total
    least = 1 / (total + 1)
    given = 1 - float(kept.sum())
    if given < least:
        kept *= (1 - least) / kept.sum()
        given = least
    shares: npt.NDArray[np.float64] = kept + given / len(counts)
    shares /= shares.sum()
    return shares
