"""Transposed convolutions: seen as the plain ones that they equal, written as what they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import helper

from onnx_lowrank.analysis.accumulator import Accumulator
from onnx_lowrank.analysis.moments import Moments, relative_error
from onnx_lowrank.chains.chain import Chain
from onnx_lowrank.chains.geometry import ConvGeometry
from onnx_lowrank.layers import find_layers
from onnx_lowrank.passes import ChannelSvd, Cp, SpatialSvd, Svd, Tucker2
from onnx_lowrank.passkit.base import Factorization
from tests.support import (
    assert_identity_at_full_rank,
    conv_example,
    graph_of,
    make_model,
    only_layer,
    quick,
    relative,
    replaced,
    rng,
    run,
    transposed_geometries,
    wide,
)

DOUBLING = ConvGeometry((4, 4), (2, 2), (1, 1), (1, 1, 1, 1), transposed=True)


@quick(60)
@given(transposed_geometries(), st.integers(0, 99))
def test_patches_and_responses(geometry: ConvGeometry, seed: int) -> None:
    proto, feed = conv_example(geometry, seed)
    assume(min(geometry.output_spatial(feed["x"].shape[2:])) > 0)
    layer = only_layer(proto)
    assert layer.geometry == geometry
    stage, wanted = layer.stage, run(proto, feed)["y"]
    assert geometry.output_shape(feed["x"].shape, stage.outputs) == wanted.shape
    rows = geometry.patches(feed["x"].astype(np.float64))
    made = rows @ stage.matrices.swapaxes(1, 2)
    if stage.bias is not None:
        made += stage.bias.reshape(len(made), 1, -1)
    assert relative(geometry.responses(wanted), made) < 1e-5
    index = np.array([0, rows.shape[1] // len(feed["x"]) - 1])
    some = geometry.patches(feed["x"], index)
    every = rows.reshape(len(rows), len(feed["x"]), -1, rows.shape[2])
    np.testing.assert_array_equal(some.reshape(len(rows), -1, 2, rows.shape[2]), every[:, :, index])


@pytest.mark.parametrize(
    "factorization", [ChannelSvd(), Tucker2(), SpatialSvd(), Cp()], ids=lambda p: p.name
)
def test_full_rank(factorization: Factorization) -> None:
    @quick(12)
    @given(transposed_geometries(), st.sampled_from([11, 17]), st.integers(0, 99))
    def check(geometry: ConvGeometry, opset: int, seed: int) -> None:
        proto, feed = conv_example(geometry, seed, opset=opset)
        assume(min(geometry.output_spatial(feed["x"].shape[2:])) > 0)
        assume(wide(geometry) > (factorization.name == "spatial_svd"))
        assert_identity_at_full_rank(factorization, proto, feed, seed)

    check()


def test_pointwise() -> None:
    geometry = ConvGeometry((1, 1), (1, 1), (1, 1), (0, 0, 0, 0), transposed=True)
    proto, feed = conv_example(geometry, 1)
    assert_identity_at_full_rank(Svd(), proto, feed, 1)


def test_the_predicted_error_is_the_measured_one() -> None:
    """All phases of the stride are in the moments."""
    proto, _ = conv_example(DOUBLING, 1)
    x = rng(5).normal(size=(20, 3, 6, 7)).cumsum(axis=3).astype(np.float32)
    layer = only_layer(proto)
    rows = Accumulator(1, layer.patch)
    rows.update(layer.geometry.patches(x))
    moments = Moments(rows.count, rows.mean, rows.covariance)  # not shrunk
    form = ChannelSvd().propose(layer, moments)[0]
    chain = form.cut(2)
    wanted, got = (run(p, {"x": x})["y"] for p in (proto, replaced(proto, "conv", chain)))
    spread = np.sum((wanted - wanted.mean(axis=(0, 2, 3), keepdims=True)) ** 2)
    measured = float(np.sum((wanted - got) ** 2) / spread)
    assert abs(measured / relative_error(layer.stage, chain, moments) - 1) < 1e-4


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_auto_pad(auto_pad: str) -> None:
    weight = rng(0).normal(size=(3, 4, 3, 4)).astype(np.float32)
    node = helper.make_node(
        "ConvTranspose", ["x", "w"], ["y"], name="conv", strides=[2, 2], auto_pad=auto_pad
    )
    proto = make_model([node], {"x": [None, 3, None, None]}, ["y"], {"w": weight})
    feed = {"x": rng(1).normal(size=(2, 3, 5, 6)).astype(np.float32)}
    assert_identity_at_full_rank(ChannelSvd(), proto, feed, 0)


def reaching(output_shape: list[int], auto_pad: str, size: list[int | None], **attrs: Any) -> Any:
    weight = rng(0).normal(size=(3, 4, 3, 4)).astype(np.float32)
    node = helper.make_node(
        "ConvTranspose", ["x", "w"], ["y"], name="conv", auto_pad=auto_pad,
        output_shape=output_shape, **{"strides": [2, 3]} | attrs,
    )  # fmt: skip
    return make_model([node], {"x": [None, 3, *size]}, ["y"], {"w": weight})


@pytest.mark.parametrize("auto_pad", ["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("output_shape", [[11, 19], [10, 18], [8, 16], [9, 17], [12, 21]])
def test_output_shape(auto_pad: str, output_shape: list[int]) -> None:
    """The pads follow from the size; beyond what the kernel reaches there is output padding."""
    proto = reaching(output_shape, auto_pad, [5, 6])
    feed = {"x": rng(1).normal(size=(2, 3, 5, 6)).astype(np.float32)}
    assert run(proto, feed)["y"].shape[2:] == tuple(output_shape)
    for factorization in (ChannelSvd(), SpatialSvd()):
        assert_identity_at_full_rank(factorization, proto, feed, 0)


def test_output_shape_with_output_padding() -> None:
    proto = reaching([11, 19], "NOTSET", [5, 6], output_padding=[1, 1], dilations=[2, 1])
    feed = {"x": rng(1).normal(size=(2, 3, 5, 6)).astype(np.float32)}
    assert_identity_at_full_rank(SpatialSvd(), proto, feed, 0)


def test_output_shape_of_a_dynamic_input_is_left_alone() -> None:
    (layer,) = find_layers(graph_of(reaching([11, 19], "NOTSET", [5, None])))[1]
    assert layer.reason.startswith("its pads follow from output_shape and the size of its input")


def test_output_shape_behind_tensors_of_inferred_size() -> None:
    proto = reaching([11, 19], "NOTSET", [5, 6])
    proto.graph.node[0].input[0] = "r"
    proto.graph.node.insert(0, helper.make_node("Relu", ["x"], ["r"]))
    feed = {"x": rng(1).normal(size=(2, 3, 5, 6)).astype(np.float32)}
    wanted = run(proto, feed)["y"]
    layer = only_layer(proto)
    got = run(replaced(proto, "conv", Chain((layer.stage,))), feed)["y"]
    assert relative(wanted, got) < 1e-6


def test_macs_are_counted_at_the_input() -> None:
    layer = only_layer(conv_example(DOUBLING, 0)[0])
    assert layer.stage.macs((2, 3, 5, 6)) == 4 * 3 * 16 * 2 * 5 * 6
