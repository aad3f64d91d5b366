from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.chains.geometry import ConvGeometry
from onnx_lowrank.passes import BiclusterPass
from onnx_lowrank.passkit.base import Skip
from tests.support import (
    Array,
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
)

SQUARE = ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))


@pytest.mark.full
@quick(15)
@given(geometries(kernels=(2, 3)), st.sampled_from([11, 17]), st.booleans(), st.integers(0, 99))
def test_full_rank(geometry: ConvGeometry, opset: int, data: bool, seed: int) -> None:
    g = geometry.groups
    weight = rng(seed).normal(size=(6 * g, 4, *geometry.kernel)).astype(np.float32)
    bias = rng(seed, 1).normal(size=6 * g).astype(np.float32)
    proto = conv_model(geometry, weight, bias, opset=opset)
    x = rng(seed, 2).normal(size=(2, 4 * g, *sizes(geometry, 3))).astype(np.float32)
    layer = only_layer(proto)
    moments = random_moments(layer, seed) if data else Moments()
    (form,) = BiclusterPass(form="core", blocks=2).propose(layer, moments)
    assert form.max_rank == (2, 3)
    again = replaced(proto, "conv", form.cut((2, 3)))
    kinds = [n.op_type for n in again.graph.node]
    assert kinds == ["Gather", "Conv", "Gather", "Conv", "Conv", "Gather"]
    assert relative(run(proto, {"x": x})["y"], run(again, {"x": x})["y"]) < 1e-4


def planted(groups: int, outer: bool) -> Array:
    """Shuffled channels of two by two blocks of low rank."""
    random = rng(groups, outer)
    kernels = []
    for _ in range(groups):
        kernel = np.zeros((12, 12, 3, 3))
        for rows in (slice(0, 6), slice(6, 12)):
            for columns in (slice(0, 6), slice(6, 12)):
                u, v, t = (random.normal(size=s) for s in ((6, 1), (1, 6), (3, 3)))
                kernel[rows, columns] = np.einsum("nk,kc,ij->ncij", u, v, t)
        kernels.append(kernel[np.ix_(random.permutation(12), random.permutation(12))])
    return np.concatenate(kernels).astype(np.float32)


@pytest.mark.parametrize("form", ["core", "outer"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("data", [False, True])
def test_planted_blocks(form: str, groups: int, data: bool) -> None:
    geometry = ConvGeometry((3, 3), (2, 1), (1, 1), (1, 0, 1, 1), groups)
    proto = conv_model(geometry, planted(groups, form == "outer"), None)
    layer = only_layer(proto)
    moments = random_moments(layer, 1, condition=4.0) if data else Moments()
    (found,) = BiclusterPass(form=form, blocks=2).propose(layer, moments)
    assert found.error((1, 1)) < 1e-6
    x = rng(1).normal(size=(2, 12 * groups, 7, 8)).astype(np.float32)
    again = replaced(proto, "conv", found.cut((1, 1)))
    assert relative(run(proto, {"x": x})["y"], run(again, {"x": x})["y"]) < 1e-2


@pytest.mark.full
def test_forms_and_their_ranks() -> None:
    layer = only_layer(conv_model(SQUARE, rng(0).normal(size=(8, 8, 3, 3)).astype("f4"), None))
    forms = BiclusterPass().propose(layer, Moments())
    assert [f.variant for f in forms] == ["core 2x2", "core 4x4", "outer 2x2", "outer 4x4"]
    for form in forms:
        assert form.error((2, 2)) <= form.error((1, 1)) + 1e-9
    with pytest.raises(ValueError, match="must be equal"):
        forms[-1].cut((1, 2))


@pytest.mark.parametrize(
    ("shape", "groups", "reason"),
    [
        ((4, 4, 1, 1), 1, "has no spatial kernel"),
        ((4, 1, 3, 3), 4, "is depthwise: each group reads one channel"),
        ((8, 3, 3, 3), 1, "3 inputs and 8 outputs cannot be divided into equal clusters"),
    ],
)
def test_left_alone(shape: tuple[int, ...], groups: int, reason: str) -> None:
    geometry = ConvGeometry(shape[2:], (1, 1), (1, 1), (0, 0, 0, 0), groups)
    layer = only_layer(conv_model(geometry, np.ones(shape, np.float32), None))
    assert BiclusterPass().refuses(layer) == Skip(reason)
