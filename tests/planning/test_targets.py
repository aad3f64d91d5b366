from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_lowrank.analysis.cost import Cost
from onnx_lowrank.errors import BudgetError, OptionError
from onnx_lowrank.planning.amounts import in_reach, said
from onnx_lowrank.planning.candidates import Candidate, Choice, Constraint, recosted
from onnx_lowrank.planning.lagrangian import allocate
from onnx_lowrank.planning.several_budgets import allocate_all
from onnx_lowrank.planning.targets import DEFAULT_TARGET, METRICS, Target, parse_target
from tests import fixtures_models as fm

# text


@pytest.mark.parametrize(
    ("text", "budgets", "metric", "ratio", "latency"),
    [
        (None, (("macs", 0.5),), "macs", 0.5, None),
        ("size=1", (("size", 1.0),), "size", 1.0, None),
        ("latency=.25", (("latency", 0.25),), "macs", 0.25, 0.25),
        (["params=0.3"], (("params", 0.3),), "params", 0.3, None),
        (["size=0.4", "macs=0.6"], (("size", 0.4), ("macs", 0.6)), "size", 0.4, None),
        (["latency=0.7", "size=0.4"], (("latency", 0.7), ("size", 0.4)), "size", 0.4, 0.7),
    ],
)
def test_targets(
    text: str | list[str] | None,
    budgets: tuple[tuple[str, float], ...],
    metric: str,
    ratio: float,
    latency: float | None,
) -> None:
    found = Target.parse(text)
    assert (found.budgets, found.rule) == (budgets, None)
    assert (found.metric, found.ratio, found.latency) == (metric, ratio, latency)
    assert Target.parse(str(found).split()) == found


def test_the_default_is_a_target() -> None:
    assert str(Target.parse(None)) == DEFAULT_TARGET


def test_a_rule_needs_no_target() -> None:
    found = Target.parse(None, "energy=0.9")
    assert str(found) == "ranks energy=0.9"
    assert found.rule is not None
    for target in ("macs=0.5", ["macs=0.5", "size=0.5"]):
        with pytest.raises(
            OptionError, match=r"ranks by energy=0\.9 cannot be combined with a target; give"
        ):
            Target.parse(target, "energy=0.9")
    with pytest.raises(OptionError, match=r"'fair'; it should be one of .* or planner"):
        Target.parse(None, "fair")


@pytest.mark.parametrize(
    "text",
    ["macs", "macs=", "=0.5", "macs=0", "macs=-1", "macs=1.01", "macs=nan", "macs=half",
     "flops=0.5", "macs=0.5,size=0.5", "macs 0.5", "", "MACS=0.5"],
)  # fmt: skip
def test_bad_text(text: str) -> None:
    for given_ in (text, ["size=0.5", text]):
        with pytest.raises(OptionError, match=r"write macs=R or .* with 0 < R <= 1"):
            Target.parse(given_)
    with pytest.raises(OptionError):
        parse_target(text)


def test_two_targets_for_one_thing() -> None:
    with pytest.raises(
        OptionError, match=r"two targets limit the same quantity: macs=0\.5, macs=0\.6"
    ):
        Target.parse(["macs=0.5", "macs=0.6"])


@pytest.mark.parametrize(
    ("asked", "at"),
    [
        (None, "macs=0.125"),
        ("latency", "latency=0.125"),
        (["params=0.25", "macs"], "params=0.25 macs=0.125"),
        (["params", "macs", "size=0.3"], "params=0.125 macs=0.125 size=0.3"),
    ],
)
def test_what_is_searched(asked: str | list[str] | None, at: str) -> None:
    target = Target.parse(asked, search=True)
    assert str(target.at(0.125)) == at
    assert set(target.searched) == {m for m, r in target.budgets if r == 1}


def test_nothing_to_search() -> None:
    for asked in ("macs=0.5", ["macs=0.5", "size=0.5"]):
        with pytest.raises(
            OptionError, match=r"nothing to search for; .* without a number \(macs\)"
        ):
            Target.parse(asked, search=True)
    with pytest.raises(OptionError, match="cannot be combined with a search"):
        Target.parse(None, "energy=0.9", search=True)
    with pytest.raises(OptionError, match="two targets limit the same quantity"):
        Target.parse(["macs=0.5", "macs"], search=True)


# amounts


@pytest.mark.parametrize(
    ("text", "metric", "value"),
    [
        ("macs=300M", "macs", 300e6),
        ("macs=1.5 G", "macs", 1.5e9),
        ("params=250k", "params", 250e3),
        ("bytes=2MiB", "size", 2 * 2**20),
        ("size=2MB", "size", 2e6),
        ("size=900B", "size", 900.0),
        ("latency=8ms", "latency", 8.0),
        ("latency=0.5s", "latency", 500.0),
        ("latency=800us", "latency", 0.8),
    ],
)
def test_amounts(text: str, metric: str, value: float) -> None:
    target = Target.parse(text)
    (amount,) = target.amounts
    assert (amount.metric, amount.value) == (metric, pytest.approx(value, rel=1e-12, abs=0))
    assert target.of({metric: 4 * value}).budgets == ((metric, pytest.approx(0.25)),)
    assert target.of({metric: value / 2}).budgets == ((metric, 1.0),)  # the whole at the most
    assert target.of({}) == target
    again = Target.from_text(str(target.of({metric: 4 * value})))
    assert again == target
    assert str(target) == str(amount) == text.replace("bytes", "size").replace(" ", "")


def test_amounts_stand_beside_parts_and_searches() -> None:
    target = Target.parse(["latency", "bytes=2MiB", "params=0.5"], search=True)
    found = target.of({"size": 2.0**22}).at(0.125)
    assert found.budgets == (("latency", 0.125), ("size", 0.5), ("params", 0.5))
    assert str(found) == "latency=0.125 size=2MiB params=0.5"
    with pytest.raises(OptionError, match="limit the same quantity"):
        Target.parse(["size=0.5", "bytes=2MiB"])


@pytest.mark.parametrize(
    ("text", "said_"),
    [
        ("macs=300MiB", "there is no unit 'MiB' for it; its units are k, M, G"),
        ("bytes=2M", "its units are B, kB, MB, GB, KiB, MiB, GiB"),
        ("latency=8", "'8' without a sign would mean 800 %.*or an amount: .*latency=8ms"),
        ("macs=300000000", "more than the whole.*macs=300M"),
        ("params=0k", "leaves nothing of the model"),
        ("params=-3k", "leaves nothing of the model"),
        ("params=1e400k", "leaves nothing of the model"),
    ],
)
def test_amounts_that_make_no_sense(text: str, said_: str) -> None:
    with pytest.raises(OptionError, match=said_):
        Target.parse(text)


@pytest.mark.parametrize("metric", METRICS)
@given(value=st.floats(1e-4, 1e13))
def test_an_amount_that_is_said_can_be_asked_for(metric: str, value: float) -> None:
    text = said(metric, value, up=True)
    (amount,) = Target.parse(text).amounts
    assert value * (1 - 1e-5) <= amount.value <= value * 1.0101 + 1e-9
    assert f"({text})" in in_reach(metric, value, value)


def test_costs() -> None:
    cost = Cost(1, 2, 3)
    assert [cost.of(metric) for metric in METRICS[:3]] == [1, 2, 3]


# several budgets at once, against all combinations


def problem(seed: int, layers: int = 4, cuts: int = 4) -> list[Constraint]:
    """Two budgets on costs that go together in part only, each of which can be met."""
    rng = np.random.default_rng(seed)
    kinds: list[list[Choice]] = [[], []]
    for i in range(layers):
        wholes = rng.integers(50, 1000, 2) * (1, 100)
        keep = Candidate("", "", 0, 0.0, 0, 0, 1, 1)
        found = [[replace(keep, cost=int(w), workload=int(w))] for w in wholes]
        weight = float(rng.choice([1.0, 0.25, 3.0]))
        for k in range(cuts):
            parts = np.clip(rng.uniform(0.05, 0.95) + rng.normal(0, 0.25, 2), 0.02, 0.98)
            error = float(np.prod(1 - parts) * rng.uniform(0.5, 2))
            for kind, whole, part in zip(found, wholes, parts, strict=True):
                cost = int(part * whole) + 1
                kind.append(Candidate("svd", "", k + 1, error, cost, cost, 1, 1))
        for choices, kind in zip(kinds, found, strict=True):
            choices.append(Choice(str(i), tuple(kind), weight))
    constraints = []
    for choices in kinds:
        low = sum(min(c.cost for c in la.candidates) for la in choices)
        high = sum(la.keep.cost for la in choices)
        budget = int(low + rng.uniform(0.1, 0.8) * (high - low))
        constraints.append(Constraint("macs", choices, budget, whole=high, fixed=0))
    return constraints


def loss(choices: Sequence[Choice], places: tuple[int, ...]) -> float:
    return sum(c.weight * c.candidates[i].error for c, i in zip(choices, places, strict=True))


def used(choices: Sequence[Choice], places: tuple[int, ...]) -> int:
    return sum(c.candidates[i].cost for c, i in zip(choices, places, strict=True))


def every(constraints: list[Constraint]) -> list[tuple[int, ...]]:
    """Places of all combinations that keep every budget."""
    ranges = (range(len(la.candidates)) for la in constraints[0].choices)
    return [
        places
        for places in itertools.product(*ranges)
        if all(used(c.choices, places) <= c.budget for c in constraints)
    ]


def planned(constraints: list[Constraint]) -> tuple[int, ...]:
    found = allocate_all(constraints)
    return tuple(
        la.candidates.index(c) for la, c in zip(constraints[0].choices, found, strict=True)
    )


@pytest.mark.full
def test_all_budgets_are_kept_at_little_more_than_the_least_loss() -> None:
    ratios, missed = [], 0
    for seed in range(80):
        constraints = problem(seed)
        feasible = every(constraints)
        if not feasible:
            with pytest.raises(BudgetError, match="no plan keeps all targets"):
                allocate_all(constraints)
            continue
        try:
            places = planned(constraints)
        except BudgetError:
            missed += 1
            continue
        for constraint in constraints:
            assert used(constraint.choices, places) <= constraint.budget
        first = constraints[0].choices
        best = min(loss(first, p) for p in feasible)
        assert loss(first, places) >= best - 1e-12
        ratios.append(loss(first, places) / best)
    # which few plans keep two budgets is a hard problem; it is not solved always
    assert missed <= 4
    assert len(ratios) > 60
    assert np.mean(ratios) < 1.1
    assert np.median(ratios) < 1.001


@pytest.mark.parametrize("seed", range(5))
def test_one_budget_is_that_of_allocate(seed: int) -> None:
    for constraint in problem(seed):
        assert allocate_all([constraint]) == allocate(constraint.choices, constraint.budget)


def test_budgets_that_exclude_each_other() -> None:
    keep = Candidate("", "", 0, 0.0, 100, 100, 100, 100)
    cheap = replace(keep, method="a", cost=10, error=0.1)
    dear = replace(keep, method="b", cost=90, error=0.1)
    one = [Choice("x", (keep, cheap, dear))]
    two = [Choice("x", (keep, replace(cheap, cost=90), replace(dear, cost=10)))]

    def kept(first: int, second: int) -> list[Constraint]:
        return [Constraint("macs", one, first, 100, 0), Constraint("params", two, second, 100, 0)]

    with pytest.raises(BudgetError, match="no plan keeps all targets at once; ask for a larger"):
        allocate_all(kept(50, 50))
    assert allocate_all(kept(50, 90)) == [cheap]
    assert allocate_all(kept(90, 50)) == [dear]


def test_recosted() -> None:
    candidate = Candidate("svd", "", 4, 0.1, cost=50, workload=64, macs=50, parameters=7, bytes=29)
    choice = Choice("x", (replace(candidate, method="", parameters=9, bytes=37), candidate), 0.5)
    for metric, costs in (("params", [9, 7]), ("size", [37, 29])):
        (found,) = recosted([choice], metric)
        assert [c.cost for c in found.candidates] == [c.workload for c in found.candidates] == costs
        back = tuple(replace(c, cost=50, workload=64) for c in found.candidates)
        assert replace(found, candidates=back) == choice


# for real


@pytest.mark.full
def test_macs_and_size_together() -> None:
    targets = ["macs=0.6", "size=0.5"]
    result = fm.quick_compress(fm.digits("mlp"), calib=fm.DIGITS, target=targets)
    report = result.report
    assert result.plan.target == "macs=0.6 size=0.5"
    assert report.macs_ratio <= 0.6
    assert report.after.bytes <= 0.5 * report.before.bytes
    # the one that binds is made use of
    assert report.after.bytes > 0.4 * report.before.bytes
    accuracy = report.validation.accuracy
    assert accuracy is not None
    assert accuracy.drop < 0.01
