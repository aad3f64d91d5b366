from __future__ import annotations

import numpy as np
import pytest

from onnx_lowrank.analysis.moments import Moments, relative_error
from onnx_lowrank.chains.geometry import ConvGeometry
from onnx_lowrank.chains.special_stages import Branches, Select
from onnx_lowrank.layers import Layer
from onnx_lowrank.passes import ChannelSvd, LowrankSparse
from onnx_lowrank.passkit.base import Skip
from tests.support import (
    conv_example,
    conv_model,
    only_layer,
    random_moments,
    relative,
    replaced,
    rng,
    run,
)

SQUARE = ConvGeometry((3, 3), (2, 1), (1, 1), (1, 0, 1, 1))


@pytest.mark.parametrize("asked", [(3, 5), (500, 500)])
def test_beyond_the_largest_rank_is_the_largest(asked: tuple[int, int]) -> None:
    layer = only_layer(conv_example(SQUARE, 0)[0])
    (form,) = LowrankSparse().propose(layer, Moments())
    assert form.outline(asked).parameters == form.outline((2, 4)).parameters
    assert form.error(asked) == form.error((2, 4))
    np.testing.assert_array_equal(form.cut(asked).compose(), form.cut((2, 4)).compose())


def planted_layer(seed: int) -> Layer:
    """Two channels that the outputs read in full, and one direction of the ten others."""
    random = rng(seed)
    weight = np.zeros((8, 12, 3, 3))
    weight[:, [3, 7]] = random.normal(size=(8, 2, 3, 3))
    others = np.setdiff1d(np.arange(12), [3, 7])
    one = np.multiply.outer(random.normal(size=8), random.normal(size=(10, 3, 3)))
    weight[:, others] = one
    return only_layer(conv_model(SQUARE, weight.astype(np.float32), None))


@pytest.mark.parametrize("data", [False, True])
def test_planted_parts(data: bool) -> None:
    layer = planted_layer(1)
    moments = random_moments(layer, 1) if data else Moments()
    (form,) = LowrankSparse().propose(layer, moments)
    assert form.error((2, 1)) < 1e-9
    branches = form.cut((2, 1)).stages[0]
    assert isinstance(branches, Branches)
    few, others = (chain.stages[0] for chain in branches.chains)
    assert isinstance(few, Select)
    assert isinstance(others, Select)
    assert few.index == (3, 7)
    assert sorted(few.index + others.index) == list(range(12))
    assert min(f.error(2) for f in ChannelSvd().propose(layer, moments)) > 1e-2


def test_no_more_pairs_than_a_plan_can_use() -> None:
    weight = rng(0).normal(size=(64, 64, 3, 3)).astype(np.float32)
    layer = only_layer(conv_model(SQUARE, weight, None))
    (form,) = LowrankSparse().propose(layer, Moments())
    pairs = list(form.ranks())
    assert 20 <= len(pairs) <= 120
    assert all(form.outline(p).parameters < layer.stage.parameters for p in pairs)
    with pytest.raises(ValueError, match="two ranks"):
        form.cut(3)


@pytest.mark.parametrize(
    ("shape", "groups", "reason"),
    [
        ((4, 1, 3, 3), 4, "is depthwise: each group reads one channel"),
        ((4, 1, 3, 3), 1, "reads a single channel"),
    ],
)
def test_left_alone(shape: tuple[int, ...], groups: int, reason: str) -> None:
    geometry = ConvGeometry((3, 3), (1, 1), (1, 1), (0, 0, 0, 0), groups)
    layer = only_layer(conv_model(geometry, np.ones(shape, np.float32), None))
    assert LowrankSparse().refuses(layer) == Skip(reason)


def test_written_as_two_branches() -> None:
    layer = planted_layer(3)
    weight = layer.stage.weight.astype(np.float32)
    proto = conv_model(SQUARE, weight, None)
    (form,) = LowrankSparse().propose(layer, Moments())
    again = replaced(proto, "conv", form.cut((2, 1)))
    kinds = [n.op_type for n in again.graph.node]
    assert kinds == ["Gather", "Conv", "Gather", "Conv", "Conv", "Add"]
    x = rng(5).normal(size=(2, 12, 8, 8)).astype(np.float32)
    assert relative(run(proto, {"x": x})["y"], run(again, {"x": x})["y"]) < 1e-5


@pytest.mark.parametrize("groups", [1, 2])
def test_behind_a_relu(groups: int) -> None:
    """Less error behind the ReLU, on rows that the fit has not seen; more in front of it."""
    geometry = ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1, 1, 1), groups)
    random = rng(8)
    weight = random.normal(size=(8 * groups, 6, 3, 3)).astype(np.float32)
    bias = random.normal(size=8 * groups).astype(np.float32) - 1
    layer = only_layer(conv_model(geometry, weight, bias))
    moments = random_moments(layer, 3)
    stage = layer.stage
    assert moments.mean is not None
    assert stage.bias is not None
    losses = {}
    for response in ("linear", "relu"):
        (form,) = LowrankSparse(response=response).propose(layer, moments)
        chain = form.cut((2, 2))
        assert chain.last.bias is not None
        matrices = chain.dense(groups).reshape(stage.matrices.shape)
        total = 0.0
        for g in range(groups):
            sigma = moments.sigma(g)
            assert sigma is not None
            x = rng(9, g).multivariate_normal(moments.mean[g], sigma, size=20_000)
            rows = slice(8 * g, 8 * g + 8)
            wanted = np.maximum(x @ stage.matrices[g].T + stage.bias[rows], 0)
            got = np.maximum(x @ matrices[g].T + chain.last.bias[rows], 0)
            total += float(np.sum((wanted - got) ** 2))
        losses[response] = total, relative_error(stage, chain, moments)
    assert losses["relu"][0] < losses["linear"][0]
    assert losses["relu"][1] > losses["linear"][1]
