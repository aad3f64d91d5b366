"""Small models that look rows of a table up, and numbers of rows as texts have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tests.support import IR, AnyArray, rng

__all__ = ["ROWS", "WIDTH", "looked_up", "readings", "table", "text_model", "text_net"]

#: rows and columns of a table by default
ROWS, WIDTH = 400, 24


def table(rank: int = 6, noise: float = 0.2, rows: int = ROWS, width: int = WIDTH) -> AnyArray:
    """A table ``(rows, width)`` off centre, of some rank but for noise."""
    random = rng(rows, width, rank)
    low = random.normal(size=(rows, rank)) @ random.normal(size=(rank, width)) / np.sqrt(rank)
    return (low + noise * random.normal(size=(rows, width)) + 0.5).astype(np.float32)


def readings(texts: int, length: int = 10, rows: int = ROWS, seed: int = 0) -> AnyArray:
    """Numbers of rows ``(texts, length)``, the first rows far more often than the last (Zipf)."""
    shares = 1 / np.arange(1, rows + 1)
    return rng(seed, 11).choice(rows, (texts, length), p=shares / shares.sum())


def text_model(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Mapping[str, Sequence[int | str | None]],
    weights: Mapping[str, AnyArray],
    opset: int = 17,
    element: int = TensorProto.INT64,
) -> ModelProto:
    """A model of numbers in, and of floats out."""
    graph = helper.make_graph(
        list(nodes),
        "text",
        [helper.make_tensor_value_info(n, element, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR[opset])


def looked_up(
    values: AnyArray,
    shape: Sequence[int | str] = ("N", 10),
    opset: int = 17,
    element: int = TensorProto.INT64,
) -> ModelProto:
    """One lookup and nothing else."""
    node = helper.make_node("Gather", ["table", "ids"], ["y"], name="words")
    outputs = {"y": (*shape, values.shape[1])}
    return text_model([node], {"ids": shape}, outputs, {"table": values}, opset, element)


def text_net(length: int = 10, classes: int = 4, width: int = WIDTH) -> ModelProto:
    """Rows of a table and of positions added, a dense layer, the mean of its rows, scores.

    The table has 9,600 of its 10,540 parameters, where it has the width that tables have here.
    """
    random = rng(3)

    def values(*shape: int) -> AnyArray:
        return (random.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)

    weights = {
        "table": table(width=width), "places": values(1, length, width), "w": values(width, width),
        "b": values(width), "v": values(width, classes), "c": values(classes),
    }  # fmt: skip
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], name="words"),
        helper.make_node("Add", ["e", "places"], ["x"]),
        helper.make_node("MatMul", ["x", "w"], ["p"], name="dense"),
        helper.make_node("Add", ["p", "b"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("ReduceMean", ["r"], ["m"], axes=[1], keepdims=0),
        helper.make_node("Gemm", ["m", "v", "c"], ["y"], name="scores"),
    ]
    return text_model(nodes, {"ids": ["N", length]}, {"y": ["N", classes]}, weights)
