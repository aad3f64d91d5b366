"""Shards of the calibration samples, read by workers and added up here in their order.

A worker gets the model once, and with each shard its samples; it gives back arrays, the products of
the rows that it has read. Weights in files beside the model are read there under the same name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt

from onnx_lowrank.analysis.reader import InputGroup, Reader, input_groups
from onnx_lowrank.errors import ModelError
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import Head, find_layers, state_products
from onnx_lowrank.modelfile.external_data import check
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.runtime.runtime import Runtime
from onnx_lowrank.runtime.session import Feed, Session
from onnx_lowrank.samples.padding import Mask

__all__ = ["Shard", "ShardedModel", "read_shard"]


@dataclass(frozen=True)
class Shard:
    """Samples that one call reads.

    Attributes:
        group: number of the group of inputs.
        first: number of the first batch.
        batches: their inputs, and the number of samples in each.
    """

    group: int
    first: int
    batches: Sequence[tuple[Feed, int]]


@dataclass(frozen=True)
class ShardedModel:
    """All that workers need to know to read shards, beside the samples.

    Attributes:
        model: whose values are inside it, or in files that workers see under the same name.
        layers: names of those whose inputs are read, in order.
        heads: class scores that layers make, by layer name.
        samples: number of samples of all shards.
        memory: bytes for the sums of a group of inputs.
        seed: of what is drawn.
        runtime: that the model is run in.
        mask: input that marks padding; None where all positions count.
    """

    model: Model
    layers: Sequence[str]
    heads: Mapping[str, Head]
    samples: int
    memory: int
    seed: int
    runtime: Runtime
    mask: Mask | None = None
    _known: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """What is sent; what a worker has made of it stays there."""
        return {**self.__dict__, "_known": {}}

    def opened(self, number: int) -> tuple[InputGroup, Session | None]:
        """A group of inputs with the session that makes them; the last one is kept.

        Raises:
            ModelError: the model does not run, or its weights are not here.
        """
        if "groups" not in self._known:
            self._check()
            graph = Graph(self.model)
            found, _ = find_layers(graph)
            named = {layer.name: layer for layer in [*found, *state_products(graph, found)]}
            layers = [named[name] for name in self.layers]
            self._known["groups"] = input_groups(graph, layers, self.heads, self.memory)
        if self._known.get("number") != number:
            group: InputGroup = self._known["groups"][number]
            self._known.update(number=number, opened=(group, group.session(self.runtime)))
        opened: tuple[InputGroup, Session | None] = self._known["opened"]
        return opened

    def _check(self) -> None:
        """Refuse weights that are not here."""
        folder = self.model.folder or Path()
        try:
            for tensor in self.model.outside:
                check(folder, tensor)
        except ModelError as error:
            raise ModelError(
                f"a worker does not see the weights of the model ({error}); share {folder} with it "
                "under this name"
            ) from error


def read_shard(sharded: ShardedModel, shard: Shard) -> dict[str, npt.NDArray[Any]]:
    """Read one shard, for :meth:`Reader.add_shard`."""
    group, session = sharded.opened(shard.group)
    reader = Reader(
        group, [sharded.seed, shard.group], sharded.samples, recording=True, mask=sharded.mask
    )
    for number, (feed, samples) in enumerate(shard.batches, shard.first):
        reader.run(session, feed, number, samples)
    reader.end_shard()
    return reader.shard()
