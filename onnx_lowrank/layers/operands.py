"""Weights and biases of nodes, or the reasons why they cannot be read."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.graph.nodes import Node

__all__ = [
    "FLOATS",
    "NotLinear",
    "bias_add",
    "bias_shape_for",
    "constant_of",
    "operand_name",
    "refuse_overridable",
    "refuse_quantized",
    "weight_of",
]

Array = npt.NDArray[np.floating[Any]]

#: element types of weights
FLOATS = frozenset({"float16", "float32", "float64", "bfloat16"})


class NotLinear(Exception):  # noqa: N818 - a verdict, not an error
    """A node cannot be seen as a layer; the message says why."""


def operand_name(node: Node, position: int) -> str | None:
    """The name of the input at ``position``; None where it is left out."""
    if len(node.inputs) <= position or node.inputs[position].is_empty():
        return None
    return str(node.inputs[position].name)


def constant_of(graph: Graph, tensor: str, what: str) -> Array:
    """Read the value of a constant.

    Args:
        graph: the graph.
        tensor: name of the constant.
        what: use of the constant for messages: ``weight`` or ``bias``.

    Raises:
        NotLinear: the tensor is not constant, or its value cannot be read.
    """
    refuse_overridable(graph, tensor, what)
    value = graph.constant(tensor)
    if value is None and graph.is_constant(tensor):
        raise NotLinear(
            f"its {what} cannot be read: it is sparse, or computed by nodes that do not fit it"
        )
    if value is None:
        raise NotLinear(f"its {what} is not constant")
    return value


def weight_of(graph: Graph, node: Node, position: int) -> Array:
    """Read the input at ``position`` as a weight.

    Raises:
        NotLinear: it is not a weight that could be factorized.
    """
    name = operand_name(node, position)
    if name is None:
        raise NotLinear("it has no weight")
    refuse_quantized(graph, name)
    value = constant_of(graph, name, "weight")
    if value.dtype.name not in FLOATS:
        raise NotLinear(f"its weight has the type {value.dtype.name}")
    if value.size == 0:
        raise NotLinear("its weight is empty")
    if not np.isfinite(value).all():
        raise NotLinear("its weight holds NaN or Inf")
    return value


def refuse_quantized(graph: Graph, tensor: str) -> None:
    """Refuse a quantized weight.

    Raises:
        NotLinear: the weight is quantized.
    """
    if graph.is_quantized(tensor):
        raise NotLinear("its weight is quantized (DequantizeLinear)")


def refuse_overridable(graph: Graph, tensor: str, what: str) -> None:
    """Refuse a constant for which a caller may feed another value.

    Args:
        graph: the graph.
        tensor: name of the constant.
        what: use of the constant, for messages.

    Raises:
        NotLinear: a caller may feed another value.
    """
    name = graph.overridable(tensor)
    if name is not None:
        raise NotLinear(
            f"its {what} {name} is also an input of the graph, so callers may feed another value; "
            f"remove {name} from the inputs to have it compressed"
        )


def bias_add(graph: Graph, tensor: str) -> tuple[Node, str] | None:
    """The Add of a constant that alone reads ``tensor``, with the name of the constant."""
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


def bias_shape_for(shape: tuple[int, ...], outputs: int, axis: int) -> tuple[int, ...] | None:
    """Shape of a bias of ``outputs`` elements in place of one of ``shape``; None if none fits."""
    full = [1] * max(len(shape), -axis)
    full[len(full) - len(shape) :] = shape
    along = full[axis]
    if along not in (1, outputs) or int(np.prod(shape)) != along:
        return None
    full[axis] = outputs
    return tuple(full)
