from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, helper

from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.analysis.rounding import rounding_error
from onnx_lowrank.chains.chain import Chain, Stage
from onnx_lowrank.chains.geometry import ConvGeometry, LinearGeometry
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.runtime.quantizable import made_ready
from onnx_lowrank.runtime.quantizer import quantized
from tests import fixtures_models as fm
from tests.support import Array, quick, rng

#: factor that the estimate and ONNX Runtime's quantizer may be apart
FACTOR = 4.0


def product(weight: Array) -> Stage:
    return Stage(weight, None, LinearGeometry())


def convolution(weight: Array, groups: int = 1) -> Stage:
    taps = weight.shape[2:]
    ones = (1,) * len(taps)
    return Stage(weight, None, ConvGeometry(taps, ones, ones, (0,) * 2 * len(taps), groups))


def of(rows: Array) -> Moments:
    """Moments of rows ``(count, d)`` of one group."""
    return Moments(len(rows), rows.mean(0)[None], np.cov(rows.T, bias=True)[None])


def input_noise(rows: Array, matrix: Array) -> float:
    """Variance that rounding the input itself puts into the response ``rows matrix^T``."""
    span = max(rows.max(), 0) - min(rows.min(), 0)
    return float((span / 255) ** 2 / 12 * np.sum(matrix**2))


def lost(proto: ModelProto, x: Array, mode: str) -> float:
    """Part of the variance of the output that ONNX Runtime's quantizer puts it off by."""
    feed = {"x": fm.float32(x)}
    ready = made_ready(load(proto), mode, [feed])  # type: ignore[arg-type]
    plain = fm.run(proto, feed)["y"].astype(float)
    other = fm.run(quantized(ready, narrow=True).proto, feed)["y"].astype(float)
    channels = tuple(i for i in range(plain.ndim) if i != 1)
    return float(np.sum(np.mean((other - plain) ** 2, channels)) / plain.var(channels).sum())


@quick(12)
@given(st.integers(4, 24), st.integers(8, 40), st.floats(0, 2), st.integers(0, 99))
def test_products_lose_what_onnx_runtime_loses(
    rank: int, width: int, apart: float, seed: int
) -> None:
    random = rng(seed)
    mixing = random.normal(size=(width, width)) * 10 ** (-random.random(width))
    x = random.normal(size=(1500, width)) @ mixing + random.normal(size=width)
    first, last = random.normal(size=(rank, width)), random.normal(size=(32, rank))
    turn, _ = np.linalg.qr(random.normal(size=(rank, rank)))
    mix = turn * 10 ** (apart * random.random(rank)) @ turn.T  # terms that cancel each other
    first, last = mix @ first, last @ np.linalg.inv(mix)
    chain = Chain((product(first), product(last)))
    stage = product(last @ first)
    proto = fm.build(
        [
            helper.make_node("MatMul", ["x", "v"], ["z"], name="a"),
            helper.make_node("MatMul", ["z", "u"], ["y"], name="b"),
        ],
        {"x": ["N", width]}, {"y": ["N", 32]},
        {"v": fm.float32(first.T), "u": fm.float32(last.T)},
    )  # fmt: skip
    moments = of(x)
    energy = moments.energy(stage.matrices)
    expected = rounding_error(stage, chain, moments) + input_noise(x, last @ first) / energy
    found = lost(proto, x, "dynamic")
    assert expected / FACTOR < found < expected * FACTOR


@pytest.mark.parametrize("loud", [1.0, 30.0])
def test_convolutions_lose_what_onnx_runtime_loses(loud: float) -> None:
    random = rng(3)
    channels, rank = 6, 8
    x = random.normal(size=(8, channels, 12, 12))
    first = random.normal(size=(rank, channels, 1, 1))
    middle = random.normal(size=(rank, 1, 3, 3))
    last = random.normal(size=(10, rank, 1, 1))
    # two terms that cancel each other but for a little; equal ones would be rounded alike
    first[1], middle[1], last[:, 1] = 0.9 * first[0], middle[0] * (1 + 1 / loud), -last[:, 0] / 0.9
    first[:2] *= loud
    chain = Chain((convolution(first), convolution(middle, rank), convolution(last)))
    stage = convolution(chain.compose())
    patches = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
    rows = patches.transpose(0, 2, 3, 1, 4, 5).reshape(-1, channels * 9)
    proto = fm.build(
        [
            helper.make_node("Conv", ["x", "p"], ["s"], name="a"),
            helper.make_node("Conv", ["s", "q"], ["t"], name="b", group=rank),
            helper.make_node("Conv", ["t", "r"], ["y"], name="c"),
        ],
        {"x": ["N", channels, 12, 12]}, {"y": ["N", 10, 10, 10]},
        {"p": fm.float32(first), "q": fm.float32(middle), "r": fm.float32(last)},
    )  # fmt: skip
    moments = of(rows)
    energy = moments.energy(stage.matrices)
    expected = rounding_error(stage, chain, moments)
    expected += input_noise(rows, stage.matrices[0]) / energy
    found = lost(proto, x, "static")
    assert expected / FACTOR < found < expected * FACTOR


def test_terms_that_cancel_lose_more() -> None:
    rows = rng(1).normal(size=(400, 5))
    first, last = rng(2).normal(size=(3, 5)), rng(3).normal(size=(4, 3))
    stage = product(last @ first)
    plain = Chain((product(first), product(last)))
    twice = Chain((
        product(np.concatenate([first, 10 * first])),
        product(np.concatenate([11 * last, -last], axis=1)),
    ))  # fmt: skip
    assert np.allclose(twice.compose(), plain.compose(), rtol=1e-12, atol=1e-12)
    few, many = (rounding_error(stage, chain, of(rows)) for chain in (plain, twice))
    assert 0 < rounding_error(stage, Chain((stage,)), of(rows)) < few < many / 10


def test_nothing_is_known_of_lookups() -> None:
    stage = product(np.ones((3, 4)))
    shares = Moments(9, np.full((1, 4), 0.25), None, one_hot=True)
    assert rounding_error(stage, Chain((stage,)), shares) == 0


def test_constant_inputs_have_no_relative_error() -> None:
    stage = product(np.ones((3, 4)))
    still = Moments(9, np.ones((1, 4)), np.zeros((1, 4, 4)))
    assert rounding_error(stage, Chain((stage,)), still) == 0
