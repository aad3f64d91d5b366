from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.chains.geometry import ConvGeometry
from onnx_lowrank.passes import MonochromaticPass
from onnx_lowrank.passkit.base import Skip
from tests.support import (
    Array,
    assert_true,
    conv_model,
    geometries,
    only_layer,
    quick,
    random_moments,
    relative,
    replaced,
    rng,
    run,
    sizes,
)

SQUARE = ConvGeometry((3, 3), (2, 1), (1, 1), (1, 0, 1, 1))


def planted(geometry: ConvGeometry, colours: int, seed: int) -> Array:
    """Kernels of 6 outputs a group, each on one of few directions of 3 channels."""
    random, g = rng(seed), geometry.groups
    directions = random.normal(size=(g, colours, 3))
    chosen = random.permuted(np.tile(np.arange(6) % colours, (g, 1)), axis=1)
    spatial = random.normal(size=(g, 6, 1, *geometry.kernel))
    picked = np.take_along_axis(directions, chosen[..., None], axis=1)
    return (picked.reshape(g, 6, 3, *[1] * geometry.axes) * spatial).reshape(
        g * 6, 3, *geometry.kernel
    )


@pytest.mark.full
@quick(30)
@given(geometries(kernels=(2, 3)), st.sampled_from([1, 2, 3]), st.booleans(), st.integers(0, 99))
def test_planted_colours(geometry: ConvGeometry, colours: int, data: bool, seed: int) -> None:
    weight = planted(geometry, colours, seed).astype(np.float32)
    bias = rng(seed).normal(size=len(weight)).astype(np.float32)
    proto = conv_model(geometry, weight, bias)
    layer = only_layer(proto)
    moments = random_moments(layer, seed, condition=4.0) if data else Moments()
    x = rng(seed, 1).normal(size=(2, 3 * geometry.groups, *sizes(geometry, 3))).astype(np.float32)
    forms = MonochromaticPass().propose(layer, moments)
    assert [f.variant for f in forms] == ["free", "equal"]
    wanted = run(proto, {"x": x})["y"]
    for form in forms:
        assert form.error(colours) < 1e-9
        again = replaced(proto, "conv", form.cut(colours))
        assert relative(wanted, run(again, {"x": x})["y"]) < 1e-4
        assert sorted(n.op_type for n in again.graph.node) == ["Conv", "Conv", "Gather"]


@pytest.mark.full
@quick(6)
@given(geometries(axes=(1, 2), kernels=(2, 3)), st.booleans(), st.integers(0, 99))
def test_errors_are_true(geometry: ConvGeometry, data: bool, seed: int) -> None:
    weight = rng(seed).normal(size=(6 * geometry.groups, 3, *geometry.kernel)).astype(np.float32)
    layer = only_layer(conv_model(geometry, weight, None))
    moments = random_moments(layer, seed) if data else Moments()
    free, equal = MonochromaticPass().propose(layer, moments)
    errors = assert_true(free, layer, moments, range(1, 7))
    same = assert_true(equal, layer, moments, [1, 2, 3, 6])
    assert errors[0] == same[0]
    assert errors[-1] <= errors[0] + 1e-9
    assert errors[1] <= same[1] * 1.05 + 1e-9  # one is the other with a bond; both are local


def test_ranks_that_a_grouped_convolution_can_have() -> None:
    weight = rng(0).normal(size=(48, 3, 3, 3)).astype(np.float32)
    layer = only_layer(conv_model(SQUARE, weight, None))
    free, equal = MonochromaticPass().propose(layer, Moments())
    assert list(free.ranks()) == [4, 8, 12, 16, 24, 32, 40]
    assert list(equal.ranks()) == [4, 8, 12, 16, 24]
    with pytest.raises(ValueError, match="one rank"):
        free.cut((1, 2))


@pytest.mark.parametrize(
    ("shape", "groups", "reason"),
    [
        ((4, 3, 1, 1), 1, "has no spatial kernel"),
        ((4, 1, 3, 3), 4, "is depthwise: each group reads one channel"),
        ((4, 65, 3, 3), 1, "reads 65 channels, and colours are 64 at most"),
    ],
)
def test_left_alone(shape: tuple[int, ...], groups: int, reason: str) -> None:
    kernel = shape[2:]
    geometry = ConvGeometry(kernel, (1, 1), (1, 1), (0, 0, 0, 0), groups)
    layer = only_layer(conv_model(geometry, np.ones(shape, np.float32), None))
    assert MonochromaticPass().refuses(layer) == Skip(reason)
