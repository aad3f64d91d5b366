"""Sums over rows of inputs and responses, streamed into covariances.

Rows are ``[x, y]``: inputs ``x`` of ``d`` columns, and responses ``y`` beside them. A regression of
``y`` on ``x`` needs

    E[x x^T]  (d, d),     E[y x^T]  (n, d),     E[y_i^2]  (n,)

all centred, and not the covariances of the responses among themselves, so these are not summed.
Products are of blocks of rows in float32, each about its own mean; sums and means are of float64,
and blocks are merged by Chan's update.

Shards of the rows may be read in other places. What counts there is where a block ends: each shard
begins with an empty one, and the few rows left at its end, which are not worth a product, are
handed on as they are. So a :class:`Recorder` elsewhere makes the very blocks that an accumulator
which reads everything makes itself, and the sums are the same to the last bit.

Reference:
    Chan, Golub & LeVeque 1983, Algorithms for computing the sample variance.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.analysis.block import Block, block_of
from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.linalg.shrinkage import shrinkage

__all__ = ["ROUNDING", "Accumulator", "Recorder"]

Array = npt.NDArray[np.floating[Any]]

#: a spread that is less than this part of the mean is one of rounding, in float32 and after a layer
ROUNDING = 1e-6


class Accumulator:
    """Sums of rows in float32, from which means and covariances are computed.

    Args:
        groups: number of independent sets of columns.
        width: number of inputs ``d`` in each.
        outputs: number of responses ``n`` in each.
    """

    #: largest number of rows to a product: enough for BLAS, few enough for float32 sums
    CHUNK = 4096
    #: smallest size of the rows of a product, in elements, below that number of rows
    _ELEMENTS = 1 << 20
    #: number of changes of rank one to the sums that are made together
    _PENDING = 32
    #: smallest number of rows at the end of a shard whose product takes longer than adding it
    _WORTH = 256

    def __init__(self, groups: int, width: int, outputs: int = 0) -> None:
        self._width = width
        self._count = 0
        self._mean: Array = np.zeros((groups, width + outputs))
        self._sums: Array = np.zeros((groups, width, width))
        self._cross: Array = np.zeros((groups, outputs, width))
        self._squares: Array = np.zeros((groups, outputs))
        # rows that wait for a product worth adding to the sums, written over by the next ones
        columns = max(groups * (width + outputs), 1)
        self._enough = min(self.CHUNK, max(width, self._ELEMENTS // columns, 1))
        self._rows: Array = np.zeros((groups, 0, width + outputs), np.float32)
        self._waiting = 0
        # rows that were left at the ends of shards
        self._left: list[Array] = []
        # vectors v (groups, d + n) and weights w of the changes w v v^T that wait
        self._vectors: list[Array] = []
        self._weights: list[float] = []

    @property
    def parts(self) -> tuple[Accumulator]:
        """What rows are added to, phase by phase: itself, for a single phase."""
        return (self,)

    @property
    def count(self) -> int:
        """Number of rows seen, without those that hold NaN or Inf."""
        return self._merged()._count

    @property
    def mean(self) -> Array:
        """Means ``(groups, d + n)`` of inputs and responses."""
        return self._merged()._mean

    @property
    def scatter(self) -> Array:
        """Sum of centred squares of the inputs, ``(groups, d, d)``."""
        return self._whole()._sums

    @property
    def cross_scatter(self) -> Array:
        """Sum of centred products of responses and inputs, ``(groups, n, d)``."""
        return self._whole()._cross

    @property
    def covariance(self) -> Array:
        """Covariance of the inputs ``(groups, d, d)``, as measured."""
        return self.scatter / max(self.count, 1)

    @property
    def cross(self) -> Array:
        """Covariance ``(groups, n, d)`` of the responses with the inputs."""
        return self.cross_scatter / max(self.count, 1)

    @property
    def variances(self) -> Array:
        """Variance ``(groups, n)`` of each response."""
        return self._whole()._squares / max(self.count, 1)

    @property
    def finite(self) -> bool:
        """Whether all sums are finite; squares of very large rows are not."""
        whole = self._whole()
        return all(bool(np.isfinite(a).all()) for a in (whole._sums, whole._cross, whole._squares))

    def update(self, *blocks: Array) -> None:
        """Add rows; blocks of columns ``(groups, rows, ...)`` stand side by side, inputs first."""
        groups, columns = self._mean.shape
        if not len(self._rows[0]):
            self._rows = np.empty((groups, self._enough, columns), np.float32)
        done, count = 0, blocks[0].shape[1]
        while done < count:
            more = min(count - done, self._enough - self._waiting)
            into = self._rows[:, self._waiting : self._waiting + more]
            start = 0
            for block in blocks:
                end = start + block.shape[2]
                into[:, :, start:end] = block[:, done : done + more]
                start = end
            self._waiting += more
            done += more
            if self._waiting == self._enough:
                self._end_block()

    def end_shard(self) -> None:
        """End the block that is being filled: the next rows are those of another shard."""
        if self._waiting >= self._WORTH:
            self._end_block()
        elif self._waiting:
            rows, self._waiting = self._rows[:, : self._waiting].copy(), 0
            self._leave(rows)

    def add_shard(self, shard: Mapping[str, npt.NDArray[Any]]) -> None:
        """Add the rows of a :meth:`Recorder.shard`, as if they had been read here.

        Raises:
            KeyError: it is not of such a recorder.
        """
        for i in range(int(shard["blocks"])):
            self._add(Block(
                int(shard[f"{i}.count"]), shard[f"{i}.mean"], shard[f"{i}.scatter"],
                shard[f"{i}.cross"], shard[f"{i}.squares"],
            ))  # fmt: skip
        if shard["left"].shape[1]:
            self._leave(shard["left"])

    def _leave(self, rows: Array) -> None:
        """Put rows ``(groups, n, d + n)`` aside that the end of a shard left over."""
        if sum(left.shape[1] for left in self._left) + rows.shape[1] > self._enough:
            self._end_left()
        self._left.append(rows)

    def _end_block(self) -> None:
        """Add the rows that wait."""
        if self._waiting:
            rows, self._waiting = self._rows[:, : self._waiting], 0
            self._merge(rows)

    def _end_left(self) -> None:
        """Add the rows that were put aside."""
        if self._left:
            rows, self._left = np.concatenate(self._left, axis=1), []
            self._merge(rows)

    def _merged(self) -> Accumulator:
        """Return itself, with no rows waiting."""
        self._end_block()
        self._end_left()
        return self

    def _whole(self) -> Accumulator:
        """Return itself, with nothing waiting."""
        self._merged()
        self._change()
        return self

    def _merge(self, rows: Array) -> None:
        """Add rows ``(groups, n, d + n)``, which are written over."""
        block = block_of(rows, self._width)
        if block is not None:
            self._add(block)

    def _add(self, block: Block) -> None:
        """Add the products of some rows."""
        with np.errstate(over="ignore", invalid="ignore"):  # see `says_nothing`
            self._sums += block.scatter
            if block.cross.shape[1]:
                self._cross += block.cross
                self._squares += block.squares
        # the sums are about the mean as float32 has it, and about that of these rows alone
        n, mean = block.count, block.mean
        shift, total = mean - self._mean, self._count + n
        self._vectors.append(mean - mean.astype(np.float32))
        self._weights.append(-float(n))
        if self._count:
            self._vectors.append(shift)
            self._weights.append(self._count * n / total)
        self._mean = self._mean + shift * (n / total)
        self._count = total
        if len(self._weights) >= self._PENDING:
            self._change()

    def _change(self) -> None:
        """Make the changes of rank one that wait."""
        if not self._weights:
            return
        vectors = np.stack(self._vectors, axis=1)
        weighed = vectors * np.array(self._weights)[:, None]
        inputs, width = vectors[:, :, : self._width], self._width
        self._vectors, self._weights = [], []
        with np.errstate(over="ignore", invalid="ignore"):
            self._sums += weighed[:, :, :width].swapaxes(1, 2) @ inputs
            self._cross += weighed[:, :, width:].swapaxes(1, 2) @ inputs
            self._squares += np.sum((weighed * vectors)[:, :, width:], axis=1)

    def merge(self, other: Accumulator) -> Accumulator:
        """Both together, as a new one."""
        one, two = self._whole(), other._whole()
        both = one._like(self._width, self._squares.shape[1])
        both._count = one._count + two._count
        if not both._count:
            return both
        shift = two._mean - one._mean
        both._mean = one._mean + shift * (two._count / both._count)
        both._sums = one._sums + two._sums
        both._cross = one._cross + two._cross
        both._squares = one._squares + two._squares
        both._vectors, both._weights = [shift], [one._count * two._count / both._count]
        return both

    def leading(self, width: int) -> Accumulator:
        """The first ``width`` inputs alone, as a new one."""
        whole = self._whole()
        part = self._like(width, 0)
        part._count = whole._count
        part._mean = whole._mean[:, :width].copy()
        part._sums = whole._sums[:, :width, :width].copy()
        return part

    def _like(self, width: int, outputs: int) -> Accumulator:
        return Accumulator(len(self._mean), width, outputs)

    def says_nothing(self, width: int | None = None) -> bool:
        """Whether the inputs say nothing about weights: they are constant, or squares are infinite.

        Args:
            width: number of inputs to look at, the first; None for all.
        """
        scatter, mean = self.scatter[:, :width, :width], self.mean[:, : self._width][:, :width]
        spread = float(np.trace(scatter, axis1=1, axis2=2).sum()) / max(self.count, 1)
        size = float(np.sum(np.square(mean)))
        return not (np.isfinite(scatter).all() and spread > ROUNDING**2 * size)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """All there is to it, to be written down; what waits goes on waiting."""
        return {
            "count": np.array(self._count),
            "mean": self._mean,
            "scatter": self._sums,
            "cross": self._cross,
            "squares": self._squares,
            "waiting": self._rows[:, : self._waiting],
            "left": np.concatenate([self._rows[:, :0], *self._left], axis=1),
            "vectors": np.array(self._vectors).reshape(-1, *self._mean.shape),
            "weights": np.array(self._weights),
        }

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from a :meth:`state`.

        Raises:
            KeyError, ValueError: it is of another accumulator.
        """
        for name, present in self.state().items():
            if (
                name not in ("waiting", "left", "vectors", "weights")
                and state[name].shape != present.shape
            ):
                raise ValueError(f"{name} {state[name].shape} for {present.shape}")
        waiting, left = state["waiting"], state["left"]
        groups, columns = self._mean.shape
        for rows in (waiting, left):
            if rows.shape != (groups, rows.size // max(groups * columns, 1), columns):
                raise ValueError(f"rows {rows.shape} for {self._mean.shape}")
        self._count, self._mean, self._sums = int(state["count"]), state["mean"], state["scatter"]
        self._cross, self._squares = state["cross"], state["squares"]
        self._vectors, self._weights = list(state["vectors"]), state["weights"].tolist()
        self._waiting, self._left = 0, [left] if left.shape[1] else []
        self.update(waiting)

    def moments(self) -> Moments:
        """The moments of the inputs, their covariance shrunk towards a multiple of the identity.

        Returns:
            Moments without a covariance where the input says nothing about the weights: it is
            constant, or so large that its squares are no numbers.
        """
        mean = self.mean[:, : self._width].copy()
        if self.says_nothing():
            return Moments(self.count, mean if self.count else None, None)
        covariance = self.covariance
        for sample in covariance:
            square = float(np.vdot(sample, sample))
            rho, unit = shrinkage(np.trace(sample), square, len(sample), self.count)
            sample *= 1 - rho
            sample[np.diag_indices(len(sample))] += rho * unit
        silent = ~covariance.any(axis=(1, 2))
        if silent.any():  # such a group must keep its weights, at the least weight in the sum
            trace = np.trace(covariance[~silent], axis1=1, axis2=2).mean()
            covariance[silent] = np.eye(covariance.shape[1]) * (1e-6 * trace / len(covariance[0]))
        return Moments(self.count, mean, covariance)


class Recorder(Accumulator):
    """Keeps the products of the rows of one shard apart, for an accumulator elsewhere to add."""

    def __init__(self, groups: int, width: int, outputs: int = 0) -> None:
        super().__init__(groups, width, outputs)
        self._blocks: list[Block] = []

    def _add(self, block: Block) -> None:
        self._blocks.append(block)

    def shard(self) -> dict[str, npt.NDArray[Any]]:
        """All that was read, for :meth:`Accumulator.add_shard`; the shard has ended before."""
        found = {
            "blocks": np.array(len(self._blocks)),
            "left": np.concatenate([self._rows[:, :0], *self._left], axis=1),
        }
        for i, block in enumerate(self._blocks):
            own = {name: getattr(block, name) for name in ("mean", "scatter", "cross", "squares")}
            found |= {f"{i}.{name}": values for name, values in own.items()}
            found[f"{i}.count"] = np.array(block.count)
        return found
