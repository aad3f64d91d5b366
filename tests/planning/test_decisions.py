"""Rows of a plan against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import astuple

import pytest

from onnx_lowrank.engine.plan_once import plan_once
from onnx_lowrank.planning.plan import Decision, Plan
from onnx_lowrank.planning.targets import Target
from tests import fixtures_models as fm
from tests.analyses import analysis_of

#: a dense layer of 64 inputs and outputs, then one of 8 outputs, both with a bias
NET = fm.classifier()
X, _ = fm.classified(200)
FIRST, SECOND = (64 * 64, 64 * 64 + 64), (8 * 64, 8 * 64 + 8)


def planned(passes: str, target: str) -> Plan:
    return plan_once(analysis_of(NET, passes, {"x": X}), Target.parse(target)).plan


def row(decision: Decision) -> tuple[object, ...]:
    """A row without its error, and with MACs and parameters before and after as pairs."""
    name, op, what, method, variant, rank, _, macs, left, parameters, fewer, reason = astuple(
        decision
    )
    return name, op, what, method, variant, rank, (macs, parameters), (left, fewer), reason


def test_a_layer_in_two_stages_and_one_that_stays() -> None:
    first, second = planned("svd", "macs=0.6").decisions
    left = (16 * 128, 16 * 128 + 64)
    reason = "0.50 of its MACs, 0.51 of its parameters"
    assert row(first) == ("first", "Gemm", "factorize", "svd", "", 16, FIRST, left, reason)
    assert 0 < first.error < 0.01
    reason = "the budget is met with less error elsewhere"
    assert row(second) == ("second", "Gemm", "keep", "", "", 0, SECOND, SECOND, reason)
    assert second.error == 0


def test_layers_between_fewer_channels() -> None:
    first, second = planned("prune_channels", "macs=0.6").decisions
    reason = "64 of 64 inputs, 32 of 64 outputs are left"
    left = (32 * 64, 32 * 64 + 32)
    assert row(first) == ("first", "Gemm", "keep", "", "", 0, FIRST, left, reason)
    reason = "32 of 64 inputs, 8 of 8 outputs are left"
    left = (8 * 32, 8 * 32 + 8)
    assert row(second) == ("second", "Gemm", "keep", "", "", 0, SECOND, left, reason)
    assert first.error == second.error == 0


@pytest.mark.parametrize(
    ("passes", "reason"),
    [
        ("spatial_svd", "spatial_svd: has fewer than two kernel axes to split"),
        ("prune_channels", "all its channels are kept"),
        ("svd", "the budget is met with less error elsewhere"),
    ],
)
def test_a_layer_that_stays_says_why(passes: str, reason: str) -> None:
    assert [d.reason for d in planned(passes, "macs=1").decisions] == [reason] * 2


def test_a_layer_that_is_left_out_costs_what_it_costs() -> None:
    result = fm.quick_compress(NET, calib={"x": X}, target="macs=0.6", exclude=["second"])
    _, second = result.plan.decisions
    reason, cost = "excluded by --exclude", (8 * 64, 0)
    assert row(second) == ("second", "Gemm", "skip", "", "", 0, cost, cost, reason)
    assert second.error == 0
