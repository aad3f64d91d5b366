"""Steps of a chain other than single products: selected channels, branches, tensor trains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.chains.chain import Chain
from onnx_lowrank.chains.geometry import ConvGeometry, Geometry, LinearGeometry

__all__ = ["Branches", "Select", "TensorTrainStep"]

Array = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Select:
    """Selection of input channels, in any order and number.

    Attributes:
        index: number of the input channel that each output channel is, ``(N,)``.
        inputs: number of input channels.
        geometry: geometry of a stage that could read the same input.
        role: word for the name of its node.
        groups: number of groups; output group g selects from input group g only.

    Raises:
        ValueError: an index is outside its group.
    """

    index: tuple[int, ...]
    inputs: int
    geometry: Geometry
    role: str = "select"
    groups: int = 1

    bias: None = None
    parameters: int = 0
    nodes: int = 1

    def __post_init__(self) -> None:
        picked = np.array(self.index).reshape(self.groups, -1) // (self.inputs // self.groups)
        if (picked != np.arange(self.groups)[:, None]).any():
            size = self.inputs // self.groups
            raise ValueError(f"an index is outside its group of {size} channels")

    @property
    def outputs(self) -> int:
        """Number of output channels ``N``."""
        return len(self.index)

    @property
    def axis(self) -> int:
        """Axis of the channels."""
        return 1 if isinstance(self.geometry, ConvGeometry) else self.geometry.input_axis

    def macs(self, shape: Sequence[int]) -> int:
        """Number of multiply-accumulates: 0."""
        return 0

    def output_shape(self, shape: Sequence[int]) -> Sequence[int]:
        """Shape of the output for an input of ``shape``."""
        moved = list(shape)
        moved[self.axis] = self.outputs
        return moved

    def dense(self, groups: int) -> Array:
        """Selection as a kernel of ones and zeros, ``(groups, N / groups, C / groups, 1 ...)``."""
        index = np.array(self.index).reshape(groups, -1) % (self.inputs // groups)
        picked: Array = np.eye(self.inputs // groups)[index]
        return picked.reshape(*picked.shape, *(1,) * len(self.geometry.kernel))

    def with_bias(self, bias: Array | None) -> Select:
        """The same step, which cannot have a bias.

        Raises:
            ValueError: a bias is given.
        """
        if bias is not None:
            raise ValueError("a selection of channels cannot have a bias")
        return self

    def astype(self, dtype: npt.DTypeLike) -> Select:
        """The same step, as it holds no floating-point numbers."""
        return self


@dataclass(frozen=True)
class Branches:
    """Chains that read the same input and whose outputs are added.

    Attributes:
        chains: the branches; only the last one may have a bias.
        role: word for the name of its nodes.

    Raises:
        ValueError: another branch has a bias, or the branches have different channels.
    """

    chains: tuple[Chain, ...]
    role: str = "sum"

    def __post_init__(self) -> None:
        if any(c.last.bias is not None for c in self.chains[:-1]):
            raise ValueError("only the last branch may have a bias")
        ends = {(c.stages[0].inputs, c.last.outputs) for c in self.chains}
        if len(ends) > 1:
            raise ValueError(f"branches have different inputs and outputs: {sorted(ends)}")

    @property
    def inputs(self) -> int:
        """Number of input channels ``C``."""
        return self.chains[0].stages[0].inputs

    @property
    def outputs(self) -> int:
        """Number of output channels ``N``."""
        return self.chains[0].last.outputs

    @property
    def groups(self) -> int:
        """Number of groups that all branches share."""
        return math.gcd(*(c.groups for c in self.chains))

    @property
    def bias(self) -> Array | None:
        """Bias ``(N,)`` or None."""
        return self.chains[-1].last.bias

    @property
    def parameters(self) -> int:
        """Number of elements of all weights and biases."""
        return sum(c.parameters for c in self.chains)

    @property
    def nodes(self) -> int:
        """Number of nodes: those of the branches, and the Adds."""
        return sum(c.nodes for c in self.chains) + len(self.chains) - 1

    def macs(self, shape: Sequence[int]) -> int:
        """Multiply-accumulates for an input of ``shape``, over its whole batch."""
        return sum(c.macs(shape) for c in self.chains)

    def output_shape(self, shape: Sequence[int]) -> Sequence[int]:
        """Shape of the output for an input of ``shape``."""
        for step in self.chains[0].stages:
            shape = step.output_shape(shape)
        return shape

    def dense(self, groups: int) -> Array:
        """The kernel ``(groups, N / groups, C / groups, *kernel)``."""
        return sum((c.dense(groups) for c in self.chains[1:]), self.chains[0].dense(groups))

    def with_bias(self, bias: Array | None) -> Branches:
        """The same step with another bias on the last branch."""
        return replace(self, chains=(*self.chains[:-1], self.chains[-1].with_bias(bias)))

    def astype(self, dtype: npt.DTypeLike) -> Branches:
        """The same in another floating type."""
        return replace(self, chains=tuple(c.astype(dtype) for c in self.chains))


@dataclass(frozen=True)
class TensorTrainStep:
    """A matrix as a tensor train, ``W[(a1 .. ad), (b1 .. bd)] = G1[a1, b1] .. Gd[ad, bd]``.

    The input is folded to ``(b1, .., bd)`` and multiplied by one core after the other,

        (A, r b_k, B) -> (A, a_k r', B)      A = a1 .. a(k-1),  B = b(k+1) .. bd

    each a matrix product and a Reshape: nothing is ever transposed.

    Attributes:
        cores: cores ``G_k (r, a, b, r')``; the first ``r`` and the last ``r'`` are 1.
        inputs: number of inputs ``C``, at most the product of all b; the input is padded with
            zeros to that.
        outputs: number of outputs ``N``, at most the product of all a; the rest is cut off.
        geometry: geometry of the matrix product.
        bias: bias ``(N,)`` or None.
        role: word for the name of its nodes.
        groups: always 1.
    """

    cores: tuple[Array, ...]
    inputs: int
    outputs: int
    geometry: LinearGeometry
    bias: Array | None = None
    role: str = "train"

    groups: int = 1

    @property
    def row_modes(self) -> tuple[int, ...]:
        """Sizes ``(a1 .. ad)`` whose product is at least ``N``."""
        return tuple(int(c.shape[1]) for c in self.cores)

    @property
    def column_modes(self) -> tuple[int, ...]:
        """Sizes ``(b1 .. bd)`` whose product is at least ``C``."""
        return tuple(int(c.shape[2]) for c in self.cores)

    @property
    def matrices(self) -> tuple[Array, ...]:
        """Cores as matrices: ``(a r', r b)`` to multiply from the left, the last from the right."""
        *first, last = self.cores
        return (
            *(
                c.transpose(1, 3, 0, 2).reshape(c.shape[1] * c.shape[3], c.shape[0] * c.shape[2])
                for c in first
            ),
            last.transpose(0, 2, 1, 3).reshape(last.shape[0] * last.shape[2], last.shape[1]),
        )

    @property
    def parameters(self) -> int:
        """Number of elements of the cores and the bias."""
        return sum(int(c.size) for c in self.cores) + (0 if self.bias is None else self.bias.size)

    @property
    def nodes(self) -> int:
        """Number of nodes: a Reshape and a MatMul for each core, and a Reshape."""
        return 2 * len(self.cores) + 1

    def macs(self, shape: Sequence[int]) -> int:
        """Multiply-accumulates for an input of ``shape``, over its whole batch."""
        total = 0
        for k, core in enumerate(self.cores):
            beside = math.prod(self.row_modes[:k]) * math.prod(self.column_modes[k + 1 :])
            total += beside * int(core.size)
        return total * int(self.geometry.rows(shape))

    def output_shape(self, shape: Sequence[int]) -> Sequence[int]:
        """Shape of the output for an input of ``shape``."""
        return self.geometry.output_shape(shape, self.outputs)

    def dense(self, groups: int) -> Array:
        """The matrix ``(1, N, C)``."""
        total = np.ones((1, 1, 1))  # (a .., b .., r)
        for core in self.cores:
            joined = np.tensordot(total, core.astype(np.float64), 1).transpose(0, 2, 1, 3, 4)
            total = joined.reshape(
                joined.shape[0] * joined.shape[1], joined.shape[2] * joined.shape[3], -1
            )
        return total[None, : self.outputs, : self.inputs, 0]

    def with_bias(self, bias: Array | None) -> TensorTrainStep:
        """The same with another bias."""
        return replace(self, bias=bias)

    def astype(self, dtype: npt.DTypeLike) -> TensorTrainStep:
        """The same in another floating type."""
        bias = None if self.bias is None else self.bias.astype(dtype)
        return replace(self, cores=tuple(c.astype(dtype) for c in self.cores), bias=bias)
