"""A covariance of phases seen from a basis, against the same matrix written out."""

from __future__ import annotations

from functools import partial
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_lowrank.analysis.phase_sums import phase_columns
from onnx_lowrank.chains.geometry import ConvGeometry
from onnx_lowrank.linalg.cp_regression import CpProblem, Refinement, Search
from onnx_lowrank.linalg.patch_metric import PatchMetric
from onnx_lowrank.linalg.patch_projection import PatchProjection
from onnx_lowrank.linalg.phase_covariance import PhaseCovariance
from onnx_lowrank.linalg.tucker import Tucker
from tests.support import quick, relative, rng


def covariance(kernel: tuple[int, ...], strides: tuple[int, ...], seed: int) -> PhaseCovariance:
    """Covariance of patches of 3 channels, of which each phase reads a part."""
    random, axes = rng(seed), len(kernel)
    zeros = (0,) * (2 * axes)
    geometry = ConvGeometry(kernel, strides, (1,) * axes, zeros, transposed=True)
    columns = phase_columns(geometry, 3 * int(np.prod(kernel)))
    blocks, shift = [], np.zeros(sum(map(len, columns)))
    for at in columns:
        x = 1 + random.normal(size=(60, len(at))).cumsum(axis=1)
        blocks.append(x.T @ x / (60 * len(columns)))
        shift[at] = x.mean(axis=0) / len(columns)
    return PhaseCovariance(tuple(blocks), tuple(columns), shift)


shapes = st.sampled_from([((4, 4), (2, 2)), ((3, 2), (2, 1)), ((2, 3), (3, 2)), ((3,), (2,))])


@quick(40)
@given(shapes, st.integers(0, 99))
def test_it_is_the_matrix_written_out(
    shape: tuple[tuple[int, ...], tuple[int, ...]], seed: int
) -> None:
    sigma, patch = covariance(*shape, seed), (3, *shape[0])
    for count in range(len(patch)):
        for rest in combinations(range(1, len(patch)), count):
            first = [0, *rest]
            found = PatchMetric.of(sigma, patch, first)
            whole = PatchMetric.of(np.asarray(sigma), patch, first)
            assert len(whole.blocks) == 1
            assert found.sizes == whole.sizes
            a, b = whole.sizes
            basis, last = rng(seed).normal(size=(2, a)), rng(seed).normal(size=(4, 2, b))
            gram = np.tensordot(last, last, (0, 0))
            rows = rng(seed).normal(size=(3, a * b))
            assert relative(found.product(rows), whole.product(rows)) < 1e-12
            assert relative(found.marginal(), whole.marginal()) < 1e-12
            assert relative(found.gram(basis), whole.gram(basis)) < 1e-12
            assert relative(found.normal(basis, gram), whole.normal(basis, gram)) < 1e-12
            small, unit = found.single()
            again = unit * small.normal(basis.astype(np.float32), gram.astype(np.float32))
            assert again.dtype == np.float32
            assert relative(again, whole.normal(basis, gram)) < 1e-4


@pytest.mark.parametrize("first", [(0,), (0, 1), (0, 2), (0, 1, 2)])
def test_a_projection_under_phases_is_that_under_the_matrix(first: tuple[int, ...]) -> None:
    sigma, kernel = covariance((4, 4), (2, 2), 1), rng(1).normal(size=(6, 3, 4, 4))
    found, whole = (PatchProjection(kernel, s, first) for s in (sigma, np.asarray(sigma)))
    assert abs(found.energy / whole.energy - 1) < 1e-12
    for rank in (1, 2, 3):
        assert abs(found.error(rank) - whole.error(rank)) < 1e-9 * whole.energy
        one, two = (p.refined(rank, rounds=1) for p in (found, whole))
        # conjugate gradients are in float32, and end before they have converged
        assert abs(one.error - two.error) < 1e-4 * whole.energy


def test_terms_and_cores_under_phases_are_those_under_the_matrix() -> None:
    sigma, kernel = covariance((4, 4), (2, 2), 2), rng(2).normal(size=(6, 3, 4, 4))
    dense = np.asarray(sigma)
    terms = [CpProblem(kernel.reshape(6, 3, 16), s) for s in (sigma, dense)]
    one, two = (t.solve(4, Search(1, 0, 20), Refinement(1)) for t in terms)
    assert abs(one.error / two.error - 1) < 1e-4
    cores = [partial(Tucker(kernel, s).pair, 2, 3) for s in (sigma, dense)]
    assert abs(cores[0](2).error / cores[1](2).error - 1) < 1e-5
