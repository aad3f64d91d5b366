from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import helper

from onnx_lowrank.chains.geometry import ConvGeometry, LinearGeometry
from tests.support import (
    AnyArray,
    Array,
    conv_model,
    geometries,
    make_model,
    quick,
    relative,
    rng,
    run,
    sizes,
    transposed_geometries,
)


def example(geometry: ConvGeometry, batch: int, extra: int, seed: int) -> tuple[Array, Array]:
    """Input and weight."""
    random, g = rng(seed), geometry.groups
    x = random.normal(size=(batch, 2 * g, *sizes(geometry, extra))).astype(np.float32)
    w = random.normal(size=(3 * g, 2, *geometry.kernel)).astype(np.float32)
    return x, w


def responses(geometry: ConvGeometry, x: Array, w: Array) -> Array:
    """``(groups, rows, N / groups)`` by patches."""
    matrices = w.reshape(geometry.groups, w.shape[0] // geometry.groups, -1)
    product: Array = geometry.patches(x) @ matrices.transpose(0, 2, 1)
    return product


def convolved(geometry: ConvGeometry, x: Array, w: Array) -> AnyArray:
    return run(conv_model(geometry, w, None), {"x": x})["y"]


@quick(80)
@given(geometries(), st.integers(1, 3), st.integers(1, 5), st.integers(0, 99))
def test_patches_times_weight_is_the_convolution(
    geometry: ConvGeometry, batch: int, extra: int, seed: int
) -> None:
    x, w = example(geometry, batch, extra, seed)
    y = convolved(geometry, x, w)
    assert geometry.output_shape(x.shape, w.shape[0]) == y.shape
    assert geometry.output_spatial(x.shape[2:]) == y.shape[2:]
    assert geometry.positions(x.shape) == math.prod(y.shape[2:])
    assert geometry.rows(x.shape) == batch * math.prod(y.shape[2:])
    got = responses(geometry, x, w)
    assert got.shape[1] == geometry.rows(x.shape)
    assert relative(geometry.responses(y), got) < 1e-5


@quick(40)
@given(transposed_geometries(), st.integers(1, 3), st.integers(0, 99))
def test_patches_times_weight_is_the_transposed_convolution(
    geometry: ConvGeometry, batch: int, seed: int
) -> None:
    x, w = example(geometry, batch, 3, seed)
    assume(min(geometry.output_spatial(x.shape[2:])) > 0)
    y = convolved(geometry, x, w)
    assert geometry.output_shape(x.shape, w.shape[0]) == y.shape
    assert relative(geometry.responses(y), responses(geometry, x, w)) < 1e-5


@quick(25)
@given(geometries(axes=(1, 2)), st.integers(0, 99))
def test_index_reads_the_same_positions_of_input_and_output(
    geometry: ConvGeometry, seed: int
) -> None:
    x, w = example(geometry, 2, 3, seed)
    y = rng(seed).normal(size=geometry.output_shape(x.shape, w.shape[0]))
    positions = geometry.positions(x.shape)
    index = np.sort(rng(seed).choice(positions, size=max(positions // 2, 1), replace=False))
    rows = (positions * np.arange(2)[:, None] + index).reshape(-1)  # sample by sample
    np.testing.assert_array_equal(geometry.patches(x, index), geometry.patches(x)[:, rows])
    np.testing.assert_array_equal(geometry.responses(y, index), geometry.responses(y)[:, rows])


@pytest.mark.parametrize("upper", [True, False])
@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
def test_same_padding_follows_the_specification(
    kernel: int, stride: int, dilation: int, upper: bool
) -> None:
    # ONNX Runtime refuses SAME with dilations, so explicit pads stand in for it
    geometry = ConvGeometry(
        (kernel,), (stride,), (dilation,), (0, 0), 1, "SAME_UPPER" if upper else "SAME_LOWER"
    )
    for size in (1, 5, 6, 7):
        outputs = -(-size // stride)
        missing = max((outputs - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
        pads = (missing // 2, missing - missing // 2)
        explicit = ConvGeometry(
            (kernel,), (stride,), (dilation,), pads if upper else pads[::-1], 1, "NOTSET"
        )
        assert geometry.output_spatial((size,)) == (outputs,)
        x, w = rng(size).normal(size=(1, 2, size)), rng(kernel).normal(size=(3, 2, kernel))
        x, w = x.astype(np.float32), w.astype(np.float32)
        y = convolved(explicit, x, w)
        assert relative(explicit.responses(y), responses(geometry, x, w)) < 1e-5


@quick(40)
@given(geometries(axes=(2, 3)), st.integers(0, 99))
def test_restrict_splits_exactly(geometry: ConvGeometry, seed: int) -> None:
    # a kernel that is a product over the axes is the convolution along some, then the others
    x, _ = example(geometry, 2, 3, seed)
    random, channels = rng(seed), x.shape[1]
    count = random.integers(1, geometry.axes)
    axes = [int(a) for a in random.choice(geometry.axes, size=count, replace=False)]
    rest = [a for a in range(geometry.axes) if a not in axes]
    one, two = geometry.restrict(axes), geometry.restrict(rest)
    # depthwise, so that the product needs no sum over channels
    one, two, whole = (
        ConvGeometry(g.kernel, g.strides, g.dilations, g.pads, channels, g.auto_pad)
        for g in (one, two, geometry)
    )
    first = random.normal(size=(channels, 1, *one.kernel)).astype(np.float32)
    last = random.normal(size=(channels, 1, *two.kernel)).astype(np.float32)
    between = convolved(one, x, first)
    assert between.shape == one.output_shape(x.shape, channels)
    assert relative(convolved(whole, x, first * last), convolved(two, between, last)) < 1e-5


def test_restrict_neutralises_the_other_axes() -> None:
    geometry = ConvGeometry((3, 5, 2), (2, 3, 1), (1, 2, 3), (1, 2, 3, 4, 5, 6), 2)
    assert geometry.restrict([1]) == ConvGeometry(
        (1, 5, 1), (1, 3, 1), (1, 2, 1), (0, 2, 0, 0, 5, 0), 2
    )
    assert geometry.restrict([0, 1, 2]) == geometry
    assert geometry.restrict([]) == ConvGeometry.pointwise(3, 2)


LINEAR: dict[str, tuple[LinearGeometry, list[tuple[int, ...]]]] = {
    "x W": (LinearGeometry(-1, -1), [(4, 3), (2, 4, 3), (2, 5, 4, 3)]),
    "W x": (LinearGeometry(-2, -2), [(3, 4), (2, 3, 4), (2, 5, 3, 4)]),
    "Gemm transA": (LinearGeometry(-2, -1), [(3, 4)]),
}


def linear(kind: str, x: AnyArray, w: AnyArray) -> AnyArray:
    """``w (N, C)`` applied by ONNX Runtime."""
    shape = {"x": [None] * x.ndim}
    if kind == "Gemm transA":
        node = helper.make_node("Gemm", ["x", "w"], ["y"], transA=1, transB=1)
    else:
        node = helper.make_node("MatMul", ["w", "x"] if kind == "W x" else ["x", "w"], ["y"])
    stored = w.T if kind == "x W" else w
    return run(make_model([node], shape, ["y"], {"w": stored}), {"x": x})["y"]


@pytest.mark.parametrize(
    ("kind", "shape"), [(k, s) for k, (_, shapes) in LINEAR.items() for s in shapes]
)
def test_rows_times_weight_is_the_product(kind: str, shape: tuple[int, ...]) -> None:
    geometry = LINEAR[kind][0]
    x = rng(1).normal(size=shape).astype(np.float32)
    w = rng(2).normal(size=(6, 3)).astype(np.float32)
    y = linear(kind, x, w)
    assert geometry.output_shape(shape, 6) == y.shape
    got = geometry.patches(x) @ w.T
    assert got.shape[1] == geometry.rows(shape) == x.size // 3
    assert relative(geometry.responses(y), got) < 1e-5
    assert geometry.positions(shape) == (geometry.rows(shape) // shape[0] if x.ndim > 2 else 1)


@pytest.mark.parametrize(
    ("kind", "shape"), [(k, s) for k, (_, shapes) in LINEAR.items() for s in shapes if len(s) > 2]
)
def test_linear_index_reads_the_same_rows(kind: str, shape: tuple[int, ...]) -> None:
    geometry = LINEAR[kind][0]
    x = rng(3).normal(size=shape)
    y = rng(4).normal(size=geometry.output_shape(shape, 6))
    positions = geometry.positions(shape)
    index = np.array([0, positions - 2])
    rows = (positions * np.arange(shape[0])[:, None] + index).reshape(-1)
    np.testing.assert_array_equal(geometry.patches(x, index), geometry.patches(x)[:, rows])
    np.testing.assert_array_equal(geometry.responses(y, index), geometry.responses(y)[:, rows])


def test_pointwise_reads_every_pixel() -> None:
    x = rng(5).normal(size=(2, 4, 3, 2))
    rows = ConvGeometry.pointwise(2, groups=2).patches(x)
    wanted = [
        [x[b, 2 * g : 2 * g + 2, i, j] for b, i, j in itertools.product(*map(range, (2, 3, 2)))]
        for g in range(2)
    ]
    np.testing.assert_array_equal(rows, np.array(wanted))
