from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from onnx import helper
from scipy.linalg import sqrtm

from onnx_lowrank.analysis.moments import Moments, relative_error
from onnx_lowrank.chains.geometry import ConvGeometry
from onnx_lowrank.layers import Layer
from onnx_lowrank.linalg.output_metric import OutputMetric
from onnx_lowrank.passes import (
    BiclusterPass,
    ChannelSvd,
    Circulant,
    Cp,
    LowrankSparse,
    MonochromaticPass,
    SpatialSvd,
    Svd,
    TensorTrainPass,
    Tucker2,
)
from onnx_lowrank.passkit.base import Factorization, Unfolded
from onnx_lowrank.passkit.weighed import taken_apart
from tests.support import conv_model, make_model, only_layer, random_moments, rng


def layer_of(kernel: int, outputs: int = 9, inputs: int = 8, seed: int = 0) -> Layer:
    weight = rng(seed).normal(size=(outputs, inputs, kernel, kernel)).astype(np.float32)
    bias = rng(seed, 1).normal(size=outputs).astype(np.float32)
    geometry = replace(ConvGeometry.pointwise(2), kernel=(kernel, kernel))
    return only_layer(conv_model(geometry, weight, bias))


def metric_of(outputs: int, spread: float = 2.0) -> OutputMetric:
    shares = np.exp(spread * rng(2).normal(size=outputs))
    return OutputMetric(shares / shares.sum())


def known(layer: Layer, spread: float = 2.0) -> Moments:
    return replace(random_moments(layer, 3), outputs=metric_of(layer.shape[0], spread))


def under(layer: Layer, moments: Moments, matrix: np.ndarray) -> float:  # type: ignore[type-arg]
    """``tr(M (W - What) Sigma (W - What)^T) / tr(M W Sigma W^T)`` with dense matrices."""
    assert moments.outputs is not None
    sigma, metric, (weight,) = moments.sigma(0), moments.outputs.matrix, layer.stage.matrices
    apart = weight - matrix
    lost, whole = (np.trace(metric @ d @ sigma @ d.T) for d in (apart, weight))
    return float(lost / whole)


def test_svd_is_the_best_of_its_rank_by_brute_force() -> None:
    layer = layer_of(1)
    moments = known(layer)
    assert moments.outputs is not None
    (weight,) = layer.stage.matrices
    left, right = np.real(sqrtm(moments.outputs.matrix)), np.real(sqrtm(moments.sigma(0)))
    u, s, v = np.linalg.svd(left @ weight @ right)
    (form,) = taken_apart(Svd(), layer, moments)
    for rank in range(1, 9):
        best = float(np.sum(s[rank:] ** 2) / np.sum(s**2))
        assert form.error(rank) == pytest.approx(best, rel=1e-6, abs=1e-9)
        matrix = form.cut(rank).dense(1).reshape(weight.shape)
        closed = np.linalg.solve(left, (u[:, :rank] * s[:rank]) @ v[:rank]) @ np.linalg.inv(right)
        np.testing.assert_allclose(matrix, closed, rtol=0, atol=1e-6)
        assert under(layer, moments, matrix) == pytest.approx(best, rel=1e-6, abs=1e-9)


PASSES: list[tuple[Factorization, int]] = [
    (Svd(), 1),
    (Svd(metric="identity"), 1),
    (Svd(metric="diagonal"), 1),
    (Svd(metric="elementwise"), 1),
    (Circulant(), 1),
    (LowrankSparse(), 1),
    (SpatialSvd(), 3),
    (ChannelSvd(), 3),
    (Tucker2(), 3),
    (Cp(), 3),
    (BiclusterPass(), 3),
    (MonochromaticPass(), 3),
]


@pytest.mark.parametrize(("factorization", "kernel"), PASSES, ids=lambda p: getattr(p, "spec", p))
def test_the_errors_of_every_pass_are_those_under_the_metric(
    factorization: Factorization, kernel: int
) -> None:
    layer = layer_of(kernel, outputs=12)
    moments = known(layer)
    assert factorization.refuses(layer) is None
    forms = taken_apart(factorization, layer, moments)
    assert forms
    for form in forms:
        for rank in list(form.ranks())[:3]:
            chain = form.cut(rank)
            exact = under(layer, moments, chain.dense(1).reshape(layer.shape[0], -1))
            assert relative_error(layer.stage, chain, moments) == pytest.approx(exact, abs=1e-9)
            # the chain that is written may be refined a little further than the figure
            assert 0.3 * form.error(rank) - 1e-9 <= exact <= form.error(rank) + 1e-6


def test_a_train_is_measured_under_the_metric() -> None:
    weight = rng(0).normal(size=(64, 64)).astype(np.float32)
    product = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    layer = only_layer(make_model([product], {"x": [None, 64]}, ["y"], {"w": weight}))
    moments = known(layer)
    for form in taken_apart(TensorTrainPass(), layer, moments):
        for rank in list(form.ranks())[:2]:
            matrix = form.cut(rank).dense(1).reshape(64, 64)
            assert form.error(rank) == pytest.approx(under(layer, moments, matrix), rel=1e-9)


def test_the_bias_answers_to_the_mean_input_as_before() -> None:
    layer = layer_of(1)
    moments = known(layer)
    assert moments.mean is not None
    (form,) = taken_apart(Svd(), layer, moments)
    chain = form.cut(3)
    stage, mean = layer.stage, moments.mean[0]
    wanted = stage.matrices[0] @ mean + stage.bias
    found = chain.dense(1).reshape(9, 8) @ mean + chain.last.bias
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9)


def test_rare_classes_keep_finite_weights() -> None:
    layer = layer_of(1)
    shares = np.full(9, 1e-12)
    shares[0] = 1 - shares[1:].sum()
    moments = replace(random_moments(layer, 3), outputs=OutputMetric(shares))
    (form,) = taken_apart(Svd(), layer, moments)
    (weight,) = layer.stage.matrices
    whole = form.cut(8).dense(1).reshape(9, 8)
    np.testing.assert_allclose(whole, weight, rtol=0, atol=1e-4)
    assert np.isfinite(form.cut(1).dense(1)).all()


def test_ranks_by_rules_are_of_what_is_taken_apart() -> None:
    layer = layer_of(1)
    moments = known(layer)
    assert moments.outputs is not None
    (form,) = taken_apart(Svd(), layer, moments)
    assert isinstance(form, Unfolded)
    ((matrix,),) = form.unfoldings()
    weighed = moments.outputs.weighed(layer.stage.matrices[0], 0)
    np.testing.assert_allclose(np.linalg.svd(matrix)[1], np.linalg.svd(weighed)[1], rtol=1e-9)


def test_without_a_metric_the_pass_is_asked_as_it_is() -> None:
    layer = layer_of(1)
    moments = random_moments(layer, 3)
    one, other = taken_apart(Svd(), layer, moments)[0], Svd().propose(layer, moments)[0]
    assert type(one) is type(other)
    assert [one.error(r) for r in (1, 4)] == [other.error(r) for r in (1, 4)]
