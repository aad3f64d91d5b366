"""Empirical variational Bayesian matrix factorization: the number of components above the noise.

Model: ``V = B A^T + E`` of shape ``(L, M)``, ``L <= M``, ``E`` of variance ``s2``, Gaussian priors
on the columns of ``A`` and ``B`` whose variances are estimated too. With ``alpha = L / M`` and the
singular values ``g_h``, put ``x_h = g_h^2 / (M s2)`` and

    tau(x) = (x - (1 + alpha) + sqrt((x - (1 + alpha))^2 - 4 alpha)) / 2
    psi(x) = x - log x,  and where component h is kept also
             log(1 + tau) + alpha log(1 + tau / alpha) - tau

A component is kept where the second line is negative, that is beyond the root ``tau*`` of it, or
``x* = (1 + tau*) (1 + alpha / tau*)``. Such a singular value is shrunk to

    (1 - (L + M) s2 / g^2 + sqrt((1 - (L + M) s2 / g^2)^2 - 4 L M s2^2 / g^4)) g / 2
        = g tau / x

The free energy is ``sum_h psi(x_h)`` up to constants, a function of ``s2`` alone, minimised on an
interval that contains its minimum.

Reference:
    Nakajima, Sugiyama, Babacan & Tomioka 2013, Global analytic solution of fully-observed
    variational Bayesian matrix factorization, JMLR 14; ranks of convolutions by it: Kim et al.
    2015.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize

__all__ = ["EVBMF", "evbmf"]

Array = npt.NDArray[np.floating[Any]]

#: number of noise variances tried before the minimisation, as there may be several local minima
_TRIALS = 200


@dataclass(frozen=True)
class EVBMF:
    """The solution.

    Attributes:
        rank: number of components that are kept.
        singular_values: ``(rank,)``, of the posterior mean: shrunk, falling.
        noise: variance ``s2`` of an element of the noise.
    """

    rank: int
    singular_values: Array
    noise: float


def evbmf(values: Array, shape: tuple[int, int] | None = None) -> EVBMF:
    """Global solution of empirical variational Bayesian matrix factorization.

    Args:
        values: a matrix; or, with ``shape``, its singular values in any order. If they are fewer
            than ``min(shape)``, the others are taken as zero.
        shape: shape of the matrix.

    Raises:
        ValueError: ``values`` is neither a matrix nor the singular values of one.
    """
    if shape is None:
        if values.ndim != 2:
            raise ValueError(f"the array has {values.ndim} axes; give a matrix, or its shape too")
        shape = (values.shape[0], values.shape[1])
        values = np.linalg.svd(values.astype(np.float64), compute_uv=False)
    rows, columns = min(shape), max(shape)
    if values.ndim != 1 or not 0 < len(values) <= rows:
        raise ValueError(f"{values.shape} are not the singular values of a matrix {shape}")
    values = np.sort(np.pad(values.astype(np.float64), (0, rows - len(values))))[::-1]
    scale = float(values[0])
    if scale == 0:
        return EVBMF(0, np.zeros(0), 0.0)
    squares = (values / scale) ** 2 / columns  # x_h = squares / s2
    alpha = rows / columns
    limit = _threshold(alpha)
    noise = _noise(squares, alpha, limit)
    kept = squares > limit * noise
    x = squares[kept] / noise
    return EVBMF(int(kept.sum()), values[kept] * _tau(x, alpha) / x, noise * scale**2)


def _noise(squares: Array, alpha: float, limit: float) -> float:
    """Variance that minimises the free energy, for falling ``g_h^2 / M``."""
    rows = len(squares)
    most = min(math.ceil(rows / (1 + alpha)), rows) - 1  # components, at the minimum
    upper = float(squares.mean())
    lower = max(float(squares[most]) / limit, float(squares[most:].mean()))
    # without noise the free energy has no minimum: stop at the precision of float64
    lower = min(max(lower, upper * np.finfo(np.float64).eps), upper)

    def energy(log_noise: float) -> float:
        x = squares / math.exp(log_noise)
        # sum of x - log x, without the part that does not depend on the noise
        return (
            float(x.sum()) + rows * log_noise + float(_gain(_tau(x[x > limit], alpha), alpha).sum())
        )

    low, high = math.log(lower), math.log(upper)
    grid = np.linspace(low, high, _TRIALS)
    # kinks, where a component appears, bound the local minima: put grid points there
    kinks = np.log(squares[squares > 0] / limit)
    grid = np.unique(np.concatenate([grid, kinks[(kinks > low) & (kinks < high)]]))
    return math.exp(_minimum(energy, grid))


def _minimum(function: Callable[[float], float], grid: Array) -> float:
    """Minimise ``function`` near the best point of a rising ``grid``."""
    tried = [function(float(t)) for t in grid]
    best = int(np.argmin(tried))
    low, high = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, len(grid) - 1)])
    if low == high:
        return low
    found = optimize.minimize_scalar(
        function, bounds=(low, high), method="bounded", options={"xatol": 1e-10}
    )
    return float(found.x) if float(found.fun) < tried[best] else float(grid[best])


def _tau(x: Array, alpha: float) -> Array:
    """The function ``tau(x)``, for ``x`` beyond ``(1 + sqrt(alpha))^2``."""
    centred = x - (1 + alpha)
    root: Array = (centred + np.sqrt(np.maximum(centred**2 - 4 * alpha, 0.0))) / 2
    return root


def _gain(tau: Array, alpha: float) -> Array:
    """Change of the free energy by keeping a component."""
    gain: Array = np.log1p(tau) + alpha * np.log1p(tau / alpha) - tau
    return gain


def _threshold(alpha: float) -> float:
    """Threshold ``x*``, below which components are dropped."""
    high = 4 * math.sqrt(alpha)
    while _gain(np.array(high), alpha) > 0:
        high *= 2
    tau = float(optimize.brentq(lambda t: float(_gain(np.array(t), alpha)), math.sqrt(alpha), high))
    return (1 + tau) * (1 + alpha / tau)
