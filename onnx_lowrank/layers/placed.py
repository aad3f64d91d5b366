"""Places of layers in a graph, and nodes with weights that are not layers."""

from __future__ import annotations

from dataclasses import dataclass

from onnx_lowrank.chains.chain import Stage
from onnx_lowrank.chains.geometry import ConvGeometry, LinearGeometry
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.graph.nodes import Node
from onnx_lowrank.layers.layer import Layer

__all__ = ["Destination", "Ineligible", "PlacedLayer", "destination"]


@dataclass(frozen=True)
class PlacedLayer:
    """A layer and its place in a graph: a node, with the Add of its bias where there is one.

    Attributes:
        value: the layer itself, which is what passes see.
        input: name of the tensor that it reads.
        output: name of the tensor that it makes, bias included; the first output of a recurrent
            node.
        nodes: nodes that a replacement removes.
        sharers: number of nodes that use this weight, this one included.
        bias_shape: shape of the bias in the file, where it is an operand of an Add.
        bias_size: number of elements of the bias in the file, where there is one.
        unit_axes: number of axes of extent 1 in front of the matrix of a MatMul's weight.
    """

    value: Layer
    input: str
    output: str
    nodes: tuple[Node, ...]
    sharers: int
    bias_shape: tuple[int, ...] | None = None
    bias_size: int | None = None
    unit_axes: int = 0

    @property
    def name(self) -> str:
        """Name of the layer, unique in the model."""
        return self.value.name

    @property
    def op(self) -> str:
        """Operator of the node that holds its weight."""
        return self.value.op

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight, ``(N, C / groups, *kernel)``."""
        return self.value.shape

    @property
    def geometry(self) -> ConvGeometry | LinearGeometry:
        """Geometry of its patches."""
        return self.value.geometry

    @property
    def groups(self) -> int:
        """Number of groups."""
        return self.value.groups

    @property
    def patch(self) -> int:
        """Length ``d`` of one group's input patch."""
        return self.value.patch

    @property
    def stage(self) -> Stage:
        """Weight and bias, read at each call; see :attr:`Layer.stage`."""
        return self.value.stage

    @property
    def broadcast(self) -> int:
        """Number of elements by which the stage's bias is longer than the bias in the file."""
        return 0 if self.bias_size is None else self.shape[0] - self.bias_size

    def left_alone(self, reason: str) -> Ineligible:
        """The layer as one that no pass may touch, for a reason."""
        output = next((t.name for t in self.nodes[0].outputs if t.name), "")
        return Ineligible(self.name, self.op, reason, output)


@dataclass(frozen=True)
class Ineligible:
    """A node with weights that no pass can replace, with the reason.

    Attributes:
        name: name of the node, or of its output.
        op: operator of the node.
        reason: clause that says why.
        output: name of its first output in the file.
        main: whether it is in the main graph.
    """

    name: str
    op: str
    reason: str
    output: str = ""
    main: bool = True


@dataclass(frozen=True)
class Destination:
    """Tensor that a layer's response enters: a residual sum, or its own output.

    Attributes:
        total: name of the sum, or of the output itself; empty where the response is not a tensor.
        skip: name of the other branch of the sum; empty where there is no sum.
    """

    total: str
    skip: tuple[str, ...]


def destination(graph: Graph, layer: PlacedLayer) -> Destination:
    """The residual sum that alone reads a layer's output, or else the output itself."""
    output = layer.output
    if layer.value.recurrent:
        return Destination("", ())
    consumers = graph.consumers(output)
    if len(consumers) == 1 and consumers[0].op == "Add" and not graph.is_output(output):
        add = consumers[0]
        if not any(add is n for n in graph.nodes):
            return Destination(output, ())  # inside a subgraph
        others = [t.name for t in add.inputs if t.name != output]
        if len(others) == 1 and not (graph.is_constant(others[0]) or graph.overridable(others[0])):
            return Destination(add.outputs[0].name, (others[0],))
    return Destination(output, ())
