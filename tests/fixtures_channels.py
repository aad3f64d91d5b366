"""Small nets of every topology that channels run through, and the oracle for cutting them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from onnx_lowrank.analysis.cost import tensor_shapes
from onnx_lowrank.channels.groups import ChannelGroup, find_channel_groups
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.modelfile.model import Model
from tests.support import Array, make_model, rng


class Net:
    """A model that is written down node by node; tensors and nodes are named by the operator."""

    def __init__(self, seed: int, shape: Sequence[int | None] = (None, 3, 8, 8)) -> None:
        self.random = rng(seed, 17)
        self.inputs: dict[str, Sequence[int | str | None]] = {"x": shape}
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, Any] = {}

    def name(self, stem: str) -> str:
        count = sum(n.name.rstrip("0123456789") == stem for n in self.nodes)
        return f"{stem}{count + 1}"

    def const(self, *values: Any, dtype: Any = np.int64, name: str = "") -> str:
        name = name or f"c{len(self.weights)}"
        array = values[0] if len(values) == 1 and isinstance(values[0], np.ndarray) else values
        self.weights[name] = np.asarray(array, dtype)
        return name

    def numbers(self, *shape: int, low: float | None = None, name: str = "") -> str:
        """Random float constants; uniform from ``low`` where it is given."""
        values = self.random.normal(size=shape)
        if low is not None:
            values = self.random.uniform(low, low + 1, shape)
        return self.const(values, dtype=np.float32, name=name)

    def op(self, op: str, *inputs: str, out: str = "", **attrs: Any) -> str:
        return self.ops(op, *inputs, outs=[out], **attrs)[0]

    def ops(self, op: str, *inputs: str, outs: Sequence[str], **attrs: Any) -> list[str]:
        name = self.name(op.lower())
        made = [o or (f"{name}_out{i}" if i else f"{name}_out") for i, o in enumerate(outs)]
        self.nodes.append(helper.make_node(op, inputs, made, name=name, **attrs))
        return made

    def conv(
        self, x: str, c: int, n: int, k: int = 3, *, axes: int = 2, groups: int = 1,
        bias: bool = True, **attrs: Any,
    ) -> str:  # fmt: skip
        weight = self.numbers(n, c // groups, *[k] * axes)
        self.weights[weight] /= np.sqrt(c / groups * k**axes, dtype=np.float32)
        more = [self.numbers(n)] if bias else []
        pads = attrs.pop("pads", [k // 2] * (2 * axes))
        return self.op("Conv", x, weight, *more, pads=pads, group=groups, **attrs)

    def up(self, x: str, c: int, n: int, groups: int = 1) -> str:
        weight = self.numbers(c, n // groups, 2, 2)
        return self.op("ConvTranspose", x, weight, self.numbers(n), strides=[2, 2], group=groups)

    def norm(self, x: str, c: int) -> str:
        values = [self.numbers(c, low=low) for low in (0.5, -0.5, -0.5, 0.5)]
        return self.op("BatchNormalization", x, *values)

    def relu(self, x: str) -> str:
        return self.op("Relu", x)

    def gemm(self, x: str, c: int, n: int, *, out: str = "", **attrs: Any) -> str:
        shape = (n, c) if attrs.get("transB") else (c, n)
        weight = self.numbers(*shape)
        self.weights[weight] /= np.sqrt(c, dtype=np.float32)
        return self.op("Gemm", x, weight, self.numbers(n), out=out, **attrs)

    def head(self, x: str, c: int, n: int = 4) -> str:
        """The closing layer: a 1x1 convolution with the graph output ``y``."""
        weight = self.numbers(n, c, 1, 1)
        return self.op("Conv", x, weight, out="y")

    def model(self, opset: int = 17, outputs: Sequence[str] = ("y",)) -> ModelProto:
        return make_model(self.nodes, self.inputs, outputs, self.weights, opset=opset)

    def feed(self, batch: int = 2) -> dict[str, Array]:
        return {
            k: rng(batch, 3).normal(size=[batch if d is None else d for d in s]).astype(np.float32)  # type: ignore[misc]
            for k, s in self.inputs.items()
        }


def groups_of(proto: ModelProto, batch: int = 2) -> tuple[Graph, list[ChannelGroup]]:
    """The graph of a model, and its channel groups."""
    model = Model(proto)
    graph = Graph(model)
    named = set(graph.inputs)
    shapes = {
        i.name: tuple(d.dim_value or batch for d in i.type.tensor_type.shape.dim)
        for i in proto.graph.input
        if i.name in named
    }
    return graph, find_channel_groups(graph, tensor_shapes(model, shapes))


def silenced(proto: ModelProto, group: ChannelGroup, removed: Sequence[int]) -> ModelProto:
    """The model whose consumers do not hear some channels: their columns are zero."""
    result = ModelProto()
    result.CopyFrom(proto)
    tensors = {t.name: t for t in result.graph.initializer}
    # a layer is named by its node
    nodes = {n.name or n.output[0]: n for n in result.graph.node}
    for consumer in group.consumers:
        columns = [c for i in removed for c in consumer.columns[i]]
        node = nodes[consumer.name.removesuffix(" (states)")]
        index = (
            2
            if node.name != consumer.name
            else 0
            if node.op_type == "MatMul" and node.input[0] in tensors
            else 1
        )
        if node.input[index] in tensors:
            value = numpy_helper.to_array(tensors[node.input[index]]).copy()
        else:  # behind a Reshape
            value = np.array(Graph(Model(result)).constant(node.input[index]))
        attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Conv" or (node.op_type == "Gemm" and attrs.get("transB")):
            value[:, columns] = 0
        elif node.op_type == "ConvTranspose":
            value.reshape(attrs.get("group", 1), -1, *value.shape[1:])[:, columns] = 0
        elif node.op_type == "MatMul" and index == 0:
            value[:, columns] = 0
        elif node.op_type in ("LSTM", "GRU", "RNN"):
            value[:, :, columns] = 0
        else:
            value[columns] = 0
        if node.input[index] in tensors:
            tensor = tensors[node.input[index]]
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
        else:
            node.input[index] += "_silenced"
            result.graph.initializer.append(numpy_helper.from_array(value, node.input[index]))
    return result


Make = Callable[[Net], str | None]

TOPOLOGIES: dict[str, tuple[Make, dict[str, Any]]] = {}


def topology(**options: Any) -> Callable[[Make], Make]:
    """Enter a net into the table; options: ``shape`` of the input, ``opset``."""

    def enter(make: Make) -> Make:
        TOPOLOGIES[make.__name__] = (make, options)
        return make

    return enter


def build(name: str, seed: int = 0) -> tuple[ModelProto, Net]:
    """A net of the table."""
    make, options = TOPOLOGIES[name]
    net = Net(seed, options.get("shape", (None, 3, 8, 8)))
    make(net)
    return net.model(options.get("opset", 17)), net


@topology()
def plain(net: Net) -> None:
    x = net.relu(net.conv("x", 3, 6))
    net.head(net.relu(net.conv(x, 6, 8, strides=[2, 2])), 8)


@topology()
def batchnorm(net: Net) -> None:
    x = net.relu(net.norm(net.conv("x", 3, 6, bias=False), 6))
    net.head(net.op("Sigmoid", net.norm(net.conv(x, 6, 8), 8)), 8)


@topology()
def affine(net: Net) -> None:
    x = net.op("Mul", net.conv("x", 3, 6), net.numbers(6, 1, 1))
    x = net.op("Add", net.numbers(1, 6, 1, 1), x)
    x = net.op("Div", x, net.numbers(6, 1, 1, low=1.0))
    x = net.op("Sub", net.numbers(1, low=0.0), x)
    x = net.op("PRelu", x, net.numbers(6, 1, 1))
    x = net.op("InstanceNormalization", x, net.numbers(6), net.numbers(6))
    x = net.op("Clip", x, net.const(-0.5, dtype=np.float32), net.const(2.0, dtype=np.float32))
    net.head(net.op("PRelu", x, net.numbers(1, 1, 1)), 6)


@topology()
def residual(net: Net) -> None:
    x = net.relu(net.norm(net.conv("x", 3, 6), 6))
    for _ in range(2):
        inner = net.relu(net.norm(net.conv(x, 6, 5), 5))
        x = net.relu(net.op("Add", net.norm(net.conv(inner, 5, 6), 6), x))
    net.head(x, 6)


@topology()
def projection(net: Net) -> None:
    x = net.relu(net.conv("x", 3, 4))
    left = net.conv(net.relu(net.conv(x, 4, 5, strides=[2, 2])), 5, 8)
    x = net.op("Sum", net.conv(x, 4, 8, 1, strides=[2, 2]), left)
    net.head(net.op("LeakyRelu", x), 8)


@topology()
def padded_shortcut(net: Net) -> None:
    x = net.relu(net.conv("x", 3, 4))
    skip = net.op("Slice", x, net.const(0, 0), net.const(99, 99), net.const(2, 3), net.const(2, 2))
    skip = net.op("Pad", skip, net.const(0, 2, 0, 0, 0, 3, 0, 0))
    x = net.op("Add", net.conv(x, 4, 9, strides=[2, 2]), skip)
    net.head(net.relu(x), 9)


@topology(opset=9)
def padded_shortcut_old(net: Net) -> None:
    x = net.relu(net.conv("x", 3, 4))
    skip = net.op("Slice", x, starts=[0, 0], ends=[3, 4], axes=[1, 2])
    skip = net.op("Pad", skip, pads=[0, 2, 2, 0, 0, 3, 2, 0])
    net.head(net.op("Max", net.conv(x, 4, 8), skip), 8)


@topology()
def dense(net: Net) -> None:
    parts, c = [net.conv("x", 3, 4)], 4
    for _ in range(3):
        x = net.op("Concat", *parts, axis=1) if len(parts) > 1 else parts[0]
        parts.append(net.conv(net.relu(net.norm(x, c)), c, 3))
        c += 3
    net.head(net.op("Concat", *parts, axis=-3), c)


@topology()
def inception(net: Net) -> None:
    x = net.relu(net.conv("x", 3, 5))
    branches = [
        net.relu(net.conv(x, 5, 3, 1)),
        net.relu(net.conv(net.relu(net.conv(x, 5, 4, 1)), 4, 6)),
        net.conv(net.op("MaxPool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1]), 5, 2, 1),
    ]
    x = net.op("Concat", *branches, axis=1)
    net.head(net.op("LRN", net.conv(x, 11, 7), size=3), 7)


@topology()
def depthwise(net: Net) -> None:
    x = net.conv(net.relu(net.conv("x", 3, 6)), 6, 6, groups=6)
    x = net.conv(net.relu(net.conv(x, 6, 5, 1)), 5, 10, groups=5, bias=False)
    net.head(net.op("HardSwish", net.norm(x, 10)), 10)


@topology()
def grouped(net: Net) -> None:
    x = net.relu(net.conv("x", 3, 8))
    net.head(net.relu(net.conv(net.relu(net.conv(x, 8, 12, groups=4)), 12, 6, groups=2)), 6)


@topology()
def shuffle(net: Net) -> None:
    x = net.relu(net.conv("x", 3, 12))
    y = net.conv(x, 12, 12, 1, groups=3)
    y = net.op("Reshape", y, net.const(0, 3, 4, 8, 8))
    y = net.op("Transpose", y, perm=[0, 2, 1, 3, 4])
    y = net.op("Reshape", y, net.const(0, -1, 8, 8))
    y = net.conv(net.conv(y, 12, 12, groups=12), 12, 12, 1, groups=3)
    net.head(net.relu(net.op("Add", x, y)), 12)


@topology()
def shuffle_v2(net: Net) -> None:
    x = net.relu(net.conv("x", 3, 8))
    for _ in range(2):
        left, right = net.ops("Split", x, net.const(4, 4), outs=["", ""], axis=1)
        right = net.conv(net.relu(net.conv(right, 4, 6, 1)), 6, 4)
        x = net.op("Concat", left, right, axis=1)
        x = net.op("Reshape", x, net.const(-1, 2, 4, 8, 8))
        x = net.op("Transpose", x, perm=[0, 2, 1, 3, 4])
        x = net.op("Reshape", x, net.const(-1, 8, 8, 8))
    net.head(x, 8)


@topology(opset=11)
def shuffle_by_gather(net: Net) -> None:
    x = net.relu(net.conv("x", 3, 8))
    y = net.op("Reshape", x, net.const(-1, 4, 2, 64))
    y = net.op("Transpose", y, perm=[2, 0, 1, 3])
    even, odd = (
        net.op("Reshape", net.op("Gather", y, net.const(i), axis=0), net.const(-1, 4, 8, 8))
        for i in (np.array(0), np.array(1))
    )
    net.head(net.op("Concat", even, net.relu(net.conv(odd, 4, 5)), axis=1), 9)


@topology()
def squeeze_excite(net: Net) -> None:
    x = net.relu(net.conv("x", 3, 8))
    s = net.op("GlobalAveragePool", x)
    s = net.conv(net.relu(net.conv(s, 8, 3, 1)), 3, 8, 1)
    net.head(net.op("Mul", x, net.op("HardSigmoid", s)), 8)


@topology()
def squeeze_excite_by_gemm(net: Net) -> None:
    x = net.conv("x", 3, 8)
    s = net.op("ReduceMean", x, axes=[2, 3], keepdims=0)
    s = net.gemm(net.relu(net.gemm(s, 8, 3)), 3, 8, transB=1)
    s = net.op("Reshape", net.op("Sigmoid", s), net.const(-1, 8, 1, 1))
    net.head(net.op("Mul", s, x), 8)


@topology()
def spatial_attention(net: Net) -> None:
    x = net.relu(net.conv("x", 3, 6))
    gate = net.op("Sigmoid", net.conv(x, 6, 1))
    net.head(net.op("Mul", x, gate), 6)


@topology()
def flatten(net: Net) -> None:
    x = net.op("MaxPool", net.relu(net.conv("x", 3, 6)), kernel_shape=[3, 3], strides=[2, 2])
    x = net.relu(net.gemm(net.op("Flatten", x), 54, 10))
    net.gemm(x, 10, 4, out="y", transB=1, alpha=0.5)


@topology()
def reshape_explicit(net: Net) -> None:
    x = net.relu(net.conv("x", 3, 6, pads=[0, 0, 0, 0]))
    x = net.op("Reshape", x, net.const(-1, 216))
    x = net.op("Add", net.op("MatMul", x, net.numbers(216, 10)), net.numbers(10))
    net.op("MatMul", net.relu(x), net.numbers(10, 4), out="y")


@topology()
def reshape_at_run_time(net: Net) -> None:
    x = net.relu(net.conv("x", 3, 6, pads=[0, 0, 0, 0]))
    batch = net.op("Gather", net.op("Shape", x), net.const(np.array(0)), axis=0)
    batch = net.op("Unsqueeze", batch, net.const(0))
    x = net.op("Reshape", x, net.op("Concat", batch, net.const(216), axis=0))
    net.gemm(x, 216, 4, out="y")


@topology()
def channels_last(net: Net) -> None:
    x = net.op("Transpose", net.relu(net.conv("x", 3, 6)), perm=[0, 2, 3, 1])
    x = net.op("Add", net.op("MatMul", x, net.numbers(6, 5)), net.numbers(5))
    x = net.op("Transpose", net.op("Tanh", x), perm=[0, 3, 1, 2])
    net.head(net.op("Softplus", x), 5)


@topology()
def flatten_channels_last(net: Net) -> None:
    x = net.op("Transpose", net.relu(net.conv("x", 3, 6)), perm=[0, 2, 3, 1])
    net.gemm(net.op("Flatten", x), 384, 4, out="y")


@topology(shape=(None, 2, 30))
def one_dimensional(net: Net) -> None:
    x = net.relu(net.norm(net.conv("x", 2, 6, 5, axes=1), 6))
    x = net.op("MaxPool", x, kernel_shape=[2], strides=[2])
    x = net.op("GlobalAveragePool", net.relu(net.conv(x, 6, 7, axes=1)))
    net.gemm(net.op("Squeeze", x, net.const(2)), 7, 4, out="y")


@topology(shape=(None, 5, 9))
def left_product(net: Net) -> None:
    x = net.op("Add", net.op("MatMul", net.numbers(7, 5), "x"), net.numbers(7, 1))
    net.op("MatMul", net.numbers(4, 7), net.relu(x), out="y")


@topology()
def transposed(net: Net) -> None:
    x = net.relu(net.up(net.relu(net.conv("x", 3, 6)), 6, 8))
    x = net.up(net.up(x, 8, 8, groups=2), 8, 8, groups=8)
    net.head(net.op("Elu", x), 8)


@topology()
def resized(net: Net) -> None:
    x = net.relu(net.conv("x", 3, 6))
    x = net.op("Resize", x, "", net.const(1, 1, 2, 2, dtype=np.float32))
    # the channels are stated
    x = net.op("Resize", x, "", "", net.const(2, 6, 20, 20), mode="linear")
    net.head(net.op("Pad", x, net.const(0, 0, 1, 1, 0, 0, 1, 1), mode="reflect"), 6)


@topology()
def resized_at_run_time(net: Net) -> None:
    x = net.relu(net.conv("x", 3, 6))
    size = net.op("Slice", net.op("Shape", x), net.const(0), net.const(2), net.const(0))
    x = net.op("Resize", x, "", "", net.op("Concat", size, net.const(12, 12), axis=0))
    net.head(x, 6)


@topology()
def pixel_shuffle(net: Net) -> None:
    x = net.op("DepthToSpace", net.relu(net.conv("x", 3, 12)), blocksize=2, mode="CRD")
    x = net.op("SpaceToDepth", net.relu(net.conv(x, 3, 5)), blocksize=2)
    x = net.op("DepthToSpace", net.conv(x, 20, 16), blocksize=2)
    net.head(x, 4)


@topology()
def sliced(net: Net) -> None:
    x = net.relu(net.conv("x", 3, 10))
    middle = net.op("Slice", x, net.const(2), net.const(-2), net.const(1))
    picked = net.op("Gather", x, net.const(9, 0, -4, 3), axis=1)
    net.head(net.op("Concat", net.conv(middle, 6, 3), net.conv(picked, 4, 3), axis=1), 6)


@topology(opset=21)
def split_evenly(net: Net) -> None:
    x = net.conv("x", 3, 10)
    a, b = net.ops("Split", x, outs=["", ""], axis=1, num_outputs=2)
    net.head(net.op("Mul", a, net.op("Sigmoid", b)), 5)


@topology(opset=11)
def split_old(net: Net) -> None:
    x = net.conv("x", 3, 10)
    a, b, c = net.ops("Split", x, outs=["", "", ""], axis=1, split=[2, 4, 4])
    net.head(net.op("Concat", net.op("Mul", b, c), a, axis=1), 6)


@topology()
def shared_weight(net: Net) -> None:
    x = net.relu(net.conv("x", 3, 6))
    kernel = net.numbers(6, 6, 3, 3)
    for _ in range(2):
        x = net.relu(net.op("Conv", x, kernel, pads=[1, 1, 1, 1]))
    net.head(x, 6)


@topology()
def shared_constants(net: Net) -> None:
    scale = net.numbers(6, 1, 1)
    x = net.op("Mul", net.conv("x", 3, 6), scale)
    net.head(net.op("Mul", net.conv(x, 6, 6), scale), 6)


@topology(shape=(7, None, 5))
def recurrent(net: Net) -> None:
    x = net.op("MatMul", "x", net.numbers(5, 6))
    h = net.ops("GRU", net.relu(x), net.numbers(1, 12, 6), net.numbers(1, 12, 4), outs=["", ""],
                hidden_size=4)[0]  # fmt: skip
    net.op("MatMul", h, net.numbers(4, 3), out="y")


@topology()
def everything_else(net: Net) -> None:
    x = net.op("Dropout", net.conv("x", 3, 6))
    x = net.op("Cast", net.op("Cast", x, to=11), to=1)
    x = net.op("Expand", net.op("GlobalMaxPool", x), net.const(1, 6, 4, 4))
    x = net.op("Tile", net.op("Identity", x), net.const(1, 2, 1, 3))
    x = net.op("Where", net.op("Greater", x, net.const(0.0, dtype=np.float32)), x, net.op("Neg", x))
    x = net.op("Softmax", x, axis=3)
    net.head(net.op("LayerNormalization", x, net.numbers(12), axis=-1), 12)


Tensor = tuple[str, int, int]  # name, channels, extent


def random_net(choices: Sequence[int], seed: int) -> tuple[ModelProto, Net]:
    """A net whose operators, and what they read, are picked by ``choices``."""
    net = Net(seed)
    tensors: list[Tensor] = [(net.relu(net.conv("x", 3, 6)), 6, 8)]
    for choice in choices:
        tensors += _random_step(net, choice, tensors)
    pooled = [net.op("Flatten", net.op("GlobalAveragePool", t)) for t, _, _ in tensors[-3:-1]]
    last, c, size = tensors[-1]
    flat = net.op("Concat", net.op("Flatten", last), *pooled, axis=1)
    net.gemm(flat, c * size**2 + sum(t[1] for t in tensors[-3:-1]), 4, out="y")
    return net.model(), net


def _random_step(net: Net, choice: int, tensors: list[Tensor]) -> list[Tensor]:
    """One operator; numbers of channels stay even, so that all can be split and grouped."""
    choice, which = divmod(choice, len(tensors))
    x, c, size = tensors[which]
    same = [t for t in tensors if t[2] == size]
    like = [t for t in same if t[1] == c]
    choice, kind = divmod(choice, 14)
    other, d, _ = same[choice % len(same)]
    twin = like[choice % len(like)][0]
    wide = 4 + choice % 3 * 2
    if kind == 0:
        return [(net.relu(net.conv(x, c, wide)), wide, size)]
    if kind == 1:
        return [(net.norm(net.conv(x, c, c), c), c, size)]
    if kind == 2:
        return [(net.op("Add", x, twin), c, size)]
    if kind == 3:
        return [(net.op("Concat", x, other, axis=1), c + d, size)]
    if kind == 4:
        return [(net.conv(x, c, c, groups=c), c, size)]
    if kind == 5:
        return [(net.relu(net.conv(x, c, 8, groups=2)), 8, size)]
    if kind == 6 and c > 2:
        parts = net.ops("Split", x, net.const(2, c - 2), outs=["", ""], axis=1)
        return [(parts[0], 2, size), (parts[1], c - 2, size)]
    if kind == 7:
        return [(_shuffled(net, x, c, size), c, size)]
    if kind == 8:
        return [(net.op("Mul", x, _gate(net, x, c)), c, size)]
    if kind == 9 and size > 2:
        return [(net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), c, size // 2)]
    if kind == 10:
        return [(net.op("Mul", twin, net.op("Tanh", x)), c, size)]
    if kind == 11:
        return [(net.op("Pad", x, net.const(0, 1, 0, 0, 0, 1, 0, 0)), c + 2, size)]
    if kind == 12 and c > 2:
        middle = net.op("Slice", x, net.const(1), net.const(c - 1), net.const(1))
        return [(middle, c - 2, size)]
    return [(net.op("PRelu", x, net.numbers(c, 1, 1)), c, size)]


def _shuffled(net: Net, x: str, c: int, size: int) -> str:
    x = net.op("Reshape", x, net.const(-1, 2, c // 2, size, size))
    x = net.op("Transpose", x, perm=[0, 2, 1, 3, 4])
    return net.op("Reshape", x, net.const(0, c, size, -1))


def _gate(net: Net, x: str, c: int) -> str:
    inner = net.relu(net.conv(net.op("ReduceMean", x, axes=[2, 3]), c, 4, 1))
    return net.op("Sigmoid", net.conv(inner, 4, c, 1))
