"""Channel groups: the layers that make a channel, those that read it, and why it may have to stay.

    labels   every operator does to the labels of its data what it does to the data
    ties     operands of an Add, groups of a convolution, sharers of a weight: one channel
    box      where channels lie on several axes of a tensor they are tied along all but one, so that
             a tensor without some channels is still a rectangular array
    groups   channels that lie in the same tensors, so that the same layers make and read them, and
             no tensor is empty while one channel of each group is left

A group spans a whole residual stage, and the parts of a concatenation are groups of their own.
Channels behind operators without a rule are frozen, with the reason.

Reference: He et al. 2017, Channel pruning for accelerating very deep neural networks; Fang et al.
2023, DepGraph: towards any structural pruning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnx_lowrank.channels.atoms import IntArray
from onnx_lowrank.channels.extents import follow_extents
from onnx_lowrank.channels.labels import (
    Flow,
    Heads,
    Operand,
    UnknownOperatorError,
    first_output,
    label,
    varying,
)
from onnx_lowrank.channels.rules import JOINING, RULES
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.graph.nodes import Node
from onnx_lowrank.layers import PlacedLayer, find_layers, states_name
from onnx_lowrank.layers.layer import RECURRENT

__all__ = ["ChannelGroup", "Consumer", "Producer", "find_channel_groups", "follow"]


@dataclass(frozen=True)
class Producer:
    """A layer that makes the channels of a group.

    Attributes:
        name: name of the layer, as in :func:`~onnx_lowrank.layers.find_layers`.
        op: operator of the layer.
        output: name of its output tensor, before the Add of a bias.
        rows: numbers of the weight's rows that make each channel; several where groups are tied.
    """

    name: str
    op: str
    output: str
    rows: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Consumer:
    """A layer that reads the channels of a group.

    Attributes:
        name: name of the layer, as in :func:`~onnx_lowrank.layers.find_layers`.
        op: operator of the layer.
        input: name of the tensor that it reads.
        columns: positions of each channel on axis 1 of the weight ``(N, C / groups, *kernel)``
            (axis 0 of the stored weight of a ConvTranspose); several behind a Flatten.
    """

    name: str
    op: str
    input: str
    columns: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are made and read by the same layers.

    Attributes:
        name: unique name: that of its first producer, or of its first tensor.
        size: number of channels.
        producers: layers that make the channels, in order.
        consumers: layers that read the channels, in order.
        carried: constant operands with entries for each channel (biases, BatchNormalization,
            slopes, depthwise weights), as (node output, input position, entries of a channel).
        frozen: reason why the channels must stay; None if they may be cut.
        flow: labels of the graph.
        atoms: roots of the channels.
        products: outputs of products of two activations that sum over the channels.
    """

    name: str
    size: int
    producers: tuple[Producer, ...]
    consumers: tuple[Consumer, ...]
    carried: tuple[tuple[str, int, int], ...]
    frozen: str | None
    flow: Flow = field(repr=False, compare=False)
    atoms: tuple[int, ...] = field(repr=False, compare=False)
    products: tuple[str, ...] = ()

    @property
    def prunable(self) -> bool:
        """Whether channels may be cut."""
        return self.frozen is None


def find_channel_groups(
    graph: Graph, shapes: Mapping[str, tuple[int, ...]], heads: Heads | None = None
) -> list[ChannelGroup]:
    """Find the channel groups of the main graph, in the order of their first producers.

    Args:
        graph: the graph; it is not changed.
        shapes: concrete shapes of its tensors
            (:func:`~onnx_lowrank.analysis.cost.tensor_shapes`); channels of a tensor without a
            shape are frozen.
        heads: products of two activations to follow channels through, and rows that are one
            channel; None for none.
    """
    flow = follow(graph, shapes, heads)
    _box(flow)
    return _grouped(flow)


def follow(graph: Graph, shapes: Mapping[str, tuple[int, ...]], heads: Heads | None = None) -> Flow:
    """Labels of all tensors of the main graph; see :func:`find_channel_groups`."""
    flow = Flow(graph, shapes, heads=heads or Heads())
    for name in graph.inputs:
        flow.labels[name] = flow.fixed(name, f"graph input {name}")
    for node in graph.nodes:
        _step(flow, node)
    for name in graph.outputs:
        if name in flow.labels:
            flow.atoms.freeze(flow.labels[name], f"graph output {name}")
    return flow


def _step(flow: Flow, node: Node) -> None:
    graph = flow.graph
    outputs = [t.name for t in node.outputs]
    if all(not o or graph.is_constant(o) for o in outputs):
        return
    own = [t.name for t in node.inputs if not t.is_empty()]
    captured = graph.reads(node) - set(own)
    made = len(flow.operands)
    try:
        labels: list[IntArray | None] = []
        reason = label(node)
        foreign = bool(captured) or node.domain not in (None, "", "ai.onnx")
        if foreign or not follow_extents(flow, node):
            if foreign or node.op not in RULES:
                raise UnknownOperatorError(reason)
            labels = RULES[node.op](flow, node)
            for name in own[1:] if node.op not in JOINING else ():
                if name in flow.labels:  # the rule reads the first input only
                    flow.atoms.freeze(flow.labels[name], reason)
        labels += [None] * (len(outputs) - len(labels))
        for output, value in zip(outputs, labels, strict=True):
            if output:
                flow.labels[output] = flow.fixed(output, reason) if value is None else value
    except (UnknownOperatorError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        del flow.operands[made:]
        known = isinstance(error, UnknownOperatorError)
        reason = str(error) if known else f"{label(node)} could not be read"
        for name in (*own, *captured):
            if name in flow.labels:
                flow.atoms.freeze(flow.labels[name], reason)
            if name in flow.dims:
                flow.use(flow.dims[name].flat, reason)
        for output in filter(None, outputs):
            flow.labels[output] = flow.fixed(output, reason)
            flow.unread[output] = reason


def _arrays(flow: Flow) -> Iterator[tuple[str, IntArray]]:
    yield from flow.labels.items()
    for operand in flow.operands:
        yield f"{operand.output} {operand.index}", operand.labels


def _box(flow: Flow) -> None:
    """Tie channels along all axes but one; freeze a channel that is the only one of a tensor."""
    for _, labels in _arrays(flow):
        axes = varying(labels)
        if len(axes) < 2:
            continue
        roots = flow.atoms.roots(labels)
        ready = [a for a in axes if (roots == _edge(roots, a)).all()]
        if not ready:
            axis = max(axes, key=lambda a: (labels.shape[a], a))
            flow.atoms.tie(labels, _edge(labels, axis))
    for name, labels in _arrays(flow):
        roots = flow.atoms.roots(labels)
        if (roots == roots.flat[0]).all():
            tied = "the only channel" if labels.size == 1 else "all channels are tied"
            flow.atoms.freeze(labels, f"{tied} in {name}")


def _edge(labels: IntArray, axis: int) -> IntArray:
    """The labels at the first position of all axes but ``axis``."""
    for other in set(range(labels.ndim)) - {axis}:
        labels = labels.take([0], other)
    return labels


def _grouped(flow: Flow) -> list[ChannelGroup]:
    tensors: dict[int, list[str]] = {}
    uses: dict[int, list[tuple[Operand, list[int]]]] = {}
    for name, labels in flow.labels.items():
        for root in np.unique(flow.atoms.roots(labels)).tolist():
            if not flow.atoms.is_fixed(root):
                tensors.setdefault(root, []).append(name)
    for operand in flow.operands:
        for root, positions in _where(flow, operand.labels).items():
            uses.setdefault(root, []).append((operand, positions))
    summing: dict[int, list[str]] = {}
    for output, labels in flow.summed.items():
        for root in np.unique(flow.atoms.roots(labels)).tolist():
            summing.setdefault(root, []).append(output)
    classes: dict[tuple[Any, ...], list[int]] = {}
    for root, where in tensors.items():
        ends = tuple((o.output, o.role) for o, _ in uses.get(root, []) if o.role != "carried")
        ends += tuple((output, "summed") for output in summing.get(root, []))
        reason = flow.atoms.reason(root)
        if reason is None and all(role != "rows" for _, role in ends):
            reason = "no layer makes them"
        elif reason is None and all(role not in ("columns", "summed") for _, role in ends):
            reason = "no layer reads them"
        classes.setdefault((ends, reason, *where), []).append(root)
    layers = [layer for layer in find_layers(flow.graph)[0] if not layer.value.lookup]
    names = _layer_names(flow, layers)
    groups = [
        replace(
            _group(
                flow, roots, reason, names, [uses.get(r, []) for r in roots], tensors[roots[0]][0]
            ),
            products=tuple(summing.get(roots[0], ())),
        )
        for (_, reason, *_), roots in classes.items()
    ]
    for layer in layers:
        output = first_output(layer.nodes[0])
        if output in flow.unread:
            rows = tuple((row,) for row in range(layer.shape[0]))
            maker = Producer(layer.name, layer.op, output, rows)
            reason = flow.unread[output]
            groups.append(ChannelGroup(layer.name, len(rows), (maker,), (), (), reason, flow, ()))
    taken: Counter[str] = Counter()
    for i, group in enumerate(groups):
        taken[group.name] += 1
        if taken[group.name] > 1:
            groups[i] = replace(group, name=f"{group.name}#{taken[group.name]}")
    return groups


def _group(
    flow: Flow,
    roots: list[int],
    reason: str | None,
    names: Mapping[str, str],
    uses: list[list[tuple[Operand, list[int]]]],
    tensor: str,
) -> ChannelGroup:
    """Make the group of the channels ``roots``; ``uses`` has the operands of each."""
    operands = {id(o): o for channel in uses for o, _ in channel}
    entries = [{id(o): positions for o, positions in channel} for channel in uses]
    producers: list[Producer] = []
    consumers: list[Consumer] = []
    for key, operand in operands.items():
        node = flow.graph.producer(operand.output)
        assert node is not None
        name = names.get(operand.output, operand.output)
        if node.op in RECURRENT and operand.index == 2:
            name = states_name(name)
        if operand.role == "rows":
            # the weight of a ConvTranspose holds the outputs of one group
            whole = flow.labels[operand.output] if node.op == "ConvTranspose" else operand.labels
            made = _where(flow, whole)
            rows = tuple(tuple(made[r]) for r in roots)
            producers.append(Producer(name, node.op, operand.output, rows))
        elif operand.role == "columns":
            width = operand.labels.size
            if node.op == "ConvTranspose":  # its weight holds the inputs of all groups
                width //= int(flow.graph.attribute(node, "group", 1))
            columns = tuple(tuple(sorted({p % width for p in e[key]})) for e in entries)
            source = node.inputs[0 if operand.index else 1].name
            consumers.append(Consumer(name, node.op, source, columns))
    carried = tuple(
        (o.output, o.index, len(entries[0].get(key, ())))
        for key, o in operands.items()
        if o.role == "carried"
    )
    stem = producers[0].name if producers else tensor
    return ChannelGroup(
        stem, len(roots), tuple(producers), tuple(consumers), carried, reason, flow, tuple(roots)
    )


def _where(flow: Flow, labels: IntArray) -> dict[int, list[int]]:
    """Positions of each channel in a flattened array of labels, by root."""
    found: dict[int, list[int]] = {}
    for position, root in enumerate(flow.atoms.roots(labels).reshape(-1).tolist()):
        found.setdefault(root, []).append(position)
    return found


def _layer_names(flow: Flow, layers: Sequence[PlacedLayer]) -> dict[str, str]:
    """Names of layers by the first output of their first node."""
    names = {first_output(x.nodes[0]): x.name for x in layers}
    for operand in flow.operands:
        node = flow.graph.producer(operand.output)
        if node is not None and node.name:
            names.setdefault(operand.output, node.name)
    return names
