"""Constant folding: tensors that follow from initializers alone, computed when they are needed.

Exporters leave weights behind views (Transpose, Cast, Reshape) and behind arithmetic (weight norm,
scales, parts that are concatenated). A tensor that deterministic operators of the default domain
make from constants alone is a constant too. It is evaluated node by node, in the types of the
model, by the reference implementation of the onnx package. Results that would be larger than
:data:`LARGEST` are not computed, so that a small file cannot ask for much memory.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnx_lowrank.modelfile.protobuf import value_info

__all__ = ["SHAPE_LIKE", "VIEWS", "Constants"]

Array: TypeAlias = npt.NDArray[Any]
Node: TypeAlias = Any

#: operators that pass on the values of their first operand
VIEWS = frozenset({"Identity", "Transpose", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten"})
#: operators that are evaluated: no random ones, no control flow, nothing quantized
FOLDED = VIEWS | frozenset({
    "Abs", "Add", "And", "Ceil", "Clip", "Concat", "ConstantOfShape", "Div", "Equal", "Exp",
    "Expand", "Floor", "Gather", "Gemm", "Greater", "Less", "Log", "MatMul", "Max", "Min", "Mod",
    "Mul", "Neg", "Not", "Or", "Pad", "Pow", "Range", "Reciprocal", "ReduceL1", "ReduceL2",
    "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Round",
    "Shape", "Sign", "Size", "Slice", "Softplus", "Split", "Sqrt", "Sub", "Sum", "Tanh", "Tile",
    "Trilu", "Where",
})  # fmt: skip
QUANTIZED = frozenset({"QuantizeLinear", "DequantizeLinear"})
#: largest number of elements of a result
LARGEST = 1 << 26
#: largest number of elements of an operand whose values may decide on the shape of a result
SHAPE_LIKE = 64


@dataclass
class Constants:
    """The constant tensors of a graph, with their values.

    Attributes:
        producer: returns the node that makes a tensor; None without one.
        dims: returns the shape of an initializer; None for any other tensor.
        read: returns the values of an initializer; None where they cannot be read.
        proto: returns the protobuf of a node.
        attribute: returns the values of a Constant node; None where they are not numbers.
        opset: version of the default operator set.
        overridable: names of initializers for which a caller may feed another value; they do not
            count as constants.
    """

    producer: Callable[[str], Node | None]
    dims: Callable[[str], tuple[int, ...] | None]
    read: Callable[[str], Array | None]
    proto: Callable[[Node], NodeProto]
    attribute: Callable[[Node], Array | None]
    opset: int
    overridable: Collection[str] = ()
    _varying: set[str] = field(default_factory=set)

    def forget(self) -> None:
        """Forget which tensors vary, after the graph has changed."""
        self._varying.clear()

    def known(self, tensor: str) -> bool:
        """Whether ``tensor`` is constant, without computing it."""
        return self._steps(tensor) is not None

    def quantized(self, tensor: str) -> bool:
        """Whether ``tensor`` is computed from constants, some of them quantized."""
        steps = self._steps(tensor, QUANTIZED)
        return steps is not None and any(n.op == "DequantizeLinear" for n in steps)

    def overridden(self, tensor: str) -> str | None:
        """The overridable initializer that ``tensor`` depends on, if all else is constant."""
        steps = self._steps(tensor, QUANTIZED, overridden=True)
        names = {tensor, *(t.name for n in steps or [] for t in n.inputs)}
        return None if steps is None else min(names & set(self.overridable), default=None)

    def value(self, tensor: str) -> Array | None:
        """Values of ``tensor``; None where it is not constant, or cannot be computed."""
        steps = self._steps(tensor)
        if steps is None:
            return None
        left = Counter(t.name for n in steps for t in n.inputs)
        values: dict[str, Array] = {}
        for node in steps:
            operands: dict[str, Array] = {}
            for name in dict.fromkeys(t.name for t in node.inputs if not t.is_empty()):
                found = values.get(name) if name in values else self.read(name)
                if found is None:
                    return None
                operands[name] = found
            if not self._run(node, operands, values):
                return None
            for operand in node.inputs:
                left[operand.name] -= 1
                if not left[operand.name] and operand.name != tensor:
                    values.pop(operand.name, None)
        return values.get(tensor) if steps else self.read(tensor)

    def makers(self, tensor: str) -> list[Node]:
        """Nodes that compute a constant, in order."""
        return self._steps(tensor) or []

    def views(self, tensor: str) -> list[str]:
        """``tensor`` and the tensors it is computed from, to the constant with most elements."""
        extents = self._extents(tensor)
        names = [tensor]
        while (node := self.producer(names[-1])) is not None and node.op in FOLDED:
            operands = [t.name for t in node.inputs if not t.is_empty()]
            if node.op in VIEWS:
                names.append(operands[0])
            elif operands and names[-1] in extents:
                names.append(max(operands, key=lambda name: extents[name]))
            else:
                break
        return names

    def _extents(self, tensor: str) -> dict[str, int]:
        """Numbers of stored elements behind ``tensor`` and each tensor it is computed from."""
        extents: dict[str, int] = {}
        for node in self.makers(tensor):
            total = 0
            for name in (t.name for t in node.inputs if not t.is_empty()):
                if name not in extents:
                    extents[name] = math.prod(self.dims(name) or ())
                total += extents[name]
            extents.update((t.name, total) for t in node.outputs)
        return extents

    def _steps(
        self, tensor: str, also: frozenset[str] = frozenset(), overridden: bool = False
    ) -> list[Node] | None:
        """Nodes to evaluate for ``tensor``, in order; None if it is not constant.

        Args:
            tensor: name of the tensor.
            also: operators that count as deterministic besides those that can be evaluated.
            overridden: whether initializers that a caller may override count as constants.
        """
        done: dict[int, Node] = {}
        entered: set[int] = set()
        pending = [(tensor, False)]
        while pending:
            name, ready = pending.pop()
            if self.dims(name) is not None and (overridden or name not in self.overridable):
                continue
            node = None if not also and name in self._varying else self.producer(name)
            if node is None or not _able(node, also):
                if not also:
                    self._varying.update([name, *(n for n, waits in pending if waits)])
                return None
            if ready:
                done[id(node)] = node
            elif id(node) not in entered:
                entered.add(id(node))
                pending.append((name, True))
                pending += [(t.name, False) for t in node.inputs if not t.is_empty()]
        return list(done.values())

    def _run(self, node: Node, operands: Mapping[str, Array], values: dict[str, Array]) -> bool:
        """Add the outputs of ``node`` to ``values``, if they can be computed."""
        if node.op == "Constant":
            found = self.attribute(node)
            if found is None:
                return False
            values[node.outputs[0].name] = found
            return True
        if node.op == "Identity":
            values[node.outputs[0].name] = operands[node.inputs[0].name]
            return True
        proto = self.proto(node)
        model = _alone(proto, operands, self.opset)
        if node.op not in VIEWS and not _fits(model, operands):
            return False
        try:
            results: list[Any] = ReferenceEvaluator(model).run(None, dict(operands))  # type: ignore[assignment]
        except Exception:  # the evaluator lacks an operator or type, or shapes do not fit
            return False
        named = [o for o in proto.output if o]
        values.update((k, np.asarray(v)) for k, v in zip(named, results, strict=True))
        return True


def _able(node: Node, also: frozenset[str]) -> bool:
    ours = node.domain in (None, "", "ai.onnx")
    return ours and (node.op == "Constant" or node.op in FOLDED or node.op in also)


def _alone(node: NodeProto, operands: Mapping[str, Array], opset: int) -> ModelProto:
    """Make a model of one node."""
    inputs = [
        value_info(k, int(helper.np_dtype_to_tensor_dtype(v.dtype)), v.shape)
        for k, v in operands.items()
    ]
    outputs = [ValueInfoProto(name=o) for o in node.output if o]
    graph = helper.make_graph([node], "constant", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def _fits(model: ModelProto, operands: Mapping[str, Array]) -> bool:
    """Whether the shapes of the results are known beforehand, and not too large."""
    known = ModelProto()
    known.CopyFrom(model)
    for name, values in operands.items():
        if values.size <= SHAPE_LIKE:
            known.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    try:
        inferred = onnx.shape_inference.infer_shapes(known, data_prop=True)
    except Exception:  # shapes that do not fit each other
        return False
    for value in inferred.graph.output:
        kind = value.type.tensor_type
        if kind.elem_type == TensorProto.UNDEFINED or not kind.HasField("shape"):
            return False
        sizes = [d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim]
        if min(sizes, default=0) < 0 or math.prod(sizes) > LARGEST:
            return False
    return True
