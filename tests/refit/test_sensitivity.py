"""Losses of layers: one opened model, given other weights, says what models built anew say."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_lowrank.engine.build import build
from onnx_lowrank.engine.plan_once import plan_once
from onnx_lowrank.planning.targets import Target
from onnx_lowrank.progress import Progress
from onnx_lowrank.refit.sensitivity import _built, losses_of_layers
from tests import fixtures_models as fm
from tests.analyses import analysis_of

CASES = {
    "convolutions": ("resnet", "spatial_svd,svd", "macs=0.4"),
    "recurrent": ("lstm", "recurrent_svd,svd", "params=0.7"),
    "trains": ("mlp", "svd,tensor_train", "params=0.3"),
}


@pytest.mark.full
@pytest.mark.parametrize("case", CASES)
def test_other_weights_are_another_model(case: str) -> None:
    net, passes, target = CASES[case]
    with np.load(fm.DIGITS, allow_pickle=False) as archive:
        data = {"image": archive["image"][:60]}
    analysis = analysis_of(fm.digits(net), passes, data)
    planned = plan_once(analysis, Target.parse(target), pruning=0.0)
    names = list(planned.errors)[:4]  # the solved weights of others are not kept
    assert names
    built = build(analysis, planned.plan, weighable=names)
    judge = analysis.judge_on(analysis.job.samples.calibration)  # type: ignore[arg-type]
    work = planned.proposed.cut.work.model
    whole, losses = losses_of_layers(judge, work, built.repaired, names, Progress())
    assert whole == pytest.approx(judge.divergence(built.model), rel=0.01)
    for name in names:
        without = judge.divergence(_built(work, built.repaired, name))
        assert losses[name] == pytest.approx(whole - without, abs=0.01 * whole)
