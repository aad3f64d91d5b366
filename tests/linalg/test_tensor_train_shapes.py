from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_lowrank.linalg.tensor_train_shapes import (
    Contraction,
    Modes,
    capped_ranks,
    contraction,
    core_shapes,
    factor_shapes,
)
from tests.support import quick

modes = st.integers(2, 4).flatmap(
    lambda d: st.tuples(*[st.lists(st.integers(1, 5), min_size=d, max_size=d)] * 2)
)


@pytest.mark.parametrize(
    ("size", "order", "wanted"),
    [
        (1, 2, (1, 1)),
        (10, 2, (2, 5)),  # too small to pad
        (64, 2, (8, 8)),
        (64, 4, (2, 2, 4, 4)),
        (127, 2, (8, 16)),
        (127, 3, (4, 4, 8)),
        (512, 1, (512,)),
        (512, 2, (16, 32)),
        (512, 3, (8, 8, 8)),
        (1000, 2, (25, 40)),
        (1009, 2, (32, 32)),
        (2304, 3, (12, 12, 16)),
        (4096, 4, (8, 8, 8, 8)),
        (50257, 2, (224, 225)),
    ],
)
def test_factors(size: int, order: int, wanted: tuple[int, ...]) -> None:
    assert factor_shapes(size, order) == Modes(wanted, math.prod(wanted))


@quick(60)
@given(st.integers(1, 200), st.integers(1, 3))
def test_no_other_padding_scores_better(size: int, order: int) -> None:
    def score(factors: tuple[int, ...]) -> float:
        padded = math.prod(factors)
        extra = math.log(2) / 20 if padded > size else 0.0
        return math.log(padded / size) + math.log(max(factors) / min(factors)) / 20 + extra

    found = factor_shapes(size, order)
    assert math.prod(found.modes) == found.padded
    assert found.padded == size or (found.padded > size and found.padded % 8 == 0)
    assert list(found.modes) == sorted(found.modes)
    divisors = range(1, 2 * size + 1)
    for padded in {size, *range(size + -size % 8, 2 * size, 8)}:
        own = [f for f in divisors if padded % f == 0]
        for head in itertools.combinations_with_replacement(own, order - 1):
            if padded % math.prod(head) == 0:
                other = (*head, padded // math.prod(head))
                assert score(found.modes) <= score(other) + 1e-12


def test_a_balanced_size_is_never_padded() -> None:
    for a in range(1, 40):
        for b in range(a, 2 * a + 1):
            assert factor_shapes(a * b, 2).padded == a * b


@quick(80)
@given(modes, st.integers(1, 50))
def test_ranks_are_capped_by_both_sides(pair: tuple[list[int], list[int]], rank: int) -> None:
    sizes = [n * c for n, c in zip(*pair, strict=True)]
    sides = [min(math.prod(sizes[:k]), math.prod(sizes[k:])) for k in range(1, len(sizes))]
    assert capped_ranks(*pair, 10**6) == tuple(sides)
    capped = capped_ranks(*pair, rank)
    assert capped == tuple(min(rank, s) for s in sides)
    assert capped_ranks(*pair, capped) == capped
    shapes = core_shapes(*pair, rank)
    assert [s[0] for s in shapes] == [1, *capped]
    assert [s[3] for s in shapes] == [*capped, 1]
    assert [s[1:3] for s in shapes] == list(zip(*pair, strict=True))


def test_a_narrow_rank_caps_its_neighbours() -> None:
    assert capped_ranks((2, 2, 2), (2, 2, 2), (1, 99)) == (1, 4)
    assert capped_ranks((2, 2, 2, 2), (1, 1, 1, 1), (2, 9, 1)) == (2, 2, 1)


def test_cost_of_two_cores_by_hand() -> None:
    shapes = [(1, 2, 4, 3), (3, 5, 6, 1)]
    # left: core (6, 4) on 6 columns, then core (5, 18) for 2 rows
    assert contraction(shapes) == Contraction(True, 6 * 24 + 2 * 90, (36,))
    assert contraction([(1, 5, 6, 3), (3, 2, 4, 1)]) == Contraction(False, 6 * 24 + 2 * 90, (36,))


@quick(60)
@given(modes, st.integers(1, 9))
def test_the_mirrored_train_costs_the_same(pair: tuple[list[int], list[int]], rank: int) -> None:
    shapes = core_shapes(*pair, rank)
    mirrored = [(j, n, c, i) for i, n, c, j in reversed(shapes)]
    one, other = contraction(shapes), contraction(mirrored)
    assert one.macs == other.macs
    assert len(one.sizes) == len(shapes) - 1
    # never below the cores' own sizes, nor above all of them on the widest state
    total, widest = (sum(math.prod(s) for s in shapes), math.prod(map(max, *pair)))
    assert total <= one.macs <= total * widest


def test_refusals() -> None:
    with pytest.raises(ValueError, match="must be 1 or more"):
        factor_shapes(0, 2)
    with pytest.raises(ValueError, match="must be 1 or more"):
        factor_shapes(4, 0)
    with pytest.raises(ValueError, match="must be 2 numbers of 1 or more"):
        capped_ranks((2, 2, 2), (2, 2, 2), (1,))
    with pytest.raises(ValueError, match="must be 1 numbers of 1 or more"):
        core_shapes((2, 2), (2, 2), 0)
