from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_lowrank.linalg.evbmf import evbmf
from onnx_lowrank.linalg.rank_rules import (
    RankRule,
    energy_rank,
    error_rank,
    evbmf_rank,
    ratio_rank,
)
from tests.support import quick, rng

GRID = (4, 8, 12, 16)


@pytest.mark.parametrize(
    ("part", "rank"), [(0.01, 1), (0.64, 1), (0.65, 2), (0.9, 2), (0.91, 3), (0.99, 3), (1.0, 4)]
)
def test_energy(part: float, rank: int) -> None:
    # squares 0.64, 0.26, 0.09, 0.01
    values = np.sqrt([64.0, 26.0, 9.0, 1.0])
    assert energy_rank(values, part) == rank


@quick(80)
@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=12),
    st.floats(0, 1, exclude_min=True),
)
def test_energy_is_the_smallest_that_keeps_the_part(numbers: list[float], part: float) -> None:
    values = np.sort(np.array(numbers))[::-1]
    rank, total = energy_rank(values, part), float(np.sum(values**2))
    assert 1 <= rank <= len(values)
    assert float(np.sum(values[:rank] ** 2)) >= (part - 1e-14) * total
    if rank > 1:
        assert float(np.sum(values[: rank - 1] ** 2)) < part * total


def test_all_the_energy_leaves_out_what_is_zero() -> None:
    assert energy_rank(np.array([3.0, 1.0, 1e-12, 0.0]), 1.0) == 2
    assert energy_rank(np.zeros(3), 1.0) == 1


def test_evbmf_finds_what_was_planted() -> None:
    random = rng(0)
    planted = 4 * random.normal(size=(40, 5)) @ random.normal(size=(5, 60))
    values = np.linalg.svd(planted + random.normal(size=(40, 60)), compute_uv=False)
    assert evbmf_rank(values, (40, 60)) == evbmf(values, (40, 60)).rank == 5
    noise = np.linalg.svd(random.normal(size=(40, 60)), compute_uv=False)
    assert evbmf(noise, (40, 60)).rank == 0
    assert evbmf_rank(noise, (40, 60)) == 1


def test_ratio_is_the_largest_that_can_be_paid() -> None:
    assert ratio_rank(lambda r: 10.0 * r, 120, GRID) == 12
    assert ratio_rank(lambda r: 10.0 * r, 119, GRID) == 8
    assert ratio_rank(lambda r: 10.0 * r, 39, GRID) is None


def test_error_is_the_smallest_that_is_good_enough() -> None:
    seen = []

    def error(rank: int) -> float:
        seen.append(rank)
        return 1 / rank

    assert error_rank(error, 0.1, GRID) == 12
    assert seen == [4, 8, 12]  # no rank is computed in vain
    assert error_rank(error, 0.25, GRID) == 4
    assert error_rank(error, 0.01, GRID) is None


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("fixed=32", RankRule("fixed", 32)),
        ("ratio=0.5", RankRule("ratio", 0.5)),
        ("energy=0.95", RankRule("energy", 0.95)),
        ("error=0.01", RankRule("error", 0.01)),
        ("evbmf", RankRule("evbmf")),
        (" energy = 1 ", RankRule("energy", 1.0)),
        ("error=0", RankRule("error", 0.0)),
        ("energy=0.99999999", RankRule("energy", 0.99999999)),
    ],
)
def test_parse(text: str, rule: RankRule) -> None:
    assert RankRule.parse(text) == rule
    assert RankRule.parse(str(rule)) == rule


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it should be one of fixed=32, ratio=0.5, energy=0.95, error=0.01, evbmf"),
        ("rank=3", "'rank=3'; it should be one of"),
        ("energy", "'energy'; it should be one of"),
        ("evbmf=1", "'evbmf=1'; it should be one of"),
        ("energy=", "'' is no fraction"),
        ("energy=much", "'much' is no fraction; write 1% or 0.01"),
        ("fixed=much", "'much' is not a number"),
        ("energy=0", "energy=0; it should be above 0 and at most 1"),
        ("energy=1.5", "'1.5' without a sign would mean 150 %"),
        ("ratio=nan", "'nan' is no fraction"),
        ("error=-0.1", "'-0.1' is negative"),
        ("fixed=0", "fixed=0; it should be a whole number, 1 or more"),
        ("fixed=2.5", "fixed=2.5; it should be a whole number"),
        ("fixed=inf", "fixed=inf; it should be a whole number"),
        ("fixed=nan", "fixed=nan; it should be a whole number"),
    ],
)
def test_parse_refuses(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RankRule.parse(text)


def test_a_rule_is_a_value() -> None:
    assert len({RankRule("evbmf"), RankRule.parse("evbmf")}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        RankRule("evbmf").kind = "fixed"  # type: ignore[misc]
    with pytest.raises(ValueError, match="'best'; it should be one of fixed, ratio, energy, error"):
        RankRule("best")


@pytest.mark.parametrize(
    ("text", "rank"),
    [
        ("fixed=8", 8),
        ("fixed=9", 12),
        ("fixed=17", None),
        ("ratio=0.5", 8),
        ("ratio=0.1", None),
        ("energy=0.99", 4),  # 2 of them
        ("error=0.1", 12),
        ("error=0.01", None),
        ("evbmf", 8),  # 5 of them
    ],
)
def test_choose_keeps_to_the_grid(text: str, rank: int | None) -> None:
    random = rng(0)
    planted = 4 * random.normal(size=(40, 5)) @ random.normal(size=(5, 60))
    values = np.linalg.svd(planted + random.normal(size=(40, 60)), compute_uv=False)
    if text.startswith("energy"):
        values = np.array([3.0, 1.0, 0.1])
    found = RankRule.parse(text).choose(
        GRID, values=values, shape=(40, 60), error=lambda r: 1 / r, cost=lambda r: r / 16
    )
    assert found == rank


@pytest.mark.parametrize(
    ("text", "missing"),
    [("energy=0.9", "values"), ("evbmf", "values"), ("ratio=0.5", "cost"), ("error=0.1", "error")],
)
def test_choose_says_what_is_missing(text: str, missing: str) -> None:
    with pytest.raises(ValueError, match=f"rank rule {text} needs {missing}="):
        RankRule.parse(text).choose(GRID)


def test_evbmf_needs_the_shape_too() -> None:
    with pytest.raises(ValueError, match="rank rule evbmf needs shape="):
        RankRule("evbmf").choose(GRID, values=np.ones(3))
