"""Weights and biases of nodes, or why they cannot be had."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.graph.graph import Graph, Node

__all__ = [
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

_FLOATS = frozenset({"float16", "float32", "float64", "bfloat16"})


class NotLinear(Exception):  # noqa: N818 - a verdict on its way out, no error
    """A node is no layer; the message says why."""


def operand_name(node: Node, position: int) -> str | None:
    """The name of an input; None where it is left out."""
    if len(node.inputs) <= position or node.inputs[position].is_empty():
        return None
    return str(node.inputs[position].name)


def constant_of(graph: Graph, tensor: str, what: str) -> Array:
    """The value of ``tensor``.

    Raises:
        NotLinear: it has none, or none that can be read; ``what`` says what it is for.
    """
    refuse_overridable(graph, tensor, what)
    value = graph.constant(tensor)
    if value is None and graph.is_constant(tensor):
        raise NotLinear(f"its {what} cannot be read: it is sparse, or behind views that do not fit")
    if value is None:
        raise NotLinear(f"its {what} is not constant")
    return value


def weight_of(graph: Graph, node: Node, position: int) -> Array:
    """The input at ``position`` as a weight.

    Raises:
        NotLinear: it is none that could be taken apart.
    """
    name = operand_name(node, position)
    if name is None:
        raise NotLinear("it has no weight")
    refuse_quantized(graph, name)
    value = constant_of(graph, name, "weight")
    if value.dtype.name not in _FLOATS:
        raise NotLinear(f"its weight is {value.dtype.name}")
    if value.size == 0:
        raise NotLinear("its weight is empty")
    if not np.isfinite(value).all():
        raise NotLinear("its weight holds NaN or Inf")
    return value


def refuse_quantized(graph: Graph, tensor: str) -> None:
    """Refuse a weight that is stored in fewer bits.

    Raises:
        NotLinear: it is.
    """
    if graph.is_quantized(tensor):
        raise NotLinear("its weight is quantized (DequantizeLinear)")


def refuse_overridable(graph: Graph, tensor: str, what: str) -> None:
    """Refuse a constant for which a caller may feed another value.

    Raises:
        NotLinear: it is one; ``what`` says what it is for.
    """
    name = graph.overridable(tensor)
    if name is not None:
        raise NotLinear(
            f"its {what} {name} can be overridden by the caller; "
            f"take {name} off the graph's inputs to have it compressed"
        )


def bias_add(graph: Graph, tensor: str) -> tuple[Node, str] | None:
    """The Add of a constant that alone reads ``tensor``, and the name of the constant."""
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
    """The shape that a bias of ``outputs`` elements takes in the place of ``shape``, if one."""
    full = [1] * max(len(shape), -axis)
    full[len(full) - len(shape) :] = shape
    along = full[axis]
    if along not in (1, outputs) or int(np.prod(shape)) != along:
        return None
    full[axis] = outputs
    return tuple(full)
