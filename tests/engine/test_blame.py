"""The layers that cost most of what a result loses, in its report."""

from __future__ import annotations

from typing import Any

import pytest

from onnx_lowrank.engine import blame
from onnx_lowrank.engine.api import Result
from tests import fixtures_models as fm
from tests.engine.test_rounds import OPTIONS, net


def compressed(**options: Any) -> Result:
    return fm.quick_compress(net(weak=0.1), **{**OPTIONS, **options})


@pytest.mark.parametrize("effort", ["quick", "normal", "thorough"])
def test_the_layer_that_costs_most_comes_first(effort: str) -> None:
    report = compressed(effort=effort).report
    first, *rest = report.costliest
    assert first.layer == "strong"
    assert 0.5 * first.whole < first.loss <= first.whole
    assert all(layer.loss < first.loss for layer in rest)
    # on other samples than the report's own comparison
    assert first.whole == pytest.approx(report.validation.verdict.loss.value, rel=0.5)


def test_what_a_search_finds_has_them_too() -> None:
    options = {k: v for k, v in OPTIONS.items() if k != "target"}
    assert compressed(target="params", min_snr=10, **options).report.costliest


def test_nothing_is_measured_where_layers_are_not_solved_whole() -> None:
    assert compressed(repair="last").report.costliest == ()
    assert compressed(calib=None).report.costliest == ()


def test_it_takes_few_samples_where_a_run_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blame, "_WORK", 0)
    assert compressed().report.costliest[0].layer == "strong"
