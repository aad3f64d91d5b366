from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_lowrank.chains.chain import Chain, Stage, one_rank, two_ranks
from onnx_lowrank.chains.geometry import ConvGeometry, LinearGeometry
from tests.support import Array, conv_model, geometries, quick, relative, rng, run, sizes


def conv(kernel: tuple[int, ...], groups: int = 1) -> ConvGeometry:
    one = (1,) * len(kernel)
    return ConvGeometry(kernel, one, one, (0,) * (2 * len(kernel)), groups)


def split_chain(geometry: ConvGeometry, seed: int, rank: int = 2) -> Chain:
    """Two grouped stages: the first axis, then the others."""
    random, g = rng(seed), geometry.groups
    one, two = geometry.restrict([0]), geometry.restrict(range(1, geometry.axes))
    return Chain(
        (
            Stage(random.normal(size=(rank * g, 2, *one.kernel)), None, one),
            Stage(random.normal(size=(3 * g, rank, *two.kernel)), random.normal(size=3 * g), two),
        )
    )


def evaluated(chain: Chain, x: Array) -> Array:
    """The stages one after the other in ONNX Runtime, float32."""
    for stage in chain.stages:
        assert isinstance(stage.geometry, ConvGeometry)
        bias = None if stage.bias is None else stage.bias.astype(np.float32)
        x = run(conv_model(stage.geometry, stage.weight.astype(np.float32), bias), {"x": x})["y"]
    return x


@quick(30)
@given(geometries(), st.integers(0, 99))
def test_compose_is_the_kernel_that_the_chain_equals(geometry: ConvGeometry, seed: int) -> None:
    chain = split_chain(geometry, seed)
    kernel = chain.compose()
    assert kernel.dtype == np.float64
    assert kernel.shape == (3 * geometry.groups, 2, *geometry.kernel)
    x = rng(seed, 1).normal(size=(2, 2 * geometry.groups, *sizes(geometry))).astype(np.float32)
    whole = Chain((Stage(kernel, chain.last.bias, geometry),))
    assert relative(evaluated(whole, x), evaluated(chain, x)) < 1e-5


def test_compose_of_three_stages() -> None:
    random = rng(0)
    one, two, three = (random.normal(size=s) for s in [(2, 5, 1, 1), (3, 2, 3, 3), (4, 3, 1, 1)])
    chain = Chain(
        (
            Stage(one, None, conv((1, 1))),
            Stage(two, None, conv((3, 3))),
            Stage(three, None, conv((1, 1))),
        )
    )
    wanted = np.einsum("nk,klij,lc->ncij", three[..., 0, 0], two, one[..., 0, 0])
    assert relative(wanted, chain.compose()) < 1e-14


def test_compose_of_matrices_is_their_product() -> None:
    one, two = rng(1).normal(size=(2, 5)), rng(2).normal(size=(4, 2))
    chain = Chain((Stage(one, None, LinearGeometry()), Stage(two, None, LinearGeometry())))
    assert relative(two @ one, chain.compose()) < 1e-15


@quick(20)
@given(geometries(), st.integers(0, 99))
def test_macs_count_every_multiplication(geometry: ConvGeometry, seed: int) -> None:
    chain = split_chain(geometry, seed)
    shape: tuple[int, ...] = (3, 2 * geometry.groups, *sizes(geometry))
    total = 0
    for stage in chain.stages:
        assert isinstance(stage.geometry, ConvGeometry)
        shape_out = stage.geometry.output_shape(shape, stage.outputs)
        # by hand: output elements, each over its patch
        total += int(np.prod(shape_out)) * int(np.prod(stage.weight.shape[1:]))
        shape = shape_out
    assert chain.macs((3, 2 * geometry.groups, *sizes(geometry))) == total


def test_macs_of_products() -> None:
    one, two = np.zeros((2, 5)), np.zeros((4, 2))
    chain = Chain((Stage(one, None, LinearGeometry()), Stage(two, None, LinearGeometry())))
    assert chain.macs((7, 5)) == 7 * (5 * 2 + 2 * 4)
    assert chain.macs((3, 7, 5)) == 3 * 7 * (5 * 2 + 2 * 4)
    left = LinearGeometry(-2, -2)
    assert Chain((Stage(one, None, left), Stage(two, None, left))).macs((3, 5, 7)) == 3 * 7 * 18


def test_parameters_count_weights_and_biases() -> None:
    chain = split_chain(conv((3, 3), groups=2), 0)
    assert chain.stages[0].parameters == 4 * 2 * 3
    assert chain.last.parameters == 6 * 2 * 3 + 6
    assert chain.parameters == 24 + 42
    assert chain.with_bias(None).parameters == 24 + 36


@quick(20)
@given(geometries(), st.integers(0, 99), st.sampled_from([1e-3, 1.0, 1e4]))
def test_balanced_leaves_the_product_and_equalises_norms(
    geometry: ConvGeometry, seed: int, factor: float
) -> None:
    chain = split_chain(geometry, seed, rank=3)
    first = chain.stages[0].weight * factor
    chain = Chain((Stage(first, None, chain.stages[0].geometry), chain.last))
    balanced = chain.balanced()
    assert relative(chain.compose(), balanced.compose()) < 1e-13
    np.testing.assert_array_equal(balanced.last.bias, chain.last.bias)
    one, two = balanced.stages
    out = np.linalg.norm(one.weight.reshape(one.outputs, -1), axis=1)
    by_group = two.weight.reshape(geometry.groups, 3, 3, -1)
    back = np.sqrt(np.einsum("gnkt->gk", by_group**2)).reshape(-1)
    np.testing.assert_allclose(out, back, rtol=1e-12, atol=0)


def test_balanced_keeps_dead_channels_finite() -> None:
    chain = split_chain(conv((3, 3)), 0)
    weight = chain.stages[0].weight.copy()
    weight[0] = 0
    dead = Chain((Stage(weight, None, chain.stages[0].geometry), chain.last)).balanced()
    assert all(np.isfinite(s.weight).all() for s in dead.stages)
    assert not dead.stages[0].weight[0].any()
    np.testing.assert_array_equal(dead.last.weight[:, 0], chain.last.weight[:, 0])


def test_matrices_and_back() -> None:
    stage = split_chain(conv((2, 3), groups=2), 3).last
    assert stage.matrices.shape == (2, 3, 2 * 3)
    for g, n in itertools.product(range(2), range(3)):
        np.testing.assert_array_equal(stage.matrices[g, n], stage.weight[3 * g + n].reshape(-1))
    again = stage.with_matrices(stage.matrices, None)
    np.testing.assert_array_equal(again.weight, stage.weight)
    assert again.bias is None
    assert again.inputs == stage.inputs == 4


def test_astype_converts_every_array() -> None:
    chain = split_chain(conv((3, 3)), 0).astype(np.float16)
    assert all(s.weight.dtype == np.float16 for s in chain.stages)
    assert chain.last.bias is not None
    assert chain.last.bias.dtype == np.float16


def test_a_bias_before_the_last_stage_is_refused() -> None:
    chain = split_chain(conv((3, 3)), 0)
    first = chain.stages[0]
    with pytest.raises(ValueError, match="only the last stage"):
        Chain((Stage(first.weight, np.zeros(2), first.geometry), chain.last))


def test_widths_that_do_not_fit_are_refused() -> None:
    first = split_chain(conv((3, 3)), 0).stages[0]
    with pytest.raises(ValueError, match="2 outputs feed 5 inputs"):
        Chain((first, Stage(np.zeros((3, 5, 1, 3)), None, conv((1, 3)))))


def test_shared_axes_do_not_compose() -> None:
    stages = [Stage(np.zeros((2, 2, 3, 1)), None, conv((3, 1))) for _ in range(2)]
    with pytest.raises(ValueError, match="share a spatial axis"):
        Chain(tuple(stages)).compose()


def test_finer_groups_compose_as_block_diagonals() -> None:
    rng = np.random.default_rng(0)
    first = Stage(rng.normal(size=(4, 3, 1, 1)), None, conv((1, 1)))
    middle = Stage(rng.normal(size=(4, 1, 3, 1)), None, conv((3, 1), groups=4))
    last = Stage(rng.normal(size=(5, 4, 1, 1)), None, conv((1, 1)))
    whole = Chain((first, middle, last)).compose()
    expected = np.einsum(
        "nk,ki,kc->nci", last.weight[..., 0, 0], middle.weight[:, 0, :, 0], first.weight[..., 0, 0]
    )
    assert whole.shape == (5, 3, 3, 1)
    assert np.abs(whole[..., 0] - expected).max() < 1e-12


def test_ranks_are_told_apart() -> None:
    assert two_ranks((3, 5)) == (3, 5)
    assert one_rank(4) == 4
    with pytest.raises(ValueError, match="needs one rank, not"):
        one_rank((3, 5))
    for rank in (4, (3,), (3, 5, 7)):
        with pytest.raises(ValueError, match="needs two ranks, not"):
            two_ranks(rank)
