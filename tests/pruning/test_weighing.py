"""Weights of groups: by what the judge says of a cut, against what was foreseen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.judge.verdict import Estimate
from onnx_lowrank.progress import Progress
from onnx_lowrank.pruning.pruner import Pruner
from onnx_lowrank.pruning.weighing import Halves, divergence_of_halves, measured_weights
from onnx_lowrank.samples.dataset import Dataset
from tests import fixtures_models as fm
from tests.analyses import analysis_of
from tests.fixtures_attention import FORMS, Form, attention
from tests.passes.test_attention_rank import data

DATA = fm.dataset(fm.residual_net(8), {"x": fm.pictures(100)})


def weights(divergences: dict[str, float], losses: dict[str, float]) -> dict[str, float]:
    def on(_: Dataset) -> Callable[[str], Estimate]:
        return lambda name: Estimate(*(3 * [divergences[name]]))

    return measured_weights(on, DATA, losses, 1000, Progress())


@pytest.mark.parametrize(
    ("runs", "read"), [(1000, [10, 10, 20, 40, 20]), (40, [10, 10]), (25, [10]), (0, [10])]
)
def test_more_samples_are_read_for_what_is_not_precise_yet(runs: int, read: list[int]) -> None:
    sizes: list[int] = []
    asked: dict[str, int] = {"sure": 0, "doubtful": 0}
    means = iter([1.0, 4.0, 3.0, 2.0, 2.5])

    def on(part: Dataset) -> Callable[[str], Estimate]:
        sizes.append(len(part))
        doubtful = next(means)

        def divergence(name: str) -> Estimate:
            asked[name] += 1
            return Estimate(2, 1.9, 2.1) if name == "sure" else Estimate(doubtful, -9, 20)

        return divergence

    found = measured_weights(on, DATA, {"sure": 1.0, "doubtful": 1.0}, runs, Progress())
    assert sizes == read
    assert asked == {"sure": 1, "doubtful": len(read)}
    pooled = np.average([1.0, 4.0, 3.0, 2.0, 2.5][: len(read)], weights=read)
    assert found["doubtful"] / found["sure"] == pytest.approx(pooled / 2)


def test_a_narrow_interval_of_many_samples_ends_it() -> None:
    """Each part alone is too wide, and both together are not."""
    parts: list[int] = []

    def on(part: Dataset) -> Callable[[str], Estimate]:
        parts.append(len(part))
        return lambda _: Estimate(1, 0.5, 1.5)

    measured_weights(on, DATA, {"a": 1.0}, 1000, Progress())
    assert parts == [10, 10]


def test_nothing_is_measured_where_nothing_is_judged() -> None:
    assert measured_weights(lambda _: None, DATA, {"a": 1.0}, 100, Progress()) == {}


def test_weights_are_ratios_over_their_median() -> None:
    found = weights({"a": 2.0, "b": 3.0, "c": 1.0}, {"a": 1.0, "b": 0.5, "c": 1.0})
    assert found == {"a": 1.0, "b": 3.0, "c": 0.5}


def test_weights_are_bounded() -> None:
    found = weights({"a": 1e-9, "b": 1.0, "c": 1e9}, dict.fromkeys("abc", 1.0))
    assert found == {"a": pytest.approx(1 / 30), "b": 1.0, "c": 30.0}


@pytest.mark.parametrize("odd", [0.0, math.inf, math.nan])
def test_what_cannot_be_measured_is_left_out(odd: float) -> None:
    assert weights({"a": odd, "b": 1.0}, {"a": 1.0, "b": 1.0, "c": 0.0}) == {"b": 1.0}
    assert weights({"a": odd}, {"a": 1.0}) == {}


ORIGINALS: dict[str, Any] = {
    **{name: (attention(form), "attention_rank,prune_channels", data(form)) for name, form in
       FORMS.items()},
    "residual": (fm.residual_net(8), "prune_channels", {"x": fm.pictures(40)}),
}  # fmt: skip


@pytest.mark.parametrize("name", ORIGINALS)
def test_zeros_are_a_cut(name: str) -> None:
    analysis = analysis_of(*ORIGINALS[name])
    judge = analysis.judge_on(analysis.job.samples.calibration)  # type: ignore[arg-type]
    pruner, tried = analysis.pruner("macs"), []

    def weigh(halves: Halves, losses: Mapping[str, float]) -> Mapping[str, float]:
        one_session = divergence_of_halves(judge, halves)
        for group in losses:
            found = one_session(group).value
            assert found == pytest.approx(judge.divergence(halves.halved(group)), rel=1e-3)
            tried.append(found)
        return {}

    pruner = Pruner(analysis.prepared, replace(pruner._methods, weigh=weigh), "macs", Progress())
    assert pruner._weighed({n: pruner.order_of(p, {}) for n, p in pruner.prunables.items()})
    assert tried
    assert min(tried) > 0


def test_guessed_losses_are_measured_and_damped_where_that_is_asked() -> None:
    analysis = analysis_of(fm.residual_net(8), "prune_channels", {"x": fm.pictures(40)})
    pruner = analysis.pruner("macs")
    assert not pruner.weighs
    factors = {name: 4.0**number for number, name in enumerate(pruner.prunables)}
    asked: list[Mapping[str, float]] = []

    def weigh(halves: Halves, losses: Mapping[str, float]) -> Mapping[str, float]:
        asked.append(losses)
        return factors

    guessed = Pruner(analysis.prepared, replace(pruner._methods, weigh=weigh), "macs", Progress())
    measured = guessed.weighed()
    assert not asked
    for number, name in enumerate(pruner.prunables):
        assert np.array_equal(measured.orders[name].order, guessed.orders[name].order)
        expected = guessed.orders[name].losses * 2.0**number
        assert measured.orders[name].losses == pytest.approx(expected)
    assert len(asked) == 1
    weighing = replace(analysis, weighed=True)
    assert weighing.pruner("macs").orders.keys() == pruner.orders.keys()
    assert weighing.pruner("macs") is weighing.pruner("macs")
    assert analysis.pruner("macs") is pruner


def test_losses_of_heads_are_in_the_judges_measure() -> None:
    form = Form(heads=4, width=16, inputs=32, length=12)
    analysis = analysis_of(attention(form), "attention_rank", data(form))
    pruner = analysis.pruner("macs")
    plain = {n: pruner.order_of(p, {}).losses for n, p in pruner.prunables.items()}
    assert pruner.weighs
    assert pruner.weighed() is pruner
    factors = {n: pruner.orders[n].losses[8] / plain[n][8] for n in plain}
    assert len(factors) == 2
    judge = analysis.judge_on(analysis.job.samples.calibration)  # type: ignore[arg-type]
    seen = {}
    for name in plain:
        graph = Graph(analysis.prepared.model)
        pruner.cuts.apply(graph, {name: np.arange(8)})
        seen[name] = judge.divergence(graph.to_model()) / plain[name][8]
    first, second = factors
    assert factors[first] / factors[second] == pytest.approx(seen[first] / seen[second], rel=0.2)
