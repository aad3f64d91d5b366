"""Geometry of linear maps: the patches that a convolution reads, the rows that a product reads.

Only this module knows strides, pads and dilations; the solvers see matrices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["ConvGeometry", "Geometry", "LinearGeometry"]

Array = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class ConvGeometry:
    """Strides, dilations, pads and groups of a convolution over any number of spatial axes.

    A transposed convolution is seen as the equal plain one: the input with ``stride - 1`` zeros
    between its elements, read at stride 1 by the reversed kernel. Each output position meets only
    the elements of the kernel that are ``stride`` apart, which its *phase* decides, the position
    modulo the stride (:attr:`phases`).

    Attributes:
        kernel: extent of the kernel along each spatial axis.
        strides: stride along each spatial axis.
        dilations: dilation along each spatial axis.
        pads: pads at the beginning of all axes, then at their ends (ONNX order); unused with
            ``auto_pad``.
        groups: number of groups ``g``.
        auto_pad: ``NOTSET | VALID | SAME_UPPER | SAME_LOWER``.
        transposed: whether it is a transposed convolution, whose pads are cut off the output.
        output_padding: output padding of a transposed convolution along each spatial axis; empty
            for none.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    groups: int = 1
    auto_pad: str = "NOTSET"
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    @classmethod
    def pointwise(cls, axes: int, groups: int = 1) -> ConvGeometry:
        """The geometry of a 1x1 convolution over ``axes`` spatial axes."""
        one = (1,) * axes
        return cls(one, one, one, (0,) * (2 * axes), groups)

    @property
    def axes(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel)

    @property
    def channel_axis(self) -> int:
        """Axis of the channels of the output."""
        return 1

    def restrict(self, axes: Sequence[int]) -> ConvGeometry:
        """Keep kernel, stride, pad and dilation on ``axes`` only; the others become 1x1.

        ``SAME`` padding splits exactly: an axis of kernel 1 and stride 1 is padded by nothing.
        """
        if not axes:
            return self.pointwise(self.axes, self.groups)

        def keep(values: Sequence[int], neutral: int) -> tuple[int, ...]:
            return tuple(v if i % self.axes in axes else neutral for i, v in enumerate(values))

        return replace(
            self,
            kernel=keep(self.kernel, 1),
            strides=keep(self.strides, 1),
            dilations=keep(self.dilations, 1),
            pads=keep(self.pads, 0),
            output_padding=keep(self.output_padding, 0),
        )

    def padding(self, spatial: Sequence[int]) -> list[tuple[int, int]]:
        """Pads ``(begin, end)`` of each axis for an input of extent ``spatial``."""
        if self.auto_pad == "NOTSET":
            return list(zip(self.pads[: self.axes], self.pads[self.axes :], strict=True))
        if self.auto_pad == "VALID":
            return [(0, 0)] * self.axes
        result = []
        for size, k, s, d in zip(spatial, self.kernel, self.strides, self.dilations, strict=True):
            total = max((math.ceil(size / s) - 1) * s + (k - 1) * d + 1 - size, 0)
            small, large = total // 2, total - total // 2
            result.append((small, large) if self.auto_pad == "SAME_UPPER" else (large, small))
        return result

    def output_spatial(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """Extent of the output for an input of extent ``spatial``."""
        extra = self.output_padding or (0,) * self.axes
        return tuple(
            (size - 1) * s + (k - 1) * d + 1 + more - lo - hi
            if self.transposed
            else (size + lo + hi - (k - 1) * d - 1) // s + 1
            for size, (lo, hi), k, s, d, more in zip(
                spatial,
                self.padding(spatial),
                self.kernel,
                self.strides,
                self.dilations,
                extra,
                strict=True,
            )
        )

    def positions(self, shape: Sequence[int]) -> int:
        """Number of output positions of a sample; ``shape`` is (batch, channels, *spatial)."""
        return math.prod(self.output_spatial(shape[2:]))

    def output_shape(self, shape: Sequence[int], outputs: int) -> tuple[int, ...]:
        """Shape of the output for an input of ``shape``."""
        return (shape[0], outputs, *self.output_spatial(shape[2:]))

    def rows(self, shape: Sequence[int]) -> int:
        """Number of patches in an input of ``shape``, over the whole batch."""
        return shape[0] * self.positions(shape)

    def applications(self, shape: Sequence[int]) -> int:
        """Number of uses of each weight on an input of ``shape``, over the whole batch."""
        return shape[0] * math.prod(shape[2:]) if self.transposed else self.rows(shape)

    @cached_property
    def phases(self) -> tuple[Indices, ...]:
        """Flat kernel positions that meet the input, by phase; a single one holds the whole kernel.

        Several phases are told apart in transposed convolutions of one group, along the axes that
        have no dilation.
        """
        taps = np.arange(math.prod(self.kernel))
        if max(self._steps) == 1:
            return (taps,)
        at = np.indices(self.kernel).reshape(self.axes, -1)
        steps = np.array(self._steps)[:, None]
        number = np.ravel_multi_index(tuple(at % steps), self._steps)
        return tuple(taps[number == phase] for phase in range(math.prod(self._steps)))

    @property
    def _steps(self) -> tuple[int, ...]:
        """Number of phases along each axis."""
        apart = self.transposed and self.groups == 1
        pairs = zip(self.strides, self.dilations, strict=True)
        return tuple(s if apart and d == 1 else 1 for s, d in pairs)

    def by_phase(self, shape: Sequence[int], index: Indices | None = None) -> list[Indices]:
        """Output positions of each of the :attr:`phases`.

        Args:
            shape: shape of the input, ``(batch, channels, *spatial)``.
            index: flat output positions; all of them if None.
        """
        spatial = shape[2:]
        if index is None:
            index = np.arange(self.positions(shape))
        where = np.unravel_index(index, self.output_spatial(spatial))
        pads = self.padding(spatial)
        first = [
            (k - 1 - low - w) % s
            for k, (low, _), w, s in zip(self.kernel, pads, where, self._steps, strict=True)
        ]
        number = np.ravel_multi_index(first, self._steps)
        return [index[number == phase] for phase in range(len(self.phases))]

    def patches(self, x: Array, index: Indices | None = None, taps: Indices | None = None) -> Array:
        """Patches that the kernel is multiplied with, as rows.

        Args:
            x: input ``(batch, C, *spatial)``.
            index: flat output positions to read, the same in each sample; all of them if None.
            taps: flat kernel positions to read; all of them if None.

        Returns:
            ``(groups, batch * positions, C / groups * taps)``, columns in the order (channel,
            kernel positions).
        """
        batch, channels, *spatial = x.shape
        if index is None:
            index = np.arange(math.prod(self.output_spatial(spatial)))
        places, inside = self._places(spatial, index, taps)
        last = np.ascontiguousarray(x.reshape(batch, channels, -1).swapaxes(1, 2))
        read = last.take(places.reshape(-1), axis=1)
        if not inside.all():
            read[:, np.flatnonzero(~inside)] = 0
        grouped = read.reshape(batch, *places.shape, self.groups, channels // self.groups)
        rows: Array = grouped.transpose(3, 0, 1, 4, 2)
        columns = channels // self.groups * places.shape[1]
        return rows.reshape(self.groups, batch * len(places), columns)

    def _places(
        self, spatial: Sequence[int], index: Indices, taps: Indices | None
    ) -> tuple[Indices, npt.NDArray[np.bool_]]:
        """Flat input positions of patches, and which of them are no padding.

        Args:
            spatial: extent of the input.
            index: flat output positions.
            taps: flat kernel positions; all of them if None.

        Returns:
            Both ``(positions, taps)``; a position in the padding is any that exists.
        """
        at = np.indices(self.kernel).reshape(self.axes, -1)
        at = at if taps is None else at[:, taps]
        places = np.zeros((len(index), at.shape[1]), np.intp)
        inside = np.ones(places.shape, bool)
        where = np.unravel_index(index, self.output_spatial(spatial))
        for axis, (size, (low, _)) in enumerate(zip(spatial, self.padding(spatial), strict=True)):
            stride, reach = self.strides[axis], self.dilations[axis] * at[axis]
            if self.transposed:  # the elements of the input are ``stride`` apart
                low = (self.kernel[axis] - 1) * self.dilations[axis] - low
                place, between = np.divmod(where[axis][:, None] + reach - low, stride)
                inside &= between == 0
            else:
                place = stride * where[axis][:, None] + reach - low
            inside &= (place >= 0) & (place < size)
            places = places * size + place.clip(0, size - 1)
        return places, inside

    def responses(self, y: Array, index: Indices | None = None) -> Array:
        """Responses ``(groups, rows, N / groups)`` in an output ``(batch, N, *spatial)``."""
        flat = y.reshape(y.shape[0], y.shape[1], -1)
        if index is not None:
            flat = flat[:, :, index]
        batch, outputs, count = flat.shape
        grouped = flat.reshape(batch, self.groups, outputs // self.groups, count)
        return grouped.transpose(1, 0, 3, 2).reshape(self.groups, batch * count, -1)


@dataclass(frozen=True)
class LinearGeometry:
    """Axes of a matrix product.

    Attributes:
        input_axis: axis of the input that is contracted: ``-1`` for ``x W``; ``-2`` for ``W x``
            and for Gemm with ``transA``.
        output_axis: axis of the output that is made: ``-1``, or ``-2`` for ``W x``.
        kernel: always empty, as there are no spatial axes.
        groups: always 1.
    """

    input_axis: int = -1
    output_axis: int = -1
    kernel: tuple[int, ...] = ()
    groups: int = 1

    @property
    def channel_axis(self) -> int:
        """Axis of the channels of the output."""
        return self.output_axis

    def positions(self, shape: Sequence[int]) -> int:
        """Number of rows of a sample; 1 for a matrix, whose rows are the samples."""
        return self.rows(shape) // shape[0] if len(shape) > 2 else 1

    def output_shape(self, shape: Sequence[int], outputs: int) -> tuple[int, ...]:
        """Shape of the output for an input of ``shape``."""
        moved = list(shape)
        del moved[self.input_axis]
        moved.insert(len(shape) if self.output_axis == -1 else len(shape) - 2, outputs)
        return tuple(moved)

    def rows(self, shape: Sequence[int]) -> int:
        """Number of rows in an input of ``shape``, over the whole batch."""
        return math.prod(shape) // max(shape[self.input_axis], 1)

    def applications(self, shape: Sequence[int]) -> int:
        """Number of uses of each weight on an input of ``shape``, over the whole batch."""
        return self.rows(shape)

    def patches(self, x: Array, index: Indices | None = None) -> Array:
        """Rows ``(1, rows, C)`` that the weight is multiplied with."""
        return self._rows(x, self.input_axis, index)

    def responses(self, y: Array, index: Indices | None = None) -> Array:
        """Rows ``(1, rows, N)`` of an output, in the order of :meth:`patches`."""
        return self._rows(y, self.output_axis, index)

    @staticmethod
    def _rows(x: Array, axis: int, index: Indices | None) -> Array:
        moved = np.moveaxis(x, axis, -1)
        if moved.ndim < 3:
            return moved.reshape(1, -1, moved.shape[-1])
        batched = moved.reshape(moved.shape[0], -1, moved.shape[-1])
        if index is not None:
            batched = batched[:, index]
        return batched.reshape(1, -1, moved.shape[-1])


Geometry = ConvGeometry | LinearGeometry
