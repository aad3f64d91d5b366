"""Writer of chains: nodes and constants in the place of a layer, for all passes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.chains.chain import Chain, Stage
from onnx_lowrank.chains.geometry import ConvGeometry
from onnx_lowrank.chains.lookup_geometry import LookupGeometry
from onnx_lowrank.chains.protocol import Step
from onnx_lowrank.chains.special_stages import Branches, Select, TensorTrainStep
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.graph.nodes import Node
from onnx_lowrank.layers import PlacedLayer
from onnx_lowrank.layers.layer import LOOKUP
from onnx_lowrank.layers.stored import flat, stored, weight_position

__all__ = ["Written", "apply_chain", "constants_of", "set_states", "update_chain"]

Array = npt.NDArray[Any]


@dataclass
class Written:
    """A chain in the graph, with the names of its constants, whose values can be changed.

    Attributes:
        layer: layer that it replaced.
        chain: the chain as written.
        constants: names of the initializers, in the order of the steps.
        kept_bias: bias of the recurrent product ``(directions, gates * hidden)``, which is in one
            initializer with the bias of the input product; None for other layers.
        renewed: whether the layer's own nodes stay and read other constants.
    """

    layer: PlacedLayer
    chain: Chain
    constants: tuple[str, ...]
    kept_bias: Array | None
    renewed: bool = False

    @property
    def biased(self) -> bool:
        """Whether a stage adds a bias."""
        return any(s.bias is not None for s in flat(self.chain))


def apply_chain(
    graph: Graph, layer: PlacedLayer, chain: Chain, constants: Sequence[str] = ()
) -> Written:
    """Replace ``layer`` by ``chain``; the output tensor keeps its name.

    Where the chain is the layer itself with another weight, its nodes stay as they are, and read
    other constants.

    Args:
        graph: graph to change.
        layer: layer of the graph.
        chain: chain to write.
        constants: names of the constants of the same chain in the place of another layer, which
            the new nodes are to share; empty to write new ones.
    """
    chain = chain.astype(layer.value.dtype)
    renewed = None if constants else _renewed(graph, layer, chain)
    if renewed is not None:
        return renewed
    writer = _Writer(graph, layer, chain, constants)
    graph.replace(
        layer.nodes, lambda: list(writer.chain(chain, layer.name, layer.input, layer.output))
    )
    return Written(layer, chain, tuple(writer.constants), writer.kept_bias)


def update_chain(graph: Graph, written: Written, chain: Chain) -> None:
    """Give the steps of a written chain other values of the same shapes."""
    chain = (chain if written.biased else chain.unbiased()).astype(written.layer.value.dtype)
    for name, values in constants_of(written, chain):
        graph.set_constant(name, values)
    written.chain = chain


def constants_of(written: Written, chain: Chain) -> Iterator[tuple[str, Array]]:
    """Names and values of the constants of a written chain, if it had the values of another."""
    chain = chain.astype(written.layer.value.dtype)
    layer, kept_bias = written.layer, written.kept_bias
    numbers = [
        values
        for step in flat(chain)
        for _, values in stored(layer, step, step is chain.last, kept_bias, written.renewed)
    ]
    return zip(written.constants, numbers, strict=True)


def set_states(graph: Graph, product: PlacedLayer, weight: Array, bias: Array | None) -> None:
    """Give a recurrent node another weight for its own states.

    Args:
        graph: graph to change.
        product: product of the node with its states.
        weight: ``(directions * gates * hidden, hidden)``.
        bias: its bias ``(directions * gates * hidden,)``; None for none.
    """
    node, directions = product.nodes[0], product.value.directions
    values = weight.reshape(directions, -1, weight.shape[1]).astype(product.value.dtype)
    inputs = {2: graph.renew_constant(node.inputs[2].name, values)}
    old = node.inputs[3].name if len(node.inputs) > 3 else ""
    if bias is not None:
        own = bias.reshape(directions, -1)
        before = graph.constant(old) if old else np.zeros((directions, 2 * own.shape[1]))
        assert before is not None
        both = np.concatenate([before[:, : own.shape[1]], own], axis=1).astype(values.dtype)
        stem = f"{product.name}_bias"
        inputs[3] = graph.renew_constant(old, both) if old else graph.add_constant(stem, both)
    graph.change(node, inputs)


def _renewed(graph: Graph, layer: PlacedLayer, chain: Chain) -> Written | None:
    """Write ``chain`` into the layer's own nodes; return None where it needs other nodes."""
    stage, node = chain.last, layer.nodes[0]
    if len(chain.stages) > 1 or not isinstance(stage, Stage):
        return None
    if stage.geometry != layer.geometry or stage.weight.shape != layer.shape:
        return None
    kept_bias = _kept_bias(graph, layer)
    numbers = dict(stored(layer, stage, True, kept_bias, renewed=True))
    weight_at = weight_position(layer)
    if layer.op == "MatMul":
        product = node.outputs[0].name
        biased, bias_at = layer.nodes[-1], 0
        if len(layer.nodes) > 1:
            bias_at = next(i for i, t in enumerate(biased.inputs) if t.name != product)
        old_bias = biased.inputs[bias_at].name if len(layer.nodes) > 1 else ""
    else:
        biased, bias_at = node, 3 if layer.value.recurrent else 2
        old_bias = node.inputs[bias_at].name if len(node.inputs) > bias_at else ""
    if bool(old_bias) != ("bias" in numbers) and (old_bias or layer.op in ("MatMul", LOOKUP)):
        return None
    weight = node.inputs[weight_at].name
    inputs = {weight_at: graph.renew_constant(weight, numbers["weight"], f"{layer.name}_weight")}
    names = [inputs[weight_at]]
    if "bias" in numbers:
        stem = f"{layer.name}_bias"
        names.append(
            graph.renew_constant(old_bias, numbers["bias"], stem)
            if old_bias
            else graph.add_constant(stem, numbers["bias"], weight)
        )
        if biased is node:
            inputs[bias_at] = names[1]
        else:
            graph.change(biased, {bias_at: names[1]})
    graph.change(node, inputs, dict.fromkeys(("alpha", "beta")) if layer.op == "Gemm" else None)
    return Written(layer, chain, tuple(names), kept_bias, renewed=True)


def _kept_bias(graph: Graph, layer: PlacedLayer) -> Array | None:
    """The bias of the recurrent product ``(directions, gates * hidden)``; None without one."""
    operands = layer.nodes[0].inputs
    if not layer.value.recurrent or len(operands) < 4:
        return None
    bias = graph.constant(operands[3].name)
    return None if bias is None else bias[:, bias.shape[1] // 2 :]


class _Writer:
    """Makes the nodes of a chain and the initializers that they read, in one order."""

    def __init__(
        self, graph: Graph, layer: PlacedLayer, chain: Chain, constants: Sequence[str]
    ) -> None:
        self._graph, self._layer, self._given = graph, layer, constants
        self.constants: list[str] = []
        self._rank = graph.rank(layer.input)
        #: whether the chain is the whole layer with another weight, as where it gains a bias
        only = chain.stages[0] if len(chain.stages) == 1 else None
        self._whole = isinstance(only, Stage) and only.weight.shape == layer.shape
        # read now: the old nodes are cleared before the new ones are made
        self.kept_bias = _kept_bias(graph, layer)
        node = layer.nodes[0]
        self._attributes = dict(node.attrs)
        self._operands = [t.name for t in node.inputs]
        self._results = [t.name for t in node.outputs]
        self._origin = self._operands[weight_position(layer)]

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
        written = stored(self._layer, step, last, self.kept_bias)
        if self._given:
            numbers = list(self._given[len(self.constants) :][: len(list(written))])
        else:
            numbers = [self._add(f"{name}_{what}", what, values) for what, values in written]
        self.constants += numbers
        if isinstance(step, Select):
            attributes = {"axis": step.axis}
            yield self._graph.make_node("Gather", name, [source, *numbers], target, attributes)
        elif isinstance(step, TensorTrainStep):
            yield from self._train(step, name, source, target, numbers)
        elif self._layer.value.recurrent and last:
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

    def _add(self, stem: str, what: str, values: Array) -> str:
        if self._whole and what == "weight":
            return self._graph.renew_constant(self._origin, values, stem)
        return self._graph.add_constant(stem, values, self._origin)

    def _stage(
        self, stage: Stage, name: str, source: str, target: str, numbers: Sequence[str]
    ) -> Iterator[Node]:
        graph, geometry, operands = self._graph, stage.geometry, [source, *numbers]
        if isinstance(geometry, ConvGeometry):
            op = "ConvTranspose" if geometry.transposed else "Conv"
            yield graph.make_node(op, name, operands, target, _conv_attributes(geometry))
        elif self._layer.op == "Gemm":
            if stage.bias is None and graph.opset < 11:  # the bias became optional in opset 11
                operands.append(
                    graph.add_constant(f"{name}_zero", np.zeros(1, self._layer.value.dtype))
                )
            attributes = {"transA": int(geometry.input_axis == -2), "transB": 1}
            yield graph.make_node("Gemm", name, operands, target, attributes)
        else:
            product = target if stage.bias is None else graph.fresh(f"{target}_product")
            lookup = isinstance(geometry, LookupGeometry)
            pair = operands[:2]
            if lookup or geometry.input_axis == -2:
                pair.reverse()
            yield graph.make_node("Gather" if lookup else "MatMul", name, pair, product)
            if stage.bias is not None:
                added = graph.fresh(f"{name}_add")
                yield graph.make_node("Add", added, [product, numbers[1]], target)

    def _train(
        self, step: TensorTrainStep, name: str, source: str, target: str, numbers: Sequence[str]
    ) -> Iterator[Node]:
        """Fold the rows of the input, multiply by core after core, and unfold them."""
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
