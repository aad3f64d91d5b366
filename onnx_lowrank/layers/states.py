"""Products of recurrent nodes with their own states, and initial states of zeros.

    gates_t  =  W x_t + b_W  +  R h_{t-1} + b_R

The product with ``W`` is the layer that passes see
(:func:`~onnx_lowrank.layers.products.recurrent`); the one with ``R`` cannot be taken apart, as a
node has nowhere to put a chain, but it reads and makes hidden units as other layers do channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.chains.state_geometry import StateGeometry
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers.layer import Layer
from onnx_lowrank.layers.operands import NotLinear, constant_of, operand_name, weight_of
from onnx_lowrank.layers.placed import PlacedLayer

__all__ = ["initial_zeros", "state_product", "state_products", "states_name"]

Array = npt.NDArray[np.floating[Any]]

#: operators whose result holds nothing but elements of their first input
_MOVES = frozenset(
    {"Slice", "Split", "Gather", "Squeeze", "Unsqueeze", "Reshape", "Transpose", "Expand", "Tile",
     "Identity", "Cast", "Flatten"}
)  # fmt: skip


def states_name(layer: str) -> str:
    """Name of the product with the states of a recurrent layer."""
    return f"{layer} (states)"


def state_products(graph: Graph, layers: Iterable[PlacedLayer]) -> tuple[PlacedLayer, ...]:
    """The products with states of the recurrent ones among some layers."""
    found = (state_product(graph, la) for la in layers if la.value.recurrent)
    return tuple(product for product in found if product is not None)


def state_product(graph: Graph, layer: PlacedLayer) -> PlacedLayer | None:
    """The product of a recurrent layer with its states, each direction a group.

    Its input is the node's output ``Y``; None where the node has no such output, or where its
    weight cannot be read.
    """
    node = layer.nodes[0]
    if not node.outputs or not node.outputs[0].name:
        return None
    try:
        weight = weight_of(graph, node, 2)
    except NotLinear:
        return None
    bias_name = operand_name(node, 3)
    if weight.ndim != 3 or (bias_name and not graph.is_constant(bias_name)):
        return None
    weight_name = node.inputs[2].name
    directions, rows, hidden = weight.shape
    direction = str(graph.attribute(node, "direction", "forward"))

    def read() -> tuple[Array, Array | None]:
        values = constant_of(graph, weight_name, "weight").reshape(-1, hidden)
        if not bias_name:
            return values, None
        return values, constant_of(graph, bias_name, "bias")[:, rows:].reshape(-1)

    given = None
    if node.op == "GRU" and not graph.attribute(node, "linear_before_reset", 0):
        # the third gate reads the states times the reset gate
        given = np.tile(np.arange(rows) >= 2 * hidden, directions)
    value = Layer(
        name=states_name(layer.name),
        op=layer.op,
        dtype=weight.dtype,
        shape=(directions * rows, hidden),
        geometry=StateGeometry(
            groups=directions,
            backwards=(False, True) if directions == 2 else (direction == "reverse",),
            batch_first=bool(graph.attribute(node, "layout", 0)),
            from_zeros=all(
                initial_zeros(graph, name)
                for name in (operand_name(node, 5), operand_name(node, 6))
                if name
            ),
        ),
        biased=bool(bias_name),
        _load=read,
        directions=directions,
        given=given,
    )
    output = node.outputs[0].name
    return PlacedLayer(value, output, output, (node,), graph.uses(weight_name))


def initial_zeros(graph: Graph, tensor: str) -> bool:
    """Whether a tensor holds zeros at every run, as initial states mostly do."""
    if (value := graph.constant(tensor)) is not None:
        return not value.any()
    node = graph.producer(tensor)
    if node is None or node.domain not in (None, "", "ai.onnx"):
        return False
    if node.op == "ConstantOfShape":
        value = graph.attribute(node, "value")
        return value is None or not np.asarray(getattr(value, "values", value)).any()
    return node.op in _MOVES and initial_zeros(graph, node.inputs[0].name)
