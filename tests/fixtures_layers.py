"""One small layer of every kind, built from its weight and bias alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, helper

from onnx_lowrank.chains.geometry import ConvGeometry
from tests.support import AnyArray, Array, conv_model, make_model, rng, sizes

__all__ = ["GATES", "LAYERS", "SmallLayer"]

#: gates of the recurrent operators
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}

#: hidden units and directions of the recurrent layers
_HIDDEN = 3
_DIRECTIONS = 2


@dataclass(frozen=True)
class SmallLayer:
    """A layer of a kind, in a model of one.

    Attributes:
        shape: shape of its weight as a stage has it, ``(N, C / groups, *kernel)``.
        input: shape of an input.
        build: a model of one layer with this weight and bias, as a stage has them.
    """

    shape: tuple[int, ...]
    input: tuple[int, ...]
    build: Callable[[Array, Array | None], ModelProto]

    def numbers(self, seed: int) -> tuple[Array, Array]:
        """A weight and a bias."""
        random = rng(seed, 5)
        return random.normal(size=self.shape), random.normal(size=self.shape[0])

    def feed(self, seed: int) -> dict[str, AnyArray]:
        """A random input."""
        return {"x": rng(seed, 6).normal(size=self.input).astype(np.float32)}


def _float32(**weights: Array | None) -> dict[str, AnyArray]:
    return {k: v.astype(np.float32) for k, v in weights.items() if v is not None}


def _conv(geometry: ConvGeometry, outputs: int = 6, inputs: int = 4) -> SmallLayer:
    """A convolution of so many outputs and inputs a group."""

    def build(weight: Array, bias: Array | None) -> ModelProto:
        parts = _float32(w=weight, b=bias)
        return conv_model(geometry, parts["w"], parts.get("b"))

    groups = geometry.groups
    return SmallLayer(
        (outputs * groups, inputs, *geometry.kernel),
        (2, inputs * groups, *sizes(geometry, 4)),
        build,
    )


def _gemm(alpha: float = 1.0, beta: float = 1.0, **transposed: int) -> SmallLayer:
    def build(weight: Array, bias: Array | None) -> ModelProto:
        matrix = weight if transposed.get("transB") else weight.T
        parts = _float32(w=matrix / alpha, b=None if bias is None else bias / beta)
        node = helper.make_node(
            "Gemm", ["x", *parts], ["y"], name="layer", alpha=alpha, beta=beta, **transposed
        )
        return make_model([node], {"x": [None, None]}, ["y"], parts)

    return SmallLayer((6, 8), (8, 5) if transposed.get("transA") else (5, 8), build)


def _matmul(batch: tuple[int, ...] = (), left: bool = False) -> SmallLayer:
    shape = (*batch, 8, 5) if left else (*batch, 5, 8)

    def build(weight: Array, bias: Array | None) -> ModelProto:
        if bias is not None and left:
            bias = bias[:, None]
        parts = _float32(w=weight if left else weight.T, b=bias)
        product = "y" if bias is None else "p"
        operands = ["w", "x"] if left else ["x", "w"]
        nodes = [helper.make_node("MatMul", operands, [product], name="layer")]
        if bias is not None:
            nodes.append(helper.make_node("Add", ["p", "b"], ["y"]))
        return make_model(nodes, {"x": shape}, ["y"], parts)

    return SmallLayer((6, 8), shape, build)


def _recurrent(op: str) -> SmallLayer:
    """A node of two directions; its layer is the product with the input weights."""
    rows = GATES[op] * _HIDDEN
    state, own = rng(len(op)).normal(size=(2, _DIRECTIONS, rows, _HIDDEN)) / 2

    def build(weight: Array, bias: Array | None) -> ModelProto:
        first = np.zeros(weight.shape[0]) if bias is None else bias
        both = np.concatenate([first.reshape(_DIRECTIONS, rows), own[:, :, 0]], axis=1)
        parts = _float32(w=weight.reshape(_DIRECTIONS, rows, -1), r=state, b=both)
        attributes: dict[str, Any] = {"hidden_size": _HIDDEN, "direction": "bidirectional"}
        node = helper.make_node(op, ["x", *parts], ["y"], name="layer", **attributes)
        return make_model([node], {"x": [4, 2, 5]}, ["y"], parts)

    return SmallLayer((_DIRECTIONS * rows, 5), (4, 2, 5), build)


LAYERS: dict[str, SmallLayer] = {
    "gemm": _gemm(),
    "gemm scaled": _gemm(0.5, -2.0, transB=1),
    "gemm transposed": _gemm(transA=1),
    "matmul": _matmul((2,)),
    "matmul left": _matmul((2, 3), left=True),
    "pointwise": _conv(ConvGeometry((1, 1), (2, 1), (1, 1), (0, 1, 0, 0))),
    "pointwise grouped": _conv(ConvGeometry.pointwise(1, 2)),
    "conv1d": _conv(ConvGeometry((3,), (2,), (1,), (1, 0))),
    "column": _conv(ConvGeometry((3, 1), (1, 2), (2, 1), (1, 0, 2, 0))),
    "square": _conv(ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))),
    "uneven": _conv(ConvGeometry((3, 2), (2, 3), (1, 2), (1, 2, 3, 4))),
    "same": _conv(ConvGeometry((3, 3), (2, 2), (1, 1), (0,) * 4, auto_pad="SAME_UPPER")),
    "grouped": _conv(ConvGeometry((3, 3), (2, 1), (1, 2), (1, 0, 1, 1), 2)),
    "transposed": _conv(
        ConvGeometry((3, 3), (2, 2), (1, 1), (1, 0, 1, 1), transposed=True, output_padding=(1, 0))
    ),
    "transposed grouped": _conv(ConvGeometry((3,), (2,), (1,), (1, 0), 2, transposed=True)),
    "conv3d": _conv(ConvGeometry((2, 3, 2), (1, 2, 1), (1, 1, 2), (0, 1, 0, 1, 0, 0))),
    "flat conv3d": _conv(ConvGeometry((3, 1, 2), (1, 2, 1), (1, 1, 1), (1, 0, 0, 0, 0, 1))),
    "depthwise": _conv(ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 4), 1, 1),
    "lstm": _recurrent("LSTM"),
    "gru": _recurrent("GRU"),
    "rnn": _recurrent("RNN"),
}
