"""A model with something of everything, and ways to spoil it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import Message
from onnx import ModelProto, TensorProto, helper, numpy_helper

AnyArray = npt.NDArray[Any]

_INTEGERS = (0, -1, 1, 2, 3, 5, 64, 2**31 - 1, 2**31, 2**40, 2**62, -(2**63))
_FLOATS = (float("nan"), float("inf"), 0.0, -1.0, 1e38)
_TEXTS = (
    "", "x", "y", "w", "a", "gi", "gt", "f", "\0", "é", "../x", "Conv", "MatMul", "Gemm", "If",
    "com.microsoft", "ai.onnx", "Identity", "Transpose", "t", "value", "value_float",
)  # fmt: skip


def floats(seed: int, *shape: int) -> AnyArray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@contextmanager
def memory_below(limit: int) -> Iterator[None]:
    """At no time take more than ``limit`` bytes, arrays included."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


@lru_cache
def victim() -> bytes:
    """A model with convolutions, a norm, views of weights, a Constant, an If with weights."""

    def branch(output: str, op: str, weights: dict[str, AnyArray]) -> Any:
        node = helper.make_node(op, ["f", *weights], [output], name=f"in_{output}")
        value = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", 6])
        tensors = [numpy_helper.from_array(v, k) for k, v in weights.items()]
        return helper.make_graph([node], output, [], [value], tensors)

    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w"], ["a"], name="c1", pads=[1] * 4, kernel_shape=[3, 3],
             group=1, strides=[1, 1], dilations=[1, 1]),
        node("BatchNormalization", ["a", "s", "b", "m", "v"], ["n"], name="bn", epsilon=1e-5),
        node("Relu", ["n"], ["r"]),
        node("Conv", ["r", "dw"], ["d"], name="c2", group=4, auto_pad="SAME_UPPER"),
        node("Add", ["d", "r"], ["e"]),
        node("GlobalAveragePool", ["e"], ["g"]),
        node("Flatten", ["g"], ["h"]),
        node("Identity", ["gw"], ["gi"]),
        node("Transpose", ["gi"], ["gt"], perm=[1, 0]),
        node("MatMul", ["h", "gt"], ["mm"], name="mm"),
        node("Add", ["mm", "mb"], ["f"]),
        node("Constant", [], ["cw"], value=numpy_helper.from_array(floats(1, 6, 5))),
        node("Gemm", ["f", "cw", "gb"], ["y"], name="gemm", alpha=0.5, beta=2.0),
        node("If", ["cond"], ["z"], then_branch=branch("t", "MatMul", {"bw": floats(2, 6, 6)}),
             else_branch=branch("u", "Relu", {})),
    ]  # fmt: skip
    weights = {
        "w": floats(3, 4, 3, 3, 3), "s": floats(4, 4) ** 2, "b": floats(5, 4),
        "m": floats(6, 4), "v": floats(7, 4) ** 2 + 1, "dw": floats(8, 4, 1, 3, 3),
        "gw": floats(9, 6, 4), "mb": floats(10, 6), "gb": floats(11, 5), "cond": np.array(True),
    }  # fmt: skip
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "victim",
        [value("x", TensorProto.FLOAT, ["N", 3, 6, 6])],
        [value("y", TensorProto.FLOAT, ["N", 5]), value("z", TensorProto.FLOAT, ["N", 6])],
        [numpy_helper.from_array(v, k) for k, v in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    payload: bytes = helper.make_model(
        graph, opset_imports=opsets, ir_version=8
    ).SerializeToString()
    return payload


def mutated_bytes(payload: bytes, random: np.random.Generator) -> bytes:
    """``payload`` with one to three changes of one kind."""
    data, kind = bytearray(payload), random.integers(6)
    for _ in range(int(random.integers(1, 4))):
        if not data:
            break
        at, other = (int(i) for i in random.integers(len(data), size=2))
        if kind == 0:
            data[at] ^= 1 << int(random.integers(8))
        elif kind == 1:
            data[at] = int(random.integers(256))
        elif kind == 2:
            del data[at : at + int(random.integers(1, 20))]
        elif kind == 3:
            data[at:at] = random.bytes(int(random.integers(1, 20)))
        elif kind == 4:
            data[at : at + 8] = data[other : other + 8]
        else:
            del data[at:]
    return bytes(data)


def mutated_fields(payload: bytes, random: np.random.Generator) -> bytes:
    """A protobuf of the same kind with one to three fields changed, at any depth."""
    model = ModelProto.FromString(payload)
    for _ in range(int(random.integers(1, 4))):
        _change(_somewhere(model, random), random)
    return model.SerializeToString()


def _somewhere(message: Message, random: np.random.Generator) -> Message:
    while True:
        inner: list[Message] = []
        for field, value in message.ListFields():
            if field.message_type is not None:
                inner += value if hasattr(value, "extend") else [value]
        if not inner or random.random() < 0.25:
            return message
        message = inner[int(random.integers(len(inner)))]


def _change(message: Message, random: np.random.Generator) -> None:
    fields = [field for field, _ in message.ListFields()]
    if not fields or random.random() < 0.3:
        fields = list(message.DESCRIPTOR.fields)
    field = fields[int(random.integers(len(fields)))]
    current: Any = getattr(message, field.name)
    many, way = hasattr(current, "extend"), int(random.integers(3))
    if many and len(current) and way < 2:
        at = int(random.integers(len(current)))
        if way == 0:
            del current[at]
        elif field.message_type is not None:
            current.add().CopyFrom(current[at])
        else:
            current[at] = _value(field, random)
    elif field.message_type is not None:
        if many:
            current.add()
        else:
            message.ClearField(field.name)
    elif many:
        current.append(_value(field, random))
    elif way == 0:
        message.ClearField(field.name)
    elif field.enum_type is None:
        setattr(message, field.name, _value(field, random))
    else:
        numbers = [v.number for v in field.enum_type.values]
        setattr(message, field.name, numbers[int(random.integers(len(numbers)))])


def _value(field: Any, random: np.random.Generator) -> Any:
    if field.type == field.TYPE_STRING:
        return _TEXTS[int(random.integers(len(_TEXTS)))]
    if field.type == field.TYPE_BYTES:
        return random.bytes(int(random.integers(0, 40)))
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return _FLOATS[int(random.integers(len(_FLOATS)))]
    number = _INTEGERS[int(random.integers(len(_INTEGERS)))]
    if field.type == field.TYPE_INT32:
        return int(np.int64(number).astype(np.int32))
    return abs(number) % 2**63 if field.type == field.TYPE_UINT64 else number
