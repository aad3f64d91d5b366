"""Modes, ranks and cost of a matrix in tensor-train form, without its values.

A matrix ``(N, C)`` is given row modes ``n_1 ... n_d`` and column modes ``c_1 ... c_d``, whose
products are ``N`` and ``C`` or a little more, by padding. Core k has the shape
``(r_{k-1}, n_k, c_k, r_k)``, ``r_0 = r_d = 1``.

Applied to a row ``x`` of C elements, core after core and either from the left or from the right,

    left:    (A, r_{k-1} c_k, B) -> (A, n_k r_k, B)      A = n_1 ... n_{k-1},  B = c_{k+1} ... c_d
    right:   (A, c_k r_k, B) -> (A, r_{k-1} n_k, B)      A = c_1 ... c_{k-1},  B = n_{k+1} ... n_d

each step is one matrix product with the core and a Reshape: nothing is ever transposed. For each
row it takes ``A B r_{k-1} n_k c_k r_k`` MACs and makes ``A n_k r_k B`` (left) or
``A r_{k-1} n_k B`` (right) elements.

Reference:
    Oseledets 2011, Tensor-train decomposition; Novikov et al. 2015, Tensorizing neural networks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

__all__ = ["Contraction", "Modes", "capped_ranks", "contraction", "core_shapes", "factor_shapes"]

#: logarithm of the padding that is worth a factor e between the largest and the smallest mode
_BALANCE = 1 / 20

#: padded sizes are multiples of this, as runtimes are fast with them
_ALIGNED = 8


@dataclass(frozen=True)
class Modes:
    """Factors of a size.

    Attributes:
        modes: the factors, rising.
        padded: product of the factors: the size or a little more.
    """

    modes: tuple[int, ...]
    padded: int


@dataclass(frozen=True)
class Contraction:
    """The cheaper order of applying the cores of a train.

    Attributes:
        from_left: whether the first core is applied first; else the last one is.
        macs: number of multiply-accumulates for one row.
        sizes: number of elements of one row after each core but the last one applied.
    """

    from_left: bool
    macs: int
    sizes: tuple[int, ...]


@lru_cache(maxsize=4096)
def factor_shapes(size: int, order: int) -> Modes:
    """Factorize ``size``, or a padded size, into ``order`` factors as equal as possible.

    With ``q`` the largest over the smallest factor, the padded size ``p``, a multiple of 8 or the
    size itself, minimises

        log(p / size) + log(q) / 20,      and log(2) / 20 more where p > size

    so that doubling ``q`` is as bad as 3.5 % of padding, and a size whose factors lie within 2 of
    one another is not padded. 512 = 16 x 32; 127 becomes 128 = 8 x 16, 1009 becomes 1024 = 32 x 32.
    Reverse the modes of one side of a matrix to give its cores sizes that differ less.

    Raises:
        ValueError: ``size`` or ``order`` is below 1.
    """
    if size < 1 or order < 1:
        raise ValueError(f"size {size} and order {order} must be 1 or more")
    best = math.inf
    modes: tuple[int, ...] = ()
    padded = size
    for p in itertools.chain([size], itertools.count((size // _ALIGNED + 1) * _ALIGNED, _ALIGNED)):
        waste = math.log(p / size) + (_BALANCE * math.log(2) if p > size else 0.0)
        if waste >= best:
            break
        found = min(_factorizations(p, order, 1), key=lambda f: f[-1] / f[0])
        score = waste + _BALANCE * math.log(found[-1] / found[0])
        if score < best:
            best, modes, padded = score, found, p
    return Modes(modes, padded)


def capped_ranks(
    row_modes: Sequence[int], column_modes: Sequence[int], ranks: int | Sequence[int]
) -> tuple[int, ...]:
    """Cap ranks ``(r_1, ..., r_{d-1})`` at the largest that are useful beside their neighbours.

    Args:
        row_modes: sizes ``(n_1, ..., n_d)``.
        column_modes: sizes ``(c_1, ..., c_d)``.
        ranks: ranks wanted; one number stands for all.

    Raises:
        ValueError: a rank is below 1, or their number does not fit.
    """
    sizes = [n * c for n, c in zip(row_modes, column_modes, strict=True)]
    wanted = [ranks] * (len(sizes) - 1) if isinstance(ranks, int) else list(ranks)
    if len(wanted) != len(sizes) - 1 or any(r < 1 for r in wanted):
        raise ValueError(
            f"ranks {tuple(wanted)} must be {len(sizes) - 1} numbers of 1 or more: one for each "
            "place between two cores"
        )
    full = [1, *wanted, 1]
    for k in range(1, len(sizes)):
        full[k] = min(full[k], full[k - 1] * sizes[k - 1])
    for k in range(len(sizes) - 1, 0, -1):
        full[k] = min(full[k], full[k + 1] * sizes[k])
    return tuple(full[1:-1])


def core_shapes(
    row_modes: Sequence[int], column_modes: Sequence[int], ranks: int | Sequence[int]
) -> tuple[tuple[int, int, int, int], ...]:
    """Shapes ``(r_{k-1}, n_k, c_k, r_k)`` of the cores, ranks capped; parameters are their sizes.

    Raises:
        ValueError: a rank is below 1, or their number does not fit.
    """
    full = (1, *capped_ranks(row_modes, column_modes, ranks), 1)
    return tuple(zip(full, row_modes, column_modes, full[1:], strict=False))


def contraction(shapes: Sequence[tuple[int, int, int, int]]) -> Contraction:
    """Choose the cheaper order of applying cores of some shapes."""
    left = _contraction(shapes, True)
    right = _contraction(shapes, False)
    return left if left.macs <= right.macs else right


def _contraction(shapes: Sequence[tuple[int, int, int, int]], from_left: bool) -> Contraction:
    macs, sizes = 0, []
    for k, (before, n, c, after) in enumerate(shapes):
        if from_left:
            others = math.prod(s[1] for s in shapes[:k]) * math.prod(s[2] for s in shapes[k + 1 :])
        else:
            others = math.prod(s[2] for s in shapes[:k]) * math.prod(s[1] for s in shapes[k + 1 :])
        macs += others * before * n * c * after
        sizes.append(others * n * (after if from_left else before))
    return Contraction(from_left, macs, tuple(sizes[:-1] if from_left else sizes[:0:-1]))


def _factorizations(size: int, order: int, least: int) -> Iterator[tuple[int, ...]]:
    """Yield all ways to write ``size`` as ``order`` rising factors, each ``least`` or more."""
    if order == 1:
        yield (size,)
        return
    factor = least
    while factor**order <= size:
        if size % factor == 0:
            for rest in _factorizations(size // factor, order - 1, factor):
                yield (factor, *rest)
        factor += 1
