"""Labels: the channel that every position of a tensor belongs to.

A channel is an *atom*, a number. Every tensor has an integer array that broadcasts to its shape
and holds the atom of each position: ``(1, C, 1, 1)`` behind a convolution, ``(1, C * h * w)`` with
each atom repeated ``h * w`` times behind a Flatten, ``(1, g, C / g, 1, 1)`` in a channel shuffle.
An operator does to the labels what it does to its data; where two positions must stay or go
together (the operands of an Add), their atoms are tied (union-find). Atoms that must stay are
frozen, with a reason; positions that belong to no channel (those of a graph input) have a *fixed*
atom, which freezes every atom tied to it.

Reference: Fang et al. 2023, DepGraph: towards any structural pruning.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.channels.atoms import Atoms, IntArray
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.graph.nodes import Node

__all__ = [
    "Dim", "Flow", "Heads", "Operand", "UnknownOperatorError", "first_output", "integers", "joined",
    "label", "narrowed", "operand_name", "padded", "reshape_labels", "varying",
]  # fmt: skip


class UnknownOperatorError(Exception):
    """No rule says what a node does to its channels; caught where the rules are called."""


@dataclass(frozen=True)
class Dim:
    """An extent that the model reads at run time: ``Shape(tensor)[axis]``.

    Attributes:
        tensor: name of the tensor.
        axis: the axis.
        span: number of axes, that one and those behind it, whose extents are multiplied.
    """

    tensor: str
    axis: int
    span: int = 1

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes whose extents are multiplied."""
        return tuple(range(self.axis, self.axis + self.span))


@dataclass(frozen=True)
class Operand:
    """A constant operand with channels along its axes.

    Attributes:
        output: name of the node's first output, which identifies it in any copy of the graph.
        index: position among the node's inputs.
        labels: atoms, which broadcast to the constant's shape.
        role: ``rows`` (they make channels), ``columns`` (they read channels) or ``carried`` (one
            entry for each channel).
    """

    output: str
    index: int
    labels: IntArray
    role: str


@dataclass(frozen=True)
class Heads:
    """What is known of attention beforehand.

    Attributes:
        products: first outputs of the products of two activations whose channels are followed.
        rows: numbers of the channels that the rows of a layer make, ``(N,)``, by the first output
            of its first node; rows of one number are one channel.
        whole: whether a head is one channel; else its channels are followed one by one.
    """

    products: frozenset[str] = frozenset()
    rows: Mapping[str, IntArray] = field(default_factory=dict)
    whole: bool = False


@dataclass
class Flow:
    """The labels of a graph as they become known, node by node.

    Attributes:
        graph: the graph; it is not changed.
        shapes: concrete shapes of its tensors.
        atoms: the channels.
        labels: labels of every activation tensor, by name.
        dims: tensors of extents, by name: integers, :class:`Dim`, or None for computed numbers.
        operands: constant operands with channels.
        unread: reasons why the node that makes a tensor could not be followed, by tensor.
        weights: labels of the rows and of the columns of each weight so far, and how it is read.
        heads: what is known of attention beforehand.
        summed: labels that a product of two activations sums over, by its output; those of the
            heads that it is made of, where heads are whole.
        numbers: values of the integers that a node computes with, by its first output and the
            position of the operand: extents that a cut must not change.
        parts: tensors that a Gather reads one of, and that another node joins, by its output.
    """

    graph: Graph
    shapes: Mapping[str, tuple[int, ...]]
    atoms: Atoms = field(default_factory=Atoms)
    labels: dict[str, IntArray] = field(default_factory=dict)
    dims: dict[str, npt.NDArray[np.object_]] = field(default_factory=dict)
    operands: list[Operand] = field(default_factory=list)
    unread: dict[str, str] = field(default_factory=dict)
    weights: dict[str, tuple[IntArray, IntArray, tuple[Any, ...]]] = field(default_factory=dict)
    heads: Heads = Heads()
    summed: dict[str, IntArray] = field(default_factory=dict)
    numbers: dict[tuple[str, int], npt.NDArray[Any]] = field(default_factory=dict)
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _shapes_of_constants: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Concrete shape of an activation or a constant.

        Raises:
            UnknownOperatorError: the shape is not known.
        """
        if tensor in self._shapes_of_constants:
            return self._shapes_of_constants[tensor]
        if self.graph.is_constant(tensor):
            value = self.graph.constant(tensor)
            if value is None:
                raise UnknownOperatorError(f"the sparse tensor {tensor}")
            self._shapes_of_constants[tensor] = value.shape
            return value.shape
        if tensor not in self.shapes:
            raise UnknownOperatorError(f"the unknown shape of {tensor}")
        return tuple(self.shapes[tensor])

    def fixed(self, tensor: str, reason: str) -> IntArray:
        """Labels of a tensor without channels."""
        rank = len(self.shapes[tensor]) if tensor in self.shapes else self.graph.rank(tensor) or 0
        return np.full((1,) * rank, self.atoms.fixed(reason), np.int64)

    def of(self, tensor: str) -> IntArray:
        """Labels of an activation, or of a constant in its place."""
        if self.graph.is_constant(tensor):
            rank = len(self.shape(tensor))
            return np.full((1,) * rank, self.atoms.fixed(f"the constant {tensor}"), np.int64)
        labels, shape = self.labels[tensor], self.shape(tensor)
        if labels.ndim != len(shape):
            raise UnknownOperatorError(f"the unknown rank of {tensor}")
        return labels

    def vector(self, tensor: str, axis: int, reason: str) -> IntArray:
        """Labels along ``axis``; channels along other axes are frozen for ``reason``."""
        labels, extent = self.of(tensor), self.shape(tensor)[axis]
        axis %= labels.ndim
        if set(varying(labels)) - {axis}:
            self.atoms.freeze(labels, reason)
            return np.full(extent, self.atoms.fixed(reason), np.int64)
        return np.broadcast_to(labels.reshape(-1), (extent,))

    def spread(self, tensor: str, axis: int, vector: IntArray) -> IntArray:
        """Labels of ``tensor`` with ``vector`` along ``axis``."""
        rank = len(self.shape(tensor))
        if self.shape(tensor)[axis] != vector.size:
            raise UnknownOperatorError(f"the unexpected shape of {tensor}")
        shape = [1] * rank
        shape[axis] = -1
        return vector.reshape(shape)

    def made(self, node: Node, count: int) -> IntArray:
        """New channels that the ``count`` rows of a node's weight make."""
        numbers = self.heads.rows.get(first_output(node))
        if numbers is None:
            return self.atoms.fresh(count)
        return self.atoms.fresh(int(numbers.max()) + 1)[numbers]

    def freeze_along(self, tensor: str, axes: Iterable[int], reason: str) -> None:
        """Freeze the channels of ``tensor`` if they lie along one of ``axes``."""
        labels = self.of(tensor)
        if set(varying(labels)) & {a % labels.ndim for a in axes}:
            self.atoms.freeze(labels, reason)

    def operand(self, node: Node, index: int, labels: IntArray, role: str) -> None:
        """Register a constant operand that has channels."""
        shape = self.shape(node.inputs[index].name)
        if labels.ndim != len(shape) or any(
            n not in (1, d) for n, d in zip(labels.shape, shape, strict=True)
        ):
            raise UnknownOperatorError(f"the unexpected shape of {node.inputs[index].name}")
        self.operands.append(Operand(first_output(node), index, labels, role))

    def target(self, tensor: str) -> npt.NDArray[np.object_] | None:
        """Entries of a shape that a node reads: integers, :class:`Dim` or None."""
        if tensor in self.dims:
            return self.dims[tensor]
        value = self.graph.constant(tensor)
        return None if value is None else value.astype(object)

    def use(self, entries: Iterable[object], reason: str) -> None:
        """Freeze the channels whose number the model reads by Shape and computes with."""
        for entry in entries:
            if isinstance(entry, Dim) and entry.tensor in self.labels:
                self.freeze_along(entry.tensor, entry.axes, reason)

    def follow(self, labels: IntArray, target: Sequence[object], reason: str) -> None:
        """Freeze channels whose number in a target shape cannot be adjusted."""
        for axis, entry in enumerate(target):
            if axis not in varying(labels):
                self.use([entry], reason)
            elif isinstance(entry, Dim):
                if varying(labels) != (axis,) or not self._lie_along(entry, labels):
                    self.use([entry], reason)
                    self.atoms.freeze(labels, reason)
            elif entry is None:
                self.atoms.freeze(labels, reason)

    def _lie_along(self, extent: Dim, labels: IntArray) -> bool:
        """Whether the labels of the axes of an extent, joined, are those of another axis."""
        source, shape = self.of(extent.tensor), self.shape(extent.tensor)
        if not set(varying(source)) <= set(extent.axes):
            return False
        wide = [shape[a] if a in extent.axes else 1 for a in range(source.ndim)]
        joined = np.broadcast_to(source, wide).reshape(-1)
        return joined.size > 1 and np.array_equal(joined, labels.reshape(-1))


def varying(labels: IntArray) -> tuple[int, ...]:
    """Axes along which the labels vary."""
    return tuple(axis for axis, extent in enumerate(labels.shape) if extent > 1)


def reshape_labels(labels: IntArray, old: Sequence[int], new: Sequence[int]) -> IntArray:
    """Labels of a tensor reshaped from ``old`` to ``new`` (both concrete).

    Raises:
        UnknownOperatorError: the sizes differ.
    """
    if math.prod(old) != math.prod(new) or not math.prod(old):
        raise UnknownOperatorError(f"the shapes {tuple(old)} and {tuple(new)}")
    kept = [axis for axis, extent in enumerate(old) if extent != 1]
    if [old[axis] for axis in kept] == [extent for extent in new if extent != 1]:
        extents = iter([labels.shape[axis] for axis in kept])
        return labels.reshape([next(extents) if extent != 1 else 1 for extent in new])
    # axes that stay the same and have no channels are left out of the broadcast
    head = tail = 0
    limit = min(len(old), len(new)) - 1
    while head < limit and old[head] == new[head] and labels.shape[head] == 1:
        head += 1
    while (
        tail < limit - head
        and old[-1 - tail] == new[-1 - tail]
        and labels.shape[labels.ndim - 1 - tail] == 1
    ):
        tail += 1
    middle = slice(head, len(old) - tail)
    full = np.broadcast_to(labels.reshape(labels.shape[middle]), old[middle])
    moved = narrowed(full.reshape(new[head : len(new) - tail]))
    return moved.reshape((1,) * head + moved.shape + (1,) * tail)


def first_output(node: Node) -> str:
    """Name of a node's first output, which identifies the node in any copy of its graph."""
    return str(next((t.name for t in node.outputs if t.name), ""))


def label(node: Node) -> str:
    """Name of a node in reasons."""
    return f"{node.op} {node.name or first_output(node)}"


def joined(flow: Flow, node: Node, names: Sequence[str]) -> IntArray:
    """Labels of an elementwise function of several tensors, whose channels are tied.

    Constants among them with an entry for each channel are registered as carried.
    """
    rank = max(len(flow.shape(n)) for n in names)
    read = [n for n in names if not flow.graph.is_constant(n)]
    if not read:
        raise UnknownOperatorError("constants only")
    labels = {n: padded(flow.of(n), rank) for n in read}
    extents = {n: (1,) * (rank - len(flow.shape(n))) + flow.shape(n) for n in names}
    leading = [n for n in read if varying(labels[n])]
    result = labels[leading[0] if leading else read[0]]
    axes = varying(result)
    if any(varying(labels[n]) != axes for n in leading):
        for n in leading:
            flow.atoms.freeze(labels[n], f"channels on several axes of {label(node)}")
        return np.full((1,) * rank, flow.atoms.fixed(label(node)), np.int64)
    for n in read:
        if n in leading or any(extents[n][a] > 1 for a in axes):
            flow.atoms.tie(result, labels[n])
    for n in names:
        if n not in read and axes:
            _carry(flow, node, list(names).index(n), result, extents[n])
    return result


def operand_name(node: Node, index: int, out: bool = False) -> str:
    """Name of one of a node's inputs, or of its outputs."""
    return str((node.outputs if out else node.inputs)[index].name)


def padded(labels: IntArray, rank: int) -> IntArray:
    """Labels with leading axes of length 1 up to ``rank``, as in broadcasting."""
    return labels.reshape((1,) * (rank - labels.ndim) + labels.shape)


def integers(flow: Flow, node: Node, index: int) -> IntArray:
    """Read a constant operand of integers.

    Raises:
        UnknownOperatorError: the operand is computed.
    """
    value = flow.graph.constant(operand_name(node, index))
    if value is None:
        raise UnknownOperatorError(f"the computed operands of {label(node)}")
    found: IntArray = value.astype(np.int64)
    return found


def narrowed(labels: IntArray) -> IntArray:
    """Labels with length 1 along the axes on which they are all the same."""
    for axis in range(labels.ndim):
        first = labels.take([0], axis)
        if (labels == first).all():
            labels = first
    return labels


def _carry(flow: Flow, node: Node, index: int, labels: IntArray, extents: tuple[int, ...]) -> None:
    spanned = [a for a in varying(labels) if extents[a] > 1]
    if not spanned:
        return
    own = labels
    for axis in set(varying(labels)) - set(spanned):
        own = own.take([0], axis)
    flow.atoms.tie(labels, own)
    rank = len(flow.shape(operand_name(node, index)))
    flow.operand(node, index, own.reshape(own.shape[own.ndim - rank :]), "carried")
