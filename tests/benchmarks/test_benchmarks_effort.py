"""What the constants of :mod:`onnx_lowrank.analysis.time_model` come from."""

from __future__ import annotations

import pytest

from benchmarks.effort import HEADER, fitted, line, timed
from onnx_lowrank.analysis.time_model import CALLED, STRAYED, TOUCHED
from onnx_lowrank.latency.fit import Sample
from tests.support import rng


def test_planted_rates_come_out() -> None:
    random = rng(0)
    samples = []
    for _ in range(60):
        effort, numbers, nodes = random.uniform(1e5, 1e7), random.uniform(1e4, 1e6), 2.0
        strayed = random.uniform(1e3, 1e5)
        macs = effort + TOUCHED * numbers + STRAYED * strayed + CALLED * nodes
        samples.append(Sample("f", (effort, 4 * numbers, 4 * strayed, nodes), 1e-11 * macs))
    found = fitted(samples)
    assert found.mac == pytest.approx(0.01, rel=1e-6)
    rates = (found.moved, found.strayed, found.called)
    assert rates == pytest.approx((TOUCHED, STRAYED, CALLED), rel=1e-4)
    assert found.scatter == pytest.approx(0, abs=1e-6)
    assert found.scatter_of_plans == pytest.approx(0, abs=1e-6)
    assert line("net", "1", samples).count("|") == len(HEADER) + 1


def test_chains_of_a_real_net() -> None:
    samples = timed("digits_mlp", 1, 3.0)
    assert len(samples) > 4
    assert all(s.seconds > 0 for s in samples)
