from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_lowrank.analysis.moments import Moments, response_error
from onnx_lowrank.chains.chain import Chain
from onnx_lowrank.chains.geometry import ConvGeometry
from onnx_lowrank.layers import Layer
from onnx_lowrank.passes import ChannelSvd, Tucker2
from onnx_lowrank.passkit.base import Skip
from tests.support import (
    conv_example,
    conv_model,
    geometries,
    only_layer,
    quick,
    random_moments,
    relative,
    rng,
)

SQUARE = ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))


def form_of(layer: Layer, moments: Moments, metric: str = "covariance") -> Any:
    (form,) = Tucker2(metric).propose(layer, moments)
    return form


def pairs(form: Any) -> itertools.product[tuple[int, int]]:
    """All pairs of ranks, not those of the grid alone."""
    q, p = form.max_rank
    return itertools.product(range(1, q + 1), range(1, p + 1))


def true_error(layer: Layer, chain: Chain, moments: Moments) -> float:
    kernel = layer.stage.matrices
    difference = kernel - chain.compose().reshape(kernel.shape)
    return response_error(difference, moments) / moments.energy(kernel)


def conv_layer(outputs: int, inputs: int, geometry: ConvGeometry = SQUARE) -> Layer:
    weight = rng(outputs, inputs).normal(size=(outputs, inputs, *geometry.kernel))
    return only_layer(conv_model(geometry, weight.astype(np.float32), None))


def test_a_wide_layer_carries_the_gain_of_a_round_over(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = conv_layer(16, 16)
    moments = random_moments(layer, 3, condition=1e4)
    affordable, *wider = (4, 8), (8, 8), (8, 12), (12, 12)
    refined = {r: form_of(layer, moments).error(r) for r in (affordable, *wider)}
    monkeypatch.setattr("onnx_lowrank.passes.tucker2._AFFORDABLE", 6 * layer.patch**2)
    form = form_of(layer, moments)
    assert form.error(affordable) == refined[affordable]
    for rank in wider:
        assert form.error(rank) != refined[rank]
        assert abs(form.error(rank) / refined[rank] - 1) < 0.05
        assert true_error(layer, form.cut(rank), moments) < 1.02 * form.error(rank)


@quick(10)
@given(geometries(axes=(1, 2), kernels=(2, 3)), st.integers(0, 99))
def test_weight_space_cuts_are_judged_by_the_data(geometry: ConvGeometry, seed: int) -> None:
    layer = only_layer(conv_example(geometry, seed)[0])
    moments = random_moments(layer, seed)
    form = form_of(layer, moments, "identity")
    for rank in pairs(form):
        assert abs(form.error(rank) - true_error(layer, form.cut(rank), moments)) < 1e-9


@quick(10)
@given(st.integers(0, 99), st.booleans())
def test_one_side_whole_is_channel_svd(seed: int, data: bool) -> None:
    layer = only_layer(conv_example(SQUARE, seed)[0])
    moments = random_moments(layer, seed) if data else Moments()
    form = form_of(layer, moments)
    spatial_first, pointwise_first = ChannelSvd().propose(layer, moments)
    for rank in range(1, 4):
        assert abs(form.error((3, rank)) - spatial_first.error(rank)) < 1e-9
        # both refine the basis in turns, a round here is a round there
        assert abs(form.error((rank, 4)) - pointwise_first.error(rank)) < 1e-6


@pytest.mark.parametrize("data", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_planted_ranks(groups: int, data: bool) -> None:
    random = rng(1)
    kernels = [
        np.einsum(
            "np,pqij,qc->ncij",
            random.normal(size=(6, 3)),
            random.normal(size=(3, 2, 3, 3)),
            random.normal(size=(2, 5)),
        )
        for _ in range(groups)
    ]
    geometry = ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1, 1, 1), groups)
    layer = only_layer(conv_model(geometry, np.concatenate(kernels), None, element=11))
    form = form_of(layer, random_moments(layer, 1) if data else Moments())
    assert form.max_rank == (2, 3)
    assert form.error((2, 3)) < 1e-12
    assert relative(layer.stage.weight, form.cut((2, 3)).compose()) < 1e-7
    assert form.error((1, 3)) > 1e-3
    assert form.error((2, 2)) > 1e-3


def test_roles_and_geometry() -> None:
    geometry = ConvGeometry((3, 2), (2, 3), (1, 2), (1, 2, 3, 4), 2)
    layer = only_layer(conv_example(geometry, 0)[0])
    chain = form_of(layer, Moments()).cut((2, 3))
    one = ConvGeometry.pointwise(2, 2)
    assert [s.geometry for s in chain.stages] == [one, geometry, one]
    assert [s.role for s in chain.stages] == ["reduce", "core", "expand"]
    assert [s.weight.shape for s in chain.stages] == [
        (4, 3, 1, 1),
        (6, 2, 3, 2),
        (8, 3, 1, 1),
    ]


@pytest.mark.parametrize(
    ("outputs", "inputs", "groups"), [(16, 16, 1), (64, 16, 1), (64, 64, 1), (64, 32, 4)]
)
def test_pairs_on_offer(outputs: int, inputs: int, groups: int) -> None:
    geometry = ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1, 1, 1), groups)
    layer = conv_layer(outputs, inputs // groups, geometry)
    form = form_of(layer, Moments())
    found = list(form.ranks())
    assert 4 <= len(found) <= 60
    assert len(set(found)) == len(found)
    for q, p in found:
        assert q * groups % 4 == 0
        assert p * groups % 4 == 0
        assert q < inputs // groups
        assert p < outputs // groups
        assert form.outline((q, p)).parameters < layer.stage.parameters
    assert len({q for q, _ in found}) > 1
    assert any(q * outputs != p * inputs for q, p in found)


def test_a_bound_on_parameters_leaves_the_cheap_pairs() -> None:
    layer = conv_layer(32, 32)
    (all_of_them,) = Tucker2().propose(layer, Moments())
    (cheap,) = Tucker2().propose(layer, Moments(), 2000)
    wanted = [r for r in all_of_them.ranks() if all_of_them.outline(r).parameters < 2000]
    assert wanted
    assert list(cheap.ranks()) == wanted
    for rank in wanted:
        assert abs(cheap.error(rank) - all_of_them.error(rank)) < 1e-9


@pytest.mark.parametrize(("outputs", "inputs"), [(4, 4), (3, 8), (8, 3)])
def test_narrow_layers_are_offered_nothing(outputs: int, inputs: int) -> None:
    assert not list(form_of(conv_layer(outputs, inputs), Moments()).ranks())


@pytest.mark.parametrize(
    ("geometry", "shape", "reason"),
    [
        (ConvGeometry.pointwise(2), (4, 3, 1, 1), "has no spatial kernel"),
        (ConvGeometry.pointwise(1, 2), (4, 3, 1), "has no spatial kernel"),
        (ConvGeometry((3, 3), (1, 1), (1, 1), (0,) * 4, 4), (8, 1, 3, 3), "is depthwise"),
    ],
)
def test_left_alone(geometry: ConvGeometry, shape: tuple[int, ...], reason: str) -> None:
    skip = Tucker2().refuses(only_layer(conv_model(geometry, np.ones(shape, np.float32), None)))
    assert isinstance(skip, Skip)
    assert skip.reason.startswith(reason)
