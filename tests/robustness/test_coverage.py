"""Every kind of model that exporters write: through ``inspect`` and ``compress``, contract kept.

Weights have rank 4 and are cut to rank 4, so that a layer that is taken apart gives the same
answers, and one that was read wrongly does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper
from onnx import numpy_helper as nh

from onnx_lowrank.engine.inspection import inspect
from onnx_lowrank.errors import LowRankError, ModelError
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.graph.protos import weights_as_inputs
from onnx_lowrank.layers import find_layers, refuse_optimised
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.runtime.runtime import Runtime
from onnx_lowrank.runtime.version_stamps import restamped
from tests import fixtures_models as fm

PASSES = "fold_batchnorm,svd,channel_svd,recurrent_svd"
#: what becomes of a layer; of a layer that no pass is able to see, the reason why
DONE, KEPT = "factorize", "keep"
SHAPE = ["N", 32]
F32 = TensorProto.FLOAT
node, value = helper.make_node, helper.make_tensor_value_info
Weights = Mapping[str, Any]


@cache
def low(seed: int, rows: int = 32, *rest: int) -> Any:
    """Of rank 4; rows that make responses of size 1."""
    rest = rest or (32,)
    random, width = np.random.default_rng(seed), int(np.prod(rest))
    left, right = random.standard_normal((rows, 4)), random.standard_normal((4, width))
    return fm.float32((left @ right / np.sqrt(4 * width)).reshape(rows, *rest))


def numbers(*values: int) -> Any:
    return np.array(values, np.int64)


def model(
    nodes: Sequence[NodeProto],
    weights: Weights,
    *,
    inputs: Mapping[str, Any] | None = None,
    outputs: Mapping[str, Any] | None = None,
    opset: int = 17,
    ir: int = 8,
    element: int = F32,
    domains: Sequence[str] = (),
    listed: bool = False,
) -> ModelProto:
    tensors = [nh.from_array(np.asarray(v), k) for k, v in weights.items()]
    given = [value(k, element, s) for k, s in (inputs or {"x": SHAPE}).items()]
    if listed:
        given += [value(t.name, t.data_type, t.dims) for t in tensors]
    made = [value(k, element, s) for k, s in (outputs or {"y": SHAPE}).items()]
    graph = helper.make_graph(list(nodes), "g", given, made, tensors)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir)


def mixed(opset: int = 17, ir: int = 8, **options: Any) -> ModelProto:
    """A convolution, a Gemm, a MatMul with its Add."""
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["a"], name="conv", pads=[1] * 4),
        node("Relu", ["a"], ["r"], name="relu"),
        node("GlobalAveragePool", ["r"], ["g"], name="pool"),
        node("Flatten", ["g"], ["f"], name="flat"),
        node("Gemm", ["f", "w2", "b2"], ["e"], name="gemm", transB=1),
        node("MatMul", ["e", "w3"], ["m"], name="matmul"),
        node("Add", ["m", "b3"], ["y"], name="add"),
    ]
    weights = {
        "w1": low(1, 32, 32, 3, 3), "b1": low(2)[0], "w2": low(3), "b2": low(4)[0],
        "w3": low(5), "b3": low(6)[0],
    }  # fmt: skip
    return model(nodes, weights, inputs={"x": ["N", 32, 5, 5]}, opset=opset, ir=ir, **options)


ALL = {"conv": DONE, "gemm": DONE, "matmul": DONE}


def normalised(ir: int) -> ModelProto:
    """A convolution with its batch normalisation, all weights listed as inputs."""
    nodes = [
        node("Conv", ["x", "w"], ["a"], name="m", pads=[1] * 4),
        node("BatchNormalization", ["a", "s", "b", "mean", "var"], ["y"], name="norm"),
    ]
    each = {"s": low(2)[0], "b": low(3)[0], "mean": low(4)[0], "var": low(5)[0] ** 2 + 1}
    weights = {"w": low(1, 32, 32, 3, 3), **each}
    shape = ["N", 32, 5, 5]
    return model(
        nodes, weights, inputs={"x": shape}, outputs={"y": shape}, opset=9, ir=ir, listed=True
    )


def product(*before: NodeProto, opset: int = 17, **weights: Any) -> ModelProto:
    """A MatMul whose weight ``w`` is made by nodes."""
    return model([*before, node("MatMul", ["x", "w"], ["y"], name="m")], weights, opset=opset)


def two(**options: Any) -> ModelProto:
    nodes = [
        node("MatMul", ["x", "w"], ["h"], name="m1"),
        node("MatMul", ["h", "v"], ["y"], name="m2"),
    ]
    return model(nodes, {"w": low(1), "v": low(2)}, **options)


def typed(dtype: Any, element: int) -> ModelProto:
    nodes = [
        node("Gemm", ["x", "w", "b"], ["h"], name="m1"),
        node("MatMul", ["h", "v"], ["y"], name="m2"),
    ]
    random = np.random.default_rng(3)
    weights = {
        k: (random.standard_normal((32, 4)) @ random.standard_normal((4, 32)) / 11).astype(dtype)
        for k in "wv"
    }
    weights["b"] = np.ones(32, dtype)
    return model(nodes, weights, element=element)


def branch(
    name: str, nodes: Sequence[NodeProto], output: str, inputs: Any = (), **weights: Any
) -> GraphProto:
    tensors = [nh.from_array(v, k) for k, v in weights.items()]
    return helper.make_graph(list(nodes), name, inputs, [value(output, F32, None)], tensors)


def with_if(**inside: Any) -> ModelProto:
    then = branch("t", [node("MatMul", ["h", "wt"], ["t"], name="inside")], "t", **inside)
    other = branch("e", [node("Gemm", ["h", "we"], ["e"], name="other")], "e", we=low(3))
    nodes = [
        node("MatMul", ["x", "w"], ["h"], name="m1"),
        node("If", ["c"], ["y"], name="choice", then_branch=then, else_branch=other),
    ]
    weights = {"w": low(1), "c": np.array(True)}
    return model(nodes, weights if inside else weights | {"wt": low(2)})


def with_loop() -> ModelProto:
    body = helper.make_graph(
        [node("MatMul", ["s", "w"], ["s2"], name="inside"), node("Identity", ["k"], ["k2"])],
        "body",
        [value("i", TensorProto.INT64, []), value("k", TensorProto.BOOL, []),
         value("s", F32, SHAPE)],
        [value("k2", TensorProto.BOOL, []), value("s2", F32, SHAPE)],
    )  # fmt: skip
    nodes = [
        node("MatMul", ["x", "v"], ["h"], name="m1"),
        node("Loop", ["n", "c", "h"], ["y"], name="loop", body=body),
    ]
    return model(nodes, {"w": low(1), "v": low(2), "n": np.array(2), "c": np.array(True)})


def with_scan() -> ModelProto:
    body = helper.make_graph(
        [
            node("MatMul", ["r", "w"], ["q"], name="inside"),
            node("Add", ["q", "s"], ["s2"]),
            node("Identity", ["s2"], ["o"]),
        ],
        "body",
        [value("s", F32, [1, 32]), value("r", F32, [1, 32])],
        [value("s2", F32, [1, 32]), value("o", F32, [1, 32])],
    )
    nodes = [
        node("MatMul", ["x", "v"], ["h"], name="m1"),
        node("Scan", ["z", "h"], ["f", "y"], name="scan", body=body, num_scan_inputs=1),
    ]
    weights = {"w": low(1), "v": low(2), "z": np.zeros((1, 32), np.float32)}
    return model(nodes, weights, inputs={"x": [5, 1, 32]}, outputs={"y": [5, 1, 32]})


def with_function(own: bool) -> ModelProto:
    proto = model(
        [
            node("MatMul", ["x", "w"], ["h"], name="m1"),
            node("F", ["h", "v"], ["y"], name="call", domain="local"),
        ],
        {"w": low(1), "v": low(2)},
        domains=["local"],
    )
    inside = [node("MatMul", ["a", "k" if own else "b"], ["c"], name="inside")]
    if own:
        inside.insert(0, node("Constant", [], ["k"], value=nh.from_array(low(3))))
    opsets = [helper.make_opsetid("", 17)]
    proto.functions.append(helper.make_function("local", "F", ["a", "b"], ["c"], inside, opsets))
    return proto


def quantized(*before: NodeProto, **more: Any) -> ModelProto:
    """``w`` behind nodes that end in DequantizeLinear; ``v`` as it is."""
    weights = {
        "q": np.clip(np.round(low(1) * 50), -127, 127).astype(np.int8),
        "s": np.float32(0.02), "z": np.int8(0), "v": low(2), **more,
    }  # fmt: skip
    nodes = [
        *before,
        node("MatMul", ["x", "w"], ["h"], name="m1"),
        node("MatMul", ["h", "v"], ["y"], name="m2"),
    ]
    return model(nodes, weights)


def sparse() -> ModelProto:
    proto = two()
    del proto.graph.initializer[0]
    proto.graph.sparse_initializer.append(
        helper.make_sparse_tensor(
            nh.from_array(np.ones(32, np.float32), "w"), nh.from_array(np.arange(32) * 33), [32, 32]
        )
    )
    return proto


def changed(proto: ModelProto, change: Callable[[ModelProto], Any]) -> ModelProto:
    change(proto)
    return proto


def lstm(outputs: Sequence[str]) -> ModelProto:
    operands = ["x", "W", "R", "", "", "", "", ""]
    nodes = [node("LSTM", operands, outputs, name="l", hidden_size=8)]
    made = {"y": [5, 1, 2, 8]} if outputs[0] else {"yh": [1, 2, 8]}
    weights = {"W": low(1)[None], "R": low(2, 32, 8)[None]}
    return model(nodes, weights, inputs={"x": [5, 2, 32]}, outputs=made)


def split_names() -> list[NodeProto]:
    return [node("Split", ["a"], ["unused", "w"], axis=0, num_outputs=2)]


@dataclass(frozen=True)
class Row:
    """A model, and what must hold.

    Attributes:
        make: the model.
        layers: for each that is listed, ``factorize``, ``keep``, or why it is skipped.
        error: of the result, relative.
        options: of :func:`compress`.
    """

    make: Callable[[], ModelProto]
    layers: Mapping[str, str]
    error: float = 2e-6
    options: Mapping[str, Any] = field(default_factory=dict)


M, M12 = {"m": DONE}, {"m1": DONE, "m2": DONE}
QUANTIZED = "its weight is quantized (DequantizeLinear)"
SHAPES = {"options": {"input_shapes": {"x": [2, 32]}}}


def add(name: str, **weights: Any) -> Callable[[], ModelProto]:
    """``w`` by one operator of the operands in their order."""
    return lambda: product(node(name, list(weights), ["w"]), **weights)


ROWS: dict[str, Row] = {
    **{
        f"opset {v}": Row(lambda v=v: mixed(v, 8 if v < 20 else 10), ALL)  # type: ignore[misc]
        for v in range(7, onnx.defs.onnx_opset_version() + 1)
    },
    **{
        f"ir {v}, weights listed as inputs": Row(
            lambda v=v: mixed(13, v, listed=True),  # type: ignore[misc]
            ALL,
        )
        for v in (3, 4, 7, 10, int(onnx.IR_VERSION))
    },
    **{
        f"ir {v}, statistics listed as inputs": Row(lambda v=v: normalised(v), M)  # type: ignore[misc]
        for v in (3, 8)
    },
    "float16": Row(lambda: typed(np.float16, TensorProto.FLOAT16), M12, 4e-3),
    "float64": Row(lambda: typed(np.float64, TensorProto.DOUBLE), M12, 1e-13),
    "bfloat16 behind Cast": Row(
        lambda: product(node("Cast", ["a"], ["w"], to=F32), a=low(1).astype(ml_dtypes.bfloat16)),
        M, 5e-3,
    ),
    "float16 behind Cast": Row(
        lambda: product(node("Cast", ["a"], ["w"], to=F32), a=low(1).astype(np.float16)), M, 5e-4
    ),
    # weights that are computed
    "Mul": Row(add("Mul", a=low(1), s=np.float32(0.5)), M),
    "Add": Row(add("Add", a=low(1), b=low(1)), M),
    "Sub": Row(add("Sub", a=low(1), b=low(1) / 2), M),
    "Div by row": Row(add("Div", a=low(1), b=np.full((32, 1), 2, np.float32)), M),
    "Pow": Row(add("Pow", a=low(1), p=np.float32(1)), M),
    "Where": Row(add("Where", c=np.ones((32, 32), bool), a=low(1), b=np.float32(0)), M),
    "Gather": Row(add("Gather", a=low(1, 64), i=np.arange(8, 40)), M),
    "Expand": Row(add("Expand", a=low(1), s=numbers(32, 32)), M),
    "Tile": Row(add("Tile", a=low(1, 8, 32), r=numbers(4, 1)), M),
    "MatMul of two": Row(
        add("MatMul", a=low(1), b=low(2)), M | {"w": "both operands are constant"}),
    "Concat": Row(
        lambda: product(node("Concat", ["a", "b"], ["w"], axis=0), a=low(1)[:16], b=low(1)[16:]), M
    ),
    "Slice": Row(
        lambda: product(node("Slice", ["a", "s", "e", "x0"], ["w"]), a=low(1, 64),
                        s=numbers(3), e=numbers(35), x0=numbers(0)), M,
    ),
    "Slice by attributes": Row(
        lambda: product(node("Slice", ["a"], ["w"], starts=[3], ends=[35], axes=[0]), opset=9,
                        a=low(1, 64)), M,
    ),
    "Split": Row(lambda: product(*split_names(), opset=18, a=low(1, 64)), M),
    "Reshape by a chain of shapes": Row(
        lambda: product(
            node("Shape", ["r"], ["s"]), node("Gather", ["s", "i"], ["d"]),
            node("Unsqueeze", ["d", "o"], ["u"]), node("Concat", ["u", "n"], ["t"], axis=0),
            node("Reshape", ["f", "t"], ["w"]),
            r=low(1), i=np.array(0), o=numbers(0), n=numbers(-1), f=low(1).reshape(-1),
        ), M,
    ),
    "weight norm": Row(
        lambda: product(
            node("ReduceL2", ["v"], ["n"], axes=[1]), node("Div", ["v", "n"], ["d"]),
            node("Mul", ["d", "g"], ["w"]), v=low(1), g=np.ones((32, 1), np.float32),
        ), M,
    ),
    "a convolution's, scaled": Row(
        lambda: model(
            [node("Mul", ["a", "s"], ["w"]), node("Conv", ["x", "w"], ["y"], name="m")],
            {"a": low(1, 32, 32, 3, 3), "s": np.full((32, 1, 1, 1), 2, np.float32)},
            inputs={"x": ["N", 32, 5, 5]}, outputs={"y": ["N", 32, 3, 3]},
        ), M,
    ),
    "a bias that is computed": Row(
        lambda: model(
            [node("MatMul", ["x", "w"], ["p"], name="m"), node("Mul", ["b", "s"], ["c"]),
             node("Add", ["p", "c"], ["y"])],
            {"w": low(1), "b": low(2)[0], "s": np.float32(2)},
        ), M,
    ),
    "a computed weight that two share": Row(
        lambda: model(
            [node("Mul", ["a", "s"], ["w"]), node("MatMul", ["x", "w"], ["h"], name="m1"),
             node("MatMul", ["h", "w"], ["y"], name="m2")],
            {"a": low(1), "s": np.float32(2)},
        ), M12,
    ),
    "Constant node": Row(
        lambda: product(node("Constant", [], ["w"], value=nh.from_array(low(1)))), M),
    "ConstantOfShape": Row(
        lambda: product(
            node("ConstantOfShape", ["s"], ["w"], value=nh.from_array(np.ones(1, np.float32))),
            s=numbers(32, 32)), {"m": KEPT},
    ),
    "random weight": Row(
        lambda: product(node("RandomNormal", [], ["w"], shape=[32, 32], seed=1.0)),
        {"m": "no operand is constant"}, np.inf,
    ),
    "random part of a weight": Row(
        lambda: product(node("RandomNormalLike", ["a"], ["r"], seed=1.0),
                        node("Mul", ["a", "r"], ["w"]), a=low(1)),
        {"m": "no operand is constant"}, np.inf,
    ),
    # subgraphs and functions
    "If": Row(
        lambda: with_if(wt=low(2)),
        {"m1": DONE, "inside": "inside choice", "other": "inside choice"}),
    "If that reads a weight outside": Row(
        with_if, {"m1": DONE, "inside": "inside choice", "other": "inside choice"}),
    "Loop": Row(with_loop, {"m1": DONE, "inside": "inside loop"}),
    "Scan": Row(with_scan, {"m1": DONE, "inside": "inside scan"}),
    "function": Row(lambda: with_function(False), {"m1": DONE, "inside": "inside function F"}),
    "function with a weight": Row(
        lambda: with_function(True), {"m1": DONE, "inside": "inside function F"}),
    # quantized
    "QDQ": Row(
        lambda: quantized(node("DequantizeLinear", ["q", "s", "z"], ["w"])),
        {"m1": QUANTIZED, "m2": DONE}),
    "QDQ behind Transpose": Row(
        lambda: quantized(node("DequantizeLinear", ["q", "s", "z"], ["d"]),
                          node("Transpose", ["d"], ["w"], perm=[1, 0])),
        {"m1": QUANTIZED, "m2": DONE}),
    "QDQ scaled": Row(
        lambda: quantized(node("DequantizeLinear", ["q", "s", "z"], ["d"]),
                          node("Mul", ["d", "s"], ["w"])),
        {"m1": QUANTIZED, "m2": DONE}),
    "quantized in the graph": Row(
        lambda: quantized(node("QuantizeLinear", ["f", "s", "z"], ["q2"]),
                          node("DequantizeLinear", ["q2", "s", "z"], ["w"]), f=low(1)),
        {"m1": QUANTIZED, "m2": DONE}),
    "QDQ of activations": Row(
        lambda: model(
            [node("QuantizeLinear", ["x", "s", "z"], ["q"]),
             node("DequantizeLinear", ["q", "s", "z"], ["d"]),
             node("MatMul", ["d", "w"], ["y"], name="m")],
            {"w": low(1), "s": np.float32(0.05), "z": np.int8(0)},
        ), M),
    # structure
    "sparse initializer": Row(
        sparse, {"m1": "its weight cannot be read: it is sparse", "m2": DONE}),
    "custom domain": Row(
        lambda: model(
            [node("MatMul", ["x", "w"], ["h"], name="m"),
             node("Gelu", ["h"], ["y"], name="g", domain="com.microsoft")],
            {"w": low(1)}, domains=["com.microsoft"]), M),
    "default domain by its name": Row(
        lambda: changed(two(), lambda p: setattr(p.graph.node[0], "domain", "ai.onnx")), M12),
    "default opset by its name": Row(
        lambda: changed(two(), lambda p: setattr(p.opset_import[0], "domain", "ai.onnx")), M12),
    "unused outputs": Row(
        lambda: model(
            [node("Dropout", ["x"], ["a", "mask"], name="d"),
             node("MatMul", ["a", "w"], ["y"], name="m"), node("Relu", ["y"], ["unused"])],
            {"w": low(1)}), M),
    "nodes without names": Row(
        lambda: changed(two(), lambda p: [n.ClearField("name") for n in p.graph.node]),
        {"h": DONE, "y": DONE}),
    "nodes called like tensors": Row(
        lambda: changed(
            two(), lambda p: [setattr(p.graph.node[i], "name", "wh"[i]) for i in range(2)]),
        {"w": DONE, "h": DONE}),
    "initializer given twice": Row(
        lambda: changed(two(), lambda p: p.graph.initializer.append(p.graph.initializer[0])), M12),
    "one weight listed as input": Row(
        lambda: changed(two(), lambda p: p.graph.input.append(value("w", F32, [32, 32]))),
        M12 | {"m1": "its weight w is also an input of the graph"}),
    "annotations": Row(
        lambda: changed(two(), lambda p: p.graph.quantization_annotation.add(tensor_name="w")),
        M12),
    "left out bias of a Conv": Row(
        lambda: model([node("Conv", ["x", "w", ""], ["y"], name="m")],
                      {"w": low(1, 32, 32, 3, 3)}, inputs={"x": ["N", 32, 5, 5]},
                      outputs={"y": ["N", 32, 3, 3]}), M),
    "left out bias of a Gemm": Row(
        lambda: model([node("Gemm", ["x", "w", ""], ["y"], name="m")], {"w": low(1)}), M),
    "left out operands of an LSTM": Row(lambda: lstm(["y", "", ""]), {"l": DONE}, 5e-6),
    "last state of an LSTM alone": Row(lambda: lstm(["", "yh"]), {"l": DONE}, 5e-6),
    "weight without columns": Row(
        lambda: model(
            [node("MatMul", ["x", "w0"], ["e"], name="m0"),
             node("MatMul", ["x", "w"], ["y"], name="m")],
            {"w": low(1), "w0": np.zeros((32, 0), np.float32)},
            outputs={"y": SHAPE, "e": ["N", 0]}),
        M | {"m0": "its weight is empty"}),
    "all axes dynamic": Row(
        lambda: model([node("MatMul", ["x", "w"], ["y"], name="m")], {"w": low(1)},
                      inputs={"x": ["a", "b", 32]}, outputs={"y": ["a", "b", 32]}),
        M, options={"input_shapes": {"x": [2, 7, 32]}}),
    "no shapes": Row(
        lambda: model([node("MatMul", ["x", "w"], ["y"], name="m")], {"w": low(1)},
                      inputs={"x": None}, outputs={"y": None}), M, **SHAPES),
    "several inputs": Row(
        lambda: model(
            [node("MatMul", ["x", "w"], ["a"], name="m1"),
             node("MatMul", ["z", "v"], ["b"], name="m2"),
             node("Add", ["a", "b"], ["y"])],
            {"w": low(1), "v": low(2)}, inputs={"x": SHAPE, "z": SHAPE}), M12),
    "an input that nobody reads": Row(lambda: two(inputs={"x": SHAPE, "z": ["N", 3]}), M12),
    "no batch": Row(lambda: two(inputs={"x": [32]}, outputs={"y": [32]}), M12),
    "weight times a vector": Row(
        lambda: model([node("MatMul", ["w", "x"], ["y"], name="m")], {"w": low(1)},
                      inputs={"x": [32]}, outputs={"y": [32]}), {"m": "its input is a vector"}),
    "weight times a matrix": Row(
        lambda: model([node("MatMul", ["w", "x"], ["y"], name="m")], {"w": low(1)},
                      inputs={"x": [32, 7]}, outputs={"y": [32, 7]}), M),
    "outputs that are inputs, weights, and read": Row(
        lambda: two(outputs={"y": SHAPE, "x": SHAPE, "w": [32, 32], "h": SHAPE}), M12),
    "output that is a sequence": Row(
        lambda: changed(
            model([node("MatMul", ["x", "w"], ["y"], name="m"),
                   node("SequenceConstruct", ["y", "x"], ["q"])], {"w": low(1)}),
            lambda p: p.graph.output.append(
                helper.make_tensor_sequence_value_info("q", F32, None))),
        M),
    "whole numbers as input": Row(
        lambda: changed(
            model([node("Cast", ["i"], ["x"], to=F32),
                   node("MatMul", ["x", "w"], ["y"], name="m")], {"w": low(1)}),
            lambda p: p.graph.input[0].CopyFrom(value("i", TensorProto.INT64, SHAPE))),
        M),
    "no layers": Row(lambda: model([node("Relu", ["x"], ["y"])], {}), {}),
}  # fmt: skip


def interface(proto: ModelProto) -> Any:
    """What no compression may change."""
    listed = proto.ir_version < 4 or weights_as_inputs(proto)
    inside = {t.name for t in proto.graph.initializer} if listed else {}
    return (
        proto.ir_version,
        [(o.domain, o.version) for o in proto.opset_import],
        [i for i in proto.graph.input if i.name not in inside],
        list(proto.graph.output),
        [f.name for f in proto.functions],
    )


@pytest.mark.parametrize("name", ROWS)
def test_inspect_and_compress(name: str) -> None:
    row = ROWS[name]
    proto = row.make()
    before = proto.SerializeToString()
    found = inspect(proto, input_shapes=row.options.get("input_shapes"))
    assert {la.name: la.eligible for la in found.layers} == {
        k: v in (DONE, KEPT) for k, v in row.layers.items()
    }
    result = fm.quick_compress(proto, ranks="fixed=4", passes=PASSES, force=True, **row.options)
    assert proto.SerializeToString() == before
    assert interface(result.model) == interface(proto)
    decisions = {d.layer: d for d in result.plan.decisions}
    assert decisions.keys() == row.layers.keys()
    for layer, wanted in row.layers.items():
        if wanted in (DONE, KEPT):
            assert decisions[layer].decision == wanted, decisions[layer].reason
        else:
            assert decisions[layer].decision == "skip"
            assert wanted in decisions[layer].reason
    compared = [o for o in result.report.validation.outputs if o.places]
    assert compared or np.isinf(row.error)  # random outputs are not compared
    for output in compared:
        assert output.relative_error < row.error, output
    # weights in the types they had: no model grows by a change of type
    kinds = {t.data_type for t in proto.graph.initializer} | {F32}
    assert {t.data_type for t in result.model.graph.initializer} <= kinds


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_factors_have_the_type_of_the_weight(dtype: str) -> None:
    element = {"float16": TensorProto.FLOAT16, "float64": TensorProto.DOUBLE}[dtype]
    result = fm.quick_compress(
        typed(np.dtype(dtype), element), ranks="fixed=4", passes=PASSES, force=True
    )
    assert {t.data_type for t in result.model.graph.initializer} == {element}
    assert len(result.model.graph.initializer) == 5


# refusals


def optimised(proto: ModelProto, level: str, folder: Path) -> ModelProto:
    """``proto`` as ONNX Runtime writes it at an optimisation level."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.log_severity_level = 4
    ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimised.onnx")


def test_blocked_layouts_are_refused(tmp_path: Path) -> None:
    proto = optimised(mixed(), "ORT_ENABLE_ALL", tmp_path)
    layers, others = find_layers(Graph(Model(proto)))
    assert layers
    assert ["blocked layout" in o.reason for o in others] == [True]
    with pytest.raises(ModelError, match="as it was before ONNX Runtime's layout optimisation"):
        refuse_optimised(others)
    with pytest.raises(LowRankError):
        fm.quick_compress(proto, target="params=0.1", force=True)
    refuse_optimised(find_layers(Graph(Model(mixed())))[1])


def test_fused_layers_are_left_alone_among_others(tmp_path: Path) -> None:
    proto = optimised(mixed(), "ORT_ENABLE_EXTENDED", tmp_path)
    layers, others = find_layers(Graph(Model(proto)))
    assert [o.reason[:29] for o in others] == ["it was fused by ONNX Runtime;"]
    result = fm.quick_compress(proto, ranks="fixed=2", passes=PASSES, force=True)
    factorized = {d.layer for d in result.plan.decisions if d.decision == "factorize"}
    assert factorized
    assert factorized <= {layer.name for layer in layers}
    (fused,) = (n for n in proto.graph.node if n.op_type == "FusedConv")
    assert fused in result.model.graph.node


def test_layers_around_a_fused_product_are_compressed() -> None:
    nodes = [
        node("MatMul", ["x", "w1"], ["a"], name="one"),
        node("FusedMatMul", ["a", "a"], ["s"], name="fused", domain="com.microsoft", transB=1),
        node("MatMul", ["s", "a"], ["b"]),
        node("MatMul", ["b", "w2"], ["y"], name="two"),
    ]
    proto = model(nodes, {"w1": low(1), "w2": low(2)}, domains=["com.microsoft"])
    result = fm.quick_compress(proto, ranks="fixed=4", passes=PASSES, force=True)
    decisions = {d.layer: d for d in result.plan.decisions}
    assert {decisions[n].decision for n in ("one", "two")} == {"factorize"}
    assert nodes[1] in result.model.graph.node
    assert "it was fused by ONNX Runtime" in decisions["fused"].reason


@pytest.mark.parametrize("op", ["FusedMatMul", "FusedGemm"])
def test_fused_products_are_named(op: str) -> None:
    proto = model(
        [node(op, ["x", "w"], ["y"], name="m", domain="com.microsoft")],
        {"w": low(1)}, domains=["com.microsoft"],
    )  # fmt: skip
    (layer,) = inspect(proto).layers
    assert "it was fused by ONNX Runtime; give the model as it was before" in layer.reason


REFUSED: dict[str, tuple[Callable[[], ModelProto], str]] = {
    "two nodes of one name": (
        lambda: changed(two(), lambda p: [setattr(n, "name", "m") for n in p.graph.node]),
        "two nodes with same node name"),
    "bfloat16 without a kernel": (
        lambda: typed(ml_dtypes.bfloat16, TensorProto.BFLOAT16), "ONNX Runtime cannot load"),
    "unknown domain": (
        lambda: model([node("Conv", ["x"], ["y"], domain="org.foo")], {}, domains=["org.foo"]),
        "not a registered function/op"),
    "dynamic axes": (
        lambda: two(inputs={"x": ["a", "b"]}), "input 'x' has dynamic axes"),
    "sequence as input": (
        lambda: changed(
            model([node("SequenceAt", ["q", "i"], ["x"]), node("MatMul", ["x", "w"], ["y"])],
                  {"w": low(1), "i": np.array(0)}),
            lambda p: p.graph.input[0].CopyFrom(
                helper.make_tensor_sequence_value_info("q", F32, None))),
        "only tensors can be fed"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(LowRankError, match=message) as caught:
        fm.quick_compress(make(), ranks="fixed=4", passes=PASSES, force=True)
    assert "\n" not in str(caught.value)


# small print


def test_results_that_would_be_huge_are_not_computed() -> None:
    """An outer product, a repetition, a shape: a few bytes that ask for gigabytes."""
    makers = [
        (node("Mul", ["a", "b"], ["w"]),
         {"a": np.ones((1 << 16, 1), np.float32), "b": np.ones(1 << 16, np.float32)}),
        (node("Tile", ["a", "r"], ["w"]), {"a": low(1), "r": numbers(1 << 10, 1 << 10)}),
        (node("Expand", ["a", "s"], ["w"]), {"a": low(1), "s": numbers(1 << 20, 32, 32)}),
        (node("ConstantOfShape", ["s"], ["w"]), {"s": numbers(1 << 20, 1 << 20)}),
        (node("Pad", ["a", "p"], ["w"]), {"a": low(1), "p": numbers(0, 0, 1 << 20, 1 << 20)}),
    ]  # fmt: skip
    for maker, weights in makers:
        graph = Graph(Model(product(maker, **weights)))
        assert graph.is_constant("w"), maker.op_type
        assert graph.constant("w") is None, maker.op_type
        (other,) = find_layers(graph)[1]
        assert "cannot be read" in other.reason


def test_a_long_line_of_arithmetic() -> None:
    names = ["a", *(f"t{i}" for i in range(500)), "w"]
    line = [node("Neg", [s], [t]) for s, t in pairwise(names)]
    graph = Graph(Model(product(*line, a=low(1))))
    np.testing.assert_array_equal(graph.constant("w"), -low(1))
    assert graph.uses("w") == 1
    varying = [node("Neg", ["x"], ["t0"]), *line[1:]]
    graph = Graph(Model(product(*varying)))
    assert not any(graph.is_constant(name) for name in names[1:])


def test_constants_follow_edits() -> None:
    graph = Graph(Model(product(node("Mul", ["a", "x"], ["w"]), a=low(1))))
    assert not graph.is_constant("w")
    graph.change(graph.nodes[0], {1: graph.add_constant("two", np.float32(2))})
    np.testing.assert_array_equal(graph.constant("w"), 2 * low(1))


def relu(opset: int, ir: int, op: str = "Relu") -> ModelProto:
    return model([node(op, ["x"], ["y"])], {"w": low(1)}, opset=opset, ir=ir)


def test_stamps() -> None:
    newest, ir = onnx.defs.onnx_opset_version(), int(onnx.IR_VERSION)
    proto = relu(newest, ir)
    assert restamped(proto, newest, ir) is proto
    assert restamped(proto, 20, 9) == relu(20, 9)
    assert restamped(proto, newest, 9) == relu(newest, 9)
    assert proto == relu(newest, ir)
    assert restamped(relu(14, 8), 13, 8) is None  # it took other types from 14 on
    assert restamped(relu(newest, 8, "Nothing"), newest - 1, 8) is None
    assert restamped(relu(newest + 1, 8), newest, 8) is None  # nobody knows what it means
    assert restamped(relu(newest, ir + 1), newest, ir) is None


def test_stamps_inside_of_branches_and_functions() -> None:
    proto = with_if(wt=low(2))
    proto.opset_import[0].version = 15
    assert restamped(proto, 13, 8) is not None
    for inside in (proto.graph.node[1].attribute[i].g for i in range(2)):
        if inside.node[0].op_type == "MatMul":
            inside.node[0].op_type = "Add"  # which changed in 14
    assert restamped(proto, 14, 8) is not None
    assert restamped(proto, 13, 8) is None
    called = with_function(True)
    copy = restamped(called, 13, 8)
    assert copy is not None
    assert copy.functions[0].opset_import[0].version == 13
    assert restamped(called, 12, 8) is None


def test_a_model_newer_than_onnx_runtime_runs() -> None:
    x = np.random.default_rng(0).standard_normal((2, 32, 5, 5)).astype(np.float32)
    runs = [
        Runtime(threads=1).session(Model(mixed(opset, ir)), optimise=False).run({"x": x})["y"]
        for opset, ir in ((25, 10), (onnx.defs.onnx_opset_version(), int(onnx.IR_VERSION)))
    ]
    np.testing.assert_array_equal(*runs)
