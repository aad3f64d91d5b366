"""Reading the arrays of a source, as runs of the model or as rows that are samples.

A feed, and a file of a folder, is one run of the model. An archive has samples along axis 0. Where
the inputs have a dynamic axis 0, arrays with as many axes can be read both ways, and the model is
run to find out which way is right (row_trial.py). Arrays with one axis more, or whose shape is not
a complete input, can be read in one way only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from onnx_lowrank.samples.feeds import (
    REMEDY,
    Column,
    InputSpec,
    Rows,
    UnequalCountsError,
    assemble,
    check_complete,
)
from onnx_lowrank.samples.row_trial import Finding, RowTrial

__all__ = ["Items", "Reading", "read"]

#: Files, feeds or pictures: a name for messages, and arrays by input name.
Items = Sequence[tuple[str, Mapping[str, Rows]]]


class Reading(NamedTuple):
    """Samples, with the way to run the model on them.

    Attributes:
        columns: samples of each input.
        merge: whether feeds may be merged into batches.
        rows: number of samples in one feed that is not merged.
        notes: sentences that say what was decided, and why.
    """

    columns: list[Column]
    merge: bool
    rows: int
    notes: tuple[str, ...]


def read(
    where: str,
    specs: Sequence[InputSpec],
    items: Items,
    trial: RowTrial | None,
    *,
    feeds: bool = False,
    stacked: bool | None = None,
    labels: int | None = None,
    remedy: str = REMEDY,
) -> Reading:
    """Read the arrays of a source.

    Args:
        where: name of the source, for messages.
        specs: inputs of the model.
        items: arrays of the source.
        trial: finds out whether rows are samples; without it, axis 0 is taken to count samples
            wherever it is dynamic.
        feeds: whether each item is a feed, and so one run.
        stacked: whether the arrays have one axis more than the inputs; None decides by their
            rank.
        labels: number of labels that came with the arrays.
        remedy: advice for the message about a shape that does not fit.

    Raises:
        DataError: a rank, shape, type or number of samples does not fit.
    """
    if feeds:
        for place, arrays in items:
            for spec in specs:
                check_complete(place, spec, arrays[spec.name])
    source = _Source(where, specs, items, trial, stacked, remedy, labels)
    whole = feeds or all(s.takes(a[s.name].shape) for _, a in items for s in specs)
    runs = source.runs() if feeds else None
    if runs is not None and not _cuttable(specs, items):
        return source.reading(runs, "not all inputs have a dynamic axis 0 of one length")
    try:
        rows = source.by_rows(specs, stacked=False if feeds else stacked)
    except UnequalCountsError:
        if whole and trial is not None:
            runs = source.runs()
            if trial.runs(_feed(runs, 0)):
                return source.reading(runs, "the inputs differ in length along axis 0")
        raise
    free = [c.spec.name for c in rows if not (c.stacked or (c.spec.shape and c.spec.shape[0]))]
    if not whole or not free or trial is None:
        return source.reading(rows)
    count = len(rows[0])
    finding = trial.rows(lambda i: _feed(rows, i), count, free)
    if finding.merge:
        return source.reading(rows, merge=True)
    if count > len(items) and labels != count:
        runs = source.runs()
        if labels == len(items) or not _by_row(finding, runs, trial, feeds):
            return source.reading(runs, finding.reason)
    if finding.batch > 1 and all(s.shape for s in specs if s.name in free):
        fixed = [_with_batch(s, finding.batch) if s.name in free else s for s in specs]
        return source.reading(
            source.by_rows(fixed, stacked=False if feeds else stacked), finding.reason
        )
    return source.reading(rows, finding.reason)


def _by_row(finding: Finding, runs: Sequence[Column], trial: RowTrial, feeds: bool) -> bool:
    """Whether items of several rows that cannot be merged are cut into rows all the same."""
    if not finding.apart:
        return False
    return not feeds or not trial.runs(_feed(runs, _longest(runs)))


@dataclass(frozen=True)
class _Source:
    """Arguments of :func:`read` that all ways of reading have in common."""

    where: str
    specs: Sequence[InputSpec]
    items: Items
    trial: RowTrial | None
    stacked: bool | None
    remedy: str
    labels: int | None

    def runs(self) -> list[Column]:
        """Read each item as one complete input."""
        lifted = [(p, {n: _lifted(v) for n, v in a.items()}) for p, a in self.items]
        return assemble(self.where, self.specs, lifted, stacked=True, remedy=self.remedy)

    def by_rows(self, specs: Sequence[InputSpec], stacked: bool | None) -> list[Column]:
        """Read each row along axis 0 as one sample."""
        return assemble(self.where, specs, self.items, stacked=stacked, remedy=self.remedy)

    def reading(
        self, columns: list[Column], reason: str = "", merge: bool | None = None
    ) -> Reading:
        """Make a reading of columns, with its notes."""
        batchable = all(column.batchable for column in columns)
        merge = batchable and (self.trial is None if merge is None else merge)
        left_out = [
            f"{self.where}: the last {c.rows % c.step} of {c.rows} samples of input "
            f"{c.spec.name!r} do not fill the model's batch of {c.step} and are left out"
            for c in columns
            if c.rows % c.step
        ]
        notes = [] if merge or self.trial is None else self._note(columns, reason)
        return Reading(columns, merge, self._rows_of(columns), (*notes, *left_out))

    def _note(self, columns: Sequence[Column], reason: str) -> list[str]:
        """Say how many runs there are, and why each is run alone."""
        count, first = len(columns[0]), _feed(columns, 0)
        if count == 1 and all(v.shape[:1] <= (1,) for v in first.values()):
            return []
        shapes = [str(v.shape) for v in first.values()]
        if len(shapes) > 1:
            shapes = [f"{n} {s}" for n, s in zip(first, shapes, strict=True)]
        alike = all(column.uniform for column in columns)
        shape = ", ".join(shapes)
        shape = f"shape {shape}" if alike else f"different shapes, {shape} first"
        what = f"1 run of {shape}" if count == 1 else f"{count} runs of {shape}, run one at a time"
        return [f"{self.where}: {what}, because {reason or _reason(columns)}"]

    def _rows_of(self, columns: Sequence[Column]) -> int:
        """Number of samples in a feed of a fixed batch."""
        if self.labels is not None:
            alone = self.labels == len(columns[0])
            return 1 if alone else max(column.step for column in columns)
        batched = [c.spec for c in columns if c.spec.shape and not c.shared]
        batches = {spec.shape[0] for spec in batched if spec.shape}
        batch = batches.pop() if len(batches) == 1 else None
        if batch is None or batch == 1:
            return 1
        if self.trial is None:
            return max(column.step for column in columns)
        one, other = _feed(columns, 0), _feed(columns, len(columns[0]) - 1)
        return batch if self.trial.fixed(one, other, [s.name for s in batched]) else 1


def _reason(columns: Sequence[Column]) -> str:
    if not all(column.uniform for column in columns):
        return "they differ in shape"
    if any(column.shared for column in columns):
        return "an input is the same for all of them"
    if any(column.stacked and column.spec.shape is not None for column in columns):
        return "the arrays have one axis more than the inputs"
    return "axis 0 is fixed in the shape of an input, or not declared"


def _cuttable(specs: Sequence[InputSpec], items: Items) -> bool:
    """Whether each item has one number of rows along a dynamic axis 0 of all inputs."""
    return all(s.free_batch for s in specs) and all(
        len({arrays[s.name].shape[0] for s in specs}) == 1 for _, arrays in items
    )


def _longest(columns: Sequence[Column]) -> int:
    """Number of the run with the most rows."""
    sizes = [part.shape[1] if len(part.shape) > 1 else 0 for part in columns[0].parts]
    return int(np.argmax(sizes))


def _lifted(values: Rows) -> Any:
    """The array with an axis of length 1 in front."""
    return np.asarray(values)[None]


def _feed(columns: Sequence[Column], i: int) -> dict[str, Any]:
    return {column.spec.name: column.feed(i) for column in columns}


def _with_batch(spec: InputSpec, batch: int) -> InputSpec:
    assert spec.shape is not None
    return replace(spec, shape=(batch, *spec.shape[1:]))
