"""Sums over rows that read the columns of one phase each, as those of transposed convolutions do.

Rows of each phase are summed by themselves over their own columns, and the covariance of all is
put together from them (:mod:`onnx_lowrank.linalg.phase_covariance`): with n_p rows of phase p, and
the scatter S_p and the means m_p of their inputs

    D_p = (S_p + n_p m_p m_p^T) / n,     v_p = n_p m_p / n
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.analysis.accumulator import ROUNDING, Accumulator, Recorder
from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.analysis.sharded_sums import below
from onnx_lowrank.chains.chain import Stage
from onnx_lowrank.chains.geometry import ConvGeometry, Geometry
from onnx_lowrank.linalg.phase_covariance import PhaseCovariance
from onnx_lowrank.linalg.shrinkage import shrinkage

__all__ = ["PhaseRows", "PhaseSums", "in_phases", "phase_columns", "phase_rows", "sums_for"]

Array = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class PhaseRows:
    """Rows of one phase: output positions, and the kernel positions that they read.

    Both are None where all are read.
    """

    index: Indices | None
    taps: Indices | None = None

    def patches(self, geometry: Geometry, x: Array) -> Array:
        """Patches ``(groups, rows, d_p)`` of an input."""
        if self.taps is None:
            return geometry.patches(x, self.index)
        assert isinstance(geometry, ConvGeometry)
        return geometry.patches(x, self.index, self.taps)

    def columns(self, stage: Stage) -> Array:
        """The columns ``(groups, n, d_p)`` of the map of a stage that they read."""
        if self.taps is None:
            return stage.matrices
        of_stage: Array = stage.matrices[
            :, :, _columns(self.taps, stage.geometry, stage.matrices.shape[2])
        ]
        return of_stage


def phase_rows(geometry: Geometry, shape: Sequence[int], index: Indices | None) -> list[PhaseRows]:
    """Part output positions of an input by phase.

    Args:
        geometry: how patches are cut out of it.
        shape: shape of the input.
        index: positions that are read in each sample; all of them if None.
    """
    if not in_phases(geometry):
        return [PhaseRows(index)]
    assert isinstance(geometry, ConvGeometry)
    return list(map(PhaseRows, geometry.by_phase(shape, index), geometry.phases))


def in_phases(geometry: Geometry) -> bool:
    """Whether patches are of several phases."""
    return isinstance(geometry, ConvGeometry) and len(geometry.phases) > 1


def phase_columns(geometry: Geometry, width: int) -> list[Indices]:
    """Columns of patches of ``width`` elements that each phase reads."""
    if not in_phases(geometry):
        return [np.arange(width)]
    assert isinstance(geometry, ConvGeometry)
    return [_columns(taps, geometry, width) for taps in geometry.phases]


def _columns(taps: Indices, geometry: Geometry, width: int) -> Indices:
    """Columns of some kernel positions, of patches in the order (channel, kernel positions)."""
    starts = np.arange(0, width, math.prod(geometry.kernel))
    return (starts[:, None] + taps).reshape(-1)


def sums_for(
    geometry: Geometry,
    inputs: int,
    outputs: int = 0,
    kind: type[Accumulator] = Accumulator,
) -> Accumulator | PhaseSums:
    """Empty sums of rows of patches.

    Args:
        geometry: how patches are cut out.
        inputs: number of columns of each group.
        outputs: number of responses of each group beside them.
        kind: type of the sums.
    """
    if in_phases(geometry):
        return PhaseSums(phase_columns(geometry, inputs), outputs, kind)
    return kind(geometry.groups, inputs, outputs)


class PhaseSums:
    """Sums of one group, with the outside of :class:`Accumulator`.

    Args:
        columns: columns ``(d_p,)`` of each phase among all d.
        outputs: number of responses.
        kind: type of the sums of a phase.

    Attributes:
        parts: sums of the phases, which rows are added to.
    """

    def __init__(
        self, columns: Sequence[Indices], outputs: int = 0, kind: type[Accumulator] = Accumulator
    ) -> None:
        self._columns = tuple(columns)
        self._width, self._outputs = sum(map(len, columns)), outputs
        self.parts: Sequence[Accumulator] = [kind(1, len(at), outputs) for at in columns]

    @property
    def count(self) -> int:
        """Number of rows seen, without those that hold NaN or Inf."""
        return sum(part.count for part in self.parts)

    @property
    def mean(self) -> Array:
        """Means ``(1, d + n)`` of inputs and responses."""
        mean = np.zeros((1, self._width + self._outputs))
        for part, at, share in self._shares():
            mean[:, at] = share * part.mean[:, : len(at)]
            mean[:, self._width :] += share * part.mean[:, len(at) :]
        return mean

    @property
    def covariance(self) -> PhaseCovariance:
        """Covariance of the inputs, as measured."""
        blocks = []
        for part, at, share in self._shares():
            (own,) = part.mean[:, : len(at)]
            blocks.append(share * (part.covariance[0] + np.outer(own, own)))
        return PhaseCovariance(tuple(blocks), self._columns, self.mean[0, : self._width])

    @property
    def scatter(self) -> PhaseCovariance:
        """Sum of centred squares of the inputs."""
        return self.covariance.times(float(self.count))

    @property
    def cross_scatter(self) -> Array:
        """Sum of centred products of responses and inputs, ``(1, n, d)``."""
        cross = np.zeros((1, self._outputs, self._width))
        for part, at, shift in self._apart():
            own = part.mean[:, None, : len(at)]
            cross[:, :, at] = part.cross_scatter + part.count * shift[:, :, None] * own
        return cross

    @property
    def variances(self) -> Array:
        """Variance ``(1, n)`` of each response."""
        total = np.zeros((1, self._outputs))
        for part, _, shift in self._apart():
            total += part.count * (part.variances + shift**2)
        return total / max(self.count, 1)

    @property
    def finite(self) -> bool:
        """Whether all sums are finite; squares of very large rows are not."""
        return all(part.finite for part in self.parts)

    def _shares(self) -> Iterator[tuple[Accumulator, Indices, float]]:
        """Sums, columns and share of the rows of each phase."""
        count = max(self.count, 1)
        for part, at in zip(self.parts, self._columns, strict=True):
            yield part, at, part.count / count

    def _apart(self) -> Iterator[tuple[Accumulator, Indices, Array]]:
        """Sums and columns of each phase, and by how much its mean responses differ."""
        responses = self.mean[:, self._width :]
        for part, at in zip(self.parts, self._columns, strict=True):
            yield part, at, part.mean[:, len(at) :] - responses

    def merge(self, other: PhaseSums) -> PhaseSums:
        """Both together, as a new one."""
        both = PhaseSums(self._columns, self._outputs)
        both.parts = [one.merge(two) for one, two in zip(self.parts, other.parts, strict=True)]
        return both

    def leading(self, width: int) -> PhaseSums:
        """The first ``width`` inputs alone, as a new one."""
        part = PhaseSums([at[at < width] for at in self._columns])
        part.parts = [
            own.leading(len(at)) for own, at in zip(self.parts, part._columns, strict=True)
        ]
        return part

    def says_nothing(self, width: int | None = None) -> bool:
        """Whether the inputs say nothing about weights; see :class:`Accumulator`.

        Args:
            width: number of inputs to look at, the first; None for all.
        """
        seen = self if width is None else self.leading(width)
        covariance = seen.covariance
        size = float(np.sum(np.square(seen.mean[:, : seen._width])))
        finite = all(np.isfinite(block).all() for block in covariance.blocks)
        return not (finite and covariance.trace > ROUNDING**2 * size)

    def moments(self) -> Moments:
        """The moments of the inputs, shrunk as those of :class:`Accumulator`."""
        mean = self.mean[:, : self._width]
        if self.says_nothing():
            return Moments(self.count, mean if self.count else None, None)
        covariance = self.covariance
        rho, unit = shrinkage(covariance.trace, covariance.square, self._width, self.count)
        return Moments(self.count, mean, covariance.times(1 - rho, rho * unit))

    def end_shard(self) -> None:
        """End a shard: the next rows are of another one."""
        for part in self.parts:
            part.end_shard()

    def shard(self) -> dict[str, npt.NDArray[Any]]:
        """All that was read by recorders, for :meth:`add_shard`; the shard has ended before."""
        found: dict[str, npt.NDArray[Any]] = {}
        for phase, part in enumerate(self.parts):
            assert isinstance(part, Recorder)
            found |= {f"{phase}.{name}": values for name, values in part.shard().items()}
        return found

    def add_shard(self, shard: Mapping[str, npt.NDArray[Any]]) -> None:
        """Add all that a shard elsewhere has read."""
        for phase, part in enumerate(self.parts):
            part.add_shard(below(shard, f"{phase}."))

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """All there is to it, to be written down."""
        return {
            f"{phase}.{name}": values
            for phase, part in enumerate(self.parts)
            for name, values in part.state().items()
        }

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from a :meth:`state`.

        Raises:
            KeyError, ValueError: it is of other sums.
        """
        for phase, part in enumerate(self.parts):
            part.restore(below(state, f"{phase}."))
