"""Stage and Chain: a replacement of a layer as a value, before it becomes nodes.

A layer itself is a chain of one stage, so cost and error of both are counted by the same code.
Most chains are stages one after the other; :mod:`onnx_lowrank.chains.special_stages` has the other
steps that a method may need (selected channels, branches that are added, tensor trains).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.chains.geometry import Geometry
from onnx_lowrank.chains.protocol import Step

__all__ = [
    "Chain",
    "Rank",
    "Stage",
    "one_rank",
    "two_ranks",
]

Array = npt.NDArray[np.floating[Any]]

#: channels of a group between the stages: one number, or one for each place
Rank = int | tuple[int, ...]


@dataclass(frozen=True)
class Stage:
    """A linear map ``y = W x + b``, written as one operator.

    Attributes:
        weight: weight ``(N, C / groups, *kernel)``.
        bias: bias ``(N,)`` or None.
        geometry: geometry of the patches of the input.
        role: word for the name of its node (``vertical``, ``core`` ...).
    """

    weight: Array
    bias: Array | None
    geometry: Geometry
    role: str = ""

    @property
    def outputs(self) -> int:
        """Number of output channels ``N``."""
        return int(self.weight.shape[0])

    @property
    def inputs(self) -> int:
        """Number of input channels ``C``."""
        return int(self.weight.shape[1]) * self.geometry.groups

    @property
    def groups(self) -> int:
        """Number of groups."""
        return self.geometry.groups

    @property
    def depthwise(self) -> bool:
        """Whether each channel is convolved on its own."""
        return self.groups == self.inputs == self.outputs

    @property
    def matrices(self) -> Array:
        """Weights of the groups, ``(groups, N / groups, C / groups * prod(kernel))``."""
        g = self.geometry.groups
        grouped: Array = self.weight.reshape(g, self.outputs // g, -1)
        return grouped

    @property
    def parameters(self) -> int:
        """Number of elements of weight and bias."""
        return int(self.weight.size) + (0 if self.bias is None else int(self.bias.size))

    @property
    def nodes(self) -> int:
        """Number of nodes that it is written as: 1."""
        return 1

    def macs(self, shape: Sequence[int]) -> int:
        """Number of multiply-accumulates for an input of ``shape``, over its whole batch."""
        return int(self.weight.size) * int(self.geometry.applications(shape))

    def output_shape(self, shape: Sequence[int]) -> Sequence[int]:
        """Shape of the output for an input of ``shape``."""
        return self.geometry.output_shape(shape, self.outputs)

    def dense(self, groups: int) -> Array:
        """The kernel ``(groups, N / groups, C / groups, *kernel)``, finer groups written out."""
        finer = self.groups // groups
        blocks = _grouped(self.weight, self.groups)
        if finer == 1:
            return blocks
        outputs, inputs, *kernel = blocks.shape[1:]
        dense = np.zeros((groups, finer, outputs, finer, inputs, *kernel))
        index = np.arange(finer)
        dense[:, index, :, index] = blocks.reshape(
            groups, finer, outputs, inputs, *kernel
        ).swapaxes(0, 1)
        return dense.reshape(groups, finer * outputs, finer * inputs, *kernel)

    def with_matrices(self, matrices: Array, bias: Array | None) -> Stage:
        """The same stage with another weight, shaped as :attr:`matrices`, and bias."""
        return replace(self, weight=matrices.reshape(self.weight.shape), bias=bias)

    def with_bias(self, bias: Array | None) -> Stage:
        """The same stage with another bias."""
        return replace(self, bias=bias)

    def astype(self, dtype: npt.DTypeLike) -> Stage:
        """The same stage in another floating type."""
        bias = None if self.bias is None else self.bias.astype(dtype)
        return replace(self, weight=self.weight.astype(dtype), bias=bias)


@dataclass(frozen=True)
class Chain:
    """Steps applied one after the other. Only the last that has weights may have a bias.

    A bias before a padded stage would be missing in the padding, so the pads would not be exact.
    """

    stages: tuple[Step, ...]

    def __post_init__(self) -> None:
        weighted = [s for s in self.stages if s.parameters]
        if any(s.bias is not None for s in weighted[:-1]):
            raise ValueError("only the last stage of a chain may have a bias")
        for first, second in zip(self.stages, self.stages[1:], strict=False):
            if first.outputs != second.inputs:
                raise ValueError(f"{first.outputs} outputs feed {second.inputs} inputs")

    @property
    def last(self) -> Step:
        """The step that makes the output."""
        return self.stages[-1]

    @property
    def parameters(self) -> int:
        """Number of elements of all weights and biases."""
        return sum(s.parameters for s in self.stages)

    @property
    def nodes(self) -> int:
        """Number of nodes that it is written as, approximately."""
        return sum(s.nodes for s in self.stages)

    @property
    def groups(self) -> int:
        """Number of groups that all stages share."""
        return math.gcd(*(s.groups for s in self.stages))

    def macs(self, shape: Sequence[int]) -> int:
        """Multiply-accumulates for an input of ``shape``, over its whole batch."""
        return sum(step.macs(s) for step, s in self.with_shapes(shape))

    def with_shapes(self, shape: Sequence[int]) -> Iterator[tuple[Step, Sequence[int]]]:
        """Yield each step with the shape of its input, if the chain's input has ``shape``."""
        for step in self.stages:
            yield step, shape
            shape = step.output_shape(shape)

    def dense(self, groups: int) -> Array:
        """The single kernel that equals the chain, ``(groups, N / groups, C / groups, *kernel)``.

        A stage of more groups (depthwise) becomes a block diagonal. Each spatial axis may be
        wider than 1 in at most one stage.
        """
        total = self.stages[0].dense(groups)
        for stage in self.stages[1:]:
            if isinstance(stage, Stage) and stage.depthwise:  # no sum over channels
                shape = stage.weight.shape
                own = stage.weight.astype(np.float64).reshape(groups, -1, 1, *shape[2:])
                _refuse_shared_axes(own, total)
                total = total * own
                continue
            weight = stage.dense(groups)
            _refuse_shared_axes(weight, total)
            total = _product(weight, total)
        return total

    def compose(self) -> Array:
        """The single kernel that equals the chain, ``(N, C / groups, *kernel)``, float64."""
        kernel = self.dense(self.groups)
        return kernel.reshape(-1, *kernel.shape[2:])

    def with_bias(self, bias: Array | None) -> Chain:
        """The same chain with another bias at its end.

        The bias is on the last stage that has weights; steps after that only reorder channels.
        """
        steps = list(self.stages)
        place = max(i for i, s in enumerate(steps) if s.parameters)
        for step in reversed(steps[place + 1 :]):
            bias = None if bias is None else step.dense(1).reshape(step.outputs, -1).T @ bias
        steps[place] = steps[place].with_bias(bias)
        return Chain(tuple(steps))

    def unbiased(self) -> Chain:
        """The same chain without a bias."""
        return Chain(tuple(s.with_bias(None) for s in self.stages))

    def balanced(self) -> Chain:
        """Give the intermediate channels of each pair of stages equal norms on both sides.

        The product does not change; rounding to float16 or to integers loses less.
        """
        steps = list(self.stages)
        for i in range(len(steps) - 1):
            first, second = steps[i], steps[i + 1]
            if not isinstance(first, Stage) or not isinstance(second, Stage):
                continue
            out_norm = np.linalg.norm(first.weight.reshape(first.outputs, -1), axis=1)
            columns = np.moveaxis(_grouped(second.weight, second.groups), 2, 1)
            in_norm = np.linalg.norm(columns.reshape(first.outputs, -1), axis=1)
            alive = (out_norm > 0) & (in_norm > 0)
            scale = np.ones(first.outputs)
            scale[alive] = np.sqrt(in_norm[alive] / out_norm[alive])
            steps[i] = replace(first, weight=_scaled(first.weight, scale, axis=0))
            steps[i + 1] = replace(
                second, weight=_scaled_inputs(second.weight, 1 / scale, second.groups)
            )
        return Chain(tuple(steps))

    def astype(self, dtype: npt.DTypeLike) -> Chain:
        """The same chain in another floating type."""
        return Chain(tuple(s.astype(dtype) for s in self.stages))


def _refuse_shared_axes(weight: Array, total: Array) -> None:
    if any(a > 1 and b > 1 for a, b in zip(weight.shape[3:], total.shape[3:], strict=True)):
        raise ValueError("two stages share a spatial axis")


def _product(weight: Array, total: Array) -> Array:
    """Kernels ``(g, n, k, *spatial)`` of ``(g, k, c, *spatial)``, summed over the rank k.

    Of each spatial axis one of both has length 1. It is a product of matrices, which BLAS makes a
    hundred times faster than einsum does.
    """
    (g, n, k, *one), (_, _, c, *other) = weight.shape, total.shape
    axes = len(one)
    made = np.moveaxis(weight, 2, -1).reshape(g, -1, k) @ total.reshape(g, k, -1)
    pairs = [place for i in range(axes) for place in (2 + i, 3 + axes + i)]
    order = (0, 1, 2 + axes, *pairs)
    kernel = made.reshape(g, n, *one, c, *other).transpose(order)
    spatial = [a * b for a, b in zip(one, other, strict=True)]
    joined: Array = kernel.reshape(g, n, c, *spatial)
    return joined


def _grouped(weight: Array, groups: int) -> Array:
    return weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:]).astype(np.float64)


def _scaled(weight: Array, scale: Array, axis: int) -> Array:
    return weight * scale.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])


def _scaled_inputs(weight: Array, scale: Array, groups: int) -> Array:
    grouped = _grouped(weight, groups)
    by_group = scale.reshape(groups, 1, -1, *([1] * (weight.ndim - 2)))
    return (grouped * by_group).reshape(weight.shape)


def one_rank(rank: Rank) -> int:
    """Return ``rank`` as one number, for a method with one rank.

    Raises:
        ValueError: ``rank`` has several numbers.
    """
    if not isinstance(rank, int):
        raise ValueError(f"the method needs one rank, not {rank}")
    return rank


def two_ranks(rank: Rank) -> tuple[int, int]:
    """Return ``rank`` as a pair, for a method with two ranks.

    Raises:
        ValueError: ``rank`` is not a pair.
    """
    if isinstance(rank, int) or len(rank) != 2:
        raise ValueError(f"the method needs two ranks, not {rank}")
    return rank[0], rank[1]
