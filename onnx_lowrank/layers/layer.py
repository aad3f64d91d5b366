"""Layer: a node seen as a linear map, or the reason why it is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.chains.chain import Stage
from onnx_lowrank.chains.geometry import ConvGeometry, LinearGeometry
from onnx_lowrank.graph.graph import Graph, Node

__all__ = ["RECURRENT", "Destination", "Ineligible", "Layer", "destination"]

Array = npt.NDArray[np.floating[Any]]

RECURRENT = frozenset({"LSTM", "GRU", "RNN"})


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
        unit_axes: axes of extent 1 that the weight of a MatMul has in front of its matrix.
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
    unit_axes: int = 0

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
        return self.op in RECURRENT

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
        if len(others) == 1 and not (graph.is_constant(others[0]) or graph.overridable(others[0])):
            return Destination(add.outputs[0].name, (others[0],))
    return Destination(output, ())
