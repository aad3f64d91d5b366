from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, helper

from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.chains.geometry import ConvGeometry
from onnx_lowrank.layers import Layer
from onnx_lowrank.passes import Svd, TensorTrainPass
from onnx_lowrank.passkit.base import Skip
from tests.support import (
    assert_identity_at_full_rank,
    assert_true,
    conv_example,
    make_model,
    only_layer,
    quick,
    random_moments,
    relative,
    replaced,
    rng,
    run,
)


def product(
    outputs: int, inputs: int, op: str = "Gemm", seed: int = 0, opset: int = 17
) -> ModelProto:
    weights = {
        "w": rng(seed).normal(size=(inputs, outputs)).astype(np.float32),
        "b": rng(seed, 1).normal(size=outputs).astype(np.float32),
    }
    if op == "Gemm":
        nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="layer")]
        return make_model(nodes, {"x": [None, inputs]}, ["y"], weights, opset=opset)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], name="layer"),
        helper.make_node("Add", ["p", "b"], ["y"]),
    ]
    return make_model(nodes, {"x": [None, None, inputs]}, ["y"], weights, opset=opset)


@pytest.mark.full
@quick(25)
@given(
    st.integers(4, 40), st.integers(4, 40), st.sampled_from(["Gemm", "MatMul"]),
    st.sampled_from([9, 11, 17]), st.integers(0, 99),
)  # fmt: skip
def test_full_rank(outputs: int, inputs: int, op: str, opset: int, seed: int) -> None:
    """Primes too: they are padded."""
    proto = product(outputs, inputs, op, seed, opset)
    size = (3, inputs) if op == "Gemm" else (2, 3, inputs)
    feed = {"x": rng(seed, 2).normal(size=size).astype(np.float32)}
    for cores in ("both", "4"):
        assert_identity_at_full_rank(TensorTrainPass(cores=cores), proto, feed, seed)


@quick(10)
@given(st.integers(4, 24), st.integers(4, 24), st.booleans(), st.integers(0, 99))
def test_errors_are_true(outputs: int, inputs: int, data: bool, seed: int) -> None:
    layer = only_layer(product(outputs, inputs, seed=seed))
    moments = random_moments(layer, seed) if data else Moments()
    for form in TensorTrainPass().propose(layer, moments):
        assert_true(form, layer, moments, range(1, form.max_rank + 1), kept=0.5)


def kronecker_layer(dtype: str = "float32") -> tuple[ModelProto, Layer]:
    """A sum of two Kronecker products: nothing that an SVD would find."""
    random = rng(7)
    matrix = sum(np.kron(random.normal(size=(4, 8)), random.normal(size=(8, 8))) for _ in range(2))
    node = helper.make_node("Gemm", ["x", "w"], ["y"], name="layer", transB=1)
    weights = {"w": np.asarray(matrix).astype(dtype)}
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    proto = make_model([node], {"x": [None, 64]}, ["y"], weights, element=element)
    return proto, only_layer(proto)


def test_planted_train() -> None:
    proto, layer = kronecker_layer()
    moments = random_moments(layer, 3)
    form = TensorTrainPass(cores="2").propose(layer, moments)[0]
    assert form.error(2) < 1e-9
    assert form.error(1) > 1e-2
    assert Svd().propose(layer, moments)[0].error(8) > 1e-2
    again = replaced(proto, "layer", form.cut(2))
    assert form.outline(2).parameters - 32 == 2 * (8 * 8 + 4 * 8)
    x = rng(4).normal(size=(5, 64)).astype(np.float32)
    assert relative(run(proto, {"x": x})["y"], run(again, {"x": x})["y"]) < 1e-5


def test_types() -> None:
    proto, layer = kronecker_layer("float64")
    form = TensorTrainPass(cores="2").propose(layer, Moments())[0]
    again = replaced(proto, "layer", form.cut(2))
    x = rng(4).normal(size=(5, 64))
    got = run(again, {"x": x})["y"]
    assert got.dtype == np.float64
    assert relative(run(proto, {"x": x})["y"], got) < 1e-12


def test_ranks_save_parameters() -> None:
    layer = only_layer(product(512, 512))
    for form in TensorTrainPass().propose(layer, Moments()):
        ranks = list(form.ranks())
        assert 1 <= len(ranks) <= 16
        assert all(form.outline(r).parameters < layer.stage.parameters for r in ranks)
        with pytest.raises(ValueError, match="one rank"):
            form.error((1, 2))


@pytest.mark.parametrize("kind", ["left", "transA", "narrow"])
def test_left_alone(kind: str) -> None:
    inputs = 3 if kind == "narrow" else 8
    weight = rng(0).normal(size=(inputs, 8)).astype(np.float32)
    if kind == "left":
        node = helper.make_node("MatMul", ["w", "x"], ["y"], name="layer")
    else:
        node = helper.make_node(
            "Gemm", ["x", "w"], ["y"], name="layer", transA=int(kind == "transA")
        )
    layer = only_layer(make_model([node], {"x": [None, None]}, ["y"], {"w": weight}))
    reason = {"narrow": "a matrix of (8, 3) is too small for a train"}
    wanted = reason.get(kind, "contracts the second last axis of its input")
    assert TensorTrainPass().refuses(layer) == Skip(wanted)


def test_convolutions_are_not_asked() -> None:
    layer = only_layer(conv_example(ConvGeometry.pointwise(2), 0)[0])
    assert TensorTrainPass().skips(layer) == Skip("is not for Conv")
