"""Turn a Chain into nodes: one writer for all passes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.chain import Chain, Stage
from onnx_lowrank.geometry import ConvGeometry
from onnx_lowrank.graph import Graph, Node
from onnx_lowrank.layers import Layer, turned
from onnx_lowrank.step import Step
from onnx_lowrank.steps import Branches, Select, TensorTrainStep

__all__ = ["Written", "apply_chain", "update_chain"]

Array = npt.NDArray[Any]


@dataclass
class Written:
    """A chain in the graph, and the names under which its numbers can be changed.

    Attributes:
        layer: what it replaced.
        chain: as written.
        constants: initializers, in the order of the steps.
        kept_bias: of the recurrent product ``(directions, gates * hidden)``, which shares an
            initializer with that of the input; None for other layers.
    """

    layer: Layer
    chain: Chain
    constants: tuple[str, ...]
    kept_bias: Array | None

    @property
    def biased(self) -> bool:
        """Whether some stage adds a bias."""
        return any(s.bias is not None for s in _flat(self.chain))


def apply_chain(graph: Graph, layer: Layer, chain: Chain) -> Written:
    """Replace ``layer`` by ``chain``; the output tensor keeps its name, a single node too."""
    chain = chain.astype(layer.dtype)
    writer = _Writer(graph, layer)
    graph.replace(
        layer.nodes, lambda: list(writer.chain(chain, layer.name, layer.input, layer.output))
    )
    return Written(layer, chain, tuple(writer.constants), writer.kept_bias)


def update_chain(graph: Graph, written: Written, chain: Chain) -> None:
    """Give the steps of a written chain other numbers of the same shapes."""
    chain = (chain if written.biased else chain.unbiased()).astype(written.layer.dtype)
    numbers = [
        values
        for step in _flat(chain)
        for _, values in _numbers(written.layer, step, step is chain.last, written.kept_bias)
    ]
    for name, values in zip(written.constants, numbers, strict=True):
        graph.set_constant(name, values)
    written.chain = chain


def _flat(chain: Chain) -> Iterator[Step]:
    for step in chain.stages:
        if isinstance(step, Branches):
            for branch in step.chains:
                yield from _flat(branch)
        else:
            yield step


class _Writer:
    """The nodes of a chain, and the initializers that they read, in one order."""

    def __init__(self, graph: Graph, layer: Layer) -> None:
        self._graph, self._layer = graph, layer
        self.constants: list[str] = []
        self._rank = graph.rank(layer.input)
        self.kept_bias = None
        if layer.recurrent:  # read now: the node is taken apart before the new ones are made
            node = layer.nodes[0]
            self._attributes = dict(node.attrs)
            self._operands = [t.name for t in node.inputs]
            self._results = [t.name for t in node.outputs]
            bias = graph.constant(self._operands[3]) if len(self._operands) > 3 else None
            if bias is not None:
                self.kept_bias = bias[:, bias.shape[1] // 2 :]

    def chain(self, chain: Chain, name: str, source: str, target: str) -> Iterator[Node]:
        graph, alone = self._graph, len(chain.stages) == 1
        for step in chain.stages:
            last = step is chain.last
            output = target if last else graph.fresh(f"{self._layer.output}_{step.role}")
            own = name if alone else graph.fresh(f"{name}_{step.role}")
            if isinstance(step, Branches):
                yield from self._branches(step, own, source, output)
            else:
                yield from self._step(step, last, own, source, output)
            source = output

    def _branches(self, step: Branches, name: str, source: str, target: str) -> Iterator[Node]:
        graph, ends = self._graph, []
        for number, branch in enumerate(step.chains, 1):
            ends.append(graph.fresh(f"{target}_branch{number}"))
            yield from self.chain(branch, graph.fresh(f"{name}_branch{number}"), source, ends[-1])
        total = ends[0]
        for number, end in enumerate(ends[1:], 2):
            last = number == len(ends)
            output = target if last else graph.fresh(f"{target}_sum{number}")
            own = name if last else graph.fresh(f"{name}_sum{number}")
            yield graph.make_node("Add", own, [total, end], output)
            total = output

    def _step(self, step: Step, last: bool, name: str, source: str, target: str) -> Iterator[Node]:
        numbers = [
            self._graph.add_constant(f"{name}_{what}", values)
            for what, values in _numbers(self._layer, step, last, self.kept_bias)
        ]
        self.constants += numbers
        if isinstance(step, Select):
            attributes = {"axis": step.axis}
            yield self._graph.make_node("Gather", name, [source, *numbers], target, attributes)
        elif isinstance(step, TensorTrainStep):
            yield from self._train(step, name, source, target, numbers)
        elif self._layer.recurrent and last:
            operands = list(self._operands)
            operands += [""] * (2 + len(numbers) - len(operands))
            operands[:2] = [source, numbers[0]]
            if len(numbers) > 1:
                operands += [""] * (4 - len(operands))
                operands[3] = numbers[1]
            yield self._graph.make_node(
                self._layer.op, name, operands, self._results, self._attributes
            )
        elif isinstance(step, Stage):
            yield from self._stage(step, name, source, target, numbers)

    def _stage(
        self, stage: Stage, name: str, source: str, target: str, numbers: Sequence[str]
    ) -> Iterator[Node]:
        graph, geometry, operands = self._graph, stage.geometry, [source, *numbers]
        if isinstance(geometry, ConvGeometry):
            op = "ConvTranspose" if geometry.transposed else "Conv"
            yield graph.make_node(op, name, operands, target, _conv_attributes(geometry))
        elif self._layer.op == "Gemm":
            if stage.bias is None and graph.opset < 11:  # the third operand was not optional yet
                operands.append(graph.add_constant(f"{name}_zero", np.zeros(1, self._layer.dtype)))
            attributes = {"transA": int(geometry.input_axis == -2), "transB": 1}
            yield graph.make_node("Gemm", name, operands, target, attributes)
        else:
            product = target if stage.bias is None else graph.fresh(f"{target}_product")
            pair = operands[:2]
            if geometry.input_axis == -2:
                pair.reverse()
            yield graph.make_node("MatMul", name, pair, product)
            if stage.bias is not None:
                added = graph.fresh(f"{name}_add")
                yield graph.make_node("Add", added, [product, numbers[1]], target)

    def _train(
        self, step: TensorTrainStep, name: str, source: str, target: str, numbers: Sequence[str]
    ) -> Iterator[Node]:
        """Rows of the input, folded; core after core; unfolded again. See the step."""
        graph, rows, columns = self._graph, step.row_modes, step.column_modes

        def integers(*values: int) -> str:
            return graph.add_constant(f"{name}_shape", np.array(values, np.int64))

        def window(start: int, end: int, axis: int) -> tuple[str, list[str], dict[str, Any]]:
            if graph.opset < 10:
                return "Slice", [], {"starts": [start], "ends": [end], "axes": [axis]}
            return "Slice", [integers(start), integers(end), integers(axis)], {}

        def node(op: str, inputs: Sequence[str], output: str, attributes: Any = None) -> Node:
            own = graph.fresh(f"{name}_{op.lower()}")
            return graph.make_node(op, own, inputs, output, attributes)

        work: list[tuple[str, list[str], dict[str, Any]]] = []
        if self._rank != 2:
            work.append(("Reshape", [integers(-1, step.inputs)], {}))
        missing = math.prod(columns) - step.inputs
        if missing and graph.opset < 11:
            work.append(("Pad", [], {"pads": [0, 0, 0, missing]}))
        elif missing:
            work.append(("Pad", [integers(0, 0, 0, missing)], {}))
        for k, core in enumerate(step.cores):
            before, beside = math.prod(rows[:k]), math.prod(columns[k + 1 :])
            inner = int(core.shape[0]) * columns[k]
            if k < len(step.cores) - 1:
                work.append(("Reshape", [integers(0, before, inner, beside)], {}))
                work.append(("MatMul", [numbers[k]], {"left": True}))
            else:
                work.append(("Reshape", [integers(0, before, inner)], {}))
                work.append(("MatMul", [numbers[k]], {}))
        work.append(("Reshape", [integers(0, math.prod(rows))], {}))
        if math.prod(rows) > step.outputs:
            work.append(window(0, step.outputs, 1))
        if step.bias is not None:
            work.append(("Add", [numbers[-1]], {}))
        if self._rank != 2:
            whole, leading, wanted = (graph.fresh(f"{target}_shape") for _ in range(3))
            yield node("Shape", [source], whole)
            op, extra, attributes = window(0, -1, 0)
            yield node(op, [whole, *extra], leading, attributes)
            yield node("Concat", [leading, integers(step.outputs)], wanted, {"axis": 0})
            work.append(("Reshape", [wanted], {}))
        for number, (op, extra, attributes) in enumerate(work, 1):
            last = number == len(work)
            output = target if last else graph.fresh(f"{target}_{op.lower()}")
            operands = [*extra, source] if attributes.pop("left", False) else [source, *extra]
            yield node(op, operands, output, attributes)
            source = output


def _numbers(
    layer: Layer, step: Step, last: bool, kept_bias: Array | None
) -> Iterator[tuple[str, Array]]:
    """What a step has in the file: a word for the name, and the values."""
    if isinstance(step, Select):
        yield "index", np.array(step.index, np.int64)
    elif isinstance(step, TensorTrainStep):
        for number, matrix in enumerate(step.matrices, 1):
            yield f"core{number}", matrix
        if step.bias is not None:
            yield "bias", step.bias
    elif isinstance(step, Stage) and layer.recurrent and last:
        yield from _recurrent_numbers(layer, step, kept_bias)
    elif isinstance(step, Stage):
        yield "weight", _stored_weight(layer, step)
        if step.bias is not None:
            yield "bias", _stored_bias(layer, step.bias)


def _recurrent_numbers(
    layer: Layer, stage: Stage, kept_bias: Array | None
) -> Iterator[tuple[str, Array]]:
    directions = layer.directions
    yield "weight", stage.weight.reshape(directions, -1, stage.inputs)
    if stage.bias is None and kept_bias is None:
        return
    rows = stage.outputs // directions
    own = np.zeros(stage.outputs) if stage.bias is None else stage.bias
    other = np.zeros((directions, rows)) if kept_bias is None else kept_bias
    both = np.concatenate([own.reshape(directions, rows), other], axis=1)
    yield "bias", both.astype(layer.dtype)


def _conv_attributes(geometry: ConvGeometry) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "kernel_shape": list(geometry.kernel),
        "strides": list(geometry.strides),
        "dilations": list(geometry.dilations),
        "group": geometry.groups,
    }
    if geometry.auto_pad == "NOTSET":
        attributes["pads"] = list(geometry.pads)
    else:
        attributes["auto_pad"] = geometry.auto_pad
    if any(geometry.output_padding):
        attributes["output_padding"] = list(geometry.output_padding)
    return attributes


def _multiplies_left(layer: Layer) -> bool:
    return not isinstance(layer.geometry, ConvGeometry) and layer.geometry.output_axis == -2


def _stored_weight(layer: Layer, stage: Stage) -> Array:
    """The weight in the orientation that the operator wants; Gemm is written with transB."""
    if isinstance(stage.geometry, ConvGeometry):
        return turned(stage.weight, stage.groups) if stage.geometry.transposed else stage.weight
    if layer.op == "Gemm" or _multiplies_left(layer):
        return stage.weight
    return stage.weight.T


def _stored_bias(layer: Layer, bias: Array) -> Array:
    if layer.op != "MatMul":
        return bias
    if layer.bias_shape is not None:
        return bias.reshape(layer.bias_shape)
    return bias.reshape(-1, 1) if _multiplies_left(layer) else bias
