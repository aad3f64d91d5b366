"""What the constants of :mod:`onnx_lowrank.analysis.time_model` come from."""

from __future__ import annotations

import pytest

from benchmarks.__main__ import parser
from benchmarks.command import measured
from benchmarks.commands.workload import COMMAND, fitted
from onnx_lowrank.analysis.time_model import CALL, READ, RELAYOUT
from onnx_lowrank.latency.fit import Sample
from tests.support import rng


def test_planted_rates_come_out() -> None:
    random = rng(0)
    samples = []
    for _ in range(60):
        workload, numbers, nodes = random.uniform(1e5, 1e7), random.uniform(1e4, 1e6), 2.0
        relayout = random.uniform(1e3, 1e5)
        macs = workload + READ * numbers + RELAYOUT * relayout + CALL * nodes
        samples.append(Sample("f", (workload, 4 * numbers, 4 * relayout, nodes), 1e-11 * macs))
    found = fitted(samples)
    assert found.mac == pytest.approx(0.01, rel=1e-6)
    rates = (found.moved, found.relayout, found.called)
    assert rates == pytest.approx((READ, RELAYOUT, CALL), rel=1e-4)
    assert found.scatter == pytest.approx(0, abs=1e-6)
    assert found.scatter_of_plans == pytest.approx(0, abs=1e-6)


@pytest.mark.full
def test_chains_of_a_real_net(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--models", "digits_mlp", "--batches", "1", "--limit", "3"]
    arguments = parser().parse_args(["workload", *options])
    (row,) = measured(COMMAND, arguments, {})
    assert row.figures["chains"] == len(row.details["chains"]) > 4
    assert all(seconds > 0 for _, _, seconds in row.details["chains"])
    COMMAND.close([row], arguments)
    assert capsys.readouterr().out.startswith("| all | all |")
