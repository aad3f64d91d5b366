"""What is in a model: its layers, what they cost, and which can be taken apart."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

import onnx

from onnx_lowrank.analysis.cost import Cost, model_cost, tensor_shapes
from onnx_lowrank.channels.attention import find_attention
from onnx_lowrank.engine.option_groups import DEFAULT_PASSES
from onnx_lowrank.errors import ModelError, OptionError
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import PlacedLayer, find_layers
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.passkit.base import Factorization, Skip
from onnx_lowrank.planning.registry import parse_list
from onnx_lowrank.report.inspection import AttentionInfo, Inspection, LayerInfo
from onnx_lowrank.runtime.runtime import Runtime
from onnx_lowrank.runtime.session import Feed
from onnx_lowrank.samples.dataset import input_specs
from onnx_lowrank.samples.made_up import made_up

__all__ = ["AttentionInfo", "Inspection", "LayerInfo", "inspect"]


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
            round(sum((cost.counts.of(pair.product) or 0) * pair.part for pair in block.pairs)),
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
        scores = any(node.op in ("Softmax", "Attention") for node in graph.nodes)
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
    reason = ", ".join(able) or _why(refusals)
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


def _why(refusals: Mapping[str, Skip | None]) -> str:
    """Why no pass can take a layer apart: each reason once, that of most passes first."""
    by_reason: dict[str, list[str]] = {}
    for name, skip in refusals.items():
        if skip is not None:
            by_reason.setdefault(skip.reason, []).append(name)
    told = sorted(by_reason.items(), key=lambda item: -len(item[1]))
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in told)
