from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx import helper

from onnx_lowrank.engine.search import FIRST, LEAST, MORE, STEPS, Found, judges_on, search
from onnx_lowrank.errors import BudgetError, DataError, OptionError
from onnx_lowrank.judge.requirement import Requirement
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.planning.targets import Target
from onnx_lowrank.progress import Progress
from onnx_lowrank.report.wording import worded
from tests import fixtures_models as fm

SNR = Requirement("snr", 20.0)  # a relative error of 0.1
TARGET = Target.parse("macs", search=True)
#: the last interval of the bisection, as a ratio
RESOLUTION = max((FIRST / LEAST) ** 0.5 ** (STEPS - 1), (1 / FIRST) ** 0.5 ** (STEPS - 1))

Loss = Callable[[float], float]


def scaled(searched: float, confirmed: float) -> Model:
    """Relative errors on samples of one kind and of the other."""
    weights = {"w": fm.float32(np.diag([1 - searched, 1 - confirmed]))}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="only")]
    return load(fm.build(nodes, {"x": ["N", 2]}, {"y": ["N", 2]}, weights))


class Fake:
    """A job whose models lose a known part at every ratio."""

    def __init__(self, loss: Loss, confirming: Loss | None = None, least: float = 0.0) -> None:
        x = np.zeros((60, 2), np.float32)
        x[::2, 0] = x[1::2, 1] = 1  # samples of the search, samples to confirm
        self.source = scaled(0, 0)
        self.data = fm.dataset(self.source.proto, {"x": x})
        self.losses, self.least = (loss, confirming or loss), least
        self.built: list[float] = []

    def make(self, target: Target) -> Any:
        ratio = dict(target.budgets)[target.searched[0]]
        if ratio < self.least:
            raise BudgetError("out of reach")
        self.built.append(ratio)
        model = scaled(*(loss(ratio) for loss in self.losses))
        return SimpleNamespace(plan=ratio), SimpleNamespace(model=model, plan=ratio)

    def search(self, requirement: Requirement = SNR, target: Target = TARGET) -> Found:
        judges = judges_on(self.source, self.data, fm.ONE_THREAD, requirement, 32)
        return search(self.make, target, judges, Progress())


def told(found: Found) -> str:
    return worded(found.note(SNR))


@pytest.mark.parametrize("crossing", [0.06, 0.11, 0.2, 0.37, 0.5, 0.62, 0.9, 0.95])
def test_the_crossing(crossing: float) -> None:
    fake = Fake(lambda r: 0.09999 * crossing / r)
    found = fake.search()
    assert crossing <= found.target.ratio <= crossing * RESOLUTION + 0.001
    assert found.built.plan == found.target.ratio
    assert found.target.budgets == (("macs", found.target.ratio),)
    assert len(found.tried) == STEPS == len(fake.built)
    assert found.tried[0][0] == FIRST
    for ratio, score in found.tried:
        assert score is not None
        expected = 20 + 20 * math.log10(ratio / crossing)
        assert score.value == pytest.approx(expected, rel=0, abs=0.01)
        assert score.samples == 30
    assert SNR.holds(found.searched.value)
    assert SNR.holds(found.confirmed.value)


def test_everything_holds() -> None:
    found = Fake(lambda _: 0.0).search()
    assert LEAST < found.target.ratio < LEAST * RESOLUTION + 0.001
    assert told(found).count("equal outputs on 30 samples") == 2


def test_one_half_disagrees() -> None:
    # by the search 0.2 would do, by the samples held back 0.35
    fake = Fake(lambda r: 0.0999 * 0.2 / r, lambda r: 0.0999 * 0.35 / r)
    found = fake.search()
    flattered = min(r for r, s in found.tried if s is not None and SNR.holds(s.value))
    assert flattered < 0.21
    assert fake.built == [r for r, _ in found.tried]
    assert len(fake.built) == STEPS + MORE
    assert all(r > flattered for r in fake.built[STEPS:])
    assert 0.35 <= found.target.ratio < 0.35 * (1 / flattered) ** 0.5**MORE + 0.001
    assert found.built.plan == found.target.ratio in fake.built[STEPS:]
    assert found.searched.value > found.confirmed.value >= 20
    text = told(found)
    assert f"macs={found.target.ratio:g} is the least with an SNR of 20 dB at least" in text
    assert "30 samples of the search" in text
    assert "30 samples held back to confirm" in text


def test_nothing_holds() -> None:
    with pytest.raises(BudgetError) as caught:
        Fake(lambda _: 0.2).search()
    text = str(caught.value)
    assert text.startswith("nothing smaller keeps an SNR of 20 dB at least; at parts of the budget")
    assert "0.989: 13.98 dB [13.98, 13.98] on 30 samples" in text
    assert text.endswith("ask for less, or give more calibration data or passes")
    assert "held back" not in text


def test_nothing_is_confirmed() -> None:
    with pytest.raises(BudgetError, match=r"samples held back to confirm 6\.02 dB .* at 0\."):
        Fake(lambda _: 0.05, lambda _: 0.5).search()


def test_out_of_reach_does_not_hold() -> None:
    fake = Fake(lambda _: 0.01, least=0.4)
    found = fake.search()
    assert 0.4 <= found.target.ratio <= 0.4 * RESOLUTION + 0.001
    assert {r for r, s in found.tried if s is None} == {r for r, _ in found.tried if r < 0.4}
    with pytest.raises(BudgetError, match=r"0\.989: out of reach"):
        Fake(lambda _: 0.01, least=1.0).search()


def test_too_few_samples() -> None:
    fake = Fake(lambda _: 0.0)
    fake.data = fake.data.subset(range(39))
    with pytest.raises(DataError, match=r"39 samples .* 40 at least .* give --calib held-out"):
        fake.search()
    assert fake.built == []


def test_what_has_a_ratio_keeps_it() -> None:
    fake = Fake(lambda r: 0.09999 * 0.4 / r)
    found = fake.search(target=Target.parse(["size=0.3", "latency"], search=True))
    plan: Any = found.built.plan
    assert dict(found.target.budgets) == {"size": 0.3, "latency": plan}
    assert 0.4 <= plan <= 0.4 * RESOLUTION + 0.001


# for real


@pytest.mark.full
def test_a_real_model() -> None:
    result = fm.quick_compress(fm.digits("mlp"), calib=fm.DIGITS, samples=200, max_drop=0.01)
    (note,) = [n for n in result.report.said if "is the least with" in n]
    assert "200 samples of the search" in note
    assert "597 samples held back to confirm" in note
    ratio = float(result.plan.target.removeprefix("macs="))
    tried = note.split("; tried ")[1].split(", ")
    assert len(tried) in (STEPS, STEPS + MORE)
    assert any(t.startswith(f"{ratio:g} (") and t.endswith(" points expected)") for t in tried)
    assert note.startswith("largest accuracy loss allowed: 1 % (0.01); ")
    assert f"; macs={ratio:g} is the least with a drop of 1 points at most" in note
    assert ratio < FIRST
    assert result.report.macs_ratio <= ratio
    accuracy = result.report.validation.accuracy
    assert accuracy is not None
    assert accuracy.drop <= 0.01


def test_options_that_make_no_sense() -> None:
    for options, part in (
        (
            {"target": ["macs=0.5", "size=0.5"]},
            "target macs=0.5 size=0.5 leaves nothing to search for",
        ),
        ({"ranks": "energy=0.9"}, "ranks by energy=0.9 cannot be combined with a search"),
        ({"min_agreement": 0.9}, "max_drop and min_agreement at once"),
    ):
        with pytest.raises(OptionError, match=part):
            fm.quick_compress(fm.classifier(), max_drop=0.01, **options)
    with pytest.raises(DataError, match="8 samples to judge by"):
        fm.quick_compress(fm.classifier(), min_snr=10.0)
