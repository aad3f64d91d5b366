from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, helper

from onnx_lowrank.analysis.moments import Moments, response_error
from onnx_lowrank.chains.geometry import ConvGeometry
from onnx_lowrank.passes import Svd
from onnx_lowrank.passkit.base import Skip
from tests.support import (
    AnyArray,
    Array,
    assert_identity_at_full_rank,
    conv_model,
    make_model,
    only_layer,
    quick,
    random_moments,
    relative,
    replaced,
    rng,
    run,
)

OPSETS = st.sampled_from([9, 11, 13, 17, 21])


def gemm(seed: int, opset: int = 17, **attributes: Any) -> tuple[ModelProto, dict[str, AnyArray]]:
    random = rng(seed)
    w = random.normal(size=(6, 5)).astype(np.float32)
    weights = {"w": w if attributes.get("transB") else w.T.copy()}
    if seed % 2 or opset < 11:
        weights["b"] = random.normal(size=[(6,), (1, 6), (1,)][seed % 3]).astype(np.float32)
    x = random.normal(size=(7, 5)).astype(np.float32)
    node = helper.make_node("Gemm", ["x", *weights], ["y"], name="gemm", **attributes)
    proto = make_model([node], {"x": [None, None]}, ["y"], weights, opset=opset)
    return proto, {"x": x.T.copy() if attributes.get("transA") else x}


def matmul(
    seed: int, left: bool, biased: bool, batch: tuple[int, ...] = (), opset: int = 17
) -> tuple[ModelProto, dict[str, AnyArray]]:
    random = rng(seed)
    w = random.normal(size=(6, 5)).astype(np.float32)
    weights = {"w": w if left else w.T.copy()}
    nodes = [helper.make_node("MatMul", ["w", "x"] if left else ["x", "w"], ["y"], name="mm")]
    if biased:
        nodes[0].output[0] = "p"
        weights["b"] = random.normal(size=(6, 1) if left else 6).astype(np.float32)
        nodes.append(helper.make_node("Add", ["p", "b"], ["y"]))
    x = random.normal(size=(*batch, 5, 7) if left else (*batch, 7, 5)).astype(np.float32)
    return make_model(nodes, {"x": x.shape}, ["y"], weights, opset=opset), {"x": x}


@quick(30)
@given(
    OPSETS,
    st.integers(0, 99),
    st.sampled_from([1.0, 0.5, -2.0]),
    st.sampled_from([1.0, 0.0, 3.0]),
    st.integers(0, 1),
    st.integers(0, 1),
)
def test_full_rank_gemm(
    opset: int, seed: int, alpha: float, beta: float, trans_a: int, trans_b: int
) -> None:
    proto, feed = gemm(seed, opset, alpha=alpha, beta=beta, transA=trans_a, transB=trans_b)
    assert_identity_at_full_rank(Svd(), proto, feed, seed)


@quick(30)
@given(
    st.integers(0, 99),
    st.booleans(),
    st.booleans(),
    st.sampled_from([(), (2,), (2, 3)]),
    OPSETS,
)
def test_full_rank_matmul(
    seed: int, left: bool, biased: bool, batch: tuple[int, ...], opset: int
) -> None:
    proto, feed = matmul(seed, left, biased, batch, opset)
    assert_identity_at_full_rank(Svd(), proto, feed, seed)


def matrices(layer_seed: int) -> tuple[Any, Array, Moments]:
    layer = only_layer(gemm(layer_seed)[0])
    return layer, layer.stage.weight, random_moments(layer, layer_seed)


def test_weight_space_is_eckart_young() -> None:
    layer, weight, _ = matrices(1)
    u, s, vt = np.linalg.svd(weight)
    (form,) = Svd().propose(layer, Moments())
    assert form.max_rank == 5
    for rank in range(1, 6):
        assert abs(form.error(rank) - np.sum(s[rank:] ** 2) / np.sum(s**2)) < 1e-12
        best = (u[:, :rank] * s[:rank]) @ vt[:rank]
        assert relative(best, form.cut(rank).compose()) < 1e-7


def test_response_metric_is_reduced_rank_regression() -> None:
    layer, weight, moments = matrices(2)
    assert moments.covariance is not None
    values, vectors = np.linalg.eigh(moments.covariance[0])
    root = (vectors * np.sqrt(values)) @ vectors.T
    u, s, _ = np.linalg.svd(weight @ root)
    (form,) = Svd().propose(layer, moments)
    for rank in range(1, 6):
        assert abs(form.error(rank) - np.sum(s[rank:] ** 2) / np.sum(s**2)) < 1e-10
        best = u[:, :rank] @ u[:, :rank].T @ weight
        assert relative(best, form.cut(rank).compose()) < 1e-6


def test_identity_metric_is_judged_by_the_response_and_keeps_the_bias() -> None:
    layer, weight, moments = matrices(3)
    (plain,) = Svd(metric="identity").propose(layer, moments)
    (response,) = Svd().propose(layer, moments)
    for rank in range(1, 6):
        chain = plain.cut(rank)
        found = response_error(weight - chain.compose(), moments) / moments.energy(weight)
        assert abs(plain.error(rank) - found) < 1e-10
        assert response.error(rank) <= plain.error(rank) + 1e-10
        np.testing.assert_array_equal(chain.last.bias, layer.stage.bias)


def test_elementwise_is_optimal_in_its_own_norm() -> None:
    """Independent of the solver: no other rank-2 matrix at hand is better under Omega."""
    layer, weight, moments = matrices(3)
    assert moments.covariance is not None
    sigma, rank = moments.covariance[0], 2
    response = weight @ sigma
    square = np.outer(np.sum(response * weight, 1), np.diag(sigma)) + 2 * response**2

    def lost(metric: str) -> float:
        chain = Svd(metric=metric).propose(layer, moments)[0].cut(rank)
        return float(np.sum(square * (weight - chain.compose()) ** 2))

    ours = lost("elementwise")
    assert all(ours < lost(m) for m in ("identity", "diagonal", "covariance"))
    # E[(y_n x_c)^2], by drawing
    x = rng(0).multivariate_normal(np.zeros(len(sigma)), sigma, size=200_000)
    drawn = (x @ weight.T).T ** 2 @ x**2 / len(x)
    assert relative(square, drawn) < 0.02


def test_elementwise_judges_by_the_response() -> None:
    layer, weight, moments = matrices(3)
    (form,) = Svd(metric="elementwise").propose(layer, moments)
    errors = [form.error(r) for r in range(1, form.max_rank + 1)]
    for rank, claimed in enumerate(errors, 1):
        chain = form.cut(rank)
        found = response_error(weight - chain.compose(), moments) / moments.energy(weight)
        assert abs(claimed - found) < 1e-10
    assert errors[-1] < 1e-9
    (shrunk,) = Svd(metric="elementwise", ridge=0.1).propose(layer, moments)
    assert np.linalg.norm(shrunk.cut(3).compose()) < 0.95 * np.linalg.norm(form.cut(3).compose())


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_the_mean_response_of_a_low_rank_product_is_kept(left: bool, biased: bool) -> None:
    # a corrected bias appears where the layer had none, in the orientation of the product
    proto, feed = matmul(4, left, biased, (2,))
    layer = only_layer(proto)
    rows = layer.geometry.patches(feed["x"].astype(np.float64))[0]
    moments = Moments(len(rows), rows.mean(axis=0)[None], np.cov(rows.T, bias=True)[None])
    again = replaced(proto, layer.name, Svd().propose(layer, moments)[0].cut(2))
    wanted, got = run(proto, feed)["y"], run(again, feed)["y"]
    axes = (0, 2) if left else (0, 1)
    assert relative(wanted.mean(axis=axes), got.mean(axis=axes)) < 1e-5
    assert 0.01 < relative(wanted, got) < 1


@pytest.mark.parametrize("whitened", [False, True])
def test_planted_rank(whitened: bool) -> None:
    random = rng(6)
    weight = (random.normal(size=(8, 2)) @ random.normal(size=(2, 7)))[..., None]
    layer = only_layer(conv_model(ConvGeometry.pointwise(1), weight, None, element=11))
    moments = random_moments(layer, 0) if whitened else Moments()
    (form,) = Svd().propose(layer, moments)
    assert form.max_rank == 2
    assert form.error(2) < 1e-12
    assert relative(weight, form.cut(2).compose()) < 1e-7


@pytest.mark.parametrize(
    ("geometry", "shape", "reason"),
    [
        (ConvGeometry((3,), (1,), (1,), (0, 0)), (4, 3, 3), "has a spatial kernel"),
        (ConvGeometry((1, 2), (1, 1), (1, 1), (0,) * 4), (4, 3, 1, 2), "has a spatial kernel"),
        (ConvGeometry.pointwise(2, 4), (4, 1, 1, 1), "is depthwise: each group reads one channel"),
    ],
)
def test_left_alone(geometry: ConvGeometry, shape: tuple[int, ...], reason: str) -> None:
    layer = only_layer(conv_model(geometry, np.ones(shape, np.float32), None))
    assert Svd().refuses(layer) == Skip(reason)
