"""Layer: a node seen as a linear map, or the reason why it is none."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.chain import Stage
from onnx_lowrank.errors import ModelError
from onnx_lowrank.geometry import ConvGeometry, LinearGeometry
from onnx_lowrank.graph import Graph, Node

__all__ = [
    "Destination",
    "Ineligible",
    "Layer",
    "destination",
    "find_layers",
    "refuse_optimised",
    "turned",
]

Array = npt.NDArray[np.floating[Any]]

_RECURRENT = {"LSTM": 4, "GRU": 3, "RNN": 1}  # and the number of their gates
_LINEAR_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", *_RECURRENT})
#: Operators that hold weights, but that no pass takes apart.
_OTHER_OPS = {
    op: f"{op} is not factorized"
    for op in ("ConvInteger", "QLinearConv", "MatMulInteger", "QLinearMatMul", "QGemm",
               "DeformConv", "Einsum", "Attention", "QAttention", "MatMulNBits", "MatMulBnb4",
               "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM")
}  # fmt: skip
#: What ONNX Runtime's graph optimisations leave of layers, in its own domains.
_OPTIMISED = "it was fused by ONNX Runtime; run before ONNX Runtime's layout optimisation"
_OTHER_OPS |= dict.fromkeys(
    ("FusedConv", "FusedGemm", "FusedMatMul", "NhwcConv", "NhwcFusedConv"), _OPTIMISED
)
_LAYOUT_DOMAIN = "com.microsoft.nchwc"
_FLOATS = frozenset({"float16", "float32", "float64", "bfloat16"})


@dataclass(frozen=True)
class Layer:
    """A node (with the Add of its bias, where there is one) seen as ``y = W x + b``.

    Attributes:
        name: unique in the model: the node's name, else that of its output.
        op: ``Conv | ConvTranspose | Gemm | MatMul | LSTM | GRU | RNN``. Of a recurrent node the
            layer is the product with the input weights alone, ``y (directions * gates * hidden)``.
        input: tensor that it reads.
        output: tensor that it makes, bias included; of a recurrent node its first output.
        nodes: the nodes that a replacement takes out.
        dtype: type of the weight in the file.
        shape: of the weight as a stage has it, ``(N, C / groups, *kernel)``.
        geometry: how it reads its input.
        sharers: nodes that use this weight, this one included.
        bias_shape: of the bias in the file, where it is an operand of an Add.
        directions: of a recurrent node; its rows are (direction, gate, hidden).
        bias_size: elements of the bias in the file, where one stands for all outputs.
    """

    name: str
    op: str
    input: str
    output: str
    nodes: tuple[Node, ...]
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    geometry: ConvGeometry | LinearGeometry
    sharers: int
    bias_shape: tuple[int, ...] | None
    _load: Callable[[], tuple[Array, Array | None]]
    directions: int = 1
    bias_size: int | None = None

    @property
    def stage(self) -> Stage:
        """Weight and bias, read from the model at each call, float64."""
        weight, bias = self._load()
        return Stage(
            weight.astype(np.float64),
            None if bias is None else bias.astype(np.float64),
            self.geometry,
        )

    def with_stage(self, stage: Stage) -> Layer:
        """The same layer with other numbers."""
        return replace(self, _load=lambda: (stage.weight, stage.bias))

    @property
    def groups(self) -> int:
        """Number of groups."""
        return self.geometry.groups

    @property
    def broadcast(self) -> int:
        """Elements by which the bias of the stage is longer than that in the file."""
        return 0 if self.bias_size is None else self.shape[0] - self.bias_size

    @property
    def recurrent(self) -> bool:
        """Whether its response stays inside a recurrent node."""
        return self.op in _RECURRENT

    @property
    def depthwise(self) -> bool:
        """Whether each group reads a single channel."""
        return self.groups > 1 and self.shape[1] == 1

    @property
    def patch(self) -> int:
        """Length ``d`` of one group's input patch."""
        return int(np.prod(self.shape[1:]))


@dataclass(frozen=True)
class Ineligible:
    """A node with weights that no pass can take apart, and why."""

    name: str
    op: str
    reason: str


@dataclass(frozen=True)
class Destination:
    """Where a layer's response ends up: in a residual sum, or in its own output.

    Attributes:
        total: the sum, else the output itself; empty where the response is no tensor.
        skip: the other branch of the sum; empty without one.
    """

    total: str
    skip: tuple[str, ...]


def destination(graph: Graph, layer: Layer) -> Destination:
    """The residual sum that a layer's output goes into and nowhere else, if there is one."""
    output = layer.output
    if layer.recurrent:
        return Destination("", ())
    consumers = graph.consumers(output)
    if len(consumers) == 1 and consumers[0].op == "Add" and not graph.is_output(output):
        add = consumers[0]
        if not any(add is n for n in graph.nodes):
            return Destination(output, ())  # inside a subgraph
        others = [t.name for t in add.inputs if t.name != output]
        if len(others) == 1 and not graph.is_constant(others[0]):
            return Destination(add.outputs[0].name, (others[0],))
    return Destination(output, ())


class _No(Exception):  # noqa: N818 - a verdict on its way out, no error
    pass


def find_layers(graph: Graph) -> tuple[list[Layer], list[Ineligible]]:
    """All linear layers of the main graph in topological order, and the nodes that are none."""
    layers: list[Layer] = []
    others: list[Ineligible] = []
    taken: set[str] = set()
    for node in graph.nodes:
        name = node.name
        if not name or name in taken:
            name = node.outputs[0].name if node.outputs else node.op
        while name in taken:
            name += "_"
        if node.op in _LINEAR_OPS and node.domain in (None, "", "ai.onnx"):
            taken.add(name)
            try:
                layers.append(_READERS[node.op](graph, node, name))
            except _No as verdict:
                others.append(Ineligible(name, node.op, str(verdict)))
        elif node.op in _OTHER_OPS or (node.op == "Conv" and node.domain == _LAYOUT_DOMAIN):
            taken.add(name)
            others.append(Ineligible(name, node.op, _OTHER_OPS.get(node.op, _OPTIMISED)))
    for proto, place in graph.subgraph_nodes():
        if proto.op_type in _LINEAR_OPS or proto.op_type in _OTHER_OPS:
            name = proto.name or (proto.output[0] if proto.output else proto.op_type)
            others.append(Ineligible(name, proto.op_type, f"inside {place}"))
    return layers, others


def refuse_optimised(others: Iterable[Ineligible]) -> None:
    """Refuse a model that ONNX Runtime has rewritten for its own kernels.

    Layers in its blocked layouts have no MACs that could be counted, so no budget would be right.

    Raises:
        ModelError: there is a layer of that kind.
    """
    found = [o for o in others if o.reason == _OPTIMISED]
    if found:
        raise ModelError(
            f"{found[0].op} {found[0].name!r}: {_OPTIMISED}, and give the model from before it"
        )


def _conv(graph: Graph, node: Node, name: str) -> Layer:
    transposed = node.op == "ConvTranspose"
    weight = _weight(graph, node, 1)
    if weight.ndim < 3:
        raise _No(f"weight has {weight.ndim} axes; a convolution has 3 or more")
    axes = weight.ndim - 2
    groups = int(graph.attribute(node, "group", 1))
    if groups < 1 or weight.shape[0] % groups:
        side = "inputs" if transposed else "outputs"
        raise _No(f"{weight.shape[0]} {side} do not divide into {groups} groups")

    def ints(key: str, default: int, count: int = axes) -> tuple[int, ...]:
        values = tuple(map(int, graph.attribute(node, key) or [default] * count))
        if len(values) != count:
            raise _No(f"{key} has {len(values)} numbers, the weight {axes} axes")
        return values

    auto_pad = str(graph.attribute(node, "auto_pad", "NOTSET") or "NOTSET")
    geometry = ConvGeometry(
        kernel=weight.shape[2:],
        strides=ints("strides", 1),
        dilations=ints("dilations", 1),
        pads=ints("pads", 0, 2 * axes) if auto_pad == "NOTSET" else (0,) * (2 * axes),
        groups=groups,
        auto_pad=auto_pad,
    )
    if transposed:
        if graph.attribute(node, "output_shape"):
            raise _No("its output_shape fixes the pads by the size of the input")
        if any(geometry.kernel[a] == 1 and geometry.strides[a] > 1 for a in range(axes)):
            raise _No("its stride leaves gaps that no tap fills")
        geometry = _transposed(geometry, ints("output_padding", 0))
    weight_name, bias_name = node.inputs[1].name, _operand(node, 2)
    if bias_name:
        _constant(graph, bias_name, "bias")

    def read() -> tuple[Array, Array | None]:
        values = _constant(graph, weight_name, "weight")
        bias = _constant(graph, bias_name, "bias") if bias_name else None
        return (turned(values, groups) if transposed else values), bias

    return Layer(
        name=name,
        op=str(node.op),
        input=node.inputs[0].name,
        output=node.outputs[0].name,
        nodes=(node,),
        dtype=weight.dtype,
        shape=turned(weight, groups).shape if transposed else weight.shape,
        geometry=geometry,
        sharers=graph.uses(weight_name),
        bias_shape=None,
        _load=read,
    )


def _transposed(geometry: ConvGeometry, output_padding: tuple[int, ...]) -> ConvGeometry:
    """The geometry of a transposed convolution; ``SAME`` pads do not depend on the input there."""
    pads = geometry.pads
    if geometry.auto_pad.startswith("SAME"):
        extra = [
            max((k - 1) * d + 1 + more - s, 0)
            for k, d, s, more in zip(
                geometry.kernel, geometry.dilations, geometry.strides, output_padding, strict=True
            )
        ]
        small, large = [e // 2 for e in extra], [e - e // 2 for e in extra]
        upper = geometry.auto_pad == "SAME_UPPER"
        pads = (*small, *large) if upper else (*large, *small)
    return replace(
        geometry, pads=pads, auto_pad="NOTSET", transposed=True, output_padding=output_padding
    )


def turned(weight: Array, groups: int) -> Array:
    """Weight of a transposed convolution ``(C, N / groups, *kernel)`` as that of the plain one.

    That is ``(N, C / groups, *kernel)``, the kernel turned around; and the same way back.
    """
    grouped = weight.reshape(groups, -1, *weight.shape[1:]).swapaxes(1, 2)
    plain: Array = np.flip(grouped, tuple(range(3, grouped.ndim)))
    return plain.reshape(-1, *plain.shape[2:])


def _recurrent(graph: Graph, node: Node, name: str) -> Layer:
    weight = _weight(graph, node, 1)
    if weight.ndim != 3:
        raise _No(f"weight has {weight.ndim} axes; that of a {node.op} has 3")
    weight_name, bias_name = node.inputs[1].name, _operand(node, 3)
    if bias_name:
        _constant(graph, bias_name, "bias")
    directions, rows, inputs = weight.shape

    def read() -> tuple[Array, Array | None]:
        values = _constant(graph, weight_name, "weight").reshape(-1, inputs)
        if not bias_name:
            return values, None
        # the second half belongs to the recurrent product
        return values, _constant(graph, bias_name, "bias")[:, :rows].reshape(-1)

    return Layer(
        name=name,
        op=str(node.op),
        input=node.inputs[0].name,
        output=next(t.name for t in node.outputs if t.name),
        nodes=(node,),
        dtype=weight.dtype,
        shape=(directions * rows, inputs),
        geometry=LinearGeometry(),
        sharers=graph.uses(weight_name),
        bias_shape=None,
        _load=read,
        directions=directions,
    )


def _gemm(graph: Graph, node: Node, name: str) -> Layer:
    if graph.is_constant(node.inputs[0].name):
        raise _No("its first operand is constant")
    weight = _weight(graph, node, 1)
    transposed = bool(graph.attribute(node, "transB", 0))
    alpha = float(graph.attribute(node, "alpha", 1.0))
    beta = float(graph.attribute(node, "beta", 1.0))
    shape = weight.shape if transposed else weight.shape[::-1]
    weight_name, bias_name = node.inputs[1].name, _operand(node, 2)
    bias_size: int | None = None
    if bias_name:
        bias = _constant(graph, bias_name, "bias")
        bias_size = bias.size
        if bias.size not in (1, shape[0]) or (bias.ndim == 2 and bias.shape[0] != 1):
            raise _No(f"bias of shape {bias.shape} varies over the rows")

    def read() -> tuple[Array, Array | None]:
        values = _constant(graph, weight_name, "weight").astype(np.float64)
        matrix = alpha * (values if transposed else values.T)
        if not bias_name:
            return matrix, None
        offset = beta * _constant(graph, bias_name, "bias").astype(np.float64)
        return matrix, np.broadcast_to(offset.reshape(-1), (shape[0],))

    return Layer(
        name=name,
        op="Gemm",
        input=node.inputs[0].name,
        output=node.outputs[0].name,
        nodes=(node,),
        dtype=weight.dtype,
        shape=shape,
        geometry=LinearGeometry(-2 if graph.attribute(node, "transA", 0) else -1, -1),
        sharers=graph.uses(weight_name),
        bias_shape=None,
        _load=read,
        bias_size=bias_size,
    )


def _matmul(graph: Graph, node: Node, name: str) -> Layer:
    constant = [graph.is_constant(t.name) for t in node.inputs]
    if all(constant):
        raise _No("both operands are constant")
    if not any(constant):
        for position in (1, 0):
            _refuse_quantized(graph, node.inputs[position].name)
        raise _No("no operand is constant")
    left = constant[0]
    if left and graph.rank(node.inputs[1].name) == 1:
        raise _No("its input is a vector")
    weight = _weight(graph, node, 0 if left else 1)
    weight_name = node.inputs[0 if left else 1].name
    if weight.ndim != 2:
        raise _No(f"weight has {weight.ndim} axes; a matrix has 2")
    shape = weight.shape if left else weight.shape[::-1]
    axis = -2 if left else -1
    nodes: tuple[Node, ...] = (node,)
    output: str = node.outputs[0].name
    bias_name: str | None = None
    bias_shape: tuple[int, ...] | None = None
    bias_size: int | None = None
    follower = _bias_add(graph, output)
    if follower is not None:
        add, operand = follower
        bias = _constant(graph, operand, "bias")
        bias_shape = _bias_shape(bias.shape, shape[0], axis)
        if bias_shape is not None:
            bias_size = bias.size
            nodes, output, bias_name = (node, add), add.outputs[0].name, operand

    def read() -> tuple[Array, Array | None]:
        values = _constant(graph, weight_name, "weight")
        matrix = values if left else values.T
        if bias_name is None:
            return matrix, None
        offset = _constant(graph, bias_name, "bias").reshape(-1)
        return matrix, np.broadcast_to(offset, (shape[0],))

    return Layer(
        name=name,
        op="MatMul",
        input=node.inputs[1 if left else 0].name,
        output=output,
        nodes=nodes,
        dtype=weight.dtype,
        shape=shape,
        geometry=LinearGeometry(axis, axis),
        sharers=graph.uses(weight_name),
        bias_shape=bias_shape,
        _load=read,
        bias_size=bias_size,
    )


_READERS = {
    "Conv": _conv,
    "ConvTranspose": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    **dict.fromkeys(_RECURRENT, _recurrent),
}


def _operand(node: Node, position: int) -> str | None:
    if len(node.inputs) <= position or node.inputs[position].is_empty():
        return None
    return str(node.inputs[position].name)


def _constant(graph: Graph, tensor: str, what: str) -> Array:
    value = graph.constant(tensor)
    if value is None and graph.is_constant(tensor):
        raise _No(f"its {what} cannot be read: it is sparse, or behind views that do not fit")
    if value is None:
        raise _No(f"its {what} is not constant")
    return value


def _weight(graph: Graph, node: Node, position: int) -> Array:
    name = _operand(node, position)
    if name is None:
        raise _No("it has no weight")
    _refuse_quantized(graph, name)
    value = _constant(graph, name, "weight")
    if value.dtype.name not in _FLOATS:
        raise _No(f"its weight is {value.dtype.name}")
    if value.size == 0:
        raise _No("its weight is empty")
    if not np.isfinite(value).all():
        raise _No("its weight holds NaN or Inf")
    return value


def _refuse_quantized(graph: Graph, tensor: str) -> None:
    if graph.is_quantized(tensor):
        raise _No("its weight is quantized (DequantizeLinear)")


def _bias_add(graph: Graph, tensor: str) -> tuple[Node, str] | None:
    consumers = graph.consumers(tensor)
    if len(consumers) != 1 or graph.is_output(tensor) or consumers[0].op != "Add":
        return None
    add = consumers[0]
    if not any(add is n for n in graph.nodes):
        return None
    others = [t.name for t in add.inputs if t.name != tensor]
    if len(others) != 1 or not graph.is_constant(others[0]):
        return None
    return add, others[0]


def _bias_shape(shape: tuple[int, ...], outputs: int, axis: int) -> tuple[int, ...] | None:
    """The shape that a bias of ``outputs`` elements takes in the place of ``shape``, if one."""
    full = [1] * max(len(shape), -axis)
    full[len(full) - len(shape) :] = shape
    along = full[axis]
    if along not in (1, outputs) or int(np.prod(shape)) != along:
        return None
    full[axis] = outputs
    return tuple(full)
