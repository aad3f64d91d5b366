"""Moments of queries and keys: the error that they foresee is the slope of what the model makes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from onnx import ModelProto, helper

from onnx_lowrank.pruning.head_moments import score_moments
from tests import fixtures_models as fm
from tests.analyses import analysis_of
from tests.fixtures_attention import Form, attention
from tests.support import rng

STEP = 1e-2


def scaled(proto: ModelProto, factor: float) -> ModelProto:
    """The same with queries that are so many times as large, in front of an Attention node."""
    new = ModelProto()
    new.CopyFrom(proto)
    (whole,) = [n for n in new.graph.node if n.op_type == "Attention"]
    (scale,) = [a for a in whole.attribute if a.name == "scale"]
    whole.attribute.remove(scale)
    whole.attribute.append(helper.make_attribute("scale", scale.f * factor))
    return new


@pytest.mark.parametrize("node", ["folded", "apart"])
@pytest.mark.parametrize(
    "how", [{}, {"softcap": 0.5}, {"causal": True, "mask": "add"}, {"mask": "where"}]
)
def test_the_error_of_scores_is_the_slope_of_the_output(node: str, how: dict[str, Any]) -> None:
    form = Form(heads=1, width=5, node=node, opset=24, scale="stated", **how)
    proto = attention(form)
    shape = (12, form.length, form.inputs)
    feed: dict[str, npt.NDArray[Any]] = {"x": fm.float32(rng(3).normal(size=shape))}
    analysis = analysis_of(proto, "attention_rank", feed)
    found, job = analysis.pruner("macs").found, analysis.job
    data = job.samples.calibration
    assert data is not None
    sums = score_moments(
        found.blocks, analysis.prepared, data, job.tools.runtime, 0, job.tools.progress
    )[found.blocks[0].name]
    feed = {"x": np.concatenate([data.feed(i)["x"] for i in range(len(data))])}
    up, down = (fm.run(scaled(proto, 1 + sign * STEP), feed)["y"] for sign in (1, -1))
    slope = np.square((up - down).astype(np.float64) / (2 * STEP)).sum()
    assert sums.together[0] == pytest.approx(slope, rel=5e-3)
    assert sums.count[0] == len(data) * form.length
