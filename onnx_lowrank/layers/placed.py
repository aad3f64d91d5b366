"""Where a layer stands in a graph, and nodes with weights that are no layers."""

from __future__ import annotations

from dataclasses import dataclass

from onnx_lowrank.chains.chain import Stage
from onnx_lowrank.chains.geometry import ConvGeometry, LinearGeometry
from onnx_lowrank.graph.graph import Graph, Node
from onnx_lowrank.layers.layer import Layer

__all__ = ["Destination", "Ineligible", "PlacedLayer", "destination"]


@dataclass(frozen=True)
class PlacedLayer:
    """A layer and its place in a graph: a node, with the Add of its bias where there is one.

    Attributes:
        value: the layer itself, which is what passes see.
        input: name of the tensor that it reads.
        output: name of the tensor that it makes, bias included; of a recurrent node its first
            output.
        nodes: the nodes that a replacement takes out.
        sharers: number of nodes that use this weight, this one included.
        bias_shape: shape of the bias in the file, where it is an operand of an Add.
        bias_size: number of elements of the bias in the file, where one may stand for all outputs.
        unit_axes: axes of extent 1 that the weight of a MatMul has in front of its matrix.
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
        """How it reads its input."""
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
        """Elements by which the bias of the stage is longer than that in the file."""
        return 0 if self.bias_size is None else self.shape[0] - self.bias_size


@dataclass(frozen=True)
class Ineligible:
    """A node with weights that no pass can take apart, and why.

    Attributes:
        name: of the node, or of its output.
        op: its operator.
        reason: why.
        output: its first output, as it stands in the file.
        main: whether it stands in the main graph.
    """

    name: str
    op: str
    reason: str
    output: str = ""
    main: bool = True


@dataclass(frozen=True)
class Destination:
    """Where a layer's response ends up: in a residual sum, or in its own output.

    Attributes:
        total: the sum, else the output itself; empty where the response is no tensor.
        skip: the other branch of the sum; empty without one.
    """

    total: str
    skip: tuple[str, ...]


def destination(graph: Graph, layer: PlacedLayer) -> Destination:
    """The residual sum that a layer's output goes into and nowhere else, if there is one."""
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
