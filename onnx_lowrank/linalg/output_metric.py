"""The metric of class scores: errors of outputs as a softmax behind them sees them.

Where ``p`` is the softmax of the scores, an error ``e`` of the scores costs

    KL(p || p_e)  =  1/2 e^T (diag p - p p^T) e  +  O(|e|^3)

so the error of a layer that makes scores is measured under ``M = E[diag p - p p^T]``. Here

    M = diag m - (1 - floor) m m^T,     m = (1 - lambda) E[p] + lambda / N

which is a diagonal and one direction, whatever the number ``N`` of classes. It is at least
``(1 - lambda) E[diag p - p p^T]`` (Jensen), hardly sees a shift of all scores, and ``floor`` keeps
an inverse.
``lambda`` gives weight to classes that the samples have not shown: it makes each half of the
samples as likely as can be under the mean of the other half (deleted interpolation).

    M = L^T L,     L = (I - (1 - sqrt floor) q q^T) diag(m)^(1/2),     q = m^(1/2)

A layer with ``L W`` in the place of ``W`` has its errors under ``M`` as its plain errors.

Reference:
    Jelinek & Mercer 1980, Interpolated estimation of Markov source parameters from sparse data;
    Amari 1998, Natural gradient works efficiently in learning (for M, the Fisher information).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["OutputMetric", "ResponseMetric", "interpolated"]

Array = npt.NDArray[np.floating[Any]]

#: weight of a shift of all scores, which no softmax sees, against that of differences
_FLOOR = 1e-4

#: halvings of the interval that lambda is in
_HALVINGS = 50


class ResponseMetric(Protocol):
    """A metric ``M = L^T L`` that errors of a layer's outputs are compared under."""

    def weighed(self, values: Array, axis: int) -> Array:
        """``L`` applied along an axis of ``values``."""
        ...

    def plain(self, values: Array, axis: int) -> Array:
        """The inverse of ``L`` applied along an axis of ``values``."""
        ...


@dataclass(frozen=True, eq=False)
class OutputMetric:
    """A metric ``M = L^T L`` of class scores; see the module.

    Attributes:
        shares: weights ``m (N,)`` of the classes, positive, of sum 1.

    Raises:
        ValueError: a weight is not positive, or the sum is not 1.
    """

    shares: Array

    def __post_init__(self) -> None:
        if not (np.all(self.shares > 0) and abs(float(self.shares.sum()) - 1) < 1e-6):
            raise ValueError("the weights of classes must be positive and have the sum 1")

    @property
    def matrix(self) -> Array:
        """``M (N, N)``, for small numbers of classes."""
        return np.diag(self.shares) - (1 - _FLOOR) * np.outer(self.shares, self.shares)

    def weighed(self, values: Array, axis: int) -> Array:
        """``L`` applied along an axis of ``values``."""
        root = _along(np.sqrt(self.shares), axis, values.ndim)
        scaled = values * root.astype(values.dtype)
        return self._shifted(scaled, axis, np.sqrt(_FLOOR) - 1)

    def plain(self, values: Array, axis: int) -> Array:
        """The inverse of ``L`` applied along an axis of ``values``."""
        root = _along(np.sqrt(self.shares), axis, values.ndim)
        return self._shifted(values, axis, 1 / np.sqrt(_FLOOR) - 1) / root.astype(values.dtype)

    def _shifted(self, values: Array, axis: int, factor: float) -> Array:
        """``(I + factor q q^T)`` applied along an axis."""
        root = np.sqrt(self.shares).astype(values.dtype)
        mean = np.expand_dims(np.tensordot(values, root, (axis, 0)), axis)
        moved: Array = values + values.dtype.type(factor) * mean * _along(root, axis, values.ndim)
        return moved


def interpolated(first: Array, second: Array, rows: int) -> Array:
    """Find weights ``m (N,)`` of classes from their mean probabilities in two halves of samples.

    Args:
        first: means ``(N,)`` over one half.
        second: means over the other half.
        rows: number of rows that the means are of.
    """
    classes = len(first)
    low, high = 1 / (rows + 1), 1.0  # as if one row more had been seen, of every class alike
    for _ in range(_HALVINGS):
        part = (low + high) / 2
        slope = sum(  # of the logarithm of the likelihood, which is concave
            float(np.sum(other * (1 / classes - mean) / ((1 - part) * mean + part / classes)))
            for mean, other in ((first, second), (second, first))
        )
        low, high = (part, high) if slope > 0 else (low, part)
    mixed = (1 - part) * (first + second) / 2 + part / classes
    shares: Array = mixed / mixed.sum()
    return shares


def _along(values: Array, axis: int, ndim: int) -> Array:
    return values.reshape([-1 if i == axis % ndim else 1 for i in range(ndim)])
