"""The ranks that are worth considering, as far as runtimes care."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

__all__ = ["aligned_ranks", "spread"]


def aligned_ranks(limit: int, groups: int = 1) -> Iterator[int]:
    """Yield the ranks up to ``limit`` that make numbers of channels which runtimes compute well.

    The channels of all groups together are a multiple of 4 below 16, of 8 below 64, of 16 below
    128, and so on, the step doubling with the number. The grid is no finer than that because every
    rank on it costs planning time.

    Args:
        limit: the largest rank, in channels of one group.
        groups: how many groups there are.
    """
    for rank in range(1, limit + 1):
        channels = rank * groups
        step = 4 if channels < 16 else 8 if channels < 64 else 2 ** (channels.bit_length() - 3)
        if channels % step == 0:
            yield rank


def spread(ranks: Sequence[int], most: int) -> list[int]:
    """Choose at most ``most`` of some ranks, evenly over their places, the ends among them."""
    count = len(ranks)
    return [ranks[round(x)] for x in np.linspace(0, count - 1, min(count, most))]
