"""Rules for what each operator does to the channels that it reads, as a table.

A rule takes the flow so far and a node, registers the node's constant operands that have channels,
and returns the labels of its outputs (None: no channels). It raises
:class:`~onnx_lowrank.channels.labels.UnknownOperatorError` where it does not know; the channels
are then frozen.

Grouped convolutions lose the same channels in each group: the atoms at one position of all groups
are tied. So all groups keep the same size, and a channel shuffle still has a rectangular tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from onnx_lowrank.channels.atoms import IntArray
from onnx_lowrank.channels.attention_nodes import attention_labels
from onnx_lowrank.channels.labels import (
    Flow,
    UnknownOperatorError,
    integers,
    joined,
    label,
    operand_name,
    padded,
    varying,
)
from onnx_lowrank.channels.moves import MOVES
from onnx_lowrank.channels.rotary import rotary_labels
from onnx_lowrank.graph.nodes import Node
from onnx_lowrank.layers.layer import RECURRENT

__all__ = ["JOINING", "RULES"]

Outputs = list[IntArray | None]
Rule = Callable[[Flow, Node], Outputs]


def _elementwise(flow: Flow, node: Node) -> Outputs:
    if flow.graph.opset < 7:
        raise UnknownOperatorError(f"{node.op} of an opset before 7")
    return [joined(flow, node, [t.name for t in node.inputs])]


def _copy(flow: Flow, node: Node) -> Outputs:
    return [flow.of(operand_name(node, 0))] * len(node.outputs)


def _clip(flow: Flow, node: Node) -> Outputs:
    for tensor in node.inputs[1:]:
        if not tensor.is_empty() and not flow.graph.is_constant(tensor.name):
            raise UnknownOperatorError(f"{node.op} with computed bounds")
    return _copy(flow, node)


def _conv(flow: Flow, node: Node) -> Outputs:
    x, w, y = operand_name(node, 0), operand_name(node, 1), operand_name(node, 0, out=True)
    shape, groups = _weight(flow, node), int(flow.graph.attribute(node, "group", 1))
    inputs = flow.vector(x, 1, f"channels on another axis of {label(node)}")
    transposed = node.op == "ConvTranspose"
    ahead, behind = inputs.size, shape[1] * groups if transposed else shape[0]
    if len(shape) < 3 or groups < 1 or ahead % groups or behind % groups:
        raise UnknownOperatorError("a weight of unexpected shape")
    if groups > 1 and ahead == groups:
        outputs = np.repeat(inputs, behind // groups)
        flow.operand(node, 1, _along(inputs if transposed else outputs, 0, len(shape)), "carried")
        _tie_shared(flow, w, outputs, inputs, (node.op, groups))
    else:
        outputs = flow.made(node, behind)
        rows, columns = _first_group(flow, outputs, groups), _first_group(flow, inputs, groups)
        if transposed:
            columns = inputs
        else:
            rows = outputs
        flow.operand(node, 1, _along(rows, int(transposed), len(shape)), "rows")
        flow.operand(node, 1, _along(columns, int(not transposed), len(shape)), "columns")
        _tie_shared(flow, w, outputs, inputs, (node.op, groups))
    _bias(flow, node, 2, outputs)
    return [flow.spread(y, 1, outputs)]


def _gemm(flow: Flow, node: Node) -> Outputs:
    shape = _weight(flow, node)
    trans = [int(flow.graph.attribute(node, k, 0)) for k in ("transA", "transB")]
    reason = f"channels on another axis of {label(node)}"
    inputs = flow.vector(operand_name(node, 0), 0 if trans[0] else 1, reason)
    outputs = flow.made(node, shape[0 if trans[1] else 1])
    flow.operand(node, 1, _along(outputs, 1 - trans[1], 2), "rows")
    flow.operand(node, 1, _along(inputs, trans[1], 2), "columns")
    _tie_shared(flow, operand_name(node, 1), outputs, inputs, (node.op, trans[1]))
    _bias(flow, node, 2, outputs)
    return [flow.spread(operand_name(node, 0, out=True), 1, outputs)]


def _matmul(flow: Flow, node: Node) -> Outputs:
    if operand_name(node, 0, out=True) in flow.heads.products:
        return _product(flow, node)
    left = flow.graph.is_constant(operand_name(node, 0))
    at = 0 if left else 1
    shape = _weight(flow, node, at)
    x, y, axis = operand_name(node, 1 - at), operand_name(node, 0, out=True), -2 if left else -1
    axes = len(shape)
    if axes < 2 or any(size != 1 for size in shape[:-2]):
        raise UnknownOperatorError("a product with a weight that is not a matrix")
    if (left or axes > 2) and len(flow.shape(x)) < axes:
        raise UnknownOperatorError("a product with more axes than its input")
    inputs = flow.vector(x, axis, f"channels on another axis of {label(node)}")
    outputs = flow.made(node, shape[-2 if left else -1])
    flow.operand(node, at, _along(outputs, axes - (2 if left else 1), axes), "rows")
    flow.operand(node, at, _along(inputs, axes - (1 if left else 2), axes), "columns")
    _tie_shared(flow, operand_name(node, at), outputs, inputs, (node.op, left))
    return [flow.spread(y, axis, outputs)]


def _product(flow: Flow, node: Node) -> Outputs:
    """Labels behind a product of two activations: what it sums over is tied, the rest goes on."""
    labels = [flow.of(operand_name(node, i)) for i in (0, 1)]
    rank = max(x.ndim for x in labels)
    if min(x.ndim for x in labels) < 2:
        raise UnknownOperatorError(f"a vector in {label(node)}")
    a, b = (padded(x, rank) for x in labels)
    if flow.heads.whole:
        return [_product_of_heads(flow, node, a, b)]
    if a.shape[-1] > 1 or b.shape[-2] > 1:
        if a.shape[-2] > 1 or b.shape[-1] > 1:
            raise UnknownOperatorError(f"channels on several axes of {label(node)}")
        flow.atoms.tie(a[..., 0, :], b[..., :, 0])
        flow.summed[operand_name(node, 0, out=True)] = a
        return [None]
    left, right = varying(a), varying(b)
    if left and right:
        if {rank - 1, rank - 2} & {*left, *right}:
            raise UnknownOperatorError(f"channels on several axes of {label(node)}")
        flow.atoms.tie(a, b)
    return [np.broadcast_arrays(a, b)[0] if left == right else a if left else b]


def _product_of_heads(flow: Flow, node: Node, a: IntArray, b: IntArray) -> IntArray:
    """Labels behind a product of two activations, a head of which is one channel."""
    if a.shape[-1] > 1 or b.shape[-2] > 1:
        if a.shape[-2] > 1 or b.shape[-1] > 1:
            raise UnknownOperatorError(f"channels on several axes of {label(node)}")
        flow.atoms.tie(a[..., 0, :], b[..., :, 0])
    heads = [x[..., :1, :1] for x in (a, b)]
    for every, one in zip((a, b), heads, strict=True):
        flow.atoms.tie(every, one)
    flow.atoms.tie(*heads)
    made = np.broadcast_arrays(*heads)[0]
    flow.summed[operand_name(node, 0, out=True)] = made
    return np.broadcast_to(made, (*made.shape[:-1], b.shape[-1])) if b.shape[-1] > 1 else made


def _recurrent(flow: Flow, node: Node) -> Outputs:
    """Labels behind a recurrent node; a hidden unit is the same channel in all directions."""
    (directions, rows, _), names = _weight(flow, node), [t.name for t in node.inputs]
    names += [""] * (8 - len(names))
    reason = f"channels on another axis of {label(node)}"
    inputs = flow.vector(names[0], 2, reason)
    flow.operand(node, 1, _along(inputs, 2, 3), "columns")
    if names[4] in flow.labels:  # the lengths of the sequences
        flow.atoms.freeze(flow.labels[names[4]], label(node))
    if not all(flow.graph.is_constant(names[i]) for i in (2, 3, 7) if names[i]):
        return [None] * len(node.outputs)
    hidden = flow.shape(names[2])[2]
    units = flow.atoms.fresh(hidden)
    gates = np.tile(units, (directions, rows // hidden))[:, :, None]
    _tie_shared(flow, names[1], units, inputs, (node.op, "input"))
    _tie_shared(flow, names[2], units, units, (node.op, "states"))
    flow.operand(node, 1, gates, "rows")
    flow.operand(node, 2, gates, "rows")
    flow.operand(node, 2, _along(units, 2, 3), "columns")
    for index, copies in ((3, 2 * rows // hidden), (7, 3)):  # the bias, weights of peepholes
        if names[index]:
            flow.operand(node, index, np.tile(units, (1, copies)), "carried")
    for index in (5, 6):  # initial states; the others are zeros, or read through a Gather
        if flow.graph.is_constant(names[index]):
            flow.operand(node, index, _along(units, 2, 3), "carried")
        elif names[index] and varying(flow.of(names[index])):
            flow.atoms.tie(units, flow.vector(names[index], 2, reason))
    if not operand_name(node, 0, out=True):
        flow.atoms.freeze(units, f"the states of {label(node)} are none of its outputs")
    outputs = [t.name for t in node.outputs]
    return [flow.spread(name, -1, units) if name else None for name in outputs]


def _batchnorm(flow: Flow, node: Node) -> Outputs:
    if flow.graph.attribute(node, "training_mode", 0) or any(t.name for t in node.outputs[1:]):
        raise UnknownOperatorError("a BatchNormalization in training mode")
    if not flow.graph.attribute(node, "spatial", 1):
        raise UnknownOperatorError("a BatchNormalization over images")
    return _parameters(flow, node, range(1, 5))


def _instance_norm(flow: Flow, node: Node) -> Outputs:
    return _parameters(flow, node, range(1, 3))


def _parameters(flow: Flow, node: Node, indices: Sequence[int]) -> Outputs:
    vector = flow.vector(operand_name(node, 0), 1, f"channels on another axis of {label(node)}")
    for index in indices:
        if not flow.graph.is_constant(operand_name(node, index)):
            raise UnknownOperatorError(f"the computed parameters of {label(node)}")
        flow.operand(node, index, vector, "carried")
    return [flow.of(operand_name(node, 0))]


def _over_axes(flow: Flow, node: Node) -> Outputs:
    """Labels behind operators that mix positions along some axes and keep the shape."""
    x = operand_name(node, 0)
    rank = len(flow.shape(x))
    if node.op in ("LayerNormalization", "RMSNormalization"):
        axes = list(range(flow.graph.attribute(node, "axis", -1) % rank, rank))
        if any(len(flow.shape(t.name)) > len(axes) for t in node.inputs[1:] if t.name):
            raise UnknownOperatorError(f"the wide parameters of {label(node)}")
    elif node.op == "MeanVarianceNormalization":
        axes = list(flow.graph.attribute(node, "axes", [0, 2, 3]))
    elif node.op == "LRN":
        axes = [1]
    elif node.op in ("LpNormalization", "CumSum") or flow.graph.opset >= 13:
        axes = [int(flow.graph.attribute(node, "axis", -1))]
        if node.op == "CumSum":
            axes = [int(np.asarray(integers(flow, node, 1)).reshape(-1)[0])]
    else:
        axes = list(range(flow.graph.attribute(node, "axis", 1) % rank, rank))
    flow.freeze_along(x, axes, f"{label(node)} across channels")
    return _copy(flow, node)


def _pool(flow: Flow, node: Node) -> Outputs:
    x = operand_name(node, 0)
    rank = len(flow.shape(x))
    flow.freeze_along(x, range(2, rank), f"channels on another axis of {label(node)}")
    if len(node.outputs) > 1 and flow.graph.consumers(node.outputs[1].name):
        raise UnknownOperatorError(f"the indices of {label(node)}")
    return [flow.of(x), *[None] * (len(node.outputs) - 1)]


def _reduce(flow: Flow, node: Node) -> Outputs:
    x, y = operand_name(node, 0), operand_name(node, 0, out=True)
    rank = len(flow.shape(x))
    axes = flow.graph.attribute(node, "axes")
    if len(node.inputs) > 1 and not node.inputs[1].is_empty():
        axes = integers(flow, node, 1).tolist()
    if not axes:
        if flow.graph.attribute(node, "noop_with_empty_axes", 0):
            return _copy(flow, node)
        axes = range(rank)
    axes = {int(a) % rank for a in axes}
    labels = flow.of(x)
    if axes & set(varying(labels)):
        flow.freeze_along(x, axes, f"{label(node)} across channels")
        return [None]
    if len(flow.shape(y)) == rank:
        return [labels]
    return [labels.reshape([n for a, n in enumerate(labels.shape) if a not in axes])]


RULES: dict[str, Rule] = {
    "Conv": _conv,
    "ConvTranspose": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "BatchNormalization": _batchnorm,
    "InstanceNormalization": _instance_norm,
    "Clip": _clip,
    "Attention": attention_labels,
    "RotaryEmbedding": rotary_labels,
    **MOVES,
}
for _rule, _operators in (
    (_elementwise, "Add Sub Mul Div Max Min Sum Mean Pow PRelu Mod Where And Or Xor Equal Greater "
                   "GreaterOrEqual Less LessOrEqual"),
    (_copy, "Abs Acos Acosh Asin Asinh Atan Atanh Cast Ceil Celu Cos Cosh Dropout Elu Erf Exp "
            "Floor Gelu HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not "
            "Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish "
            "Tan Tanh ThresholdedRelu"),
    (_over_axes, "Softmax LogSoftmax Hardmax LayerNormalization LpNormalization LRN CumSum "
                 "MeanVarianceNormalization RMSNormalization"),
    (_pool, "MaxPool AveragePool LpPool GlobalMaxPool GlobalAveragePool GlobalLpPool"),
    (_reduce, "ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSum "
              "ReduceLogSumExp ReduceSumSquare"),
):  # fmt: skip
    RULES.update(dict.fromkeys(_operators.split(), _rule))
#: Operators that read channels through any of their inputs; the others through the first.
JOINING = (
    frozenset(k for k, v in RULES.items() if v is _elementwise)
    | RECURRENT
    | {"Attention", "Concat", "MatMul"}
)


def _weight(flow: Flow, node: Node, index: int = 1) -> tuple[int, ...]:
    if not flow.graph.is_constant(operand_name(node, index)):
        raise UnknownOperatorError(f"{label(node)} without a constant weight")
    if node.op in ("Gemm", "MatMul") and flow.graph.is_constant(operand_name(node, 1 - index)):
        raise UnknownOperatorError("constants only")
    return flow.shape(operand_name(node, index))


def _first_group(flow: Flow, vector: IntArray, groups: int) -> IntArray:
    """Tie the atoms at the same position of each group; return the first group's atoms."""
    blocks = vector.reshape(groups, -1)
    flow.atoms.tie(blocks, blocks[:1])
    first: IntArray = blocks[0]
    return first


def _bias(flow: Flow, node: Node, index: int, outputs: IntArray) -> None:
    if len(node.inputs) <= index or node.inputs[index].is_empty():
        return
    name = operand_name(node, index)
    if not flow.graph.is_constant(name):
        raise UnknownOperatorError(f"the computed bias of {label(node)}")
    shape = flow.shape(name)
    if shape and shape[-1] > 1:
        flow.operand(node, index, _along(outputs, -1, len(shape)), "carried")


def _tie_shared(
    flow: Flow, weight: str, outputs: IntArray, inputs: IntArray, use: tuple[object, ...]
) -> None:
    """Tie the channels of nodes that share a weight: it loses the same rows and columns in all."""
    first = flow.weights.setdefault(weight, (outputs, inputs, use))
    if first[2] != use:
        raise UnknownOperatorError(f"the weight {weight}, read in two ways")
    for mine, other in zip((outputs, inputs), first[:2], strict=True):
        if mine is not other:
            flow.atoms.tie(mine, other)


def _along(vector: IntArray, axis: int, rank: int) -> IntArray:
    shape = [1] * rank
    shape[axis] = -1
    return vector.reshape(shape)
