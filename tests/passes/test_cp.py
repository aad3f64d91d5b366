from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import ModelProto

from onnx_lowrank.analysis.moments import Moments, relative_error
from onnx_lowrank.chains.geometry import ConvGeometry
from onnx_lowrank.engine.option_groups import DEFAULT_PASSES
from onnx_lowrank.layers import Layer
from onnx_lowrank.linalg.cp import cp_compose
from onnx_lowrank.passes import Cp
from onnx_lowrank.passkit.base import Decomposition, Iterative, Skip
from onnx_lowrank.passkit.rank_grid import aligned_ranks
from onnx_lowrank.planning.registry import parse
from tests.support import (
    AnyArray,
    Array,
    conv_example,
    conv_model,
    geometries,
    only_layer,
    quick,
    random_moments,
    relative,
    replaced,
    rng,
    run,
    sizes,
    wide,
)

SQUARE = ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))


def planted_kernel(
    geometry: ConvGeometry, outputs: int, inputs: int, terms: int, seed: int
) -> Array:
    """``(groups * outputs, inputs, *kernel)``: rank-one terms in every group.

    Orthogonal in every mode that is wide enough, so that no fit stops on its way.
    """
    random = rng(seed, 3)
    groups = []
    for _ in range(geometry.groups):
        factors = [random.normal(size=(n, terms)) for n in (outputs, inputs, *geometry.kernel)]
        factors = [np.linalg.qr(f)[0] if len(f) >= terms else np.sign(f) for f in factors]
        groups.append(cp_compose(factors, np.arange(1.0, 1.0 + terms)))
    return np.concatenate(groups)


def planted(
    geometry: ConvGeometry, seed: int, terms: int = 2, **options: int
) -> tuple[ModelProto, dict[str, AnyArray]]:
    """A convolution of ``terms`` rank-one terms a group, and an input for it."""
    weight = planted_kernel(geometry, 5, 4, terms, seed).astype(np.float32)
    random = rng(seed)
    bias = random.normal(size=len(weight)).astype(np.float32) if seed % 2 else None
    x = random.normal(size=(2, 4 * geometry.groups, *sizes(geometry, 3))).astype(np.float32)
    return conv_model(geometry, weight, bias, **options), {"x": x}


def forms(options: Cp, layer: Layer, moments: Moments) -> Sequence[Decomposition]:
    """All forms, also where one has too little to save to be offered beside the other."""
    assert options.refuses(layer) is None
    assert isinstance(layer.geometry, ConvGeometry)
    both = ["three", "four"][: wide(layer.geometry)]
    asked = both if options.form == "both" else [options.form]
    return [f for a in asked for f in replace(options, form=a).propose(layer, moments)]


def flat(form: Decomposition) -> list[int]:
    ranks = list(form.ranks())
    assert all(isinstance(r, int) for r in ranks)
    return [r for r in ranks if isinstance(r, int)]


@pytest.mark.full
@quick(40)
@given(geometries(), st.sampled_from([11, 13, 17, 21]), st.booleans(), st.integers(0, 99))
def test_planted_terms_in_onnx_runtime(
    geometry: ConvGeometry, opset: int, data: bool, seed: int
) -> None:
    assume(wide(geometry) > 0)
    proto, feed = planted(geometry, seed, opset=opset)
    layer = only_layer(proto)
    moments = random_moments(layer, seed) if data else Moments()
    wanted = run(proto, feed)["y"]
    found = forms(Cp(starts=4), layer, moments)
    assert [f.variant for f in found] == ["three", "four"][: 2 if wide(geometry) > 1 else 1]
    for form in found:
        again = replaced(proto, layer.name, form.cut(2))
        depthwise = 1 if form.variant == "three" else wide(geometry)
        assert len(again.graph.node) == 2 + depthwise
        assert relative(wanted, run(again, feed)["y"]) < 1e-4, form.variant


@quick(12)
@given(geometries(axes=(1, 2), kernels=(2, 3)), st.integers(0, 99))
def test_intermediate_channels_are_balanced(geometry: ConvGeometry, seed: int) -> None:
    layer = only_layer(conv_example(geometry, seed)[0])
    rank = 3
    for form in forms(Cp(), layer, random_moments(layer, seed)):
        chain = form.cut(rank)
        *inner, last = chain.stages
        norms = [np.linalg.norm(s.weight.reshape(rank * layer.groups, -1), axis=1) for s in inner]
        norms.append(np.linalg.norm(last.matrices, axis=1).reshape(-1))
        for other in norms[1:]:
            np.testing.assert_allclose(norms[0], other, rtol=1e-6)
        # the engine's own balance finds nothing left to do
        for a, b in zip(chain.stages, chain.balanced().stages, strict=True):
            np.testing.assert_allclose(a.weight, b.weight, rtol=1e-6, atol=1e-12)


@quick(10)
@given(st.integers(0, 99))
def test_without_data_both_metrics_are_the_same(seed: int) -> None:
    layer = only_layer(conv_example(SQUARE, seed)[0])
    for one, two in zip(
        forms(Cp(), layer, Moments()), forms(Cp(metric="identity"), layer, Moments()), strict=True
    ):
        assert one.error(4) == two.error(4)


def smooth(outputs: int, inputs: int, seed: int) -> tuple[Layer, Moments]:
    """A layer whose singular values fall in every mode, under inputs whose variances do."""
    random = rng(seed)
    weight = random.normal(size=(outputs, inputs, 3, 3))
    for mode, n in enumerate(weight.shape):
        q = np.linalg.qr(random.normal(size=(n, n)))[0] * np.geomspace(1, 0.4, n)
        weight = np.moveaxis(np.tensordot(q, weight, (1, mode)), 0, mode)
    layer = only_layer(conv_model(SQUARE, weight.astype(np.float32), None))
    q = np.linalg.qr(random.normal(size=(9 * inputs, 9 * inputs)))[0]
    sigma = (q * np.geomspace(1, 1e-2, 9 * inputs)) @ q.T
    return layer, Moments(9, np.zeros((1, 9 * inputs)), sigma[None])


# small: solved in full at each rank; then estimated at each rank; wide: only at every other rank
@pytest.mark.parametrize("size", [6, 24, pytest.param(56, marks=pytest.mark.full)])
@pytest.mark.parametrize("metric", ["covariance", "identity"])
def test_a_plan_is_told_nearly_what_a_cut_loses(size: int, metric: str) -> None:
    layer, moments = smooth(size, size, size)
    (form,) = forms(Cp(form="three", metric=metric), layer, moments)
    ranks = flat(form)
    told = [form.error(r) for r in ranks]
    true = [relative_error(layer.stage, form.cut(r), moments) for r in ranks]
    assert max(told) > 0.05  # else there is nothing to tell
    if size == 6:
        np.testing.assert_allclose(told, true, rtol=1e-9)
    else:
        # fewer sweeps fall short where many terms leave little, so that a cut is the better
        for a, b in zip(told, true, strict=True):
            assert 0.95 * b <= a <= 1.15 * b + 0.002
        assert told == sorted(told, reverse=True)
    (again,) = forms(Cp(form="three", metric=metric), layer, moments)
    assert [again.error(r) for r in reversed(ranks)] == told[::-1]


def test_the_work_of_a_plan_does_not_show_in_the_cut() -> None:
    layer, moments = smooth(24, 24, 0)
    (one,) = forms(Cp(form="three"), layer, moments)
    (two,) = Cp(form="three").propose(layer, moments, layer.stage.parameters // 2)
    rank = flat(two)[2]
    assert two.error(rank) > 0
    for a, b in zip(one.cut(rank).stages, two.cut(rank).stages, strict=True):
        np.testing.assert_array_equal(a.weight, b.weight)


@pytest.mark.parametrize("form", ["three", "four"])
def test_enough_terms_are_exact(form: str) -> None:
    proto, feed = conv_example(SQUARE, 1)
    layer = only_layer(proto)
    (found,) = forms(Cp(form=form), layer, random_moments(layer, 1))
    # (4, 3, 9) and (4, 3, 3, 3): the product of all extents but the largest
    rank = {"three": 12, "four": 27}[form]
    assert found.error(rank) < 1e-8
    again = replaced(proto, layer.name, found.cut(rank))
    assert relative(run(proto, feed)["y"], run(again, feed)["y"]) < 1e-4
    beyond = found.cut(rank + 5)
    assert beyond.stages[0].outputs == rank


@pytest.mark.parametrize("form", ["three", "four"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("refinable", [True, False])
def test_a_similar_layer_is_a_start(
    form: str, groups: int, refinable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Terms that go on from those of the layer before it changed lose no more than new ones."""
    if not refinable:
        monkeypatch.setattr("onnx_lowrank.passes.cp._REFINABLE", 0)
    geometry = replace(SQUARE, groups=groups)
    ratios = []
    for seed in range(4):  # one alone may have found a better minimum by chance
        random = rng(seed)
        weight = random.normal(size=(groups * 8, 6, 3, 3)) + random.normal(size=(1, 6, 1, 1))
        layer = only_layer(conv_model(geometry, weight.astype(np.float32), None))
        moments = random_moments(layer, 6)
        (before,) = forms(Cp(form=form), layer, moments)
        near = before.cut(8)
        weight = layer.stage.weight + 0.1 * random.normal(size=weight.shape)
        changed = layer.with_stage(replace(layer.stage, weight=weight))
        (after,) = forms(Cp(form=form), changed, moments)
        assert isinstance(after, Iterative)
        (anew,) = forms(Cp(form=form), changed, moments)
        here, there, before_it = (
            relative_error(changed.stage, chain, moments)
            for chain in (after.cut_from(8, near), anew.cut(8), near)
        )
        assert here < (0.95 if refinable else 1.0) * before_it
        ratios.append(here / there)
    assert np.exp(np.mean(np.log(ratios))) < (0.97 if refinable else 1.05)


@pytest.mark.parametrize("groups", [1, 2])
def test_ranks_are_few_aligned_and_pay(groups: int) -> None:
    geometry = ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1, 1, 1), groups)
    weight = rng(0).normal(size=(64 * groups, 48, 3, 3)).astype(np.float32)
    layer = only_layer(conv_model(geometry, weight, None))
    for form in forms(Cp(), layer, Moments()):
        ranks = flat(form)
        assert 4 <= len(ranks) <= 8
        assert ranks == sorted(set(ranks))
        assert set(ranks) <= set(aligned_ranks(1000, groups))
        assert all(form.outline(r).parameters <= weight.size + 64 * groups for r in ranks)
        for halved in Cp(form=form.variant).propose(layer, Moments(), weight.size // 2):
            most = max(flat(halved))
            assert most < max(ranks)
            assert halved.outline(most).parameters <= weight.size // 2 + 64 * groups


def test_roles_and_geometry() -> None:
    geometry = ConvGeometry((3, 2), (2, 3), (1, 2), (1, 2, 3, 4), 2)
    layer = only_layer(conv_example(geometry, 0)[0])
    three, four = (f.cut(2) for f in forms(Cp(), layer, Moments()))
    one = ConvGeometry.pointwise(2, 2)
    whole = ConvGeometry((3, 2), (2, 3), (1, 2), (1, 2, 3, 4), 4)
    vertical = ConvGeometry((3, 1), (2, 1), (1, 1), (1, 0, 3, 0), 4)
    horizontal = ConvGeometry((1, 2), (1, 3), (1, 2), (0, 2, 0, 4), 4)
    assert [s.geometry for s in three.stages] == [one, whole, one]
    assert [s.geometry for s in four.stages] == [one, vertical, horizontal, one]
    assert [s.role for s in three.stages] == ["reduce", "depthwise", "expand"]
    assert [s.role for s in four.stages] == ["reduce", "vertical", "horizontal", "expand"]


@pytest.mark.parametrize(
    ("shape", "offered"),
    [
        ((16, 16, 3, 3), ["three"]),
        ((64, 32, 3, 3), ["three"]),
        ((20, 50, 5, 5), ["three"]),
        ((8, 1, 5, 5), ["three", "four"]),
        ((32, 3, 9, 9), ["three", "four"]),
        ((16, 16, 3, 1), ["three"]),
    ],
)
def test_four_stages_are_offered_where_they_save_more(
    shape: tuple[int, ...], offered: list[str]
) -> None:
    geometry = ConvGeometry(shape[2:], (1, 1), (1, 1), (0,) * 4)
    layer = only_layer(conv_model(geometry, np.ones(shape, np.float32), None))
    assert [f.variant for f in Cp().propose(layer, Moments())] == offered
    if len(offered) == 1 and min(shape[2:]) > 1:
        assert [f.variant for f in Cp(form="four").propose(layer, Moments())] == ["four"]


def test_a_narrow_axis_keeps_its_stride() -> None:
    geometry = ConvGeometry((3, 1, 2), (1, 2, 3), (1, 1, 1), (0, 1, 0, 0, 0, 0))
    layer = only_layer(conv_example(geometry, 0)[0])
    (four,) = forms(Cp(form="four"), layer, Moments())
    stages = four.cut(2).stages
    assert [s.role for s in stages] == ["reduce", "vertical", "horizontal", "expand"]
    spatial = [s.geometry for s in stages if isinstance(s.geometry, ConvGeometry)]
    strides = [g.strides for g in spatial]
    assert strides == [(1, 1, 1), (1, 2, 1), (1, 1, 3), (1, 1, 1)]
    assert math.prod(g.kernel[1] for g in spatial) == 1


def test_three_axes_have_a_stage_each() -> None:
    geometry = ConvGeometry((2, 3, 2), (1,) * 3, (1,) * 3, (0,) * 6)
    layer = only_layer(conv_example(geometry, 0)[0])
    (four,) = forms(Cp(form="four"), layer, Moments())
    assert [s.role for s in four.cut(2).stages] == ["reduce", "axis0", "axis1", "axis2", "expand"]


def test_the_same_seed_gives_the_same_weights() -> None:
    layer = only_layer(conv_example(SQUARE, 0)[0])
    moments = random_moments(layer, 0)
    for one, two in zip(
        forms(Cp(starts=3), layer, moments), forms(Cp(starts=3), layer, moments), strict=True
    ):
        two.error(2)  # what was asked before does not matter
        for a, b in zip(one.cut(4).stages, two.cut(4).stages, strict=True):
            np.testing.assert_array_equal(a.weight, b.weight)


@pytest.mark.parametrize(
    ("options", "geometry", "shape", "reason"),
    [
        (Cp(), ConvGeometry.pointwise(2), (4, 3, 1, 1), "has no spatial kernel"),
        (Cp(), ConvGeometry((3, 3), (1, 1), (1, 1), (0,) * 4, 4), (8, 1, 3, 3), "is depthwise"),
        (
            Cp(form="four"),
            ConvGeometry((3, 1), (1, 1), (1, 1), (0,) * 4),
            (4, 3, 3, 1),
            "has fewer than two kernel axes",
        ),
    ],
)
def test_left_alone(
    options: Cp, geometry: ConvGeometry, shape: tuple[int, ...], reason: str
) -> None:
    skip = options.refuses(only_layer(conv_model(geometry, np.ones(shape, np.float32), None)))
    assert isinstance(skip, Skip)
    assert skip.reason.startswith(reason)


def test_options_are_read_and_cp_is_asked_for_by_name() -> None:
    assert parse("cp{form=three,starts=3,seed=5}") == Cp(form="three", starts=3, seed=5)
    assert "cp" not in DEFAULT_PASSES.split(",")
