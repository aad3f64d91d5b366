"""What the graph tells of an output: a linear layer or a Sigmoid that it comes from.

From the output back, through operators that only move, take or cast numbers: to a Sigmoid, to a
Concat of parts of which some are behind a Sigmoid, or (through a bias, a ReLU or an average over
positions too) to a linear layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.graph.nodes import Node
from onnx_lowrank.judge.reading import Structure
from onnx_lowrank.runtime.runtime import Runtime
from onnx_lowrank.samples.dataset import Dataset

__all__ = ["structures_of"]

Shape = tuple[int, ...]
#: part of a tensor along an axis counted from the end, and whether it is behind a Sigmoid; ``stop``
#: 0 is the whole tensor
Part = tuple[int, int, int, bool]

#: operators that move or cast numbers and keep them otherwise
_MOVERS = frozenset({
    "Cast", "CastLike", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose",
    "Unsqueeze",
})  # fmt: skip
#: operators behind a linear layer that leave its outputs class scores
_BEHIND = _MOVERS | {"Add", "AveragePool", "GlobalAveragePool", "ReduceMean", "Relu", "Sub"}
_PRODUCTS = frozenset({"FusedMatMul", "Gemm", "MatMul"})
_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "FusedConv"})
_SIGMOIDS = frozenset({"HardSigmoid", "Sigmoid"})
#: operators that take a part of a tensor, which is behind a Sigmoid where the tensor is
_TAKERS = frozenset({"Slice", "Split"})
#: number of nodes that are looked at for one output
_NODES = 64
_WHOLE: tuple[Part, ...] = ((-1, 0, 0, False),)


def structures_of(
    graph: Graph, outputs: Sequence[str], data: Dataset, runtime: Runtime
) -> dict[str, Structure]:
    """The structure of each output by name.

    Args:
        graph: the model.
        outputs: names of the tensors.
        data: samples; the first one is run where the extents of parts are needed.
        runtime: runs the model.
    """
    visited = {name: list(_visited(graph, name)) for name in outputs}
    parted = [name for name, nodes in visited.items() if any(n.op in _SIGMOIDS for n in nodes)]
    shapes: Mapping[str, Shape] = {}
    if parted:
        tensors = {t.name for p in parted for n in visited[p] for t in (*n.inputs, *n.outputs)}
        made = [t for t in tensors if t and graph.producer(t) is not None]
        fed = runtime.session(graph.extract(graph.input_types(), sorted(made)), lean=True)
        shapes = {n: getattr(v, "shape", ()) for n, v in fed.run(data.feed(0)).items()}
    found = {}
    for name in outputs:
        maps = _parts(graph, name, shapes, _NODES) if name in parted else _WHOLE
        features, product = _linear(graph, name)
        some = any(sigmoid for *_, sigmoid in maps)
        found[name] = Structure(features, product, maps if some else ())
    return found


def _visited(graph: Graph, tensor: str) -> Iterator[Node]:
    """Nodes on the way back from ``tensor`` to what makes its numbers, Concats being passed."""
    pending, seen = [tensor], {tensor}
    while pending and len(seen) < _NODES:
        node = graph.producer(pending.pop())
        if node is None:
            continue
        yield node
        passed = [t.name for t in node.inputs] if node.op == "Concat" else []
        if node.op in _MOVERS | _TAKERS and node.inputs:
            passed = [node.inputs[0].name]
        pending += [n for n in passed if n and n not in seen]
        seen |= set(passed)


def _parts(graph: Graph, tensor: str, shapes: Mapping[str, Shape], left: int) -> tuple[Part, ...]:
    """The parts of a tensor that are behind a Sigmoid, and those that are not, in order."""
    node = graph.producer(tensor)
    if node is None or not left:
        return _WHOLE
    if node.op in _SIGMOIDS:
        return ((-1, 0, 0, True),)
    if node.op in _MOVERS | _TAKERS:
        inner = _parts(graph, node.inputs[0].name, shapes, left - 1)
        if node.op in _MOVERS:
            return _moved(graph, node, inner, shapes)
        return inner if len(inner) == 1 and not inner[0][2] else _WHOLE
    if node.op != "Concat":
        return _WHOLE
    rank = len(shapes.get(tensor, ()))
    axis = int(graph.attribute(node, "axis", 1))
    axis -= rank if axis >= 0 else 0
    inner_parts = [_parts(graph, t.name, shapes, left - 1) for t in node.inputs]
    if all(len(parts) == 1 and not parts[0][2] for parts in inner_parts):
        extents = [shapes.get(t.name, (0,) * rank)[axis] for t in node.inputs]
        return _joined(axis, extents, [parts[0][3] for parts in inner_parts])
    first = inner_parts[0]
    # heads of several scales, one behind the other, all parted alike
    alike = all(parts == first for parts in inner_parts)
    return first if alike and first[0][0] != axis else _WHOLE


def _joined(axis: int, extents: Sequence[int], sigmoids: Sequence[bool]) -> tuple[Part, ...]:
    """Parts one behind the other, neighbours of one kind as one."""
    if len(set(sigmoids)) == 1:
        return ((-1, 0, 0, sigmoids[0]),)
    parts: list[Part] = []
    start = 0
    for extent, sigmoid in zip(extents, sigmoids, strict=True):
        if parts and parts[-1][3] == sigmoid:
            parts[-1] = (axis, parts[-1][1], start + extent, sigmoid)
        else:
            parts.append((axis, start, start + extent, sigmoid))
        start += extent
    return tuple(parts)


def _moved(
    graph: Graph, node: Node, parts: tuple[Part, ...], shapes: Mapping[str, Shape]
) -> tuple[Part, ...]:
    """Parts of what a node reads as parts of what it makes."""
    if not parts[0][2]:
        return parts
    axis = parts[0][0]
    before = shapes.get(node.inputs[0].name, ())
    after = shapes.get(node.outputs[0].name, ())
    if node.op == "Transpose":
        order = list(graph.attribute(node, "perm", range(len(before))[::-1]))
        axis = order.index(axis + len(before)) - len(order)
    elif before[axis:] != after[axis:]:
        return _WHOLE
    return tuple((axis, start, stop, sigmoid) for _, start, stop, sigmoid in parts)


def _linear(graph: Graph, tensor: str) -> tuple[int, bool]:
    """Number of outputs of the linear layer behind a tensor, and whether it is a matrix product."""
    for _ in range(_NODES):
        node = graph.producer(tensor)
        if node is None:
            break
        if node.op in _PRODUCTS | _CONVOLUTIONS:
            weight = graph.constant(node.inputs[1].name) if len(node.inputs) > 1 else None
            if weight is None:
                break
            return _outputs(graph, node, weight.shape), node.op in _PRODUCTS
        if node.op not in _BEHIND:
            break
        fed = [t.name for t in node.inputs if t.name and not graph.is_constant(t.name)]
        moves = node.op in _BEHIND - {"Add", "Sub"}
        if not fed or (len(fed) > 1 and not moves):
            break
        tensor = node.inputs[0].name if moves else fed[0]
    return 0, False


def _outputs(graph: Graph, node: Node, shape: Shape) -> int:
    if node.op in ("Conv", "FusedConv"):
        return shape[0]
    if node.op == "ConvTranspose":
        return shape[1] * int(graph.attribute(node, "group", 1))
    flag = "transB" if node.op != "MatMul" else ""
    return shape[-2] if flag and graph.attribute(node, flag, 0) else shape[-1]
