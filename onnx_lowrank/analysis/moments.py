"""Moments: all that the calibration data has to say about a layer's input.

    n,   mu = E[x],   Sigma = E[(x - mu)(x - mu)^T]

For a replacement ``What`` of ``W`` with the bias corrected to ``b + (W - What) mu`` they give the
exact relative response error

    eps(What) = tr((W - What) Sigma (W - What)^T) / tr(W Sigma W^T)

so that the data is read once and its memory does not grow with the number of samples. Without data
``Sigma = I`` and the same formula is the relative error of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.chains.chain import Chain, Stage

__all__ = [
    "Accumulator",
    "Moments",
    "Spread",
    "corrected",
    "corrected_bias",
    "relative_error",
    "response_error",
]

Array = npt.NDArray[np.floating[Any]]

#: a spread that is less than this part of the mean is one of rounding, in float32 and after a layer
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Moments:
    """Moments of a layer's input patches, group by group.

    Attributes:
        count: rows behind them; 0 means that there was no data.
        mean: ``(groups, d)``, or None without data.
        covariance: ``(groups, d, d)``, or None for the identity.
    """

    count: int = 0
    mean: Array | None = None
    covariance: Array | None = None

    def sigma(self, group: int) -> Array | None:
        """Covariance ``(d, d)`` of one group; None is the identity."""
        return None if self.covariance is None else self.covariance[group]

    def energy(self, matrices: Array) -> float:
        """Variance of the response, ``tr(W Sigma W^T)``, of ``(groups, N / groups, d)``."""
        return response_error(matrices, self)

    @property
    def identity(self) -> Moments:
        """The weight-space metric."""
        return Moments()

    @property
    def bytes(self) -> int:
        """Memory held, in bytes."""
        return sum(a.nbytes for a in (self.mean, self.covariance) if a is not None)


class Accumulator:
    """Streams rows into moments: float32 products, float64 sums, merged by Chan's update.

    Args:
        groups: independent sets of columns.
        width: columns ``d`` of each.

    Reference:
        Chan, Golub & LeVeque 1983, Algorithms for computing the sample variance.
    """

    #: rows to a product: enough for BLAS, few enough for float32 sums
    CHUNK = 4096

    def __init__(self, groups: int, width: int) -> None:
        self._count = 0
        self._mean: Array = np.zeros((groups, width))
        self._sums: Array = np.zeros((groups, width, width))
        # rows that wait for a product worth adding to the sums; they take half of the sums' memory
        self._waiting: list[Array] = []
        self._enough = min(self.CHUNK, width)

    @property
    def count(self) -> int:
        """Rows seen."""
        return self._merged()._count

    @property
    def mean(self) -> Array:
        """``(groups, d)``."""
        return self._merged()._mean

    @property
    def _scatter(self) -> Array:
        """``(groups, d, d)``, the sum of centred squares."""
        return self._merged()._sums

    def update(self, rows: Array) -> None:
        """Add rows ``(groups, n, d)``."""
        self._waiting.append(rows)
        if sum(r.shape[1] for r in self._waiting) >= self._enough:
            self._merged()
        else:
            self._waiting[-1] = rows.copy()

    def _merged(self) -> Accumulator:
        """Itself, with nothing waiting."""
        if self._waiting:
            rows = self._rows_waiting()
            self._waiting = []
            for start in range(0, rows.shape[1], self.CHUNK):
                self._merge(rows[:, start : start + self.CHUNK])
        return self

    def _rows_waiting(self) -> Array:
        groups, width = self._mean.shape
        if not self._waiting:
            return np.zeros((groups, 0, width), np.float32)
        return self._waiting[0] if len(self._waiting) == 1 else np.concatenate(self._waiting, 1)

    def _merge(self, rows: Array) -> None:
        rows, mean = _finite(rows)
        n = rows.shape[1]
        if not n:
            return
        shift = mean - self._mean
        total = self._count + n
        for g in range(len(rows)):
            centred = (rows[g] - mean[g]).astype(np.float32)
            with np.errstate(over="ignore", invalid="ignore"):  # see `says_nothing`
                self._sums[g] += centred.T @ centred
            if self._count:
                self._sums[g] += np.outer(shift[g], shift[g] * (self._count * n / total))
        self._mean += shift * (n / total)
        self._count = total

    def merge(self, other: Accumulator) -> Accumulator:
        """Both together, as a new one."""
        both = Accumulator(*self.mean.shape)
        both._count = self.count + other.count
        if not both._count:
            return both
        shift = other.mean - self.mean
        both._mean = self.mean + shift * (other.count / both._count)
        both._sums = self._scatter + other._scatter
        factor = self.count * other.count / both._count
        both._sums += factor * shift[:, :, None] * shift[:, None, :]
        return both

    def leading(self, width: int) -> Accumulator:
        """The first ``width`` columns alone, as a new one."""
        part = Accumulator(len(self.mean), width)
        part._count = self.count
        part._mean = self.mean[:, :width].copy()
        part._sums = self._scatter[:, :width, :width].copy()
        return part

    @property
    def covariance(self) -> Array:
        """``(groups, d, d)``, as measured."""
        return self._scatter / max(self.count, 1)

    def says_nothing(self, width: int | None = None) -> bool:
        """Whether all rows are alike but for the rounding of float32, or their squares no numbers.

        Weights that are fitted to such rows are fitted to noise.

        Args:
            width: look at so many columns, the first; None for all.
        """
        scatter, mean = self._scatter[:, :width, :width], self.mean[:, :width]
        spread = float(np.trace(scatter, axis1=1, axis2=2).sum()) / max(self.count, 1)
        size = float(np.sum(np.square(mean)))
        return not (np.isfinite(scatter).all() and spread > _ROUNDING**2 * size)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """All there is to it, to be written down; what waits goes on waiting."""
        return {
            "count": np.array(self._count),
            "mean": self._mean,
            "scatter": self._sums,
            "waiting": self._rows_waiting(),
        }

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from a :meth:`state`.

        Raises:
            KeyError, ValueError: it is of another accumulator.
        """
        mean, scatter, waiting = state["mean"], state["scatter"], state["waiting"]
        if mean.shape != self._mean.shape or scatter.shape != self._sums.shape:
            raise ValueError(f"{scatter.shape} for {self._sums.shape}")
        if waiting.ndim != 3 or waiting.sum(axis=1).shape != mean.shape:
            raise ValueError(f"rows {waiting.shape} for {mean.shape}")
        self._count, self._mean, self._sums = int(state["count"]), mean, scatter
        self._waiting = [waiting] if waiting.shape[1] else []

    def moments(self) -> Moments:
        """The moments, their covariance shrunk towards a multiple of the identity.

        Oracle approximating shrinkage: with fewer rows than columns the sample covariance has
        null directions that unseen data does not share.

        Reference:
            Chen, Wiesel, Eldar & Hero 2010, Shrinkage algorithms for MMSE covariance estimation.

        Returns:
            Moments without a covariance where the input says nothing about the weights: it is
            constant, or so large that its squares are no numbers.
        """
        if self.says_nothing():
            return Moments(self.count, self.mean.copy() if self.count else None, None)
        covariance = self.covariance
        for g, s in enumerate(covariance):
            covariance[g] = _oas(s, self.count)
        silent = ~covariance.any(axis=(1, 2))
        if silent.any():  # such a group must keep its weights, at the least weight in the sum
            trace = np.trace(covariance[~silent], axis1=1, axis2=2).mean()
            covariance[silent] = np.eye(covariance.shape[1]) * (1e-6 * trace / len(covariance[0]))
        return Moments(self.count, self.mean.copy(), covariance)


class Spread:
    """Streams rows into their total variance."""

    def __init__(self) -> None:
        self._count = 0
        self._mean: Array | float = 0.0
        self._square = 0.0

    def update(self, rows: Array) -> None:
        """Add rows ``(groups, n, N / groups)``."""
        rows, mean = _finite(rows)
        count = rows.shape[1]
        if not count:
            return
        centred = rows - mean[:, None]
        shift = mean - self._mean
        total = self._count + count
        self._square += float(np.sum(np.square(centred), dtype=np.float64))
        self._square += float(np.sum(shift**2)) * self._count * count / total
        self._mean = self._mean + shift * (count / total)
        self._count = total

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """All there is to it, to be written down."""
        return {k: np.array(v) for k, v in vars(self).items()}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from a :meth:`state`.

        Raises:
            KeyError: it is of something else.
        """
        self._count, self._square = int(state["_count"]), float(state["_square"])
        self._mean = state["_mean"]

    @property
    def variance(self) -> float:
        """Summed over channels."""
        return self._square / max(self._count, 1)


def _finite(rows: Array) -> tuple[Array, Array]:
    """The rows ``(groups, n, d)`` that hold neither NaN nor Inf in any group, and their means."""
    if rows.shape[1]:
        with np.errstate(invalid="ignore"):
            mean = rows.mean(axis=1, dtype=np.float64)
        if np.isfinite(mean).all():
            return rows, mean
        rows = rows[:, np.isfinite(rows).all(axis=(0, 2))]
    return rows, rows.sum(axis=1, dtype=np.float64) / max(rows.shape[1], 1)


def response_error(difference: Array, moments: Moments) -> float:
    """``tr(D Sigma D^T)`` summed over groups.

    Args:
        difference: ``(groups, N / groups, d)``.
        moments: of the input.
    """
    if moments.covariance is None:
        return float(np.sum(np.square(difference)))
    return float(np.sum((difference @ moments.covariance) * difference))


def relative_error(stage: Stage, chain: Chain, moments: Moments) -> float:
    """``eps`` of a chain in the place of ``stage``, its bias corrected; see the module."""
    weight = stage.matrices
    energy = response_error(weight, moments)
    difference = weight - chain.dense(stage.groups).reshape(weight.shape)
    return response_error(difference, moments) / energy if energy > 0 else 0.0


def corrected_bias(stage: Stage, matrices: Array, moments: Moments) -> Array | None:
    """``b + (W - What) mu``: what the mean response loses comes back by the bias.

    Args:
        stage: the layer as it is.
        matrices: ``What (groups, N / groups, d)``.
        moments: of its input; without a mean the bias stays as it is.
    """
    if moments.mean is None:
        return stage.bias
    shift: Array = np.einsum("gnd,gd->gn", stage.matrices - matrices, moments.mean).reshape(-1)
    return shift if stage.bias is None else stage.bias + shift


def corrected(stage: Stage, chain: Chain, moments: Moments) -> Chain:
    """``chain``, its bias such that it answers to the mean input what ``stage`` did."""
    matrices = chain.dense(stage.groups).reshape(stage.matrices.shape)
    return chain.with_bias(corrected_bias(stage, matrices, moments))


def _oas(sample: Array, count: int) -> Array:
    d = len(sample)
    mu = np.trace(sample) / d
    square = float(np.sum(np.square(sample)))
    numerator = (1 - 2 / d) * square + (mu * d) ** 2
    denominator = (count + 1 - 2 / d) * (square - mu**2 * d)
    # never below what keeps a Cholesky factor in float64 well defined
    rho = min(max(numerator / denominator, 1e-9), 1.0) if denominator > 0 else 1.0
    shrunk = (1 - rho) * sample
    shrunk[np.diag_indices(d)] += rho * mu
    return shrunk
