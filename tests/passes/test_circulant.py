from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from onnx_lowrank.analysis.moments import Moments, relative_error
from onnx_lowrank.chains.geometry import ConvGeometry
from onnx_lowrank.passes import ChannelSvd, Circulant, Svd
from onnx_lowrank.passkit.base import Skip
from tests.support import (
    assert_faithful,
    assert_identity_at_full_rank,
    conv_example,
    conv_model,
    geometries,
    make_model,
    only_layer,
    quick,
    random_moments,
    rng,
)

SQUARE = ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))


@quick(20)
@given(geometries(), st.sampled_from([11, 17]), st.integers(0, 99))
def test_full_rank(geometry: ConvGeometry, opset: int, seed: int) -> None:
    proto, feed = conv_example(geometry, seed, opset=opset)
    assert_identity_at_full_rank(Circulant(), proto, feed, seed)


@quick(15)
@given(geometries(axes=(1, 2)), st.booleans(), st.integers(0, 99))
def test_errors_are_true(geometry: ConvGeometry, data: bool, seed: int) -> None:
    layer = only_layer(conv_example(geometry, seed)[0])
    moments = random_moments(layer, seed) if data else Moments()
    for form in Circulant().propose(layer, moments):
        assert_faithful(form, layer, moments)


@quick(10)
@given(st.integers(0, 99))
def test_principal_components_are_better(seed: int) -> None:
    layer = only_layer(conv_example(SQUARE, seed)[0])
    moments = random_moments(layer, seed)
    outputs, _ = Circulant().propose(layer, moments)
    best_outputs, best_inputs = Circulant(basis="orthogonal").propose(layer, moments)
    spatial_first, pointwise_first = ChannelSvd().propose(layer, moments)
    for rank in range(1, 3):
        assert best_outputs.error(rank) <= outputs.error(rank) + 1e-9
        assert best_outputs.error(rank) == spatial_first.error(rank)
        assert best_inputs.error(rank) == pointwise_first.error(rank)


@quick(10)
@given(st.integers(0, 99))
def test_the_response_metric_wins_in_its_own_norm(seed: int) -> None:
    layer = only_layer(conv_example(SQUARE, seed)[0])
    moments = random_moments(layer, seed)
    ours = Circulant(side="outputs").propose(layer, moments)[0]
    plain = Circulant(side="outputs", metric="identity").propose(layer, moments)[0]
    errors = [[relative_error(layer.stage, f.cut(r), moments) for r in (1, 2, 3)]
              for f in (ours, plain)]  # fmt: skip
    assert sum(errors[0]) <= sum(errors[1]) + 1e-9  # the basis is a choice among few, by the mean


def test_a_circulant_response_needs_no_more_than_principal_components() -> None:
    """Shifted copies of one filter: their covariance is circulant."""
    n = 16
    column = np.exp(-np.minimum(np.arange(n), n - np.arange(n)))
    matrix = np.linalg.cholesky(column[(np.arange(n)[:, None] - np.arange(n)) % n])
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")
    weights = {"w": matrix.T.astype(np.float32).copy()}
    layer = only_layer(make_model([node], {"x": [None, n]}, ["y"], weights))
    (form,) = Circulant(side="outputs").propose(layer, Moments())
    (best,) = Svd().propose(layer, Moments())
    for rank in range(1, n):
        assert abs(form.error(rank) - best.error(rank)) < 1e-6


def test_left_alone() -> None:
    depthwise = ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 4)
    weight = rng(0).normal(size=(4, 1, 3, 3)).astype(np.float32)
    layer = only_layer(conv_model(depthwise, weight, None))
    assert Circulant().refuses(layer) == Skip("is depthwise: each group reads one channel")


@pytest.mark.parametrize("side", ["outputs", "inputs"])
def test_one_side(side: str) -> None:
    layer = only_layer(conv_example(SQUARE, 1)[0])
    assert [f.variant for f in Circulant(side=side).propose(layer, Moments())] == [side]
