"""Cutting channels out of a graph: out of their producers, the nodes between, and their readers.

    y = W2 f(W1 x)    ->    W2[:, keep] f(W1[keep] x)

The cut is exact where the removed columns of ``W2`` are zero; otherwise the caller solves for new
columns. Constants with one entry for each channel (BatchNormalization, slopes, biases, depthwise
kernels) lose the same entries, and shapes, sizes, bounds, pads and indices in the file are
adjusted. The names of tensors and nodes stay.

Reference: He et al. 2017, Channel pruning for accelerating very deep neural networks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.chains.chain import Chain, Stage
from onnx_lowrank.chains.state_geometry import StateGeometry
from onnx_lowrank.channels.edits import EDITS, Cut, Mask, constant_operand
from onnx_lowrank.channels.groups import ChannelGroup
from onnx_lowrank.channels.labels import Flow, first_output
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.graph.nodes import Node
from onnx_lowrank.layers import PlacedLayer, find_layers, state_products
from onnx_lowrank.layers.writer import apply_chain, set_states

__all__ = ["Remains", "cut_channels", "cut_groups", "gather_input"]

Array = npt.NDArray[np.floating[Any]]
Weights = Mapping[str, tuple[Array, Array | None]]


@dataclass(frozen=True)
class Remains:
    """The tensors of a graph after a cut.

    Attributes:
        shapes: shapes of the tensors after the cut, by name.
        kept: masks of the positions kept along the axes that lost some, by tensor and axis.
        rows: masks of the rows kept of layers that lost some, by name.
    """

    shapes: dict[str, tuple[int, ...]]
    kept: Mapping[str, Mapping[int, Mask]]
    rows: Mapping[str, Mask] = field(default_factory=dict)


def cut_channels(
    graph: Graph, group: ChannelGroup, keep: Sequence[int], weights: Weights | None = None
) -> Remains:
    """Remove all channels of ``group`` but those in ``keep``; see :func:`cut_groups`."""
    return cut_groups(graph, [(group, keep)], weights)


def cut_groups(
    graph: Graph,
    cuts: Sequence[tuple[ChannelGroup, Sequence[int]]],
    weights: Weights | None = None,
) -> Remains:
    """Remove channels of several groups at once.

    Groups describe the graph as it was when they were found: find them again after a cut (the
    shapes returned save the inference).

    Args:
        graph: graph that the groups were found in, or an equal one; it is changed.
        cuts: groups from one :func:`~onnx_lowrank.channels.groups.find_channel_groups`, each with
            the numbers of the channels that stay.
        weights: new weight ``(N, kept, *kernel)`` and bias ``(N,)`` or None of some layers that
            make or read the channels, by name: with the kept columns only, but with all rows as
            they are before the cut.

    Returns:
        The tensors after the cut.

    Raises:
        ValueError: a group is frozen or was found in another graph, a channel is out of range,
            nothing would be left of a tensor, or a new weight fits no layer.
    """
    cut = _plan(graph, cuts)
    ends = {c.name for group, _ in cuts for c in group.consumers}
    ends |= {p.name for group, _ in cuts for p in group.producers}
    for name in weights or {}:
        if name not in ends:
            raise ValueError(f"{name!r} neither makes nor reads these channels")
    rows = {p.name: cut.rows(p.output) for group, _ in cuts for p in group.producers}
    edits: list[tuple[Node, dict[int, str], dict[str, Any]]] = []
    made: dict[tuple[str, bytes], str] = {}
    for node in graph.nodes:
        inputs, attrs = _edit(graph, cut, node, made)
        if inputs or attrs:
            edits.append((node, inputs, attrs))
    for node, inputs, attrs in edits:
        graph.change(node, inputs, attrs)
    for tensor in cut.kept:
        graph.forget_shape(tensor)
    shapes = {t: cut.shape(t) for t in cut.flow.shapes if not graph.is_constant(t)}
    for output in _set_weights(graph, weights or {}, rows):
        made_by = graph.producer(output)
        for operand in made_by.inputs if made_by is not None and made_by.op == "Add" else ():
            if not graph.is_constant(operand.name):  # a product that got a bias
                shapes.setdefault(operand.name, shapes[output])
    return Remains(
        shapes, cut.kept, {name: mask for name, mask in rows.items() if mask is not None}
    )


def gather_input(
    graph: Graph,
    consumer: str,
    channels: Sequence[int],
    weight: tuple[Array, Array | None] | None = None,
) -> str:
    """Make one layer read fewer channels, through a Gather in front of it.

    Args:
        graph: graph to change.
        consumer: name of the layer; it must have one group.
        channels: positions that it still reads on the channel axis of its input, in this order.
        weight: its new weight ``(N, len(channels), *kernel)`` and bias ``(N,)``.

    Returns:
        Name of the tensor that the layer reads now.

    Raises:
        ValueError: the layer does not exist, or cannot read through a Gather.
    """
    layer = next((x for x in find_layers(graph)[0] if x.name == consumer), None)
    if layer is None:
        raise ValueError(f"{consumer!r} is not a layer of this graph")
    if layer.groups > 1:
        raise ValueError(f"{consumer!r} has {layer.groups} groups; a Gather needs a single one")
    kept = np.asarray(channels, np.int64)
    if not kept.size or kept.min() < 0 or kept.max() >= layer.shape[1]:
        raise ValueError(f"{consumer!r} reads channels 0 to {layer.shape[1] - 1}")
    node = layer.nodes[0]
    data, axis, along = _reading(graph, node)
    if axis < 0:
        axis += graph.rank(layer.input) or 0
    if axis < 0 and graph.opset < 11:
        raise ValueError(f"the rank of {layer.input!r} is not known")
    value = constant_operand(graph, node, 1 - data).take(kept, along)
    gathered = graph.fresh(f"{layer.input}_gathered")
    operands = [layer.input, graph.add_constant(f"{consumer}_channels", kept)]
    name = graph.fresh(f"{consumer}_gather")
    graph.insert(node, lambda: graph.make_node("Gather", name, operands, gathered, {"axis": axis}))
    weight_name = node.inputs[1 - data].name
    renewed = graph.renew_constant(weight_name, value, f"{consumer}_weight")
    graph.change(node, {data: gathered, 1 - data: renewed})
    if weight is not None:
        list(_set_weights(graph, {consumer: weight}, {}))
    return gathered


def _plan(graph: Graph, cuts: Sequence[tuple[ChannelGroup, Sequence[int]]]) -> Cut:
    gone: list[int] = []
    for group, keep in cuts:
        if group.frozen is not None:
            raise ValueError(f"{group.name!r} cannot be cut: {group.frozen}")
        if group.flow is not cuts[0][0].flow:
            raise ValueError("the groups come from different searches")
        if any(not 0 <= k < group.size for k in keep):
            raise ValueError(f"{group.name!r} has channels 0 to {group.size - 1}")
        kept = set(keep)
        gone += [atom for i, atom in enumerate(group.atoms) if i not in kept]
    flow = cuts[0][0].flow if cuts else Flow(graph, {})
    cut = Cut(flow, np.array(gone, np.int64))
    for tensor, labels in flow.labels.items():
        if masks := cut.masks(labels, tensor):
            cut.kept[tensor] = masks
    for operand in flow.operands:
        name = f"operand {operand.index} of {operand.output}"
        masks = cut.masks(operand.labels, name)
        node = graph.producer(operand.output)
        value = None if node is None else graph.constant(node.inputs[operand.index].name)
        if value is None or not _fits(operand.labels.shape, value.shape):
            raise ValueError("the graph has changed since its channel groups were found")
        if masks:
            cut.operands[operand.output, operand.index].update(masks)
    return cut


def _fits(labels: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return len(labels) == len(shape) and all(
        n in (1, d) for n, d in zip(labels, shape, strict=True)
    )


def _edit(
    graph: Graph, cut: Cut, node: Node, made: dict[tuple[str, bytes], str]
) -> tuple[dict[int, str], dict[str, Any]]:
    """New constants (by input position) and attributes (by name) of one node."""
    inputs: dict[int, str] = {}
    attrs: dict[str, Any] = {}
    for index, operand in enumerate(node.inputs):
        masks = cut.operands.get((first_output(node), index))
        if masks:
            # nodes that share a constant still share it after the cut
            key = operand.name, b"".join(bytes([a]) + m.tobytes() for a, m in masks.items())
            if key not in made:
                value = graph.constant(operand.name)
                assert value is not None
                for axis, mask in masks.items():
                    value = value.compress(mask, axis)
                made[key] = graph.renew_constant(operand.name, value)
            inputs[index] = made[key]
    for (output, index), numbers in cut.flow.numbers.items():
        if output == first_output(node) and cut.changes(node.inputs[index].name):
            inputs[index] = graph.add_constant(f"{node.inputs[index].name}_before", numbers)
    joined = cut.flow.parts.get(first_output(node), ())
    touched = [*joined, *(t.name for t in (*node.inputs, *node.outputs))]
    loses_channels = any(name in cut.kept for name in touched)
    if loses_channels and node.op in EDITS:
        more, attrs = EDITS[node.op](graph, cut, node)
        inputs.update(more)
    return inputs, attrs


def _reading(graph: Graph, node: Node) -> tuple[int, int, int]:
    """Position of a layer's data, its channel axis, and the weight's axis of input channels."""
    if node.op == "Conv":
        return 0, 1, 1
    if node.op == "ConvTranspose":
        return 0, 1, 0
    if node.op == "Gemm":
        transposed = [graph.attribute(node, k, 0) for k in ("transA", "transB")]
        return 0, 0 if transposed[0] else 1, 1 if transposed[1] else 0
    if node.op == "MatMul":
        return (1, -2, -1) if graph.is_constant(node.inputs[0].name) else (0, -1, -2)
    return 0, 2, 2  # recurrent


def _set_weights(graph: Graph, weights: Weights, rows: Mapping[str, Mask | None]) -> Iterator[str]:
    """Give layers new weights, and yield the names of their outputs."""
    layers = _layers(graph) if weights else {}
    for name, (weight, bias) in weights.items():
        if name not in layers:
            raise ValueError(f"{name!r} is not a layer of this graph")
        layer = layers[name]
        if layer.value.recurrent:  # its node may have been replaced, for its other weight
            layer = _layers(graph)[name]
        kept = rows.get(name)
        if kept is not None:
            weight = weight[kept]
            bias = None if bias is None else bias[kept]
        if weight.shape != layer.shape:
            raise ValueError(f"{name!r} takes a weight of {layer.shape}, not {weight.shape}")
        if isinstance(layer.geometry, StateGeometry):
            set_states(graph, layer, weight, bias)
        else:
            apply_chain(graph, layer, Chain((Stage(weight, bias, layer.geometry),)))
        yield layer.output


def _layers(graph: Graph) -> dict[str, PlacedLayer]:
    """All layers of a graph, and the products of recurrent ones with their states, by name."""
    layers = find_layers(graph)[0]
    return {x.name: x for x in (*layers, *state_products(graph, layers))}
