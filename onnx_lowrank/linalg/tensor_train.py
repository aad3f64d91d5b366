"""A matrix as a tensor train: a product of small cores over factors of its rows and columns.

    What[(a_1 ... a_d), (b_1 ... b_d)] = G_1[a_1, b_1] G_2[a_2, b_2] ... G_d[a_d, b_d]

``G_k (r_{k-1}, n_k, c_k, r_k)``, ``r_0 = r_d = 1``. With two cores that is a sum of Kronecker
products, ``r`` of them.

By the weights it is the TT-SVD (:mod:`onnx_lowrank.linalg.tensor_train_svd`), optimal with two
cores; more of them gain a little by alternating least squares.

By the response two trains are at hand and the better one is taken: that one, and the TT-SVD in
coordinates of unit marginal covariance. From there alternating least squares lower the error, by
as much as half in one round: :mod:`onnx_lowrank.linalg.tensor_train_als`.

A size that is not a product of balanced factors is padded by rows and columns of zeros; the error
is that of the rows and columns that exist.

Reference:
    Oseledets 2011, Tensor-train decomposition, SIAM J. Sci. Comput. 33; Novikov et al. 2015,
    Tensorizing neural networks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.linalg.tensor_train_als import TrainRegression, to_matrix
from onnx_lowrank.linalg.tensor_train_shapes import Contraction, capped_ranks, contraction
from onnx_lowrank.linalg.tensor_train_svd import TrainSvd

__all__ = ["TensorTrain", "TensorTrains", "apply_cores", "tensor_train"]

Array = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class TensorTrain:
    """A matrix as a tensor train.

    Attributes:
        cores: cores ``(r_{k-1}, n_k, c_k, r_k)``.
        shape: shape ``(N, C)`` of the matrix, without padding.
        error: error of the reconstruction, ``tr(D Sigma D^T)``.
        iterations: number of rounds of alternating least squares that were run.
        converged: whether the last round changed the error by less than the tolerance.
    """

    cores: tuple[Array, ...]
    shape: tuple[int, int]
    error: float
    iterations: int
    converged: bool

    @property
    def ranks(self) -> tuple[int, ...]:
        """Ranks ``(r_1, ..., r_{d-1})``."""
        return tuple(len(g) for g in self.cores[1:])

    @property
    def parameters(self) -> int:
        """Number of elements of all cores."""
        return sum(g.size for g in self.cores)

    @property
    def contraction(self) -> Contraction:
        """The cheaper order of applying the cores, its MACs and its intermediate sizes."""
        return contraction([(g.shape[0], g.shape[1], g.shape[2], g.shape[3]) for g in self.cores])

    def to_matrix(self) -> Array:
        """The matrix ``What (N, C)``."""
        rows, columns = self.shape
        return to_matrix(self.cores)[:rows, :columns]


class TensorTrains:
    """Trains of one matrix at all ranks.

    Args:
        weight: matrix ``(N, C)``.
        row_modes: sizes ``(n_1, ..., n_d)`` with a product of N or more.
        column_modes: sizes ``(c_1, ..., c_d)`` with a product of C or more.
        sigma: covariance ``(C, C)``, positive semi-definite; None is the identity.

    Attributes:
        energy: variance of the response, ``tr(W Sigma W^T)``.

    Raises:
        ValueError: the modes do not fit the matrix or one another.
    """

    def __init__(
        self,
        weight: Array,
        row_modes: Sequence[int],
        column_modes: Sequence[int],
        sigma: Array | None = None,
    ) -> None:
        self._modes = (tuple(row_modes), tuple(column_modes))
        rows, columns = math.prod(row_modes), math.prod(column_modes)
        if len(row_modes) != len(column_modes) or len(row_modes) < 2:
            raise ValueError(
                f"modes {self._modes} must be as many for rows as for columns, and two or more"
            )
        if rows < weight.shape[0] or columns < weight.shape[1]:
            raise ValueError(f"modes {self._modes} are too small for a matrix {weight.shape}")
        self._weight = weight.astype(np.float64)
        self._metric = None if sigma is None else sigma.astype(np.float64)
        self.energy = self._square(self._weight)
        short = columns - weight.shape[1]
        padded = np.pad(self._weight, [(0, rows - len(weight)), (0, short)])
        metric = None if self._metric is None else np.pad(self._metric, [(0, short), (0, short)])
        self._regression = TrainRegression(padded, metric, column_modes)
        self._padded = padded
        self._found: dict[tuple[int, ...], TensorTrain] = {}

    def ranks_within(self, epsilon: float) -> tuple[int, ...]:
        """Ranks of the TT-SVD that loses at most ``epsilon ||W||``; under ``sigma`` about that.

        Raises:
            ValueError: ``epsilon`` is negative.
        """
        if epsilon < 0:
            raise ValueError(f"epsilon is {epsilon}; it must not be negative")
        cores = self._split.cores(epsilon=epsilon)
        return tuple(len(g) for g in cores[1:])

    def error(self, ranks: int | Sequence[int]) -> float:
        """Error ``tr(D Sigma D^T)`` before any round, by two products with ``sigma`` at most.

        One round may halve it under ``sigma``; ``cut(ranks, 1).error`` is a better estimate.
        """
        return self._start(ranks).error

    def cut(
        self,
        ranks: int | Sequence[int],
        rounds: int = 0,
        tolerance: float = 1e-3,
        steps: int = 8,
    ) -> TensorTrain:
        """Compute the train of ``ranks``, which are capped at the largest useful ones.

        Args:
            ranks: ranks ``(r_1, ..., r_{d-1})``; one number stands for all.
            rounds: largest number of rounds of alternating least squares, which never raise the
                error.
            tolerance: relative change of the error at which to stop.
            steps: number of conjugate-gradient steps for a core too large to be solved at once.

        Raises:
            ValueError: a rank is below 1, or their number does not fit.
        """
        best = self._start(ranks)
        if self._metric is None and len(best.cores) == 2:
            return replace(best, converged=True)  # optimal already
        if rounds == 0:
            return best
        inside = self._regression.inside(best.cores)
        moved, done, converged = self._regression.improved(inside, rounds, tolerance, steps)
        # the rounds count padded rows and columns, which the error does not
        found = self._judged(self._regression.outside(moved))
        return replace(min(best, found, key=_error), iterations=done, converged=converged)

    def _start(self, ranks: int | Sequence[int]) -> TensorTrain:
        """The better of the two TT-SVDs."""
        capped = capped_ranks(*self._modes, ranks)
        if capped not in self._found:
            best = self._judged(self._plain.cores(capped))
            if self._metric is not None:
                other = self._judged(self._regression.outside(self._split.cores(capped)))
                best = min(best, other, key=_error)
            self._found = {capped: best}  # store one only, as trains may be large
        return self._found[capped]

    def _judged(self, cores: Sequence[Array]) -> TensorTrain:
        rows, columns = self._weight.shape
        error = self._square(self._weight - to_matrix(cores)[:rows, :columns])
        return TensorTrain(tuple(cores), (rows, columns), error, 0, False)

    def _square(self, matrix: Array) -> float:
        """The square ``tr(D Sigma D^T)`` of a matrix ``D``."""
        seen = matrix if self._metric is None else matrix @ self._metric
        return float(np.sum(seen * matrix))

    @cached_property
    def _plain(self) -> TrainSvd:
        return TrainSvd(self._padded, *self._modes)

    @cached_property
    def _split(self) -> TrainSvd:
        if self._metric is None:
            return self._plain
        return TrainSvd(self._regression.weight, *self._modes)


def tensor_train(
    weight: Array,
    row_modes: Sequence[int],
    column_modes: Sequence[int],
    ranks: int | Sequence[int],
    sigma: Array | None = None,
    rounds: int = 0,
) -> TensorTrain:
    """Compute one train of a matrix, as :class:`TensorTrains` does."""
    return TensorTrains(weight, row_modes, column_modes, sigma).cut(ranks, rounds)


def apply_cores(cores: Sequence[Array], rows: Array, from_left: bool = True) -> Array:
    """Compute ``rows What^T`` core after core.

    :mod:`onnx_lowrank.linalg.tensor_train_shapes` has the formulas.

    Args:
        cores: cores ``(r_{k-1}, n_k, c_k, r_k)``.
        rows: inputs ``(B, C)``, of the padded size.
        from_left: whether the first core is applied first.
    """
    count, state = len(rows), rows
    ahead, done = rows.shape[1], 1  # columns to come, rows made
    for core in cores if from_left else reversed(cores):
        before, n, c, after = core.shape
        ahead //= c
        if from_left:
            matrix = core.transpose(1, 3, 0, 2).reshape(n * after, before * c)
            state = matrix @ state.reshape(-1, before * c, ahead)
        else:
            state = core.reshape(before * n, c * after) @ state.reshape(-1, c * after, done)
            done *= n
    return state.reshape(count, -1)


def _error(train: TensorTrain) -> float:
    return train.error
