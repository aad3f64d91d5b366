"""A kernel as R rank-one terms that fit its responses rather than its weights.

    What[n, a, b, ...] = sum_r B[n, r] U[r, a] V[r, b] ...,    min tr((W - What) Sigma (W - What)^T)

The terms' input factors ``U, V, ...`` come from alternating least squares on the weights
(:mod:`onnx_lowrank.linalg.cp`), the channels under a power ``S^p`` of their marginal covariance
``S = sum_s Sigma[(., s), (., s)]``, and are brought back afterwards. Then

    B = W Sigma Z^T (Z Sigma Z^T)^-1,      z_r = <u_r (x) v_r (x) ..., x>

is the exact regression of the responses on the R features. On trained networks few terms favour
``p = 1``, many the weights as they are, ``p = 0``; ``p = 1/2`` is near the better of the two at
every rank. Where several are asked for the best is kept. From there each input factor by conjugate
gradients and ``B`` exactly, in turn, take another 3 to 10 % of the error in one round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from onnx_lowrank.lazily import lazy
from onnx_lowrank.linalg import lapack
from onnx_lowrank.linalg.conjugate_gradients import (
    STEPS,
    Single,
    conjugate_gradients,
    damped_inverse,
    near_product,
    single_of,
)
from onnx_lowrank.linalg.cp import CpResult, CpTensor
from onnx_lowrank.linalg.patch_metric import PatchMetric
from onnx_lowrank.linalg.phase_covariance import Covariance, PhaseCovariance

__all__ = ["CpProblem", "CpRegression", "Refinement", "Search", "Terms", "outer_rows"]

Array = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Terms:
    """Terms of one group's kernel.

    Attributes:
        rows: rows ``(R, I)`` of each input mode, channels first.
        last: map ``(N, R)`` from features to outputs.
    """

    rows: tuple[Array, ...]
    last: Array

    def factors(self, there: Array | None) -> list[Array]:
        """Factors ``(I, R)`` of each mode, outputs first; ``there`` is applied to channels."""
        channels, *rest = self.rows
        turned = channels if there is None else channels @ there
        return [self.last, turned.T, *(row.T for row in rest)]


@dataclass(frozen=True)
class CpRegression(Terms):
    """Terms with unit rows that were fitted, and what they leave.

    Attributes:
        error: error of the reconstruction, ``tr(D Sigma D^T)``.
    """

    error: float


class _Turns(NamedTuple):
    """Matrices ``(C, C)`` that rows of channels are multiplied by.

    Attributes:
        there: into the coordinates of a start.
        back: out of them.
    """

    there: Array
    back: Array


@dataclass(frozen=True)
class Search:
    """How terms are looked for in the weights, by alternating least squares.

    Attributes:
        starts: number of starts.
        seed: random seed of the starts.
        sweeps: largest number of sweeps of the terms that are taken.
        powers: powers of the channels' covariance, each giving another start, of which all but the
            best end after half of the sweeps; ignored without a covariance.
    """

    starts: int
    seed: int
    sweeps: int
    powers: Sequence[float] = (0.0, 0.5)


@dataclass(frozen=True)
class Refinement:
    """How terms are improved under the covariance.

    Attributes:
        rounds: number of rounds.
        steps: number of conjugate-gradient steps for each input factor, in a round.
    """

    rounds: int = 0
    steps: int = STEPS


_NONE = Refinement()

#: relative change by one sweep at which to stop
_TOLERANCE = 1e-4


class _Found(NamedTuple):
    """Terms that alternating least squares ended at, and what the responses make of them.

    Attributes:
        power: of the channels' covariance.
        terms: in the coordinates of that start.
        regression: in those of the kernel.
    """

    power: float
    terms: CpResult
    regression: CpRegression


class CpProblem:
    """One group's kernel, to be written with any number of terms; what all numbers need is shared.

    Args:
        kernel: ``(N, C, I_2, ...)``.
        sigma: covariance ``(d, d)`` of the flattened patch, positive definite; None is the
            identity.
    """

    def __init__(self, kernel: Array, sigma: Covariance | None) -> None:
        self._kernel, self._sigma = kernel, sigma
        self._weight: Array = kernel.reshape(len(kernel), -1)
        self._starts: dict[float, tuple[CpTensor, _Turns | None]] = {}
        self._marginals: dict[int, Array] = {}
        self._inverses: dict[int, Array] = {}

    @lazy
    def _weighted(self) -> Array:
        """``W Sigma (N, d)``."""
        return self._seen(self._weight)

    def solve(
        self,
        rank: int,
        search: Search,
        refinement: Refinement = _NONE,
        near: Terms | None = None,
    ) -> CpRegression:
        """Write the kernel with ``rank`` terms.

        Args:
            rank: number of terms.
            search: how they are looked for.
            refinement: how they are improved afterwards, where there is a covariance.
            near: terms of any number to start from: of a similar kernel, or of this one.
        """
        powers = (0.0,) if self._sigma is None else tuple(search.powers)
        # half of the sweeps tell which start is the best, and the others improve that alone
        each = -(-search.sweeps // min(len(powers), 2))
        found = [self._fitted(rank, power, search, each, near) for power in powers]
        if each < search.sweeps:
            first = min(found, key=lambda f: f.regression.error)
            if not first.terms.converged:
                found.append(self._continued(first, search, search.sweeps - each))
        tried = [f.regression for f in found]
        if near is not None and near.last.shape[1] == rank:
            tried.append(self._regressed(near.rows))
        best = min(tried, key=lambda regression: regression.error)
        return best if self._sigma is None else self._refined(best, refinement)

    def _fitted(
        self, rank: int, power: float, search: Search, sweeps: int, near: Terms | None
    ) -> _Found:
        """Terms of the kernel with its channels under a power of their covariance."""
        tensor, turns = self._start(power)
        terms = tensor.fitted(
            rank,
            starts=search.starts,
            seed=search.seed,
            tolerance=_TOLERANCE,
            max_iterations=sweeps,
            near=None if near is None else near.factors(turns and turns.there),
        )
        return _Found(power, terms, self._regressed(_turned_back(terms, turns)))

    def _continued(self, found: _Found, search: Search, sweeps: int) -> _Found:
        """The same after more sweeps."""
        tensor, turns = self._start(found.power)
        first, *rest = found.terms.factors
        terms = tensor.fitted(
            len(found.terms.weights),
            seed=search.seed,
            tolerance=_TOLERANCE,
            max_iterations=sweeps,
            near=[first * found.terms.weights, *rest],
        )
        return _Found(found.power, terms, self._regressed(_turned_back(terms, turns)))

    def solve_from(self, rows: Sequence[Array], refinement: Refinement) -> CpRegression:
        """Write the kernel with terms near to given ones.

        Args:
            rows: rows ``(R, I)`` of each input mode, channels first, of a similar kernel.
            refinement: how they are improved.
        """
        return self._refined(self._regressed(rows), refinement)

    def _refined(self, best: CpRegression, refinement: Refinement) -> CpRegression:
        """Lower the error in the factors in turn, as long as it falls."""
        for _ in range(refinement.rounds):
            rows = list(best.rows)
            for mode in range(len(rows)):
                rows[mode] = self._improved(rows, best.last, mode, refinement.steps)
            found = self._regressed(rows)
            if found.error >= best.error:
                break
            best = found
        return best

    def _seen(self, rows: Array) -> Array:
        """Rows ``(n, d)`` times ``Sigma``."""
        return rows if self._sigma is None else rows @ self._sigma

    def _regressed(self, rows: Sequence[Array]) -> CpRegression:
        norms = [np.linalg.norm(r, axis=1, keepdims=True) for r in rows]
        unit = tuple(r / np.where(n > 0, n, 1.0) for r, n in zip(rows, norms, strict=True))
        features = outer_rows(unit)
        seen = self._seen(features)
        gram = seen @ features.T
        # terms that nearly cancel leave the Gram matrix singular to float64
        gram[np.diag_indices(len(gram))] += max(1e-13 * np.trace(gram), np.finfo(np.float64).tiny)
        last = lapack.posv(gram, features @ self._weighted.T).T
        left, left_seen = self._weight - last @ features, self._weighted - last @ seen
        return CpRegression(unit, last, float(np.sum(left_seen * left)))

    def _improved(self, rows: Sequence[Array], last: Array, mode: int, steps: int) -> Array:
        """Lower the error by conjugate gradients in the rows of one input mode."""
        gram = last.T @ last
        letters = "abcdefgh"[: len(rows)]
        others = [m for m in range(len(rows)) if m != mode]
        equation = ",".join(["r" + letters, *("r" + letters[m] for m in others)])
        equation += "->r" + letters[mode]
        operands = [rows[m] for m in others]
        shape = [r.shape[1] for r in rows]

        def contracted(gradient: Array) -> Array:
            # einsum is fastest with one operand at a time
            parts = [o.astype(gradient.dtype, copy=False) for o in operands]
            result: Array = np.einsum(
                equation, gradient.reshape(-1, *shape), *parts, optimize=len(operands) > 1
            )
            return result

        def normal(v: Array, gram: Array = gram, sigma: Covariance | None = self._sigma) -> Array:
            parts = [v if m == mode else r.astype(v.dtype) for m, r in enumerate(rows)]
            terms = outer_rows(parts)
            return contracted(gram @ (terms if sigma is None else terms @ sigma))

        target = contracted(last.T @ self._weighted)
        single = None
        if self._sigma is not None:
            (small, one), (whole, other) = single_of(gram), self._single
            inverse = near_product(gram * self._alike(rows, mode), self._inverse(mode))
            single = Single(partial(normal, gram=small, sigma=whole), one * other, inverse)
        return conjugate_gradients(normal, target, rows[mode], steps, single)

    @staticmethod
    def _alike(rows: Sequence[Array], mode: int) -> Array:
        """Inner products ``(R, R)`` of what the terms have in all input modes but one."""
        found = np.ones(())
        for number, row in enumerate(rows):
            if number != mode:
                found = found * (row @ row.T)
        return found

    def _marginal(self, mode: int) -> Array:
        """The covariance of the positions of one input mode, summed over those of the others."""
        if mode not in self._marginals:  # each reorders the whole covariance
            assert self._sigma is not None
            metric = PatchMetric.of(self._sigma, self._kernel.shape[1:], (mode,))
            self._marginals[mode] = metric.marginal()
        return self._marginals[mode]

    def _inverse(self, mode: int) -> Array:
        """The damped inverse of :meth:`_marginal`."""
        if mode not in self._inverses:
            self._inverses[mode] = damped_inverse(self._marginal(mode))
        return self._inverses[mode]

    @lazy
    def _single(self) -> tuple[Covariance, float]:
        """``Sigma`` in float32, and what it is divided by."""
        if isinstance(self._sigma, PhaseCovariance):
            return self._sigma.single()
        assert self._sigma is not None
        return single_of(self._sigma)

    def _start(self, power: float) -> tuple[CpTensor, _Turns | None]:
        """The kernel with its channels under ``L``, and ``L`` and ``L^-1`` for their rows.

        ``L L^T = S^power``, where ``S (C, C)`` sums over kernel positions; None where ``L = I``.
        """
        if power not in self._starts:
            self._starts[power] = self._rotated(power)
        return self._starts[power]

    def _rotated(self, power: float) -> tuple[CpTensor, _Turns | None]:
        # terms only start from what is found here: float32 will do
        if power == 0 or self._sigma is None:
            return CpTensor(self._kernel.astype(np.float32)), None
        values, vectors = np.linalg.eigh(self._marginal(0))
        scale = np.maximum(values, 1e-9 * values[-1]) ** (power / 2)
        turns = _Turns(vectors * scale, (vectors / scale).T)
        rotated = np.moveaxis(np.tensordot(self._kernel, turns.there, (1, 0)), -1, 1)
        return CpTensor(rotated.astype(np.float32)), turns


def _turned_back(terms: CpResult, turns: _Turns | None) -> list[Array]:
    """Rows ``(R, I)`` of each input mode, in the coordinates of the kernel."""
    channels, *rest = (f.T for f in terms.factors[1:])
    return [channels if turns is None else channels @ turns.back, *rest]


def outer_rows(rows: Sequence[Array]) -> Array:
    """Input kernels ``(R, d)`` of the terms: the outer product of each term's factors."""
    product = rows[0]
    for other in rows[1:]:
        product = (product[:, :, None] * other[:, None]).reshape(len(product), -1)
    return product
