"""Multiply-accumulates of an Einsum.

Two operands meet in every combination of all indices that they have, so that their product costs
the product of the extents. More operands are multiplied two at a time, in the order that costs
least: what an implementation must do, whichever way it takes. One operand is only summed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache

__all__ = ["einsum_macs"]

#: operands for which every order is tried; more are multiplied from left to right
_TRIED = 8


def einsum_macs(equation: str, shapes: Sequence[Sequence[int]]) -> int:
    """Multiply-accumulates of ``equation`` on operands of these shapes.

    Args:
        equation: as of the operator, ``bij,jk->bik``; ``...`` stands for any further axes, and the
            output may be left out.
        shapes: one for each operand.

    Raises:
        ValueError: the equation does not fit the shapes.
    """
    left, arrow, output = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(shapes):
        raise ValueError(f"{equation!r} has {len(terms)} operands, not {len(shapes)}")
    extents: dict[str, int] = {}
    operands = [_indices(t, s, extents) for t, s in zip(terms, shapes, strict=True)]
    if arrow:
        kept = frozenset(output.replace("...", ""))
    else:  # indices that stand once
        kept = frozenset(i for i in left if left.count(i) == 1 and i not in ".,")
    kept |= {i for i in extents if i.startswith("...")}
    if len(operands) <= _TRIED:
        return _least(tuple(operands), kept, extents)
    total, made = 0, operands[0]
    for place, operand in enumerate(operands[1:], 1):
        total += _product(made | operand, extents)
        made = (made | operand) & kept.union(*operands[place + 1 :])
    return total


def _indices(term: str, shape: Sequence[int], extents: dict[str, int]) -> frozenset[str]:
    """Indices of one operand; their extents are noted, of broadcast ones the larger."""
    before, dots, after = term.partition("...")
    free = len(shape) - len(before) - len(after)
    if free < 0 or (free and not dots):
        raise ValueError(f"{term!r} does not fit the shape {tuple(shape)}")
    # axes under the dots are aligned at their end
    names = [*before, *(f"...{k}" for k in range(free, 0, -1)), *after]
    for name, extent in zip(names, shape, strict=True):
        extents[name] = max(extents.get(name, 1), extent) if extent else 0
    return frozenset(names)


def _product(indices: frozenset[str], extents: Mapping[str, int]) -> int:
    return math.prod(extents[i] for i in indices)


def _least(
    operands: tuple[frozenset[str], ...], kept: frozenset[str], extents: Mapping[str, int]
) -> int:
    """The least over all orders of multiplying two at a time."""
    everyone = (1 << len(operands)) - 1

    def read(members: int) -> frozenset[str]:
        return frozenset().union(*(o for i, o in enumerate(operands) if members >> i & 1))

    @cache
    def made(members: int) -> frozenset[str]:
        """Indices of the product of some operands: those that somebody else still needs."""
        if members & (members - 1) == 0:
            return read(members)
        return read(members) & (kept | read(everyone & ~members))

    @cache
    def cost(members: int) -> int:
        if members & (members - 1) == 0:
            return 0
        best, part = -1, (members - 1) & members
        while part:
            other = members & ~part
            if part > other:  # each pair once
                now = cost(part) + cost(other) + _product(made(part) | made(other), extents)
                best = now if best < 0 else min(best, now)
            part = (part - 1) & members
        return best

    return cost(everyone)
