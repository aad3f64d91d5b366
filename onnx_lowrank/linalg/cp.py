"""Canonical polyadic decomposition: a tensor as a sum of R rank-one terms.

    That = sum_r weight_r  u1_r (x) u2_r (x) ... (x) ud_r,        ||u_r|| = 1

by alternating least squares on the penalised objective (``||T|| = 1`` inside)

    f = ||T - That||^2 + ridge * sum_r weight_r^2

A best approximation of rank R need not exist: terms may grow without bound and cancel each other
(de Silva & Lim 2008). The penalty forbids that, for ``ridge * weight_r^2 <= f <= f_start``. With
the columns of all other modes at unit length the norm of a column is the weight of its term, so the
penalty is the ridge of an ordinary regression and each step minimises ``f`` exactly: it never
rises. The limit depends on the start; several are tried and the best is kept. A sweep
starts a little ahead, along the last change; where ``f`` would rise by it, it is taken back.

Starts: the first rotates all modes but the two largest onto their singular vectors (HOSVD) and
takes the R largest singular triples of all slices together: exact where R is large enough for
all of them. The other starts, and terms that the first one lacks, are random. Where terms of a
similar tensor or of another rank are known, they are the only start, and triples of what they leave
fill it up: half of the sweeps lead as far then.

Reference:
    Carroll & Chang 1970; Harshman 1970; Kolda & Bader 2009, Tensor decompositions and applications;
    Lebedev et al. 2014; Ang, Cohen & Gillis 2020, Accelerating approximate nonnegative canonical
    polyadic decomposition using extrapolation; Phan et al. 2019, Error preserving correction, for
    the bound on the terms.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.lazily import lazy
from onnx_lowrank.linalg import lapack
from onnx_lowrank.linalg.blas_threads import limited_blas

__all__ = ["CpResult", "CpTensor", "cp_compose"]

Array = npt.NDArray[np.floating[Any]]

#: least ridge: keeps the normal equations solvable in float64
_FLOOR = 1e-12

#: squared relative error below which a fit is exact, up to what float64 can tell
_EXACT = 1e-15

#: part of the last change by which a sweep starts ahead: its first value, growth and largest value
_MOMENTUM = (0.5, 1.1, 2.0)


@dataclass(frozen=True)
class CpResult:
    """A sum of rank-one terms, with the history of the search.

    Attributes:
        factors: factors ``(I_n, R)`` of each mode, columns of unit length (zero for a dead term).
        weights: weights ``(R,)`` of the terms, not negative.
        error: relative error of the reconstruction, ``||T - That|| / ||T||``.
        iterations: number of sweeps over all modes of the start kept.
        converged: whether ``f`` came to rest before the limit on iterations.
        start: number of the start kept; 0 is the one from singular vectors.
        largest: largest weight over ``||T||``; far above 1 where terms cancel each other.
        history: ``f / ||T||^2`` after each sweep of the start kept.
    """

    factors: tuple[Array, ...]
    weights: Array
    error: float
    iterations: int
    converged: bool
    start: int
    largest: float
    history: tuple[float, ...]


class CpTensor:
    """A tensor that is approximated by rank-one terms, of any number.

    Args:
        tensor: ``(I_1, ..., I_d)``, two modes or more. Products with it are of its precision:
            where it is of float32, sweeps take two thirds of the time, and ``f`` is known to some
            1e-7; equations are solved in float64.

    Raises:
        ValueError: the tensor has fewer than two modes.
    """

    def __init__(self, tensor: Array) -> None:
        if tensor.ndim < 2:
            raise ValueError(f"the tensor has {tensor.ndim} modes; it needs 2 or more")
        self._tensor = tensor
        self._norm = float(np.linalg.norm(tensor))
        # the widest mode first: one product with it serves all others
        self._order = np.argsort([-n for n in tensor.shape], kind="stable")

    def fitted(
        self,
        rank: int,
        *,
        ridge: float = 1e-6,
        starts: int = 2,
        seed: int = 0,
        tolerance: float = 1e-6,
        max_iterations: int = 500,
        near: Sequence[Array] | None = None,
    ) -> CpResult:
        """Approximate the tensor by ``rank`` rank-one terms.

        Args:
            rank: number of terms.
            ridge: penalty on squared weights, in units of ``||T|| = 1``.
            starts: number of starts to try.
            seed: random seed of the starts.
            tolerance: relative change of ``f`` by one sweep at which to stop.
            max_iterations: largest number of sweeps of a start.
            near: factors ``(I_n, r)`` of each mode, of terms of any number and length to start
                from, instead of ``starts`` others; None where none are known.

        Raises:
            ValueError: ``rank`` or ``starts`` is below 1.
        """
        tensor, norm = self._tensor, self._norm
        if rank < 1 or starts < 1:
            raise ValueError(f"rank {rank} and starts {starts} must be 1 or more")
        if norm == 0:
            dead = tuple(np.zeros((n, rank)) for n in tensor.shape)
            return CpResult(dead, np.zeros(rank), 0.0, 0, True, 0, 0.0, ())
        best: tuple[float, int, _Run] | None = None
        with limited_blas(1):  # more slow systems of this size down
            for start in range(starts if near is None else 1):
                rows = _random(self._scaled.shape, rank, np.random.default_rng([seed, start]))
                if near is not None:
                    self._fill_from(rows, near)
                elif start == 0:
                    _fill(rows, 0, self._triples)
                run = _Run(self._scaled, rows, max(ridge, _FLOOR))
                run.iterate(tolerance, max_iterations)
                if best is None or run.history[-1] < best[0]:
                    best = (run.history[-1], start, run)
                if run.history[-1] <= run.ridge + _EXACT:
                    break  # no start can end lower than an exact fit with terms this small
        assert best is not None
        _, start, run = best
        factors = tuple(run.rows[n].T.copy() for n in np.argsort(self._order))
        weights = run.weights * norm
        return CpResult(
            factors,
            weights,
            float(np.linalg.norm(tensor - cp_compose(factors, weights))) / norm,
            len(run.history),
            run.converged,
            start,
            float(run.weights.max()),
            tuple(run.history),
        )

    @lazy
    def _scaled(self) -> Array:
        """The tensor at unit norm, its widest mode first."""
        kind = np.float32 if self._tensor.dtype == np.float32 else np.float64
        turned = np.ascontiguousarray(self._tensor.transpose(self._order))
        scaled: Array = (turned / self._norm).astype(kind)
        return scaled

    @lazy
    def _triples(self) -> list[Array]:
        """Singular triples of :attr:`_scaled`, of the first start."""
        return _singular_triples(self._scaled)

    def _fill_from(self, rows: list[Array], near: Sequence[Array]) -> None:
        """Start at the strongest of other terms, and at triples of what they leave."""
        terms = [_unit(near[n].T) for n in self._order]
        weights = np.prod([norms for _, norms in terms], axis=0)
        strongest = np.argsort(-weights, kind="stable")[: len(rows[0])]
        units = [unit[strongest] for unit, _ in terms]
        _fill(rows, 0, units)
        if len(strongest) < len(rows[0]):
            made = cp_compose([unit.T for unit in units], weights[strongest] / self._norm)
            _fill(rows, len(strongest), _singular_triples(self._scaled - made))


def _fill(rows: Sequence[Array], first: int, terms: Sequence[Array]) -> None:
    """Write terms into the rows ``(R, I)`` of each mode from ``first`` on, as many as fit."""
    for row, term in zip(rows, terms, strict=True):
        count = min(len(term), len(row) - first)
        row[first : first + count] = term[:count]


def _singular_triples(tensor: Array) -> list[Array]:
    """Rows ``(S, I)`` of each mode: singular triples of all slices, the strongest first.

    The slices are those of the first two modes, in the singular bases of the thin ones.
    """
    first, second, *thin = tensor.shape
    core, bases = tensor, []
    for mode in range(2, core.ndim):
        flat = np.moveaxis(tensor, mode, 0).reshape(core.shape[mode], -1)
        bases.append(np.linalg.eigh(flat @ flat.T)[1])
        core = np.moveaxis(np.tensordot(core, bases[-1], (mode, 0)), -1, mode)
    slices = np.moveaxis(core.reshape(first, second, -1), -1, 0)
    u, s, vt = np.linalg.svd(slices, full_matrices=False)
    at, number = np.unravel_index(np.argsort(-s, axis=None, kind="stable"), s.shape)
    places = np.unravel_index(at, thin) if thin else ()
    others = [base[:, index].T for base, index in zip(bases, places, strict=True)]
    return [u[at, :, number], vt[at, number], *others]


def cp_compose(factors: Sequence[Array], weights: Array) -> Array:
    """Sum of the terms, a tensor ``(I_1, ..., I_d)``."""
    widest = int(np.argmax([len(f) for f in factors]))
    rest = [f for n, f in enumerate(factors) if n != widest]
    product = weights[None]
    for factor in rest:  # Khatri-Rao
        product = (product[:, None] * factor[None]).reshape(-1, factor.shape[1])
    flat = product @ factors[widest].T
    shaped = flat.reshape(*(len(f) for f in rest), len(factors[widest]))
    composed: Array = np.moveaxis(shaped, -1, widest)
    return composed


def _times(rows: Array, tensor: Array) -> Array:
    """Rows ``(R, I_0)`` times a tensor ``(I_0, I_1, ...)``, in the tensor's precision."""
    product: Array = rows.astype(tensor.dtype, copy=False) @ tensor.reshape(len(tensor), -1)
    return product.reshape(-1, *tensor.shape[1:])


class _Run:
    """Run from one start; ``rows`` has the columns of each mode as unit rows ``(R, I_n)``."""

    def __init__(self, tensor: Array, rows: list[Array], ridge: float) -> None:
        self.rows, self.ridge = rows, ridge
        self.weights: Array = np.ones(len(rows[0]))
        self.history: list[float] = []
        self.converged = False
        # its first mode in front of the others, and its second one
        self._unfolded = tensor, np.ascontiguousarray(np.moveaxis(tensor, 1, 0))
        self._grams = [r @ r.T for r in rows]

    def iterate(self, tolerance: float, limit: int) -> None:
        """Sweep until ``f`` rests."""
        self._solve(0, self._leading())
        before: list[Array] | None = None
        momentum = _MOMENTUM[0]
        for _ in range(limit):
            state = (self.rows, self.weights, self._grams)
            ahead = before is not None
            if before is not None:
                self._move(momentum, before)
            f = self._sweep()
            if ahead and f > self.history[-1]:  # too far: take it back, do not start ahead next
                self.rows, self.weights, self._grams = state
                self.history.append(self.history[-1])
                before, momentum = None, momentum / 2
                continue
            if ahead:
                momentum = min(momentum * _MOMENTUM[1], _MOMENTUM[2])
            before = state[0]
            self.history.append(f)
            if len(self.history) > 1:
                last, now = self.history[-2:]
                self.converged = last - now <= tolerance * last
            if self.converged or f <= _EXACT:
                self.converged = True
                return

    def _move(self, momentum: float, before: Sequence[Array]) -> None:
        """Go on along the last change, in all modes but the one that a sweep solves first."""
        self.rows, self._grams = list(self.rows), list(self._grams)
        for mode, (now, last) in enumerate(zip(self.rows, before, strict=True)):
            if mode != 1:
                rows = self.rows[mode] = _unit(now + momentum * (now - last))[0]
                self._grams[mode] = rows @ rows.T

    def _sweep(self) -> float:
        """Solve every mode once; return ``f``."""
        self.rows, self._grams = list(self.rows), list(self._grams)
        shared = _times(self.rows[0], self._unfolded[0])
        for mode in range(1, len(self.rows)):
            self._solve(mode, _reduced(shared, self.rows[1:], mode - 1))
        cross = self._leading()
        return self._objective(cross, self._solve(0, cross))

    def _leading(self) -> Array:
        """The tensor times the terms of all modes but the first, ``(R, I_0)``."""
        product = _times(self.rows[1], self._unfolded[1])
        return _reduced(product, [self.rows[0], *self.rows[2:]], 0)

    def _solve(self, mode: int, cross: Array) -> Array:
        """Minimise ``f`` over one mode; return the Gram matrix of the others."""
        gram = functools.reduce(np.multiply, (g for n, g in enumerate(self._grams) if n != mode))
        ridged = gram.copy()
        ridged.reshape(-1)[:: len(ridged) + 1] += self.ridge
        try:
            # the matrix is its own transpose, and need not be copied so
            solution = lapack.posv(ridged.T, cross)
        except np.linalg.LinAlgError as error:
            raise np.linalg.LinAlgError(
                "the terms of a decomposition cannot be told apart"
            ) from error
        self.rows[mode], self.weights = _unit(solution)
        self._grams[mode] = self.rows[mode] @ self.rows[mode].T
        return gram

    def _objective(self, cross: Array, gram: Array) -> float:
        """Objective ``f`` right after mode 0 was solved."""
        weights = self.weights
        inner = weights @ np.einsum("ri,ri->r", cross, self.rows[0])
        square = weights @ (gram * self._grams[0]) @ weights
        return max(float(1 - 2 * inner + square + self.ridge * (weights @ weights)), 0.0)


def _reduced(product: Array, rows: Sequence[Array], keep: int) -> Array:
    """Contract ``(R, I_0, I_1, ...)`` to ``(R, I_keep)``, every other mode with its rows."""
    for axis in reversed(range(len(rows))):
        if axis != keep:
            # axes behind this one have been contracted, except the one to keep
            at = axis + 1
            row = rows[axis].astype(product.dtype, copy=False)
            product = np.einsum("rakb,rk->rab", _split(product, at), row).reshape(
                *product.shape[:at], *product.shape[at + 1 :]
            )
    return product


def _split(product: Array, at: int) -> Array:
    count, here = len(product), product.shape[at]
    return product.reshape(count, math.prod(product.shape[1:at]), here, -1)


def _unit(rows: Array) -> tuple[Array, Array]:
    """Rows at unit length, and their norms; rows of zeros stay so."""
    norms: Array = np.sqrt(np.einsum("ri,ri->r", rows, rows))
    unit: Array = rows / np.where(norms > 0, norms, 1.0)[:, None]
    return unit, norms


def _random(shape: Sequence[int], rank: int, rng: np.random.Generator) -> list[Array]:
    return [_unit(rng.normal(size=(rank, n)))[0] for n in shape]
