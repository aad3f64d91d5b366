from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

from onnx_lowrank.errors import OptionError
from onnx_lowrank.linalg.rank_rules import RankRule
from onnx_lowrank.option_values import (
    check_count,
    check_seconds,
    fraction,
    percent,
    read_bytes,
    read_duration,
)
from onnx_lowrank.planning.targets import parse_target


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1%", 0.01),
        ("0.01", 0.01),
        (" 2.5 % ", 0.025),
        ("0", 0.0),
        ("0%", 0.0),
        ("100%", 1.0),
        ("1e-3", 0.001),
        (".5", 0.5),
    ],
)
def test_fractions(text: str, value: float) -> None:
    for bare_one in (False, True):
        assert fraction(text, bare_one=bare_one) == pytest.approx(value, rel=1e-12, abs=0)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("5", "'5' without a sign would mean 500 %; write 5% or 0.05"),
        ("1.5", "'1.5' without a sign would mean 150 %; write 1.5% or 0.015"),
        ("100", "write 100% or 1"),
        ("500", "more than the whole"),
        ("101%", "'101%' is more than the whole"),
        ("-1", "negative"),
        ("-1%", "negative"),
        ("nan", "no fraction; write 1% or 0.01"),
        ("nan%", "no fraction"),
        ("inf", "no fraction"),
        ("-inf%", "no fraction"),
        ("", "no fraction"),
        ("%", "no fraction"),
        ("5%%", "no fraction"),
        ("five", "no fraction"),
        ("1 0", "no fraction"),
    ],
)
def test_what_is_no_fraction(text: str, part: str) -> None:
    for bare_one in (False, True):
        with pytest.raises(ValueError, match=re.escape(part)):
            fraction(text, bare_one=bare_one)


def test_a_bare_one_is_the_whole_only_where_parts_are_meant() -> None:
    assert fraction("1") == 1.0
    with pytest.raises(ValueError, match=r"'1' without a sign would mean 100 %; write 1% or 0\.01"):
        fraction("1", bare_one=False)


def test_percent() -> None:
    assert percent(0.01) == "1 % (0.01)"
    assert percent(0.07) == "7 % (0.07)"
    assert percent(1.0) == "100 % (1)"


@pytest.mark.parametrize("text", ["macs=0.5", "macs=50%", "macs= 50 %"])
def test_targets_read_the_same_fractions(text: str) -> None:
    assert parse_target(text) == ("macs", 0.5)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("macs=50", "'50' without a sign would mean 5000 %; write 50% or 0.5"),
        ("size=0", "target 'size=0'.* 0 < R <= 1"),
        ("size=nan", "no fraction"),
        ("params=-0.5", "negative"),
        ("flops=0.5", "write macs=R or params=R or size=R or latency=R"),
        ("macs", "write macs=R"),
    ],
)
def test_targets_that_make_no_sense(text: str, part: str) -> None:
    with pytest.raises(OptionError, match=part):
        parse_target(text)


@pytest.mark.parametrize("kind", ["ratio", "energy", "error"])
def test_rules_for_ranks_read_the_same_fractions(kind: str) -> None:
    assert RankRule.parse(f"{kind}=95%") == RankRule.parse(f"{kind}=0.95") == RankRule(kind, 0.95)
    with pytest.raises(ValueError, match="'95' without a sign would mean 9500 %; write 95% or"):
        RankRule.parse(f"{kind}=95")


@pytest.mark.parametrize("value", [0, -1, 2.5, math.nan, "3", None])
def test_what_is_no_count(value: Any) -> None:
    with pytest.raises(OptionError, match=r"samples must be (1 or more|a whole number), not"):
        check_count("samples", value)


def test_counts() -> None:
    assert check_count("samples", np.int64(3)) == 3
    assert check_count("seed", 0, least=0) == 0


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_what_is_no_time(value: float) -> None:
    with pytest.raises(OptionError, match="timing limit must be more than 0 seconds"):
        check_seconds("timing limit", value)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("1.5s", 1.5), (" 10 min ", 600), ("2h", 7200), (".5", 0.5)]
)
def test_durations(text: str, seconds: float) -> None:
    assert read_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "number"), [("1000", 1000), ("2GiB", 2 << 30), ("1.5 kB", 1500), ("0.1B", 1)]
)
def test_bytes(text: str, number: int) -> None:
    assert read_bytes(text) == number


@pytest.mark.parametrize("text", ["", "10 m", "-1", "ten", "1e3", "nan", "0", "0h", "5 minutes"])
def test_what_is_no_duration_and_no_amount(text: str) -> None:
    with pytest.raises(ValueError, match="write a time as 90s, 10min or 2h"):
        read_duration(text)
    with pytest.raises(ValueError, match="write an amount as 500MB or 2GiB"):
        read_bytes(text)
