"""Weights of groups: by what the judge says of a cut, against what was foreseen."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.progress import Progress
from onnx_lowrank.pruning.weighing import measured_weights
from tests.analyses import analysis_of
from tests.fixtures_attention import Form, attention
from tests.passes.test_attention_rank import data


def weights(divergences: dict[str, float], losses: dict[str, float]) -> dict[str, float]:
    judge: Any = SimpleNamespace(divergence=divergences.__getitem__)
    halved: Any = str
    return measured_weights(judge, halved, losses, Progress())


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


def test_losses_of_heads_are_in_the_judges_measure() -> None:
    form = Form(heads=4, width=16, inputs=32, length=12)
    analysis = analysis_of(attention(form), "attention_rank", data(form))
    pruner = analysis.pruner("macs")
    plain = {n: pruner.order_of(p, {}).losses for n, p in pruner.prunables.items()}
    factors = {n: pruner.orders[n].losses[8] / plain[n][8] for n in plain}
    assert len(factors) == 2
    judge = analysis.judge_on(analysis.job.samples.calibration)  # type: ignore[arg-type]
    seen = {}
    for name in plain:
        graph = Graph(analysis.prepared.model)
        pruner.apply(graph, {name: np.arange(8)})
        seen[name] = judge.divergence(graph.to_model()) / plain[name][8]
    first, second = factors
    assert factors[first] / factors[second] == pytest.approx(seen[first] / seen[second], rel=0.2)
