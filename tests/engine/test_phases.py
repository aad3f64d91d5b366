"""Compressions of nets with transposed convolutions, against those by whole patches."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper

from onnx_lowrank.analysis import phase_sums
from onnx_lowrank.chains.geometry import ConvGeometry
from onnx_lowrank.engine.api import Result
from tests import fixtures_models as fm
from tests.support import AnyArray, make_model, rng

UNSEEN = fm.pictures(24, seed=3)


def decoder(kernel: int, stride: int, pad: int, channels: int = 24) -> ModelProto:
    """A convolution, two transposed ones behind ReLUs, and a convolution."""
    random = rng(4)

    def weight(*shape: int, fan: float) -> AnyArray:
        return (random.normal(size=shape) * np.sqrt(2 / fan)).astype(np.float32)

    c, taps = channels, kernel**2
    fan = c * max(taps / stride**2, 1.0)
    weights = {
        "w0": weight(c, 3, 3, 3, fan=27), "b0": weight(c, fan=20),
        "w1": weight(c, c, kernel, kernel, fan=fan), "b1": weight(c, fan=20),
        "w2": weight(c, c // 2, kernel, kernel, fan=fan), "b2": weight(c // 2, fan=20),
        "w3": weight(4, c // 2, 3, 3, fan=9 * c / 2), "b3": weight(4, fan=20),
    }  # fmt: skip
    up = {"strides": [stride, stride], "pads": [pad] * 4}
    nodes = []
    for i, (op, changes) in enumerate(
        [("Conv", {"pads": [1] * 4}), *[("ConvTranspose", up)] * 2, ("Conv", {})]
    ):
        last = i == 3
        x, y = "x" if i == 0 else f"h{i}", "y" if last else f"r{i}"
        nodes.append(helper.make_node(op, [x, f"w{i}", f"b{i}"], [y], name=f"l{i}", **changes))
        if not last:
            nodes.append(helper.make_node("Relu", [y], [f"h{i + 1}"]))
    return make_model(nodes, {"x": ["N", 3, 7, 7]}, ["y"], weights)


def compressed(proto: ModelProto, **options: Any) -> Result:
    return fm.quick_compress(proto, calib=fm.pictures(60, seed=1), **options)


def difference(one: Result, two: Result, proto: ModelProto) -> float:
    """Of the outputs of two models, against the error of the first."""
    first, second, whole = (fm.run(m, {"x": UNSEEN})["y"] for m in (one.model, two.model, proto))
    return float(np.linalg.norm(first - second) / np.linalg.norm(first - whole))


@pytest.mark.full
@pytest.mark.parametrize("shape", [(4, 2, 1), (2, 2, 0), (3, 2, 1)], ids=str)
@pytest.mark.parametrize(
    "passes",
    ["channel_svd", "spatial_svd", "prune_channels", "prune_channels{chain=top_down}"],
)
def test_a_model_is_that_by_whole_patches(
    passes: str, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    proto = decoder(*shape)
    options = {"passes": passes, "target": "macs=0.75", "repair": "chain", "force": True}
    found = compressed(proto, **options)
    monkeypatch.setattr(ConvGeometry, "_steps", property(lambda self: (1,) * self.axes))
    assert not phase_sums.in_phases(ConvGeometry((4,), (2,), (1,), (0, 0), transposed=True))
    whole = compressed(proto, **options)
    assert found.report.after.macs == whole.report.after.macs < 0.78 * found.report.before.macs
    assert difference(found, whole, proto) < 0.02


@pytest.mark.full
def test_a_decoder_behind_relus() -> None:
    proto = decoder(4, 2, 1)
    result = compressed(proto, passes="prune_channels,channel_svd", target="macs=0.75")
    onnx.checker.check_model(result.model, full_check=True)
    assert {d.layer for d in result.plan.decisions if d.decision != "keep"} | {
        g.name for g in result.plan.groups if g.kept
    }
    whole, small = (fm.run(m, {"x": UNSEEN})["y"] for m in (proto, result.model))
    assert fm.relative(small, whole) < 0.3
