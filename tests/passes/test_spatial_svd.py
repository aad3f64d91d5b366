from __future__ import annotations

import numpy as np
import pytest

from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.chains.geometry import ConvGeometry
from onnx_lowrank.passes import SpatialSvd
from onnx_lowrank.passkit.base import Skip
from tests.support import (
    conv_example,
    conv_model,
    only_layer,
    random_moments,
    relative,
    rng,
)

SQUARE = ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))


@pytest.mark.parametrize("split", ["vh", "hv"])
def test_weight_space_is_eckart_young(split: str) -> None:
    layer = only_layer(conv_example(SQUARE, 0)[0])
    weight = layer.stage.weight
    order = (1, 2, 0, 3) if split == "vh" else (1, 3, 0, 2)  # (c, i), (n, j)
    s = np.linalg.svd(weight.transpose(order).reshape(9, 12), compute_uv=False)
    (form,) = SpatialSvd(split=split).propose(layer, Moments())
    assert (form.variant, form.max_rank) == (split, 9)
    for rank in range(1, 10):
        wanted = float(np.sum(s[rank:] ** 2) / np.sum(s**2))
        assert abs(form.error(rank) - wanted) < 1e-12
        assert abs(relative(weight, form.cut(rank).compose()) ** 2 - wanted) < 1e-12


@pytest.mark.parametrize("data", [False, True])
def test_planted_rank(data: bool) -> None:
    random = rng(1)
    vertical, horizontal = random.normal(size=(2, 4, 3)), random.normal(size=(6, 2, 3))
    weight = np.einsum("kci,nkj->ncij", vertical, horizontal)
    layer = only_layer(conv_model(SQUARE, weight, None, element=11))
    moments = random_moments(layer, 1) if data else Moments()
    vh, hv = SpatialSvd().propose(layer, moments)
    assert vh.max_rank == 2
    assert vh.error(2) < 1e-12
    assert relative(weight, vh.cut(2).compose()) < 1e-7
    assert hv.max_rank > 2


def test_geometry_is_split_by_axis() -> None:
    geometry = ConvGeometry((3, 2), (2, 3), (1, 2), (1, 2, 3, 4))
    layer = only_layer(conv_example(geometry, 0)[0])
    vh, hv = (f.cut(2) for f in SpatialSvd().propose(layer, Moments()))
    vertical = ConvGeometry((3, 1), (2, 1), (1, 1), (1, 0, 3, 0))
    horizontal = ConvGeometry((1, 2), (1, 3), (1, 2), (0, 2, 0, 4))
    assert [s.geometry for s in vh.stages] == [vertical, horizontal]
    assert [s.geometry for s in hv.stages] == [horizontal, vertical]
    assert [s.role for s in vh.stages] == ["vertical", "horizontal"]
    assert [s.role for s in hv.stages] == ["horizontal", "vertical"]


def test_variants_of_a_3d_kernel() -> None:
    geometry = ConvGeometry((3, 2, 2), (1,) * 3, (1,) * 3, (0,) * 6)
    layer = only_layer(conv_example(geometry, 0)[0])
    variants = {f.variant for f in SpatialSvd().propose(layer, Moments())}
    assert variants == {"0-12", "1-02", "2-01", "01-2", "02-1", "12-0"}
    flat = ConvGeometry((3, 1, 2), (1,) * 3, (1,) * 3, (0,) * 6)
    layer = only_layer(conv_example(flat, 0)[0])
    assert [f.variant for f in SpatialSvd().propose(layer, Moments())] == ["vh", "hv"]


def test_max_parameters_bounds_the_rank() -> None:
    layer = only_layer(conv_example(SQUARE, 0)[0])
    per_rank = 3 * (3 + 4)
    for allowed in (1, per_rank, 5 * per_rank, 5 * per_rank + per_rank - 1):
        (form,) = SpatialSvd(split="vh").propose(layer, Moments(), allowed)
        assert form.max_rank == max(allowed // per_rank, 1)
        (whole,) = SpatialSvd(split="vh").propose(layer, Moments())
        assert abs(form.error(form.max_rank) - whole.error(form.max_rank)) < 1e-12


@pytest.mark.parametrize(
    ("geometry", "shape", "reason"),
    [
        (ConvGeometry((3,), (1,), (1,), (0, 0)), (4, 3, 3), "has fewer than two kernel axes"),
        (ConvGeometry.pointwise(2), (4, 3, 1, 1), "has fewer than two kernel axes"),
        (ConvGeometry((3, 1), (1, 1), (1, 1), (0,) * 4), (4, 3, 3, 1), "has fewer than two"),
        (ConvGeometry((3, 3), (1, 1), (1, 1), (0,) * 4, 4), (8, 1, 3, 3), "is depthwise"),
    ],
)
def test_left_alone(geometry: ConvGeometry, shape: tuple[int, ...], reason: str) -> None:
    skip = SpatialSvd().refuses(only_layer(conv_model(geometry, np.ones(shape, np.float32), None)))
    assert isinstance(skip, Skip)
    assert skip.reason.startswith(reason)
