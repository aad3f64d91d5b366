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

from onnx_lowrank.chain import Chain, Stage

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
        self.count = 0
        self.mean = np.zeros((groups, width))
        self._scatter = np.zeros((groups, width, width))

    def update(self, rows: Array) -> None:
        """Add rows ``(groups, n, d)``."""
        for start in range(0, rows.shape[1], self.CHUNK):
            self._merge(rows[:, start : start + self.CHUNK])

    def _merge(self, rows: Array) -> None:
        n = rows.shape[1]
        mean = rows.mean(axis=1, dtype=np.float64)
        shift = mean - self.mean
        total = self.count + n
        for g in range(len(rows)):
            centred = (rows[g] - mean[g]).astype(np.float32)
            self._scatter[g] += centred.T @ centred
            if self.count:
                self._scatter[g] += np.outer(shift[g], shift[g] * (self.count * n / total))
        self.mean += shift * (n / total)
        self.count = total

    def merge(self, other: Accumulator) -> Accumulator:
        """Both together, as a new one."""
        both = Accumulator(*self.mean.shape)
        both.count = self.count + other.count
        if not both.count:
            return both
        shift = other.mean - self.mean
        both.mean = self.mean + shift * (other.count / both.count)
        both._scatter = self._scatter + other._scatter
        factor = self.count * other.count / both.count
        both._scatter += factor * shift[:, :, None] * shift[:, None, :]
        return both

    def leading(self, width: int) -> Accumulator:
        """The first ``width`` columns alone, as a new one."""
        part = Accumulator(len(self.mean), width)
        part.count = self.count
        part.mean = self.mean[:, :width].copy()
        part._scatter = self._scatter[:, :width, :width].copy()
        return part

    @property
    def covariance(self) -> Array:
        """``(groups, d, d)``, as measured."""
        return self._scatter / max(self.count, 1)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """All there is to it, to be written down."""
        return {"count": np.array(self.count), "mean": self.mean, "scatter": self._scatter}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from a :meth:`state`.

        Raises:
            KeyError, ValueError: it is of another accumulator.
        """
        mean, scatter = state["mean"], state["scatter"]
        if mean.shape != self.mean.shape or scatter.shape != self._scatter.shape:
            raise ValueError(f"{scatter.shape} for {self._scatter.shape}")
        self.count, self.mean, self._scatter = int(state["count"]), mean, scatter

    def moments(self) -> Moments:
        """The moments, their covariance shrunk towards a multiple of the identity.

        Oracle approximating shrinkage: with fewer rows than columns the sample covariance has
        null directions that unseen data does not share.

        Reference:
            Chen, Wiesel, Eldar & Hero 2010, Shrinkage algorithms for MMSE covariance estimation.
        """
        covariance = self.covariance
        for g, s in enumerate(covariance):
            covariance[g] = _oas(s, self.count)
        if not covariance.any():
            return Moments()  # a constant input says nothing about the weights
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
        count = rows.shape[1]
        mean = rows.mean(axis=1, dtype=np.float64)
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
