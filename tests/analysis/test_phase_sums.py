"""Sums by phase against those of whole patches."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from onnx_lowrank.analysis.accumulator import Accumulator, Recorder
from onnx_lowrank.analysis.phase_sums import PhaseSums, in_phases, phase_rows, sums_for
from onnx_lowrank.chains.geometry import ConvGeometry
from tests.support import AnyArray, quick, relative, rng, sizes, transposed_geometries

cases = given(transposed_geometries(), st.integers(0, 99), st.booleans())
DOUBLING = ConvGeometry((4, 4), (2, 2), (1, 1), (1, 1, 1, 1), transposed=True)


def example(geometry: ConvGeometry, seed: int, part: bool) -> tuple[AnyArray, AnyArray, Any]:
    """Input, output and positions that are read."""
    random, shape = rng(seed), (3, 2 * geometry.groups, *sizes(geometry, 2))
    x = 1 + random.normal(size=shape).astype(np.float32).cumsum(axis=1)
    y = random.normal(size=geometry.output_shape(shape, 3 * geometry.groups)).astype(np.float32)
    count = geometry.positions(shape)
    index = np.sort(random.choice(count, 1 + count // 2, replace=False)) if part else None
    return x, y, index


def add(sums: Any, geometry: ConvGeometry, x: AnyArray, y: AnyArray, index: Any) -> None:
    for part, phase in zip(sums.parts, phase_rows(geometry, x.shape, index), strict=True):
        part.update(phase.patches(geometry, x), geometry.responses(y, phase.index))


def both(geometry: ConvGeometry, x: AnyArray, y: AnyArray, index: Any) -> tuple[Any, Accumulator]:
    """Sums by phase, and of whole patches."""
    width = 2 * int(np.prod(geometry.kernel))
    found, whole = sums_for(geometry, width, 3), Accumulator(geometry.groups, width, 3)
    add(found, geometry, x, y, index)
    whole.update(geometry.patches(x, index), geometry.responses(y, index))
    return found, whole


def assert_alike(found: Any, whole: Accumulator) -> None:
    width = whole.scatter.shape[2]
    assert found.count == whole.count
    assert relative(found.mean, whole.mean) < 1e-6
    scale = np.sqrt(np.einsum("gii->gi", whole.scatter).max() * whole.count)
    assert np.abs(np.asarray(found.scatter).reshape(whole.scatter.shape) - whole.scatter).max() < (
        1e-5 * np.einsum("gii->gi", whole.scatter).max()
    )
    assert np.abs(found.cross_scatter - whole.cross_scatter).max() < 1e-5 * scale
    assert relative(found.variances, whole.variances) < 1e-5
    assert found.finite
    for leading in (None, width):
        assert found.says_nothing(leading) == whole.says_nothing(leading)
    one, two = found.moments(), whole.moments()
    assert relative(one.mean, two.mean) < 1e-6
    if two.covariance is not None:
        for g, sigma in enumerate(two.covariance):
            assert relative(one.sigma(g), sigma) < 1e-4


@quick(60)
@cases
def test_sums_by_phase_are_those_of_whole_patches(
    geometry: ConvGeometry, seed: int, part: bool
) -> None:
    assume(min(geometry.output_spatial(sizes(geometry, 2))) > 0)
    x, y, index = example(geometry, seed, part)
    assert_alike(*both(geometry, x, y, index))


def test_phases_are_told_apart_along_strides_without_dilation() -> None:
    def phases(**changes: Any) -> list[list[int]]:
        given = {"kernel": (3, 2), "strides": (2, 3), "dilations": (1, 1), "pads": (0,) * 4}
        geometry = ConvGeometry(**{"transposed": True, **given, **changes})
        return [taps.tolist() for taps in geometry.phases]

    assert phases() == [[0, 4], [1, 5], [], [2], [3], []]
    assert phases(dilations=(2, 1)) == [[0, 2, 4], [1, 3, 5], []]
    assert phases(strides=(1, 1)) == phases(groups=2) == phases(transposed=False) == [[*range(6)]]


def test_where_kernel_and_stride_are_equal_a_phase_reads_one_position() -> None:
    geometry = ConvGeometry((2, 2), (2, 2), (1, 1), (0,) * 4, transposed=True)
    x, y, _ = example(geometry, 0, part=False)
    found, whole = both(geometry, x, y, None)
    assert isinstance(found, PhaseSums)
    assert [block.shape for block in found.covariance.blocks] == [(2, 2)] * 4
    for block in found.covariance.blocks:  # of the same positions
        assert relative(block, found.covariance.blocks[0]) < 1e-5
    assert_alike(found, whole)


def test_parts_of_the_rows_put_together() -> None:
    x, y, _ = example(DOUBLING, 1, part=False)
    whole = both(DOUBLING, x, y, None)[1]
    one, two = (both(DOUBLING, x[s], y[s], None)[0] for s in (slice(2), slice(2, None)))
    assert_alike(one.merge(two), whole)
    short = one.merge(two).leading(16)
    assert relative(np.asarray(short.covariance), whole.covariance[0, :16, :16]) < 1e-5


def test_shards_read_elsewhere_and_sums_that_are_taken_up_again_are_the_same_bits() -> None:
    x, y, _ = example(DOUBLING, 2, part=False)
    here, resumed, added = (sums_for(DOUBLING, 32, 3) for _ in range(3))
    for number in range(3):
        own, other = x[number : number + 1], y[number : number + 1]
        add(here, DOUBLING, own, other, None)
        here.end_shard()
        recorder = sums_for(DOUBLING, 32, 3, Recorder)
        add(recorder, DOUBLING, own, other, None)
        recorder.end_shard()
        added.add_shard(recorder.shard())
        if number == 1:
            resumed.restore({name: values.copy() for name, values in here.state().items()})
        elif number == 2:
            add(resumed, DOUBLING, own, other, None)
            resumed.end_shard()
    for sums in (resumed, added):
        assert np.array_equal(np.asarray(sums.covariance), np.asarray(here.covariance))
        assert np.array_equal(sums.cross_scatter, here.cross_scatter)


def test_constant_inputs_say_nothing() -> None:
    assert in_phases(DOUBLING)
    sums = sums_for(DOUBLING, 32, 0)
    for part in sums.parts:
        part.update(np.zeros((1, 50, 8), np.float32))
    assert sums.says_nothing()
    assert sums.moments().covariance is None
