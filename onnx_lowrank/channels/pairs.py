"""Blocks of attention as pairs of layers whose channels meet in a product."""

from __future__ import annotations

from dataclasses import dataclass

from onnx_lowrank.channels.atoms import IntArray
from onnx_lowrank.channels.attention_nodes import AttentionNode

__all__ = ["Attention", "Pair", "Projection"]


@dataclass(frozen=True)
class Projection:
    """A layer that makes or reads the channels of heads.

    Attributes:
        layer: its name.
        places: rows of its weight (columns, of the layer that reads) that belong to each channel,
            ``(heads, n, width)``; n > 1 where several heads share what is on the other side.
    """

    layer: str
    places: IntArray


@dataclass(frozen=True)
class Pair:
    """Two layers whose channels meet: queries and keys, or values and the layer that reads them.

    Attributes:
        first: the layer that makes queries, or values.
        second: the layer that makes keys, or reads the mixed values.
        reads: whether the second layer reads the channels; else it makes the other side's.
        operands: names of the two tensors whose product they meet in; empty for the softmax
            inside of a node.
        product: its output.
        part: part of the MACs of the node that makes ``product``.
        heads: number of the head, by position on the product's batch axes; broadcasts to them.
        order: positions of the channels in the operands, ``(width,)``; None for rising ones.
    """

    first: Projection
    second: Projection
    reads: bool
    operands: tuple[str, str]
    product: str
    heads: IntArray
    order: IntArray | None = None
    part: float = 1.0

    @property
    def width(self) -> int:
        """Number of channels of a head."""
        return int(self.first.places.shape[-1])

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the two layers; one name where they are one layer."""
        return tuple(dict.fromkeys((self.first.layer, self.second.layer)))


@dataclass(frozen=True)
class Attention:
    """One block of attention.

    Attributes:
        name: name of the node of the softmax.
        scales: tensors of one element that scores are multiplied by (or divided by: True) between
            the product and the softmax.
        scoring: queries and keys, or why they are left alone.
        mixing: values and the layer that reads them, or why they are left alone.
        whole: how the operator Attention is read, where the block is one such node.
    """

    name: str
    scales: tuple[tuple[str, bool], ...]
    scoring: Pair | str
    mixing: Pair | str
    whole: AttentionNode | None = None

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """The pairs that were found."""
        return tuple(p for p in (self.scoring, self.mixing) if isinstance(p, Pair))

    @property
    def refused(self) -> dict[str, str]:
        """Reasons why pairs are left alone, by the name of the block and what they are."""
        pairs = (("queries and keys", self.scoring), ("values", self.mixing))
        return {f"{self.name} ({what})": p for what, p in pairs if isinstance(p, str)}
