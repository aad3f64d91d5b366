from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.chains.geometry import ConvGeometry
from onnx_lowrank.passes import ChannelSvd, Circulant, Svd
from onnx_lowrank.passkit.base import Skip
from tests.support import (
    conv_example,
    conv_model,
    make_model,
    only_layer,
    quick,
    random_moments,
    rng,
)

SQUARE = ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))


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
