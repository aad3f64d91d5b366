from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.chains.geometry import ConvGeometry
from onnx_lowrank.passes import ChannelSvd
from onnx_lowrank.passkit.base import Skip
from tests.support import (
    conv_example,
    conv_model,
    only_layer,
    quick,
    random_moments,
    relative,
    rng,
)

SQUARE = ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))


@pytest.mark.parametrize("order", ["spatial_first", "pointwise_first"])
def test_weight_space_is_eckart_young(order: str) -> None:
    layer = only_layer(conv_example(SQUARE, 0)[0])
    weight = layer.stage.weight
    first = weight if order == "spatial_first" else weight.transpose(1, 0, 2, 3)
    s = np.linalg.svd(first.reshape(first.shape[0], -1), compute_uv=False)
    (form,) = ChannelSvd(order=order).propose(layer, Moments())
    assert (form.variant, form.max_rank) == (order, len(s))
    for rank in range(1, len(s) + 1):
        wanted = float(np.sum(s[rank:] ** 2) / np.sum(s**2))
        assert abs(form.error(rank) - wanted) < 1e-12
        assert abs(relative(weight, form.cut(rank).compose()) ** 2 - wanted) < 1e-12


@quick(10)
@given(st.integers(0, 99))
def test_spatial_first_is_reduced_rank_regression(seed: int) -> None:
    layer = only_layer(conv_example(SQUARE, seed)[0])
    moments = random_moments(layer, seed)
    assert moments.covariance is not None
    weight = layer.stage.weight.reshape(4, -1)
    values = np.linalg.eigvalsh(weight @ moments.covariance[0] @ weight.T)[::-1]
    (form,) = ChannelSvd(order="spatial_first").propose(layer, moments)
    for rank in range(1, 5):
        assert abs(form.error(rank) - values[rank:].sum() / values.sum()) < 1e-10


@pytest.mark.parametrize("data", [False, True])
@pytest.mark.parametrize("order", ["spatial_first", "pointwise_first"])
def test_planted_rank(order: str, data: bool) -> None:
    random = rng(1)
    if order == "spatial_first":
        weight = np.tensordot(random.normal(size=(6, 2)), random.normal(size=(2, 5, 3, 3)), 1)
    else:
        weight = np.einsum(
            "nkij,kc->ncij", random.normal(size=(6, 2, 3, 3)), random.normal(size=(2, 5))
        )
    layer = only_layer(conv_model(SQUARE, weight, None, element=11))
    moments = random_moments(layer, 1) if data else Moments()
    (form,) = ChannelSvd(order=order).propose(layer, moments)
    assert form.max_rank == 2
    assert form.error(2) < 1e-12
    assert relative(weight, form.cut(2).compose()) < 1e-7


def test_roles_and_geometry() -> None:
    geometry = ConvGeometry((3, 2), (2, 3), (1, 2), (1, 2, 3, 4))
    layer = only_layer(conv_example(geometry, 0)[0])
    spatial, pointwise = (f.cut(2) for f in ChannelSvd().propose(layer, Moments()))
    one = ConvGeometry.pointwise(2)
    assert [s.geometry for s in spatial.stages] == [geometry, one]
    assert [s.geometry for s in pointwise.stages] == [one, geometry]
    assert [s.role for s in spatial.stages] == ["spatial", "expand"]
    assert [s.role for s in pointwise.stages] == ["reduce", "spatial"]


@pytest.mark.parametrize(
    ("geometry", "shape", "reason"),
    [
        (ConvGeometry.pointwise(2), (4, 3, 1, 1), "has no spatial kernel"),
        (ConvGeometry((3, 3), (1, 1), (1, 1), (0,) * 4, 4), (8, 1, 3, 3), "is depthwise"),
    ],
)
def test_left_alone(geometry: ConvGeometry, shape: tuple[int, ...], reason: str) -> None:
    skip = ChannelSvd().refuses(only_layer(conv_model(geometry, np.ones(shape, np.float32), None)))
    assert isinstance(skip, Skip)
    assert skip.reason.startswith(reason)
