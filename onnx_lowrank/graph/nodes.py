"""Nodes and tensors of a graph, as far as the package reads them.

onnx-graphsurgeon is untyped; these are the types of its nodes and tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

__all__ = ["Node", "Tensor"]


class Tensor(Protocol):
    """A tensor that a node reads or makes."""

    name: str

    @property
    def outputs(self) -> Sequence[Node]:
        """The nodes that read it."""

    def is_empty(self) -> bool:
        """Whether it stands for an operand that is left out; its name is empty then."""


class Node(Protocol):
    """One operator of a graph. Only :class:`~onnx_lowrank.graph.graph.Graph` changes it."""

    op: str
    name: str
    domain: str | None

    @property
    def inputs(self) -> Sequence[Tensor]:
        """The tensors that it reads, empty ones where operands are left out."""

    @property
    def outputs(self) -> Sequence[Tensor]:
        """The tensors that it makes, empty ones where results are left out."""

    @property
    def attrs(self) -> Mapping[str, Any]:
        """Its attributes by name."""
