"""A covariance of patches ``x[a, b]``, seen from a basis ``V[k, a]`` over one side of their axes.

The covariance is one block of all columns, or a block for each phase with a matrix of rank one
(:mod:`onnx_lowrank.linalg.phase_covariance`); a phase reads the product of some ``a`` and some
``b``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.linalg.phase_covariance import Covariance, PhaseCovariance

__all__ = ["PatchMetric", "contracted"]

Array = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class PatchMetric:
    """A covariance ``D - v v^T``, with its columns in the order ``(a, b)``.

    Attributes:
        blocks: the blocks of ``D``, each with its numbers of ``a`` and of ``b``, in that order.
        sizes: numbers of all ``a`` and ``b``.
        shift: ``v (a, b)``; None for zero.
    """

    blocks: tuple[tuple[Array, Indices, Indices], ...]
    sizes: tuple[int, int]
    shift: Array | None = None

    @classmethod
    def of(cls, sigma: Covariance, patch: Sequence[int], first: Sequence[int]) -> PatchMetric:
        """Take the columns of a covariance in an order ``(a, b)``.

        Args:
            sigma: covariance of the patch.
            patch: extents of its axes.
            first: axes that are ``a``, in that order; the rest are ``b``.
        """
        order = [*first, *(i for i in range(len(patch)) if i not in first)]
        a = math.prod(patch[i] for i in first)
        sizes = a, len(sigma) // a
        if not isinstance(sigma, PhaseCovariance):
            paired = sigma.reshape(*patch, *patch)
            paired = paired.transpose(*order, *(i + len(patch) for i in order))
            whole = paired.reshape(sigma.shape)
            return cls(((whole, np.arange(sizes[0]), np.arange(sizes[1])),), sizes)
        columns = np.arange(len(sigma)).reshape(patch).transpose(order).reshape(-1)
        phases, b = sigma.taken(columns), sizes[1]
        parts = zip(phases.blocks, phases.columns, strict=True)
        blocks = [(block, np.unique(at // b), np.unique(at % b)) for block, at in parts if len(at)]
        return cls(tuple(blocks), sizes, phases.shift.reshape(sizes))

    @property
    def _whole(self) -> bool:
        """Whether it is one block of all columns."""
        return self.shift is None and len(self.blocks) == 1

    def product(self, rows: Array) -> Array:
        """Rows ``(n, a b)`` times the covariance."""
        if self._whole:
            return rows @ self.blocks[0][0]
        made = np.zeros_like(rows)
        for block, a, b in self.blocks:
            at = (a[:, None] * self.sizes[1] + b).reshape(-1)
            made[:, at] += rows[:, at] @ block
        if self.shift is not None:
            mean = self.shift.reshape(-1)
            made -= np.outer(rows @ mean, mean)
        return made

    def marginal(self) -> Array:
        """The matrix ``sum_b Sigma[(., b), (., b)] (a, a)``."""
        made = np.zeros((self.sizes[0],) * 2)
        for block, a, b in self.blocks:
            shape = len(a), len(b)
            made[np.ix_(a, a)] += np.einsum("ibjb->ij", block.reshape(*shape, *shape))
        return made if self.shift is None else made - self.shift @ self.shift.T

    def gram(self, basis: Array) -> Array:
        """Covariance ``(k b, k b)`` of the features ``V x`` of a basis ``V (k, a)``."""
        k, b = len(basis), self.sizes[1]
        if self._whole:
            once = contracted(self.blocks[0][0], basis, b)
            return contracted(once.T, basis, b)
        made = np.zeros((k, b, k, b))
        for block, own, at in self._parts(basis):
            once = contracted(block, own, len(at))
            inner = contracted(once.T, own, len(at)).reshape(k, len(at), k, len(at))
            made[:, at[:, None], :, at] += inner.transpose(1, 3, 0, 2)
        flat: Array = made.reshape(k * b, k * b)
        if self.shift is None:
            return flat
        means = (basis @ self.shift).reshape(-1)
        return flat - np.outer(means, means)

    def normal(self, basis: Array, gram: Array) -> Array:
        """The normal operator ``sum_b,b' gram[k b, k' b'] V[k'] Sigma[(., b'), (., b)] (k, a)``.

        Args:
            basis: ``V (k, a)``.
            gram: Gram matrix of the maps behind the features, ``(k, b, k, b)``.
        """
        made = np.zeros_like(basis)
        k = len(basis)
        for (block, a, at), (_, own, _) in zip(self.blocks, self._parts(basis), strict=True):
            n, count = len(at), len(a)
            read = (own @ block.reshape(count, -1)).reshape(k, n, count, n).transpose(3, 0, 1, 2)
            inner = gram if n == self.sizes[1] else gram[:, at][..., at]
            made[:, a] += inner.reshape(k, -1) @ read.reshape(n * k * n, count)
        if self.shift is None:
            return made
        means = basis @ self.shift
        return made - np.tensordot(gram, means, 2) @ self.shift.T

    def single(self) -> tuple[PatchMetric, float]:
        """The same in float32, and what it is divided by, so that nothing overflows."""
        largest = max(float(np.max(np.abs(block))) for block, _, _ in self.blocks) or 1.0
        blocks = ((((block / largest).astype(np.float32)), a, b) for block, a, b in self.blocks)
        shift = self.shift
        if shift is not None:
            shift = (shift / np.sqrt(largest)).astype(np.float32)
        return PatchMetric(tuple(blocks), self.sizes, shift), largest

    def _parts(self, basis: Array) -> Iterator[tuple[Array, Array, Indices]]:
        """Blocks, what the basis reads of each, and its numbers of ``b``."""
        for block, a, b in self.blocks:
            yield block, basis if len(a) == self.sizes[0] else basis[:, a], b


def contracted(matrix: Array, basis: Array, b: int) -> Array:
    """Contract the rows ``(a, b)`` of a matrix to rows ``(k, b)``."""
    a, columns = basis.shape[1], matrix.shape[1]
    return (basis @ matrix.reshape(a, b * columns)).reshape(-1, columns)
