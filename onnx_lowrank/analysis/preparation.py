"""A model made ready for passes: canonical, its layers read, their inputs measured."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from onnx_lowrank.analysis.collect import NO_HEADS, collect_moments
from onnx_lowrank.analysis.cost import Cost, model_cost, tensor_shapes
from onnx_lowrank.analysis.moment_cache import MomentCache
from onnx_lowrank.analysis.moment_store import MomentStore
from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.analysis.reader import batch_size
from onnx_lowrank.analysis.streaming import MEMORY, Streaming
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import (
    Head,
    Ineligible,
    PlacedLayer,
    find_heads,
    find_layers,
    refuse_optimised,
    state_products,
    states_name,
)
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.runtime.machine import machine
from onnx_lowrank.runtime.runtime import Runtime
from onnx_lowrank.samples.dataset import Dataset
from onnx_lowrank.samples.split import Samples

__all__ = [
    "Prepared",
    "measured_shapes",
    "moments_of",
    "prepare",
    "silent_notes",
]


@dataclass(frozen=True)
class Prepared:
    """A model with its layers and what is known of their inputs.

    Attributes:
        model: canonical.
        graph: of it; never changed.
        layers: that passes may touch, in topological order.
        left_out: other nodes with weights, and why.
        shapes: of tensors, at one sample.
        moments: of the layers' inputs, by name.
        unfinished: what is on disk of them as long as the run has not come to its end.
        states: products of recurrent layers with their own states, which pruning alone may touch.
    """

    model: Model
    graph: Graph
    layers: tuple[PlacedLayer, ...]
    left_out: tuple[Ineligible, ...]
    shapes: Mapping[str, tuple[int, ...]]
    moments: MomentStore
    unfinished: MomentCache | None = None
    states: tuple[PlacedLayer, ...] = ()

    @property
    def products(self) -> tuple[PlacedLayer, ...]:
        """The layers, then the :attr:`states`: all that makes and reads channels."""
        return (*self.layers, *self.states)

    @property
    def batch_size(self) -> int:
        """Samples at a time so that all tensors of the model fit in memory."""
        return batch_size(list(self.shapes), self.shapes, MEMORY)

    @cached_property
    def cost(self) -> Cost:
        """Cost of the model at one sample."""
        return model_cost(self.model, self.shapes)

    @property
    def notes(self) -> list[str]:
        """What the calibration data says nothing of, one sentence each."""
        return silent_notes(self.moments, len(self.layers))


def silent_notes(moments: MomentStore, layers: int) -> list[str]:
    """A sentence about the layers whose inputs do not vary over the calibration data."""
    silent = sorted(moments.silent)
    if not silent:
        return []
    named = ", ".join(silent[:4]) + (" ..." if len(silent) > 4 else "")
    return [
        f"the calibration data says nothing of {len(silent)} of {layers} layers ({named}): what "
        "they read is constant, or holds NaN and Inf; their weights are fitted instead of their "
        "responses: give samples that differ"
    ]


def prepare(
    model: Model,
    data: Samples,
    streaming: Streaming,
    refuse: Callable[[str], str | None],
    *,
    every_shape: bool = False,
    cache: Path | None = None,
    known: Callable[[Sequence[PlacedLayer]], MomentStore] | None = None,
) -> Prepared:
    """Read the layers of a canonical model and stream the data through them.

    Args:
        model: canonical.
        data: samples.
        streaming: how to run it over them.
        refuse: why a layer of this name is left out; None if it is not.
        every_shape: whether shapes of all tensors are needed, or those that costs are counted from.
        cache: folder of what interrupted runs have done.
        known: gives the moments of layers, where they follow from those of another model; None to
            measure them.

    Raises:
        ModelError: ONNX Runtime has laid the model out for itself.
    """
    graph = Graph(model)
    found, others = find_layers(graph)
    refuse_optimised(others)
    recurrent = state_products(graph, found)
    both = [*found, *recurrent]
    shapes = measured_shapes(model, graph, both, data.validation, streaming.runtime, every_shape)
    layers, left_out = [], list(others)
    for layer in found:
        reason = refuse(layer.name)
        if reason is None and layer.input not in shapes:
            reason = "the shape of its input is not known"
        if reason is None:
            layers.append(layer)
        else:
            left_out.append(layer.left_alone(reason))
    names = {states_name(layer.name) for layer in layers}
    states = tuple(p for p in recurrent if p.name in names and p.input in shapes)
    read, unfinished = [*layers, *states], None
    if known is not None:
        moments = known(read)
    else:
        if cache is not None and data.calibration is not None:
            unfinished = MomentCache(cache, _origin(model, read, data, streaming))
        moments = moments_of(
            graph, read, data.calibration, shapes, streaming,
            cache=unfinished, heads=find_heads(graph, layers, shapes),
        )  # fmt: skip
    return Prepared(
        model, graph, tuple(layers), tuple(left_out), shapes, moments, unfinished, states
    )


def measured_shapes(
    model: Model,
    graph: Graph,
    layers: Sequence[PlacedLayer],
    dataset: Dataset,
    runtime: Runtime,
    every: bool = False,
) -> dict[str, tuple[int, ...]]:
    """Shapes at a usual sample of what layers read, and of all that costs are counted from."""
    feed = dataset.feed(dataset.typical)
    needed = [layer.input for layer in layers]
    wished = [t.name for n in graph.nodes for t in n.outputs if t.name] if every else []
    inputs = {name: value.shape for name, value in feed.items()}
    return tensor_shapes(model, inputs, feed, runtime, needed, wished)


def moments_of(
    graph: Graph,
    layers: Sequence[PlacedLayer],
    calibration: Dataset | None,
    shapes: Mapping[str, tuple[int, ...]],
    streaming: Streaming,
    *,
    cache: MomentCache | None = None,
    heads: Mapping[str, Head] = NO_HEADS,
) -> MomentStore:
    """Moments of the layers' inputs; without data those of weight space."""
    if calibration is None:
        store = MomentStore()
        for layer in layers:
            store.add(Moments(), layer.name)
        return store
    return collect_moments(graph, layers, calibration, shapes, streaming, cache=cache, heads=heads)


def _origin(
    model: Model, layers: Sequence[PlacedLayer], data: Samples, streaming: Streaming
) -> dict[str, Any]:
    """All that the bits of the moments depend on."""
    digest = hashlib.sha256(model.digest.encode())
    for tensor in model.outside:
        for part in model.chunks(tensor):
            digest.update(part)
    return {
        "model": digest.hexdigest(),
        "layers": [layer.name for layer in layers],
        "data": data.digest,
        "seed": streaming.seed,
        "memory": streaming.memory,
        **machine(streaming.runtime),
    }
