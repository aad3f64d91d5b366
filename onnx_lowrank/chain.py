"""Stage and Chain: a replacement of a layer as a value, before it becomes nodes.

A layer itself is a chain of one stage, so cost and error of both are counted by the same lines.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.geometry import ConvGeometry, Geometry

__all__ = ["BLOCK", "Chain", "Rank", "Stage", "aligned_ranks"]

Array = npt.NDArray[np.floating[Any]]

#: channels a group between the stages: one number, or one for each place
Rank = int | tuple[int, ...]

#: Channels that ONNX Runtime's blocked convolutions (NCHWc) compute at a time: 16 with AVX-512, a
#: divisor of it elsewhere. A block is paid for whole, on the input as on the output side.
BLOCK = 16

#: What a MAC of a depthwise convolution costs in others, for it waits for memory
DEPTHWISE = 3


@dataclass(frozen=True)
class Stage:
    """One linear map ``y = W x + b``.

    Attributes:
        weight: ``(N, C / groups, *kernel)``.
        bias: ``(N,)`` or None.
        geometry: how patches of the input are read.
        role: a word for the name of its node (``vertical``, ``core`` ...).
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
    def matrices(self) -> Array:
        """The weight group by group: ``(groups, N / groups, C / groups * prod(kernel))``."""
        g = self.geometry.groups
        grouped: Array = self.weight.reshape(g, self.outputs // g, -1)
        return grouped

    @property
    def parameters(self) -> int:
        """Elements of weight and bias."""
        return int(self.weight.size) + (0 if self.bias is None else int(self.bias.size))

    def macs(self, shape: Sequence[int]) -> int:
        """Multiply-accumulates for an input of ``shape``, over its whole batch."""
        return int(self.weight.size) * int(self.geometry.rows(shape))

    def effort(self, shape: Sequence[int]) -> int:
        """MACs that a runtime with channel blocks could do in the time of this stage."""
        geometry = self.geometry
        if not isinstance(geometry, ConvGeometry):
            return self.macs(shape)
        outputs, inputs = (math.ceil(n / BLOCK) * BLOCK for n in self.weight.shape[:2])
        if geometry.groups == self.inputs == self.outputs:
            inputs = DEPTHWISE
        elif geometry.groups > 1:
            return self.macs(shape)
        elif self.inputs < 4:  # the first convolution reads its few channels unblocked
            inputs = self.inputs
        return int(outputs * inputs * math.prod(geometry.kernel) * geometry.rows(shape))

    def with_matrices(self, matrices: Array, bias: Array | None) -> Stage:
        """The same stage with other numbers; ``matrices`` as :attr:`matrices`."""
        return replace(self, weight=matrices.reshape(self.weight.shape), bias=bias)


@dataclass(frozen=True)
class Chain:
    """Stages applied one after the other. Only the last may have a bias.

    A bias before a padded stage would be missing in the padding, so the pads would not be exact.
    """

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        if any(s.bias is not None for s in self.stages[:-1]):
            raise ValueError("only the last stage of a chain may have a bias")
        for first, second in zip(self.stages, self.stages[1:], strict=False):
            if first.outputs != second.inputs:
                raise ValueError(f"{first.outputs} outputs feed {second.inputs} inputs")

    @property
    def last(self) -> Stage:
        """The stage that makes the output; the one that a refit solves again."""
        return self.stages[-1]

    @property
    def parameters(self) -> int:
        """Elements of all weights and biases."""
        return sum(s.parameters for s in self.stages)

    def macs(self, shape: Sequence[int]) -> int:
        """Multiply-accumulates for an input of ``shape``, over its whole batch."""
        return sum(stage.macs(s) for stage, s in self._with_shapes(shape))

    def effort(self, shape: Sequence[int]) -> int:
        """MACs that a runtime with channel blocks carries out for an input of ``shape``."""
        return sum(stage.effort(s) for stage, s in self._with_shapes(shape))

    def _with_shapes(self, shape: Sequence[int]) -> Iterator[tuple[Stage, Sequence[int]]]:
        for stage in self.stages:
            yield stage, shape
            shape = stage.geometry.output_shape(shape, stage.outputs)

    def compose(self) -> Array:
        """The one kernel that the chain equals, ``(N, C / groups, *kernel)``, float64.

        The groups of the whole are those that all stages share; a stage of more groups (depthwise)
        is written out as a block diagonal. Each spatial axis must be wider than 1 in one stage at
        most.
        """
        groups = math.gcd(*(s.geometry.groups for s in self.stages))
        total = _dense(self.stages[0], groups)
        for stage in self.stages[1:]:
            shape = stage.weight.shape
            if any(shape[i] > 1 and total.shape[i + 1] > 1 for i in range(2, len(shape))):
                raise ValueError("two stages share a spatial axis")
            if stage.geometry.groups == stage.inputs == stage.outputs:  # depthwise: no sum
                own = stage.weight.astype(np.float64).reshape(groups, -1, 1, *shape[2:])
                total = total * own
                continue
            weight = _dense(stage, groups)
            # (g, n, k, 1, *spatial) * (g, 1, k, c, *spatial), summed over the rank k
            total = np.einsum("gnk...,gkc...->gnc...", weight, total)
        return total.reshape(-1, *total.shape[2:])

    def with_bias(self, bias: Array | None) -> Chain:
        """The same chain with another bias on the last stage."""
        return Chain((*self.stages[:-1], replace(self.last, bias=bias)))

    def balanced(self) -> Chain:
        """Give the intermediate channels of each pair of stages equal norms on both sides.

        The product does not change; float16 and quantization are served better.
        """
        stages = list(self.stages)
        for i in range(len(stages) - 1):
            first, second = stages[i], stages[i + 1]
            out_norm = np.linalg.norm(first.weight.reshape(first.outputs, -1), axis=1)
            columns = np.moveaxis(_grouped(second.weight, second.geometry.groups), 2, 1)
            in_norm = np.linalg.norm(columns.reshape(first.outputs, -1), axis=1)
            alive = (out_norm > 0) & (in_norm > 0)
            scale = np.ones(first.outputs)
            scale[alive] = np.sqrt(in_norm[alive] / out_norm[alive])
            stages[i] = replace(first, weight=_scaled(first.weight, scale, axis=0))
            stages[i + 1] = replace(
                second, weight=_scaled_inputs(second.weight, 1 / scale, second.geometry.groups)
            )
        return Chain(tuple(stages))

    def astype(self, dtype: npt.DTypeLike) -> Chain:
        """The same chain in another floating type."""
        return Chain(
            tuple(
                replace(
                    s,
                    weight=s.weight.astype(dtype),
                    bias=None if s.bias is None else s.bias.astype(dtype),
                )
                for s in self.stages
            )
        )

    def shapes(self) -> str:
        """Kernel extents and widths, for people: ``3x1:16 > 1x3:64``."""
        return " > ".join(_shape(s) for s in self.stages)


def _shape(stage: Stage) -> str:
    geometry = stage.geometry
    kernel = "x".join(map(str, geometry.kernel)) if isinstance(geometry, ConvGeometry) else ""
    return f"{kernel}:{stage.outputs}" if kernel else str(stage.outputs)


def _grouped(weight: Array, groups: int) -> Array:
    return weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:]).astype(np.float64)


def _dense(stage: Stage, groups: int) -> Array:
    """Weight ``(groups, N / groups, C / groups, *kernel)``, finer groups as block diagonals."""
    finer = stage.geometry.groups // groups
    blocks = _grouped(stage.weight, stage.geometry.groups)
    if finer == 1:
        return blocks
    outputs, inputs, *kernel = blocks.shape[1:]
    dense = np.zeros((groups, finer, outputs, finer, inputs, *kernel))
    index = np.arange(finer)
    dense[:, index, :, index] = blocks.reshape(groups, finer, outputs, inputs, *kernel).swapaxes(
        0, 1
    )
    return dense.reshape(groups, finer * outputs, finer * inputs, *kernel)


def _scaled(weight: Array, scale: Array, axis: int) -> Array:
    return weight * scale.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])


def _scaled_inputs(weight: Array, scale: Array, groups: int) -> Array:
    grouped = _grouped(weight, groups)
    by_group = scale.reshape(groups, 1, -1, *([1] * (weight.ndim - 2)))
    return (grouped * by_group).reshape(weight.shape)


def aligned_ranks(limit: int, groups: int = 1) -> Iterator[int]:
    """Ranks up to ``limit`` that make channel counts which runtimes like.

    Multiples of 4 below 16, of 8 below 64, of 16 below 128, then of a quarter of the power of two
    below: counted over all groups, and no finer than a twelfth of the rank, for every one of them
    costs planning time.
    """
    for rank in range(1, limit + 1):
        channels = rank * groups
        step = 4 if channels < 16 else 8 if channels < 64 else 2 ** (channels.bit_length() - 3)
        if channels % step == 0:
            yield rank
