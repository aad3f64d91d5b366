"""Parts of a joined tensor that are read one at a time.

    Gather(Concat(a, b, c), 2)    is    Gather(c, 0)

Exporters join the last states of all layers of a recurrent net, and read those of one. The others
are then not read, and no channel of one part is tied to those of another.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.graph.nodes import Node

__all__ = ["Part", "part_read", "read_in_parts"]


@dataclass(frozen=True)
class Part:
    """One of the tensors that a Concat joins, and what a Gather reads of it.

    Attributes:
        tensor: name of the tensor.
        indices: what is read along the axis, counted from the start of the part.
    """

    tensor: str
    indices: npt.NDArray[np.int64]


def part_read(graph: Graph, gather: Node) -> Part | None:
    """The one part of a joined tensor that a Gather reads; None where there is not one."""
    source = gather.inputs[0].name
    concat, indices = graph.producer(source), graph.constant(gather.inputs[1].name)
    if concat is None or concat.op != "Concat" or indices is None or not indices.size:
        return None
    names = [str(t.name) for t in concat.inputs]
    known = [graph.extents(name) for name in names]
    if any(extents is None for extents in known):
        return None
    rank = len(known[0] or ())
    axes = [int(graph.attribute(node, "axis", 0)) % max(rank, 1) for node in (concat, gather)]
    sizes = [extents[axes[0]] for extents in known if extents is not None and len(extents) == rank]
    if axes[0] != axes[1] or len(sizes) != len(names) or None in sizes:
        return None
    ends = np.cumsum(np.array(sizes, np.int64))
    wanted = np.where(indices < 0, indices + ends[-1], indices)
    parts = np.unique(np.searchsorted(ends, wanted, side="right"))
    if len(parts) != 1 or not 0 <= int(parts[0]) < len(names):
        return None
    place = int(parts[0])
    start = int(ends[place - 1]) if place else 0
    return Part(names[place], np.asarray(wanted - start, np.int64))


def read_in_parts(graph: Graph, concat: Node) -> bool:
    """Whether all that reads a joined tensor are Gathers of one part each."""
    output = concat.outputs[0].name
    readers = graph.consumers(output)
    inner = {id(node) for node in graph.nodes}
    return (
        bool(readers)
        and not graph.is_output(output)
        and all(
            node.op == "Gather" and id(node) in inner and part_read(graph, node) is not None
            for node in readers
        )
    )
