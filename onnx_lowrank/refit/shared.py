"""Tasks whose layers read the same patches, and the covariances that solve them.

Patches ``x`` are read and summed once for all of them. The responses ``y`` that a layer should give
are a tensor of the original model, or where it has one of its own, its response ``W0 x0 + b0`` to
its input there. Then the covariances of ``y`` follow from those of ``[x, x0]``:

    E[y x^T] = W0 E[x0 x^T],     E[y] = W0 E[x0] + b0,     E||y||^2 = tr(W0 E[x0 x0^T] W0^T)

and ``y`` need not be read, which is much less work where layers have more outputs than inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from onnx_lowrank.analysis.accumulator import Accumulator
from onnx_lowrank.analysis.counted_rows import Counted, counted_rows, only
from onnx_lowrank.analysis.moments import Moments, response_error
from onnx_lowrank.analysis.phase_sums import (
    PhaseRows,
    PhaseSums,
    in_phases,
    phase_columns,
    phase_rows,
    sums_for,
)
from onnx_lowrank.analysis.reader import drawn_positions
from onnx_lowrank.chains.chain import Stage
from onnx_lowrank.chains.geometry import Geometry
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import Destination, destination
from onnx_lowrank.refit.behind_relu import DrawnRows
from onnx_lowrank.refit.regression import Regression
from onnx_lowrank.refit.task import Task

__all__ = ["Batch", "Shared", "Sums", "responses_of", "shared_tasks"]

Array = npt.NDArray[np.floating[Any]]
Rows = Mapping[str, npt.NDArray[Any]]
#: input of a layer of the original model: the tensor, how patches are cut out of it, their length
Source = tuple[str, Geometry, int]
Sums = Accumulator | PhaseSums


@dataclass(frozen=True)
class Batch:
    """Tensors of one batch.

    Attributes:
        original: of the original model.
        current: of the compressed model.
        held: whether the batch is held out of the fit.
        counted: positions ``(samples, positions)`` that are no padding; None where all are.
    """

    original: Rows
    current: Rows
    held: bool
    counted: Counted = None


class _Rows(NamedTuple):
    """What is read of the rows of one phase of a batch.

    Attributes:
        patches: ``x (groups, rows, d_p)``.
        before: patches ``x0`` of each source.
        pairs: what a task should answer, residual sum and all, and the skip branch as it is now, by
            place of the task.
    """

    patches: Array
    before: Mapping[Source, Array]
    pairs: Mapping[int, tuple[Array, Array | None]]


@dataclass(frozen=True)
class Shared:
    """Tasks whose layers read the same patches.

    Attributes:
        tasks: the tasks.
        ends: where their responses go, in both models.
    """

    tasks: Sequence[Task]
    ends: Sequence[Destination]

    @property
    def geometry(self) -> Geometry:
        """Geometry of the patches."""
        return self.tasks[0].stage.outline.geometry

    @cached_property
    def width(self) -> int:
        """Length ``d`` of a group's patch."""
        return self.tasks[0].stage.shape[2]

    @property
    def reads(self) -> tuple[str, ...]:
        """Tensors of the compressed model: what all read, then skip branches of residual sums."""
        return (self.tasks[0].reads, *(skip for end in self.ends for skip in end.skip))

    @property
    def wanted(self) -> tuple[str, ...]:
        """Tensors of the original model."""
        totals = (e.total for n, e in enumerate(self.ends) if n not in self._by_input)
        return tuple(dict.fromkeys([*(source[0] for source in self._sources), *totals]))

    @cached_property
    def _by_input(self) -> Mapping[int, Source]:
        """Inputs of the tasks, by place, whose responses are computed instead of read."""
        if in_phases(self.geometry):  # an input may be in others
            return {}
        own = {n: _source(t) for n, t in enumerate(self.tasks) if _by_itself(t, self.ends[n])}
        width = self.width + sum(source[2] for source in set(own.values()))
        outputs = sum(self.tasks[n].stage.shape[1] for n in own)
        if width**2 < self.width * (self.width + 2 * outputs):  # products for each row
            return own
        return {n: s for n, s in own.items() if not self.ends[n].total or self.tasks[n].turned}

    @cached_property
    def _sources(self) -> Mapping[Source, int]:
        """Inputs in the original model, and the column of ``[x, x0]`` at which each begins."""
        places, column = {}, self.width
        for source in self._by_input.values():
            if source not in places:
                places[source] = column
                column += source[2]
        return places

    @cached_property
    def _outputs(self) -> Mapping[int, int]:
        """Columns at which the responses of tasks begin, by place, where they are read."""
        places, column = {}, self._inputs
        for n, task in enumerate(self.tasks):
            if n not in self._by_input:
                places[n] = column
                column += task.stage.shape[1]
        return places

    def sums(
        self,
        batches: Iterator[Batch],
        samples: int,
        rng: np.random.Generator,
        drawn: Sequence[DrawnRows | None],
    ) -> tuple[Sums, Sums]:
        """Sum over the batches to fit on, and over those held out.

        Args:
            batches: the data.
            samples: number of samples that would make enough rows together.
            rng: draws the positions that are read.
            drawn: takes rows for tasks that are fitted behind a ReLU.
        """
        groups = self.tasks[0].stage.outline.groups
        outputs = sum(self.tasks[n].stage.shape[1] for n in self._outputs)
        fit, held = (sums_for(self.geometry, self._inputs, outputs) for _ in range(2))
        maps = {n: _map(self.tasks[n]) for n, some in enumerate(drawn)
                if some is not None and n in self._by_input}  # fmt: skip
        for batch in batches:
            x = batch.current[self.tasks[0].reads].astype(np.float32, copy=False)
            positions = self.geometry.positions(x.shape)
            index = drawn_positions(positions, (groups, self.width), samples, rng)
            phases = phase_rows(self.geometry, x.shape, index)
            read = [self._read(batch, x, phase) for phase in phases]
            for part, rows in zip((held if batch.held else fit).parts, read, strict=True):
                responses = [
                    self.tasks[n].weighed(total if skip is None else total - skip, 2)
                    for n, (total, skip) in rows.pairs.items()
                ]
                part.update(rows.patches, *rows.before.values(), *responses)
            for n, some in enumerate(drawn):
                if some is not None:
                    self._draw(n, some, read, batch.held, maps.get(n))
        return fit, held

    @property
    def _inputs(self) -> int:
        """Number of columns of ``[x, x0]``."""
        return self.width + sum(source[2] for source in self._sources)

    def _read(self, batch: Batch, x: Array, phase: PhaseRows) -> _Rows:
        rows = counted_rows(batch.counted, self.geometry, x.shape, phase.index)
        return _Rows(
            only(phase.patches(self.geometry, x), rows),
            {s: only(_patches(s, batch.original, phase.index), rows) for s in self._sources},
            {n: self._responses(n, batch, phase.index, rows) for n in self._outputs},
        )

    def _draw(
        self,
        place: int,
        some: DrawnRows,
        read: Sequence[_Rows],
        held: bool,
        original: tuple[Array, Array] | None,
    ) -> None:
        """Draw rows of a batch for a task that is fitted behind a ReLU.

        Args:
            place: of the task.
            some: takes the rows.
            read: the rows of the batch, by phase.
            held: whether the batch is held out.
            original: map and bias of its original layer, where its responses are computed.
        """
        ends = np.cumsum([rows.patches.shape[1] for rows in read])
        drawn = some.draw(int(ends[-1]))
        phases = phase_columns(self.geometry, self.width)
        for rows, columns, end in zip(read, phases, ends, strict=True):
            at = drawn - (end - rows.patches.shape[1])
            at = at[(at >= 0) & (drawn < end)]
            if original is not None:
                seen = rows.before[self._by_input[place]][:, at]
                total, skip = _answer(*original, seen), None
            else:
                total, skip = rows.pairs[place]
                total, skip = total[:, at], None if skip is None else skip[:, at]
            patches = rows.patches[:, at]
            if len(read) > 1:
                own = patches
                patches = np.zeros((*own.shape[:2], self.width), own.dtype)
                patches[:, :, columns] = own
            some.add(patches, total, np.zeros_like(total) if skip is None else skip, held)

    def regression(self, place: int, sums: Sums) -> Regression:
        """The regression of one of the tasks, in weighed outputs."""
        task, width, mean = self.tasks[place], self.width, sums.mean
        inputs = sums.scatter if isinstance(sums, PhaseSums) else sums.scatter[:, :width, :width]
        if place in self._by_input:
            assert not isinstance(sums, PhaseSums)  # their responses are read
            first = self._sources[self._by_input[place]]
            last = first + self._by_input[place][2]
            weights, bias = map(task.weighed, _map(task))
            source = sums.scatter[:, first:last, first:last]
            return Regression(
                sums.count,
                inputs,
                weights @ sums.scatter[:, first:last, :width],
                response_error(weights, Moments(1, None, source)),
                mean[:, :width],
                np.einsum("gnd,gd->gn", weights, mean[:, first:last]) + bias,
            )
        outputs = task.stage.shape[1]
        start = self._outputs[place] - self._inputs
        here = slice(start, start + outputs)
        return Regression(
            sums.count,
            inputs,
            sums.cross_scatter[:, here, :width],
            float(sums.variances[:, here].sum()) * sums.count,
            mean[:, :width],
            mean[:, self._outputs[place] :][:, :outputs],
        )

    def _responses(
        self,
        place: int,
        batch: Batch,
        index: npt.NDArray[np.intp] | None,
        rows: npt.NDArray[np.bool_] | None,
    ) -> tuple[Array, Array | None]:
        """What a task should answer, residual sum and all, and the skip branch as it is now.

        Args:
            place: of the task.
            batch: tensors of both models.
            index: positions that are read in each sample; all of them if None.
            rows: which of their rows count; all of them if None.
        """
        task, end = self.tasks[place], self.ends[place]
        y = batch.original[end.total].astype(np.float32, copy=False)
        if task.rows is not None:
            y = y.compress(task.rows, self.geometry.channel_axis)
        total = only(self.geometry.responses(y, index), rows)
        if not end.skip:
            return total, None
        # a skip branch of fewer elements is repeated by the sum
        skip = batch.current[end.skip[0]].astype(np.float32, copy=False)
        now = self.geometry.responses(np.broadcast_to(skip, y.shape), index)
        return total, only(now, rows)


def shared_tasks(compressed: Graph, tasks: Sequence[Task]) -> list[Shared]:
    """Put tasks together that read the same patches, in topological order.

    A task behind a residual sum whose other branch waits for a later task stays where it is.

    Args:
        compressed: the model with chains in the place of layers.
        tasks: in topological order.
    """
    groups: list[tuple[list[Task], list[Destination]]] = []
    first: dict[Any, int] = {}
    for task in tasks:
        end = destination(compressed, task.written.layer)
        key = task.reads, task.stage.outline.geometry, task.stage.shape[::2]
        if end.skip or key not in first:
            if not end.skip:
                first[key] = len(groups)
            groups.append(([], []))
            place = len(groups) - 1
        else:
            place = first[key]
        groups[place][0].append(task)
        groups[place][1].append(end)
    return [Shared(*group) for group in groups]


def responses_of(stage: Stage, values: npt.NDArray[Any], phase: PhaseRows) -> Array:
    """Responses ``(groups, rows, N / groups)`` of ``stage`` to its input ``values``."""
    patches = phase.patches(stage.geometry, values.astype(np.float32, copy=False))
    return _answer(phase.columns(stage), stage.bias, patches)


def _answer(weights: Array, bias: Array | None, patches: Array) -> Array:
    made: Array = patches @ weights.astype(np.float32).swapaxes(1, 2)
    if bias is not None:
        made += bias.astype(np.float32).reshape(len(weights), 1, -1)
    return made


def _map(task: Task) -> tuple[Array, Array]:
    """Map ``W0 (groups, n, d0)`` of a task's original layer and its bias ``(groups, n)``."""
    stage = task.original.read()
    weights = stage.matrices
    bias = np.zeros(weights.shape[:2]) if stage.bias is None else stage.bias
    bias = bias.reshape(weights.shape[:2])
    if task.rows is not None:
        weights, bias = weights[:, task.rows], bias[:, task.rows]
    return weights, bias


def _source(task: Task) -> Source:
    return task.source, task.original.outline.geometry, task.original.shape[2]


def _by_itself(task: Task, end: Destination) -> bool:
    """Whether what a task should answer can be computed from its original layer's input."""
    groups = task.original.outline.groups
    alike = groups == task.stage.outline.groups
    return not end.skip and alike and (task.rows is None or groups == 1)


def _patches(source: Source, values: Rows, index: npt.NDArray[np.intp] | None) -> Array:
    tensor, geometry, _ = source
    return geometry.patches(values[tensor].astype(np.float32, copy=False), index)
