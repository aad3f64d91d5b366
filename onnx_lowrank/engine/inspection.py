"""What is in a model: its layers, what they cost, and which can be taken apart."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnx
from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnx_lowrank.analysis.cost import Cost, model_cost, tensor_shapes
from onnx_lowrank.channels.attention import find_attention
from onnx_lowrank.engine.options import DEFAULT_PASSES
from onnx_lowrank.errors import ModelError, OptionError
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import PlacedLayer, find_layers
from onnx_lowrank.modelfile.model import load
from onnx_lowrank.passkit.base import Factorization
from onnx_lowrank.planning.registry import parse_list
from onnx_lowrank.report.report import short
from onnx_lowrank.runtime.runtime import Feed, Runtime
from onnx_lowrank.samples.dataset import input_specs
from onnx_lowrank.samples.split import made_up

__all__ = ["AttentionInfo", "Inspection", "LayerInfo", "inspect"]


@dataclass(frozen=True)
class LayerInfo:
    """One node with weights.

    Attributes:
        name: of the node, or of its output.
        op: operator.
        shape: of the weight, ``(N, C / groups, *kernel)``; empty where it was not read.
        groups: number of groups.
        macs: multiply-accumulates; None where they cannot be counted.
        params: elements of weight and bias.
        eligible: whether some pass can take it apart.
        reason: the passes that can, or why none can.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    groups: int
    macs: int | None
    params: int
    eligible: bool
    reason: str


@dataclass(frozen=True)
class AttentionInfo:
    """One block of attention.

    Attributes:
        name: of its softmax.
        heads: number of heads; 0 where they were not read.
        width: channels of a head.
        macs: multiply-accumulates of its two products, without its layers.
        layers: names of the layers around it.
        reason: why its queries and keys, or its values, cannot be narrowed; empty if they can.
    """

    name: str
    heads: int
    width: int
    macs: int
    layers: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Inspection:
    """A model's cost and layers.

    Attributes:
        cost: of the whole model, counted from the file.
        layers: nodes with weights, in topological order, those in subgraphs last.
        notes: what could not be counted, and the remedy.
        attention: blocks of attention, in topological order.
    """

    cost: Cost
    layers: tuple[LayerInfo, ...]
    notes: tuple[str, ...]
    attention: tuple[AttentionInfo, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as printed by ``--json``."""
        cost = self.cost
        return {
            "schema": 1,
            "model": cost.to_dict(),
            "layers": [asdict(layer) for layer in self.layers],
            "attention": [asdict(block) for block in self.attention],
            "notes": list(self.notes),
        }

    def print(self, console: Console) -> None:
        """A table of the layers, then the sums."""
        table = Table(box=None, pad_edge=False)
        table.add_column("layer", overflow="fold")
        table.add_column("op")
        table.add_column("weight")
        for column in ("groups", "MACs", "parameters"):
            table.add_column(column, justify="right")
        table.add_column("passes, or why not", overflow="fold", style="dim")
        for layer in self.layers:
            table.add_row(
                Text(short(layer.name)),
                layer.op,
                "x".join(map(str, layer.shape)),
                str(layer.groups) if layer.groups > 1 else "",
                "?" if layer.macs is None else f"{layer.macs:,}",
                f"{layer.params:,}",
                layer.reason,
            )
        console.print(table)
        if self.attention:
            console.print(self._blocks())
        cost = self.cost
        console.print(
            f"{cost.macs:,} {cost.macs_label}, {cost.parameters:,} parameters, "
            f"{cost.bytes:,} bytes",
            highlight=False,
        )
        for note in self.notes:
            console.print(Text(f"note: {note}", style="yellow"))

    def _blocks(self) -> Table:
        table = Table(box=None, pad_edge=False)
        table.add_column("attention", overflow="fold")
        for column in ("heads", "width", "MACs of products"):
            table.add_column(column, justify="right")
        table.add_column("layers, or why not", overflow="fold", style="dim")
        for block in self.attention:
            told = block.reason or ", ".join(short(name) for name in block.layers)
            sizes = block.heads or "?", block.width or "?"
            table.add_row(Text(short(block.name)), *map(str, sizes), f"{block.macs:,}", told)
        return table


def _attention(
    graph: Graph, layers: Sequence[PlacedLayer], shapes: Mapping[str, tuple[int, ...]], cost: Cost
) -> Iterator[AttentionInfo]:
    for block in find_attention(graph, shapes, layers):
        first = next(iter(block.pairs), None)
        names = dict.fromkeys(name for pair in block.pairs for name in pair.layers)
        yield AttentionInfo(
            block.name,
            0 if first is None else first.heads.size,
            0 if first is None else first.width,
            sum(cost.counts.of(pair.product) or 0 for pair in block.pairs),
            tuple(names),
            "; ".join(block.refused.values()),
        )


def inspect(
    model: str | os.PathLike[str] | onnx.ModelProto,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
) -> Inspection:
    """List the layers of a model with their costs, and which can be taken apart.

    Args:
        model: path or ModelProto.
        input_shapes: for inputs with dynamic axes; the batch counts as 1 by default.

    Raises:
        ModelError: the model cannot be read.
        OptionError: a given shape does not fit.
    """
    source = load(model)
    graph = Graph(source)
    layers, others = find_layers(graph)
    notes: list[str] = []
    feed: Feed | None = None
    try:
        feed = made_up(input_specs(source), input_shapes or {}, seed=0, count=1)[0]
    except (OptionError, ModelError) as error:
        if input_shapes:
            raise
        notes.append(f"MACs are not counted everywhere: {error}")
    given = {} if feed is None else {k: v.shape for k, v in feed.items()}
    try:
        scores = any(node.op == "Softmax" for node in graph.nodes)
        every = [t.name for n in graph.nodes for t in n.outputs if t.name] if scores else []
        shapes = tensor_shapes(source, given, feed, Runtime(), wished=every)
    except ModelError as error:
        shapes = tensor_shapes(source, given)
        notes.append(f"MACs are not counted everywhere: {error}")
    cost = model_cost(source, shapes)
    passes = parse_list(DEFAULT_PASSES).factorizations
    infos = [_info(layer, passes, cost.counts.of(_made(layer))) for layer in layers]
    infos += [
        LayerInfo(o.name, o.op, (), 1, cost.counts.of(o.output, main=o.main), 0, False, o.reason)
        for o in others
    ]
    blocks = tuple(_attention(graph, layers, shapes, cost))
    return Inspection(cost, tuple(infos), (*notes, *cost.remarks), blocks)


def _made(layer: PlacedLayer) -> str:
    """The first output of the node that holds a layer's weight."""
    return str(next(t.name for t in layer.nodes[0].outputs if t.name))


def _info(layer: PlacedLayer, passes: Sequence[Factorization], macs: int | None) -> LayerInfo:
    refusals = {p.name: p.skips(layer.value) for p in passes}
    able = [name for name, refusal in refusals.items() if refusal is None]
    reason = ", ".join(able) or "; ".join(
        f"{name}: {skip.reason}" for name, skip in refusals.items() if skip is not None
    )
    return LayerInfo(
        layer.name,
        layer.op,
        layer.shape,
        layer.groups,
        macs,
        layer.value.outline.parameters,
        bool(able),
        reason,
    )
