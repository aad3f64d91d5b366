from __future__ import annotations

import pytest

from onnx_lowrank.passkit.rank_grid import aligned_ranks, spread


@pytest.mark.parametrize(
    ("limit", "groups", "ranks"),
    [
        (3, 1, []),
        (4, 1, [4]),
        (40, 1, [4, 8, 12, 16, 24, 32, 40]),
        (100, 1, [4, 8, 12, 16, 24, 32, 40, 48, 56, 64, 80, 96]),
        (300, 1, [4, 8, 12, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256]),
        (8, 2, [2, 4, 6, 8]),
        (5, 4, [1, 2, 3, 4]),
        (3, 32, [1, 2, 3]),
        (0, 1, []),
    ],
)
def test_aligned_ranks(limit: int, groups: int, ranks: list[int]) -> None:
    assert list(aligned_ranks(limit, groups)) == ranks


@pytest.mark.parametrize(
    ("ranks", "most", "chosen"),
    [
        ([], 3, []),
        ([4], 3, [4]),
        ([4, 8], 3, [4, 8]),
        ([4, 8, 12, 16, 24], 3, [4, 12, 24]),
        ([4, 8, 12, 16, 24, 32], 4, [4, 12, 16, 32]),
    ],
)
def test_spread_keeps_both_ends(ranks: list[int], most: int, chosen: list[int]) -> None:
    assert spread(ranks, most) == chosen
