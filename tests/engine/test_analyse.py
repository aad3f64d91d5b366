"""What one analysis knows that another takes over."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_lowrank.engine import analyse
from onnx_lowrank.engine.analyse import leaving
from tests import fixtures_models as fm
from tests.analyses import analysis_of
from tests.scripted_timer import ScriptedTimer, by_workload


@pytest.mark.full
def test_where_a_layer_is_left_alone_groups_are_not_weighed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = np.load(fm.DIGITS)["image"][:40]
    passes = "attention_rank,prune_channels,svd"
    timer = ScriptedTimer(by_workload)
    analysis = analysis_of(fm.digits("vit"), passes, {"image": images}, timer)
    before = analysis.pruner("macs").orders
    monkeypatch.setattr(analyse, "measured_weights", None)  # would be called
    head = analysis.prepared.layers[-1].name
    rest = leaving(analysis, [head], "it is tried whole")
    after = rest.pruner("macs").orders
    assert after
    for name, order in after.items():
        np.testing.assert_array_equal(order.order, before[name].order)
        np.testing.assert_allclose(order.losses, before[name].losses, rtol=1e-6)
