from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
import pytest

from onnx_lowrank.errors import OptionError
from onnx_lowrank.judge.requirement import Requirement, Score

Array = npt.NDArray[Any]


@pytest.mark.parametrize(
    ("given", "kind", "bound"),
    [
        ((0.01, None, None), "drop", 0.01),
        ((0.0, None, None), "drop", 0.0),
        ((None, 0.99, None), "agreement", 0.99),
        ((None, 1.0, None), "agreement", 1.0),
        ((None, None, 30.0), "snr", 30.0),
    ],
)
def test_one_requirement(given: tuple[Any, ...], kind: str, bound: float) -> None:
    found = Requirement.of(*given)
    assert found == Requirement(kind, bound)
    assert found is not None
    assert found.holds(bound)
    worse = bound + 1e-6 if kind == "drop" else bound - 1e-6
    assert not found.holds(worse)
    assert found.holds(2 * bound - worse)


def test_none_is_asked() -> None:
    assert Requirement.of(None, None, None) is None


def some(outputs: Mapping[str, Array], labels: Array | None) -> float:
    del labels
    return float(next(iter(outputs.values())).sum())


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ((0.1, 0.9, None), "max_drop and min_agreement at once; give one of them"),
        ((0.1, 0.9, 30.0), "max_drop and min_agreement and min_snr at once"),
        ((None, 99.0, None), "min_agreement=99: give a fraction above 0"),
        ((None, 0.0, None), "min_agreement=0: give a fraction above 0"),
        ((-0.01, None, None), "max_drop=-0.01: give a finite number, 0 or more"),
        ((5, None, None), "max_drop=5 would allow a loss of 500 %, .* as 0.01 for 1 %"),
        ((1.0, None, None), "max_drop=1 would allow a loss of 100 %"),
        ((math.nan, None, None), "max_drop=nan"),
        ((None, None, math.inf), "min_snr=inf: give a finite number, 0 or more"),
        ((None, None, -3.0), "min_snr=-3"),
        ((None, 0.9, None, some), "a metric needs max_drop too"),
        ((None, None, None, some), "a metric needs max_drop too"),
        ((-1.0, None, None, some), "max_drop=-1: give a finite number"),
    ],
)
def test_what_makes_no_sense(given: tuple[Any, ...], part: str) -> None:
    with pytest.raises(OptionError, match=part):
        Requirement.of(*given)


def test_a_metric_has_its_own_unit() -> None:
    found = Requirement.of(3.5, None, None, some)
    assert found is not None
    assert str(found) == "a drop of 3.5 of the metric at most"
    assert Score(1.0, 0.5, 2.0, 9).text(found) == "1.00 [0.50, 2.00] on 9 samples"


def test_what_was_understood() -> None:
    wanted = {
        Requirement("drop", 0.01): "largest accuracy loss allowed: 1 % (0.01)",
        Requirement("drop", 5.0, some): "largest loss of the metric allowed: 5, in units of the",
        Requirement("agreement", 0.985): "least agreement of the first class asked for: 98.5 % (",
        Requirement("snr", 30.0): "least SNR asked for: 30 dB",
    }
    for requirement, text in wanted.items():
        assert requirement.understood.startswith(text)


def test_text() -> None:
    assert str(Requirement("drop", 0.01)) == "a drop of 1 points at most"
    assert str(Requirement("agreement", 0.985)) == "the same first class for 98.50% at least"
    assert str(Requirement("snr", 30)) == "an SNR of 30 dB at least"
    text = Score(0.012, -0.001, 0.025, 400).text(Requirement("drop", 0.01))
    assert text == "1.20 points [-0.10, 2.50] on 400 samples"
    exact = Score(math.inf, math.inf, math.inf, 9)
    assert exact.text(Requirement("snr", 30)) == "equal outputs on 9 samples"
