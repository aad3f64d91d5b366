from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_lowrank.analysis.moments import Moments, relative_error
from onnx_lowrank.chains.geometry import ConvGeometry
from onnx_lowrank.layers import Layer
from onnx_lowrank.linalg.conjugate_gradients import STEPS
from onnx_lowrank.linalg.patch_projection import Factors, PatchProjection
from onnx_lowrank.passes import ChannelSvd, SpatialSvd, Svd
from onnx_lowrank.passkit.base import Factorization
from onnx_lowrank.planning.registry import parse
from tests.support import (
    Array,
    conv_example,
    conv_model,
    geometries,
    only_layer,
    quick,
    random_moments,
    relative,
    rng,
)

DIAGONAL = (Svd(metric="diagonal"), SpatialSvd(metric="diagonal"), ChannelSvd(metric="diagonal"))


def pointwise(seed: int, groups: int = 1) -> tuple[Layer, Moments]:
    weight = rng(seed).normal(size=(8 * groups, 6, 1))
    bias = rng(seed, 1).normal(size=8 * groups)
    layer = only_layer(conv_model(ConvGeometry.pointwise(1, groups), weight, bias, element=11))
    return layer, random_moments(layer, seed)


def example(factorization: Factorization) -> Layer:
    """A convolution that ``factorization`` takes."""
    kernel = (1, 1) if factorization.name == "svd" else (3, 2)
    return only_layer(conv_example(ConvGeometry(kernel, (1, 1), (1, 1), (0,) * 4), 2)[0])


def other_metric(factorization: Factorization, metric: str) -> Factorization:
    found = parse(f"{factorization.name}{{metric={metric}}}")
    assert isinstance(found, Factorization)
    return found


def diagonals(moments: Moments) -> Array:
    """Variances ``(groups, d)``."""
    assert moments.covariance is not None
    return np.diagonal(moments.covariance, axis1=1, axis2=2)


@pytest.mark.parametrize("groups", [1, 2])
def test_svd_is_eckart_young_of_the_scaled_weight(groups: int) -> None:
    layer, moments = pointwise(1, groups)
    scale = np.sqrt(diagonals(moments))[:, None]
    u, s, vt = np.linalg.svd(layer.stage.matrices * scale, full_matrices=False)
    (form,) = DIAGONAL[0].propose(layer, moments)
    for rank in range(1, 7):
        best = (u[..., :rank] * s[:, None, :rank]) @ vt[:, :rank] / scale
        found = form.cut(rank).compose().reshape(best.shape)
        assert relative(best, found) < 1e-6, rank


@pytest.mark.parametrize("metric", ["diagonal", "identity"])
@pytest.mark.parametrize("factorization", DIAGONAL, ids=lambda p: p.name)
@quick(6)
@given(st.data(), st.integers(0, 99))
def test_errors_are_those_of_the_response(
    factorization: Factorization, metric: str, data: st.DataObject, seed: int
) -> None:
    kernels = (1, 1) if factorization.name == "svd" else (2, 3)
    geometry = data.draw(geometries(axes=(2,), kernels=kernels))
    layer = only_layer(conv_example(geometry, seed)[0])
    moments = random_moments(layer, seed)
    for form in other_metric(factorization, metric).propose(layer, moments):
        for rank in range(1, 5):
            found = relative_error(layer.stage, form.cut(rank), moments)
            assert abs(form.error(rank) - found) < 1e-9, (form.variant, rank)


@pytest.mark.parametrize("seed", range(5))
def test_svd_is_never_better_than_under_the_full_covariance(seed: int) -> None:
    layer, moments = pointwise(seed, 1 + seed % 2)
    (form,), (best,) = (p.propose(layer, moments) for p in (DIAGONAL[0], Svd()))
    errors = [(form.error(r), best.error(r)) for r in range(1, 7)]
    assert all(mine >= least - 1e-10 for mine, least in errors)
    assert errors[0][0] > errors[0][1] + 1e-4


@pytest.mark.parametrize("factorization", DIAGONAL, ids=lambda p: p.name)
def test_inputs_of_unequal_variance_are_worth_knowing(factorization: Factorization) -> None:
    layer = example(factorization)
    variances = np.geomspace(1.0, 50.0, layer.patch)
    moments = Moments(1000, np.zeros((1, layer.patch)), np.diag(variances)[None])
    forms, full, blind = (
        p.propose(layer, moments)
        for p in (
            factorization,
            other_metric(factorization, "covariance"),
            other_metric(factorization, "identity"),
        )
    )
    for form, most, least in zip(forms, full, blind, strict=True):
        # of uncorrelated inputs the diagonal is all; the other goes on from it in turns
        assert most.error(2) <= form.error(2) + 1e-10
        assert form.error(2) < least.error(2) - 1e-3


@pytest.mark.parametrize("factorization", DIAGONAL, ids=lambda p: p.name)
def test_correlations_change_nothing_but_the_report(factorization: Factorization) -> None:
    layer = example(factorization)
    full = random_moments(layer, 2)
    bare = Moments(1000, full.mean, np.stack([np.diag(v) for v in diagonals(full)]))
    for one, two in zip(
        factorization.propose(layer, full), factorization.propose(layer, bare), strict=True
    ):
        assert relative(one.cut(2).compose(), two.cut(2).compose()) < 1e-12
        assert abs(one.error(2) - two.error(2)) > 1e-6


def test_the_bias_makes_up_for_the_mean() -> None:
    layer, moments = pointwise(3)
    assert moments.mean is not None
    (form,) = DIAGONAL[0].propose(layer, moments)
    chain, stage, mean = form.cut(2), layer.stage, moments.mean[0]
    assert stage.bias is not None
    assert chain.last.bias is not None
    wanted = stage.matrices[0] @ mean + stage.bias
    assert relative(wanted, chain.compose()[..., 0] @ mean + chain.last.bias) < 1e-12


@pytest.mark.parametrize("factorization", DIAGONAL, ids=lambda p: p.name)
def test_without_data_it_is_the_weights(factorization: Factorization) -> None:
    layer = example(factorization)
    blind = other_metric(factorization, "identity").propose(layer, Moments())
    for form, other in zip(factorization.propose(layer, Moments()), blind, strict=True):
        np.testing.assert_array_equal(form.cut(2).compose(), other.cut(2).compose())


def test_the_option_is_named() -> None:
    for factorization in DIAGONAL:
        assert parse(factorization.spec) == factorization
        assert factorization.spec == f"{factorization.name}{{metric=diagonal}}"


@pytest.mark.parametrize(("condition", "within"), [(1e2, 0.08), (1e4, 0.12)])
def test_a_plan_refines_five_ranks_and_knows_nearly_what_a_round_leaves_at_all(
    monkeypatch: pytest.MonkeyPatch, condition: float, within: float
) -> None:
    geometry = ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))
    weight = rng(5).normal(size=(24, 24, 3, 3)) * np.geomspace(1, 0.1, 24)[:, None, None, None]
    layer = only_layer(conv_model(geometry, weight.astype(np.float32), None))
    moments = random_moments(layer, 5, condition=condition)
    asked: list[int] = []
    whole = PatchProjection.refined

    def refined(self: PatchProjection, rank: int, rounds: int, steps: int = STEPS) -> Factors:
        asked.append(rank)
        return whole(self, rank, rounds, steps)

    monkeypatch.setattr(PatchProjection, "refined", refined)
    for form in SpatialSvd().propose(layer, moments):
        asked.clear()
        (group,) = form._groups  # type: ignore[attr-defined]
        told = {rank: form.error(rank) for rank in form.ranks()}  # type: ignore[arg-type]
        assert len(asked) == 5
        for rank, error in told.items():
            plain, left = group.error(rank), whole(group, rank, 1).error
            if 1e-4 < plain / group.energy < 0.6:
                assert left < 0.99 * plain
                assert error == pytest.approx(left / group.energy, rel=within)
            else:
                assert error == pytest.approx(plain / group.energy, rel=1e-12)
