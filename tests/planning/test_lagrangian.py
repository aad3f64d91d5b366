from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_lowrank.errors import BudgetError
from onnx_lowrank.linalg.rank_rules import RankRule
from onnx_lowrank.planning.candidates import Candidate, Choice, by_rule
from onnx_lowrank.planning.lagrangian import allocate, allocate_in_time, least_budget
from onnx_lowrank.planning.plan import Decision, Plan
from tests.support import quick

Layers = list[Choice]


def candidate(cost: int, error: float, workload: int | None = None) -> Candidate:
    method = "" if error == 0 else "svd"
    return Candidate(method, "", 0, error, cost, cost if workload is None else workload, cost, cost)


def choice(name: str, *points: tuple[int, float], weight: float = 1.0) -> Choice:
    """A layer from the ``(cost, error)`` of its candidates, the first to keep it."""
    return Choice(name, tuple(candidate(*p) for p in points), weight)


def cost(chosen: list[Candidate]) -> int:
    return sum(c.cost for c in chosen)


def loss(layers: Layers, chosen: list[Candidate]) -> float:
    return sum(la.weight * c.error for la, c in zip(layers, chosen, strict=True))


def least(layers: Layers, budget: int) -> float:
    """The least loss within the budget, over all combinations."""
    every = itertools.product(*(la.candidates for la in layers))
    return min(loss(layers, list(c)) for c in every if cost(list(c)) <= budget)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Layers, int]:
    """Up to four layers of up to five candidates, and a budget that can be met."""
    layers = []
    for i in range(draw(st.integers(1, 4))):
        whole = draw(st.integers(10, 100))
        cuts = draw(
            st.lists(st.tuples(st.integers(1, whole - 1), st.integers(1, 1000)), max_size=4)
        )
        workloads = [draw(st.integers(c, 2 * c)) for c, _ in cuts]
        points = [candidate(c, e / 1000, f) for (c, e), f in zip(cuts, workloads, strict=True)]
        weight = draw(st.sampled_from([1.0, 0.25, 3.0]))
        layers.append(Choice(str(i), (candidate(whole, 0.0), *points), weight))
    low = sum(min(c.cost for c in la.candidates) for la in layers)
    high = sum(la.keep.cost for la in layers)
    return layers, draw(st.integers(low, high + 5))


# against all combinations


@pytest.mark.full
@quick(150)
@given(problems(), st.sampled_from([0.0, 0.5, 1.0]))
def test_within_budget_always_and_never_better_than_the_best(
    problem: tuple[Layers, int], blocked: float
) -> None:
    layers, budget = problem
    for chosen in (allocate(layers, budget, blocked), allocate_in_time(layers, budget)):
        assert cost(chosen) <= budget
        assert loss(layers, chosen) >= least(layers, budget) - 1e-12
        assert all(c in la.candidates for la, c in zip(layers, chosen, strict=True))


@quick(150)
@given(problems())
def test_loss_exceeds_the_best_by_one_step_of_one_layer_at_the_most(
    problem: tuple[Layers, int],
) -> None:
    # the gap of the Lagrangian is one step on one convex hull, whatever the number of layers
    layers, budget = problem
    step = max(
        la.weight * (max(c.error for c in la.candidates) - min(c.error for c in la.candidates))
        for la in layers
    )
    assert loss(layers, allocate(layers, budget)) <= least(layers, budget) + step + 1e-9


@quick(150)
@given(problems(), st.floats(1e-4, 1.0))
def test_optimal_where_the_hull_decides(problem: tuple[Layers, int], multiplier: float) -> None:
    # a budget that some multiplier meets exactly has that multiplier's choice as its optimum
    layers, _ = problem
    chosen = [
        min(la.candidates, key=lambda c: (la.weight * c.error + multiplier * c.cost, c.cost))
        for la in layers
    ]
    budget = cost(chosen)
    planned = loss(layers, allocate(layers, budget))
    assert planned == pytest.approx(least(layers, budget), rel=0, abs=1e-9)


@quick(150)
@given(problems())
def test_nothing_is_left_that_would_still_fit(problem: tuple[Layers, int]) -> None:
    layers, budget = problem
    chosen = allocate(layers, budget)
    left = budget - cost(chosen)
    for la, now in zip(layers, chosen, strict=True):
        better = [c for c in la.candidates if c.error < now.error]
        assert all(c.cost - now.cost > left for c in better)


@quick(150)
@given(problems())
def test_a_budget_for_everything_changes_nothing(problem: tuple[Layers, int]) -> None:
    layers, _ = problem
    whole = sum(la.keep.cost for la in layers)
    assert loss(layers, allocate(layers, whole)) == 0


def test_the_layer_that_suffers_less_is_cut() -> None:
    points = ((100, 0.0), (50, 0.1))
    a, b = choice("a", *points), choice("b", *points, weight=2.0)
    assert [c.cost for c in allocate([a, b], 150)] == [50, 100]
    assert [c.cost for c in allocate([b, a], 150)] == [100, 50]


def test_workload_decides_between_equal_costs() -> None:
    keep = candidate(100, 0.0, 128)
    ragged, filled = candidate(50, 0.100, 90), candidate(48, 0.101, 48)
    layer = Choice("a", (keep, ragged, filled))
    assert allocate([layer], 50, 0.0) == [ragged]
    # what is left of the budget is spent, though in workload the second alone keeps it
    assert allocate_in_time([layer], 50) == [ragged]
    other = replace(layer, layer="b")
    assert sum(c.workload for c in allocate_in_time([layer, other], 98)) < 180


@pytest.mark.parametrize(("error", "taken"), [(0.15, "quick"), (0.3, "near")])
def test_time_is_bought_where_it_is_cheaper_than_by_fewer_macs(error: float, taken: str) -> None:
    # the same time would lose 0.2 under a budget of nine tenths
    near, quick, small = candidate(50, 0.1, 90), candidate(50, error, 60), candidate(45, 0.2, 60)
    layer = Choice("a", (candidate(100, 0.0), near, quick, small))
    assert allocate([layer], 45) == [small]
    assert allocate_in_time([layer], 50) == [{"near": near, "quick": quick}[taken]]


def test_the_budget_is_used() -> None:
    # fewer MACs are nearly as fast, but that is not what was asked for
    layer = choice("a", (100, 0.0), (50, 0.1), (40, 0.101))
    assert cost(allocate_in_time([layer], 50)) == 50


def test_nothing_to_choose_from() -> None:
    assert allocate([], 0) == []
    only = choice("a", (10, 0.0))
    assert allocate([only], 10) == [only.keep]


def test_a_budget_that_cannot_be_met_names_the_least() -> None:
    layers = [choice("a", (100, 0.0), (30, 0.5)), choice("b", (100, 0.0), (12, 0.5))]
    assert cost(allocate(layers, 42)) == 42
    for planned in (allocate, allocate_in_time):
        with pytest.raises(BudgetError, match=r"cannot cost less than 42, and the budget is 41"):
            planned(layers, 41)


# the baseline


@pytest.mark.parametrize(
    ("rule", "taken"),
    [
        ("ratio=0.5", [(50, 0.2), (400, 0.4), (7, 0.0)]),
        ("ratio=0.1", [(100, 0.0), (1000, 0.0), (7, 0.0)]),
        ("error=0.25", [(50, 0.2), (501, 0.1), (7, 0.0)]),
        ("energy=0.75", [(50, 0.2), (501, 0.1), (7, 0.0)]),
        ("energy=0.5", [(50, 0.2), (400, 0.4), (7, 0.0)]),
        ("error=0.01", [(100, 0.0), (1000, 0.0), (7, 0.0)]),
        ("fixed=3", [(50, 0.2), (501, 0.1), (7, 0.0)]),
        ("evbmf", [(50, 0.2), (501, 0.1), (7, 0.0)]),
    ],
)
def test_rules(rule: str, taken: list[tuple[int, float]]) -> None:
    a = choice("a", (100, 0.0), (50, 0.3), (50, 0.2), (20, 0.6))
    b = choice("b", (1000, 0.0), (501, 0.1), (400, 0.4))
    c = choice("c", (7, 0.0))
    found = by_rule([a, b, c], RankRule.parse(rule))
    assert [(x.cost, x.error) for x in found] == taken


# plans


def decision(layer: str, rank: int = 8, error: float = 0.1) -> Decision:
    return Decision(layer, "Conv", "factorize", "svd", "", rank, error, 9, 5, 9, 5, "why")


def planned_by(model: str, target: str, seed: int, decisions: tuple[Decision, ...]) -> Plan:
    return Plan(model, "da7a", target, seed, None, ("svd",), decisions)


def test_plans_are_text_that_does_not_vary() -> None:
    one = planned_by("ab", "macs=0.5", 0, (decision("a"), decision("b")))
    two = planned_by("ab", "macs=0.5", 0, (decision("a"), decision("b")))
    assert one.to_json() == two.to_json()
    assert one.digest == two.digest
    assert one.digest == "b6543ad0d96edce6f9f6d77664e3dd6e80d04c9bbc217584301c19366ab9a6ce"
    data = json.loads(one.to_json())
    assert data["schema"] == 4
    assert data["select"] == "random"
    assert [d["layer"] for d in data["decisions"]] == ["a", "b"]
    assert data["decisions"][0]["rank"] == 8


@pytest.mark.parametrize(
    "other",
    [
        planned_by("ab", "macs=0.5", 1, (decision("a"),)),
        planned_by("ab", "macs=0.4", 0, (decision("a"),)),
        planned_by("cd", "macs=0.5", 0, (decision("a"),)),
        planned_by("ab", "macs=0.5", 0, (decision("a", rank=4),)),
        planned_by("ab", "macs=0.5", 0, ()),
    ],
    ids=["seed", "target", "model", "rank", "layers"],
)
def test_the_digest_is_of_all_of_it(other: Plan) -> None:
    assert other.digest != planned_by("ab", "macs=0.5", 0, (decision("a"),)).digest


@pytest.mark.full
@quick(100)
@given(problems(), st.sampled_from([0.0, 0.05, 0.5]))
def test_the_smallest_budget_that_loses_no_more(problem: tuple[Layers, int], bound: float) -> None:
    layers, _ = problem
    found = least_budget(layers, bound)
    assert loss(layers, allocate(layers, found)) <= bound
    smaller = least_budget(layers, 2 * bound + 1)
    assert smaller <= found <= sum(la.keep.cost for la in layers)


def test_the_smallest_budgets_of_two_layers() -> None:
    layers = [choice("a", (100, 0.0), (50, 0.01), (10, 0.5)), choice("b", (100, 0.0), (60, 0.2))]
    wanted = {0.0: 200, 0.05: 150, 0.3: 110, 1.0: 70}
    for bound, budget in wanted.items():
        assert least_budget(layers, bound) == pytest.approx(budget, abs=2)
