"""Attention: the layers around a softmax over products of activations, found by structure.

    z = softmax(c q k^T + mask) v        q, k, v: layers behind Reshape, Transpose, Split, scales
    y = Wo z + bo                        Wo: the layer that alone reads z

From a Softmax over the last axis the product of queries and keys is found above it (behind scales,
masks and additions), and the product with the values below; the operator Attention is all three.
What lies between a layer and a product may only move numbers, or multiply them all by one number:
then a change of basis of a head's channels commutes with it. Which rows of a layer are channel j of
head h is not read off the nodes: labels (:mod:`onnx_lowrank.channels.labels`) are led from the
layers to the products. So it does not matter how heads are split, whether one layer makes queries,
keys and values together, whether several heads share keys, or whether keys come from another
sequence.

Reference: Vaswani et al. 2017, Attention is all you need; Shazeer 2019 (shared keys); Ainslie et
al. 2023 (grouped queries).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnx_lowrank.channels.around_softmax import SCALES, Seen, around_softmax, one_number
from onnx_lowrank.channels.atoms import IntArray
from onnx_lowrank.channels.attention_nodes import AttentionNode, operand_labels, refusals
from onnx_lowrank.channels.groups import follow
from onnx_lowrank.channels.labels import Flow, Heads, UnknownOperatorError, first_output, varying
from onnx_lowrank.channels.labels import label as node_label
from onnx_lowrank.channels.pairs import Attention, Pair, Projection
from onnx_lowrank.channels.rotary import is_rotary
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.graph.nodes import Node
from onnx_lowrank.layers import PlacedLayer

__all__ = ["find_attention", "one_channel_a_column", "one_channel_a_head"]

Shapes = Mapping[str, tuple[int, ...]]

#: operators that change no number
_MOVES = frozenset({
    "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Split", "Slice",
    "Gather", "Expand", "Cast",
})  # fmt: skip
#: nodes that are looked through for the layer that makes queries or keys
_FAR = 24


class _RefusedError(Exception):
    """Why a pair is left alone."""


def find_attention(graph: Graph, shapes: Shapes, layers: Sequence[PlacedLayer]) -> list[Attention]:
    """Find the blocks of attention of the main graph, in order.

    Args:
        graph: the graph; it is not changed.
        shapes: concrete shapes of all its tensors.
        layers: layers that may be changed.
    """
    seen = list(around_softmax(graph, shapes))
    nodes = [n for s in seen for n in (s.scoring, s.mixing) if n is not None]
    if not nodes:
        return []
    flow = follow(graph, shapes, Heads(frozenset(map(first_output, nodes))))
    reader = _Reader(flow, shapes, layers)
    return _used_once([
        Attention(
            s.softmax.name or first_output(s.softmax), s.scales,
            reader.pair(s, s.scoring, reader.scoring), reader.pair(s, s.mixing, reader.mixing),
            s.whole,
        )
        for s in seen
    ])  # fmt: skip


def one_channel_a_column(pairs: Sequence[Pair], layers: Sequence[PlacedLayer]) -> Heads:
    """Heads whose channels at one position are one channel, so that all keep the same width."""
    rows = _numbered(pairs, layers, {}, lambda places: places[:1, :1])
    return Heads(frozenset(pair.product for pair in pairs), rows)


def one_channel_a_head(graph: Graph, shapes: Shapes, layers: Sequence[PlacedLayer]) -> Heads:
    """Heads each of which is one channel, whatever stands between its layers and its products.

    Where it is not known which rows make a head of queries and keys, as under a rotary embedding,
    those that lie side by side are taken for it: a wrong guess ties more heads, not fewer.
    """
    every = list(around_softmax(graph, shapes))
    blocks = find_attention(graph, shapes, layers)
    products: set[str] = set()
    rows: dict[str, IntArray] = {}
    made = {layer.output: layer for layer in layers if not layer.value.lookup}
    for seen, block in zip(every, blocks, strict=True):
        if seen.scoring is None or seen.mixing is None:
            continue
        products |= {first_output(seen.scoring), first_output(seen.mixing)}
        for index in (0, 1) if isinstance(block.scoring, str) else ():
            name = seen.scoring.inputs[index].name
            shape, layer = shapes.get(name, ()), _somewhere_above(graph, made, name)
            if layer is not None and len(shape) > 1:
                width = seen.whole.widths[0] if seen.whole else shape[-2 if index else -1]
                rows[first_output(layer.nodes[0])] = np.arange(layer.shape[0]) // width * width
    pairs = [pair for block in blocks for pair in block.pairs]
    return Heads(
        frozenset(products), _numbered(pairs, layers, rows, lambda p: p[..., :1]), whole=True
    )


def _somewhere_above(
    graph: Graph, made: Mapping[str, PlacedLayer], tensor: str
) -> PlacedLayer | None:
    """The layer at the end of a path from a tensor, through whatever first operands."""
    for _ in range(_FAR):
        if tensor in made:
            return made[tensor]
        node = graph.producer(tensor)
        operands = [t.name for t in node.inputs] if node is not None else []
        tensor = next((n for n in operands if n and not graph.is_constant(n)), "")
    return None


def _numbered(
    pairs: Sequence[Pair],
    layers: Sequence[PlacedLayer],
    rows: dict[str, IntArray],
    channel: Callable[[IntArray], IntArray],
) -> dict[str, IntArray]:
    """Numbers of the channels that rows make, by the first output of a layer.

    Args:
        pairs: pairs of layers.
        layers: all layers.
        rows: a row of the same channel for each row, as far as it is known otherwise.
        channel: takes a row of each channel for all rows of heads.
    """
    nodes = {layer.name: layer for layer in layers}
    for pair in pairs:
        for made in (pair.first,) if pair.reads else (pair.first, pair.second):
            layer = nodes[made.layer]
            key = first_output(layer.nodes[0])
            numbers = rows.setdefault(key, np.arange(layer.shape[0], dtype=np.int64))
            numbers[made.places] = channel(made.places)
    return {key: np.unique(n, return_inverse=True)[1].astype(np.int64) for key, n in rows.items()}


class _Reader:
    """Reads which rows of which layers meet in a product, off the labels of its operands."""

    def __init__(self, flow: Flow, shapes: Shapes, layers: Sequence[PlacedLayer]) -> None:
        self._flow, self._graph, self._shapes = flow, flow.graph, shapes
        self._made = {layer.output: layer for layer in layers if not layer.value.lookup}
        self._read: dict[str, list[PlacedLayer]] = {}
        for layer in (la for la in layers if not la.value.lookup):
            self._read.setdefault(layer.input, []).append(layer)

    def pair(
        self, seen: Seen, node: Node | None, read: Callable[[Node, AttentionNode | None], Pair]
    ) -> Pair | str:
        """The pair that meets in ``node``, or why it is left alone."""
        if node is None:
            return "no product with values follows its softmax"
        try:
            return read(node, seen.whole)
        except _RefusedError as error:
            return str(error)
        except (UnknownOperatorError, LookupError) as error:
            return f"{node_label(node)} could not be read: {error}"

    def scoring(self, node: Node, whole: AttentionNode | None) -> Pair:
        """Queries and keys."""
        names = node.inputs[0].name, node.inputs[1].name
        query, key = map(self._maker, names)
        one, other = (self._operand(node, i, whole) for i in (0, 1))
        if whole is None:
            other = other.swapaxes(-1, -2)
        if one.shape[-2] > 1 or other.shape[-2] > 1:
            raise _RefusedError(f"{node_label(node)} does not sum over channels of {query.name}")
        rows = [self._rows(query, one[..., 0, :]), self._rows(key, other[..., 0, :])]
        q, k = (r.reshape(-1, r.shape[-1]) for r in np.broadcast_arrays(*rows))
        batch = np.broadcast_arrays(*rows)[0].shape[:-1]
        if len(np.unique(q)) < q.size:
            raise _RefusedError(f"several heads share the queries of {query.name}")
        first, heads = _shared(k)
        places = np.stack([q[heads == h] for h in range(len(first))])
        return Pair(
            Projection(query.name, places), Projection(key.name, k[first][:, None]), False, names,
            first_output(node), heads.reshape(batch), part=whole.parts[0] if whole else 1.0,
        )  # fmt: skip

    def mixing(self, node: Node, whole: AttentionNode | None) -> Pair:
        """Values, and the layer that reads them mixed."""
        names = (node.inputs[0].name, node.inputs[1].name)
        if whole is not None:
            names = "", node.inputs[2].name
        value, labels = self._maker(names[1]), self._operand(node, 2 if whole else 1, whole)
        if labels.shape[-2] > 1:
            raise _RefusedError(f"{node_label(node)} sums over channels of {value.name}")
        rows = self._rows(value, labels[..., 0, :])
        first, heads = _shared(rows.reshape(-1, rows.shape[-1]))
        places = rows.reshape(-1, rows.shape[-1])[first]
        output = self._reader(first_output(node))
        read = self._flow.of(output.input)
        if len(varying(read)) != 1 or read.size != output.shape[1]:
            raise _RefusedError(f"{output.name} reads heads in an order that is not followed")
        columns = self._rows(value, read.reshape(-1))
        order = np.argsort(columns, kind="stable")
        shared, left = divmod(columns.size, places.size)
        if left or (np.bincount(columns, minlength=1)[places] != shared).any():
            raise _RefusedError(f"{output.name} does not read all channels of {value.name}")
        start = np.searchsorted(columns[order], places)
        at = order[start[:, None, :] + np.arange(shared)[:, None]]
        return Pair(
            Projection(value.name, places[:, None]), Projection(output.name, at), True, names,
            first_output(node), heads.reshape(rows.shape[:-1]),
            part=whole.parts[1] if whole else 1.0,
        )  # fmt: skip

    def _operand(self, node: Node, index: int, whole: AttentionNode | None) -> IntArray:
        """Labels of an operand, ``(..., length, width)`` but for the keys of a MatMul."""
        if whole is None:
            return self._flow.of(node.inputs[index].name)
        refusal = refusals(self._graph, node)[index == 2]
        if refusal:
            raise _RefusedError(refusal)
        return operand_labels(self._flow, node, whole, index)

    def _rows(self, layer: PlacedLayer, labels: IntArray) -> IntArray:
        """The rows of a layer that labels are those of."""
        own = self._flow.labels[first_output(layer.nodes[0])].reshape(-1)
        order = np.argsort(own, kind="stable")
        at = np.searchsorted(own, labels, sorter=order).clip(max=own.size - 1)
        rows = order[at]
        if own.size != layer.shape[0] or (own[rows] != labels).any():
            raise _RefusedError(f"not all of its channels are made by {layer.name}")
        return np.asarray(rows, np.int64)

    def _maker(self, tensor: str) -> PlacedLayer:
        """The layer that makes a tensor, but for moves and a factor."""
        while tensor not in self._made:
            node = self._graph.producer(tensor)
            if node is None:
                raise _RefusedError(f"it reads {tensor}, which no layer makes")
            tensor = self._moved(node)
        return _narrowable(self._made[tensor])

    def _moved(self, node: Node) -> str:
        """The tensor that a node moves, or multiplies by one number."""
        if node.op in _MOVES:
            return str(node.inputs[0].name)
        scaled = one_number(self._graph, self._shapes, node) if node.op in SCALES else None
        if scaled is None and is_rotary(self._graph, node):
            raise _RefusedError(
                f"a rotary embedding ({node_label(node)}) turns pairs of their channels by position"
                ", so their basis must stay; values and whole heads may go"
            )
        if scaled is None:
            raise _RefusedError(f"{node_label(node)} stands between its layers and the product")
        return scaled[0]

    def _reader(self, tensor: str) -> PlacedLayer:
        """The layer that reads a tensor, but for moves and a factor."""
        while tensor not in self._read:
            following = [n for n in self._graph.consumers(tensor) if n.op != "Shape"]
            if len(following) != 1 or self._graph.is_output(tensor):
                raise _RefusedError("no single layer reads what it mixes")
            if self._moved(following[0]) != tensor:
                raise _RefusedError(f"{node_label(following[0])} reads what it mixes as a number")
            tensor = first_output(following[0])
        if len(self._read[tensor]) > 1:
            raise _RefusedError("several layers read what it mixes")
        return _narrowable(self._read[tensor][0])


def _used_once(blocks: Sequence[Attention]) -> list[Attention]:
    """The blocks without pairs whose channels other pairs have too, as keys that are values have.

    Each pair turns its channels to a basis of its own.
    """
    claims = Counter(c for b in blocks for pair in b.pairs for c in _claims(pair))

    def checked(pair: Pair | str) -> Pair | str:
        for claim in _claims(pair) if isinstance(pair, Pair) else ():
            if claims[claim] > 1:
                return f"channels of {claim[0]} are multiplied in several places"
        return pair

    return [replace(b, scoring=checked(b.scoring), mixing=checked(b.mixing)) for b in blocks]


def _claims(pair: Pair) -> Iterator[tuple[str, int, bool]]:
    """Layer, row or column, and whether it is a column, of all channels of a pair."""
    for side, reads in ((pair.first, False), (pair.second, pair.reads)):
        yield from ((side.layer, place, reads) for place in side.places.reshape(-1).tolist())


def _narrowable(layer: PlacedLayer) -> PlacedLayer:
    if layer.value.recurrent or layer.groups > 1 or layer.shape[2:].count(1) < len(layer.shape) - 2:
        raise _RefusedError(f"{layer.name} is no plain product with a matrix")
    if layer.sharers > 1:
        raise _RefusedError(f"{layer.name} shares its weight with other layers")
    return layer


def _shared(rows: IntArray) -> tuple[IntArray, IntArray]:
    """Numbers of the heads with different rows, and of each head among them."""
    first: dict[bytes, int] = {}
    heads = [first.setdefault(r.tobytes(), len(first)) for r in rows]
    numbers = np.array(heads, np.int64)
    return np.unique(numbers, return_index=True)[1], numbers
