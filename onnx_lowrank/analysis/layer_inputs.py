"""What layers read: the tensors, and how patches are cut out of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from onnx_lowrank.analysis.phase_sums import phase_columns
from onnx_lowrank.chains.geometry import Geometry
from onnx_lowrank.chains.lookup_geometry import LookupGeometry
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import PlacedLayer, destination

__all__ = ["LayerInput", "grouped", "layer_inputs"]

#: part of the memory of a group that the last one may take more
_LITTLE = 1 / 4


@dataclass(frozen=True)
class LayerInput:
    """Patches that layers read.

    Attributes:
        tensor: name of the tensor that they are cut out of.
        geometry: how.
        width: length ``d`` of a group's patch.
        layers: that read them.
        sums: residual sums that the responses enter, by name of the layer.
    """

    tensor: str
    geometry: Geometry
    width: int
    layers: Sequence[PlacedLayer]
    sums: Mapping[str, str]

    @property
    def lookup(self) -> bool:
        """Whether the tensor holds numbers of rows, which are counted."""
        return isinstance(self.geometry, LookupGeometry)

    @property
    def bytes(self) -> int:
        """Memory of the sums and of the rows that wait, about."""
        if self.lookup:
            return 8 * self.width
        phases = phase_columns(self.geometry, self.width)
        return 12 * self.geometry.groups * sum(len(columns) ** 2 for columns in phases)


def layer_inputs(graph: Graph, layers: Sequence[PlacedLayer]) -> list[LayerInput]:
    """What ``layers`` read; layers that read the same have one set of moments."""
    found: dict[tuple[str, Geometry, int], list[PlacedLayer]] = {}
    for layer in layers:
        found.setdefault((layer.input, layer.geometry, layer.patch), []).append(layer)
    inputs = []
    for key, readers in found.items():
        ends = {la.name: destination(graph, la) for la in readers}
        inputs.append(LayerInput(*key, readers, {n: e.total for n, e in ends.items() if e.skip}))
    return inputs


def grouped(inputs: Sequence[LayerInput], memory: int) -> Iterator[list[LayerInput]]:
    """Yield inputs in groups whose sums fit in ``memory`` bytes together.

    Args:
        inputs: what layers read.
        memory: for the sums of a group; one that needs more is a group of its own. What is left
            over at the end joins the last group if it is little: another run of the model takes
            longer than it is worth.
    """
    group: list[LayerInput] = []
    held, left = 0, sum(each.bytes for each in inputs)
    for each in inputs:
        if group and held + each.bytes > memory and left > _LITTLE * memory:
            yield group
            group, held = [], 0
        group.append(each)
        held += each.bytes
        left -= each.bytes
    if group:
        yield group
