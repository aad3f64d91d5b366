"""Prunables: channels of a model that may go, in a group, in heads, or in front of one layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.analysis.preparation import Prepared
from onnx_lowrank.channels.attention import (
    find_attention,
    one_channel_a_column,
    one_channel_a_head,
)
from onnx_lowrank.channels.groups import ChannelGroup, find_channel_groups
from onnx_lowrank.channels.pairs import Attention, Pair, Projection
from onnx_lowrank.layers import PlacedLayer
from onnx_lowrank.pruning.greedy import Side

__all__ = ["Found", "Product", "Prunable", "find_prunables", "norms"]

Array = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Prunable:
    """Channels that may go: those of a group, or those that one layer reads, through a Gather.

    Attributes:
        name: name of the group; the layer's name and ``(input)`` for a Gather.
        size: number of channels.
        group: group to cut; None for a Gather in front of the only reader.
        readers: layers that read the channels, each with the positions ``(size, w)`` of each
            channel on its axis of inputs.
        sides: layers that make, carry or read the channels, and products of activations that they
            pass, which are numbered behind the layers.
        pairs: queries and keys, values and their readers, whose channels these are.
    """

    name: str
    size: int
    group: ChannelGroup | None
    readers: tuple[tuple[PlacedLayer, Labels], ...]
    sides: tuple[Side, ...]
    pairs: tuple[Pair, ...] = ()


@dataclass(frozen=True)
class Product:
    """A product of two activations that channels of heads pass, or that is made of heads.

    Attributes:
        macs: its cost.
        width: number of channels of a head, or of heads.
    """

    macs: int
    width: int


@dataclass(frozen=True)
class Found:
    """The channel groups and prunables of a model.

    Attributes:
        groups: all channel groups.
        refused: reasons why groups must stay, by name of the group.
        prunables: channels that may go, by name.
        blocks: blocks of attention.
        products: products that prunables pass, in the order of their numbers.
    """

    groups: Sequence[ChannelGroup]
    refused: Mapping[str, str]
    prunables: Mapping[str, Prunable]
    blocks: Sequence[Attention] = ()
    products: Sequence[Product] = ()

    def excludes(self, prunable: Prunable) -> frozenset[str]:
        """Names of the groups that a Gather excludes, because its layer reads them."""
        if prunable.group is not None:
            return frozenset()
        reader = prunable.readers[0][0]
        return frozenset(
            p.name for p in self.prunables.values()
            if p.group is not None and any(la is reader for la, _ in p.readers)
        )  # fmt: skip


def find_prunables(
    prepared: Prepared, channels: bool, gather: bool, heads: bool, whole: bool = False
) -> Found:
    """Find all groups and prunables.

    Args:
        prepared: the model.
        channels: whether channels of groups may go.
        gather: whether single layers may read fewer of their inputs.
        heads: whether channels of attention heads may go.
        whole: whether attention heads may go as channels of groups; then not their channels.
    """
    layers = {layer.name: layer for layer in prepared.products}
    graph, shapes = prepared.graph, prepared.shapes
    blocks = find_attention(graph, shapes, prepared.layers) if heads else []
    pairs = [pair for block in blocks for pair in _weighable(block)]
    followed = one_channel_a_column(pairs, prepared.layers) if pairs else None
    if whole:
        followed = one_channel_a_head(graph, shapes, prepared.layers)
    groups = find_channel_groups(prepared.graph, prepared.shapes, followed)
    refused = {g.name: r for g in groups if (r := _refusal(g, layers))}
    inside = _in_heads(groups, refused, pairs)
    for group in groups:
        if group.name in inside and not _accounted_for(group, inside[group.name]):
            refused[group.name] = "other layers read or make them too, in another basis"
            del inside[group.name]
    for group in groups:
        if group.name not in inside:
            if group.products and not whole:
                refused.setdefault(group.name, "not all that is multiplied with them was found")
            elif not channels:
                refused.setdefault(group.name, "only channels of heads may go")
    products: list[Product] = []
    found = [_with_heads(p, inside, prepared, products) for p in _cuts(groups, refused, layers)]
    if gather:
        found += _gathers(groups, refused, prepared.layers)
    return Found(groups, refused, {p.name: p for p in found}, blocks, products)


def _weighable(block: Attention) -> tuple[Pair, ...]:
    """The pairs of a block; queries and keys only where it is known what reads the mixed values."""
    return block.pairs if isinstance(block.mixing, Pair) else ()


def _in_heads(
    groups: Sequence[ChannelGroup], refused: Mapping[str, str], pairs: Sequence[Pair]
) -> dict[str, tuple[Pair, ...]]:
    """Pairs whose channels are those of a group, in its order, by the group's name."""
    channels: dict[tuple[str, int], tuple[str, int]] = {}
    for group in groups:
        for producer in group.producers if group.name not in refused else ():
            for number, rows in enumerate(producer.rows):
                channels |= {(producer.name, row): (group.name, number) for row in rows}
    found: dict[str, tuple[Pair, ...]] = {}
    sizes = {group.name: group.size for group in groups}
    for pair in pairs:
        made = [channels.get((pair.first.layer, int(row))) for row in pair.first.places[0, 0]]
        names = {group for group, _ in filter(None, made)}
        if None in made or len(names) != 1 or sizes[next(iter(names))] != pair.width:
            continue
        order = np.argsort([number for _, number in filter(None, made)])
        ordered = [Projection(p.layer, p.places[..., order]) for p in (pair.first, pair.second)]
        name = names.pop()
        own = replace(pair, first=ordered[0], second=ordered[1], order=order)
        found[name] = (*found.get(name, ()), own)
    return found


def _accounted_for(group: ChannelGroup, pairs: Sequence[Pair]) -> bool:
    """Whether pairs say all that makes, multiplies and reads the channels of a group."""
    reading = [p for p in pairs if p.reads]
    scoring = [p for p in pairs if not p.reads]
    made = {*(p.first.layer for p in pairs), *(p.second.layer for p in scoring)}
    return (
        {p.name for p in group.producers} == made
        and {c.name for c in group.consumers} == {p.second.layer for p in reading}
        and set(group.products) == {p.product for p in scoring}
    )


def _with_heads(
    prunable: Prunable,
    inside: Mapping[str, tuple[Pair, ...]],
    prepared: Prepared,
    products: list[Product],
) -> Prunable:
    """The same with the pairs of a group, and the products that its channels pass."""
    pairs = inside.get(prunable.name, ())
    sides = list(prunable.sides)
    for output in prunable.group.products if prunable.group and not pairs else ():
        sides.append(Side(len(prepared.products) + len(products), True, 1))
        products.append(Product(prepared.cost.counts.of(output) or 0, prunable.size))
    for pair in pairs:
        sides.append(Side(len(prepared.products) + len(products), pair.reads, 1))
        macs = (prepared.cost.counts.of(pair.product) or 0) * pair.part
        products.append(Product(round(macs), pair.width))
    return replace(prunable, sides=tuple(sides), pairs=pairs)


def norms(prunable: Prunable, layers: Mapping[str, PlacedLayer]) -> tuple[Array, Array]:
    """L1 and L2 norms ``(size,)`` of the rows that make each channel, else of its columns."""
    if prunable.group is not None and prunable.group.producers:
        blocks = [
            layers[p.name].stage.weight[np.array(p.rows)].reshape(prunable.size, -1)
            for p in prunable.group.producers
        ]
    else:
        blocks = [
            np.moveaxis(layer.stage.weight, 1, 0)[positions].reshape(prunable.size, -1)
            for layer, positions in prunable.readers
        ]
    joined = np.concatenate(blocks, axis=1)
    return np.abs(joined).sum(axis=1), np.sqrt(np.square(joined).sum(axis=1))


def _refusal(group: ChannelGroup, layers: Mapping[str, PlacedLayer]) -> str | None:
    if group.frozen is not None:
        return group.frozen
    for name in (*(p.name for p in group.producers), *(c.name for c in group.consumers)):
        if name not in layers:
            return f"{name} is left alone"
    ends = [*(p.rows for p in group.producers), *(c.columns for c in group.consumers)]
    if any(len({len(units) for units in end}) > 1 for end in ends):
        return "its channels have different numbers of rows or columns"
    return "it has a single channel" if group.size < 2 else None


def _cuts(
    groups: Sequence[ChannelGroup], refused: Mapping[str, str], layers: Mapping[str, PlacedLayer]
) -> Iterator[Prunable]:
    numbers = {name: i for i, name in enumerate(layers)}
    for group in groups:
        if group.name in refused:
            continue
        readers = tuple(
            (layers[c.name], np.array(c.columns, np.intp).reshape(group.size, -1))
            for c in group.consumers
        )
        carried = {output: entries for output, position, entries in group.carried if position == 1}
        sides = [Side(numbers[la.name], False, positions.shape[1]) for la, positions in readers]
        sides += [Side(numbers[p.name], True, len(p.rows[0])) for p in group.producers]
        for layer in layers.values():
            entries = carried.get(layer.nodes[0].outputs[0].name)
            if layer.value.depthwise and entries:
                # entries are outputs in the weight of a Conv, inputs in that of a ConvTranspose
                made = layer.shape[0] // layer.groups if layer.op == "ConvTranspose" else 1
                sides.append(Side(numbers[layer.name], True, entries * made))
        yield Prunable(group.name, group.size, group, readers, tuple(sides))


def _gathers(
    groups: Sequence[ChannelGroup], refused: Mapping[str, str], layers: Sequence[PlacedLayer]
) -> Iterator[Prunable]:
    """Yield the layers whose inputs may be cut independently of the groups, by a Gather.

    Recurrent layers are not among them: what their gates lose with an input comes back at each
    step, which the loss of one step does not foresee (on a speaker encoder 0.8 % were foreseen, and
    the states were 75 % wrong).
    """
    served = {
        g.consumers[0].name for g in groups
        if g.name not in refused and len(g.consumers) == 1 and len(g.consumers[0].columns[0]) == 1
    }  # fmt: skip
    for number, layer in enumerate(layers):
        inputs = layer.shape[1]
        if layer.name in served or layer.groups > 1 or inputs < 2 or layer.sharers > 1:
            continue
        if layer.value.lookup or layer.value.recurrent:
            continue
        readers = ((layer, np.arange(inputs)[:, None]),)
        yield Prunable(f"{layer.name} (input)", inputs, None, readers, (Side(number, False, 1),))
