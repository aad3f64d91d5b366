"""Fit of a chain to the responses behind the ReLU that follows it.

It starts from the linear solution, and alternates two steps: the last stage is solved behind the
ReLU, on the features ``A x`` that the stages before it make of a patch ``x``; then the layer is
solved for responses that are equivalent behind the ReLU and nearest to the chain's, and factorized
again. :mod:`onnx_lowrank.linalg.relu_regression` needs rows of patches, and a few are drawn from
every batch. In front of a residual Add the ReLU is the one behind the sum, and the skip branch is
given. A step that does not lower the error behind the ReLU on held-out batches is dropped; if none
does, the linear solution stays.

Reference:
    Zhang, Zou, He & Sun 2015, section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.chains.chain import Chain, Stage
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.linalg.phase_covariance import by_group
from onnx_lowrank.linalg.relu_regression import SCHEDULE, ReluProblem, rectified

__all__ = ["Behind", "DrawnRows", "ceiling_behind", "fitted_behind_relu"]

Array = npt.NDArray[np.floating[Any]]

#: patches, wanted outputs and skips of some rows
Rows = tuple[Array, Array, Array]

#: smallest number of rows to draw of a layer, number for each column, and largest size in bytes
ROWS, ROWS_PER_COLUMN, BYTES = 8192, 16, 96 << 20

#: weight of the moments of all rows against the rows drawn
RIDGE = 0.3

#: largest number of times that a chain is factorized again
ROUNDS = 2

#: smallest number of rows for each column with which a chain is factorized again
ROWS_EACH = 8


@dataclass(frozen=True)
class Behind:
    """Relative errors behind the ReLU on held-out rows.

    Attributes:
        linear: error of the linear solution.
        error: error of the chain that is taken.
    """

    linear: float
    error: float

    @property
    def gain(self) -> float:
        """Part of the error that the fit removes."""
        return 1 - self.error / self.linear if self.linear > 0 else 0.0


class DrawnRows:
    """Rows of patches and of the tensor before the ReLU, a few drawn from every batch.

    Args:
        shape: of the weight that is fitted, ``(groups, n, d)``.
        batches: number of batches to come.
        ceiling: upper bound of the ReLU; infinite for none.
        rng: random generator of the draws.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        batches: int,
        ceiling: float,
        rng: np.random.Generator,
    ) -> None:
        self.ceiling = ceiling
        groups, outputs, width = shape
        most = BYTES // (4 * groups * (width + 2 * outputs))
        rows = min(max(ROWS, ROWS_PER_COLUMN * width), most)
        self._each = math.ceil(rows / max(batches, 1))
        self._rng = rng
        self._parts = {which: _Growing(self._each * batches) for which in (False, True)}

    def draw(self, count: int) -> npt.NDArray[np.intp]:
        """Draw rows from a batch of ``count``, for :meth:`add`."""
        at = self._rng.choice(count, min(self._each, count), replace=False)
        return np.sort(at).astype(np.intp)

    def add(self, patches: Array, total: Array, skip: Array, held: bool) -> None:
        """Take the rows that were drawn from a batch.

        Args:
            patches: inputs ``(groups, rows, d)``.
            total: sums that the original has before the ReLU, ``(groups, rows, n)``.
            skip: given part of these sums, ``(groups, rows, n)``.
            held: whether the batch is held out.
        """
        drawn = patches, total, skip
        known = np.logical_and.reduce([np.isfinite(part).all(axis=(0, 2)) for part in drawn])
        if known.any():
            x, y, s = drawn if known.all() else (part[:, known] for part in drawn)
            self._parts[held].add((x, rectified(y, self.ceiling), s))

    @property
    def any(self) -> bool:
        """Whether any rows were drawn."""
        return any(part.count for part in self._parts.values())

    def taken(self) -> tuple[Rows, Rows]:
        """The rows of the batches to fit on and of those held out, which are not kept here."""
        fit, held = (part.taken() for part in self._parts.values())
        assert fit is not None or held is not None
        return fit or held, held or fit  # type: ignore[return-value]


class _Growing:
    """Rows in one block of memory, for many small ones between large ones tear it to pieces.

    Args:
        most: number of rows that there is room for at first.
    """

    def __init__(self, most: int) -> None:
        self._most, self.count = most, 0
        self._rows: list[Array] = []

    def add(self, rows: Rows) -> None:
        """Add rows behind the others."""
        start, self.count = self.count, self.count + rows[0].shape[1]
        if not self._rows or self.count > self._rows[0].shape[1]:
            before, room = self._rows, max(self._most, 2 * start, self.count)
            self._rows = [np.empty((len(r), room, r.shape[2]), r.dtype) for r in rows]
            for new, old in zip(self._rows, before, strict=False):
                new[:, :start] = old[:, :start]
        for part, own in zip(self._rows, rows, strict=True):
            part[:, start : self.count] = own

    def taken(self) -> Rows | None:
        """The rows, which are not kept here; None without any."""
        if not self.count:
            return None
        x, y, s = (part[:, : self.count] for part in self._rows)
        self._rows, self.count = [], 0
        return x, y, s


def ceiling_behind(graph: Graph, tensor: str) -> float | None:
    """Upper bound of the ReLU that alone reads ``tensor``; None where there is no such ReLU."""
    readers = graph.consumers(tensor)
    if (
        len(readers) != 1
        or graph.is_output(tensor)
        or not any(readers[0] is n for n in graph.nodes)
    ):
        return None
    node = readers[0]
    if node.op == "Relu":
        return math.inf
    if node.op != "Clip":
        return None
    ends = []
    for place, name, default in ((1, "min", -math.inf), (2, "max", math.inf)):
        end: Any = graph.attribute(node, name, default)
        if len(node.inputs) > place and node.inputs[place].name:
            end = graph.constant(node.inputs[place].name)
        ends.append(math.nan if end is None else float(np.asarray(end).reshape(-1)[0]))
    return ends[1] if ends[0] == 0 and ends[1] > 0 else None


def fitted_behind_relu(
    chain: Chain,
    stage: Stage,
    cut: Callable[[Stage, Moments], Chain],
    moments: Moments,
    drawn: DrawnRows,
) -> tuple[Chain, Behind] | None:
    """Fit a chain behind the ReLU that follows it.

    Args:
        chain: the linear solution, with a bias.
        stage: the layer that it was factorized from.
        cut: factorizes a layer under the moments of its input.
        moments: moments of its input over all rows.
        drawn: rows to fit on and to judge by.

    Returns:
        The best chain found and its errors; None where a step is not a plain stage.
    """
    if moments.covariance is None or chain.last.bias is None:
        return None
    if not _plain(chain, stage.groups):
        return None
    fit = _Fit(stage, moments, drawn)
    linear = fit.error(chain)
    best, least = fit.with_last_solved(chain)
    for _ in range(ROUNDS if len(chain.stages) > 1 and fit.tells_of_layer else 0):
        tried, error = fit.with_last_solved(cut(fit.step(best), moments))
        if error >= least:
            break
        best, least = tried, error
    return best, Behind(linear, least)


class _Fit:
    """The problem of one layer with its rows."""

    def __init__(self, stage: Stage, moments: Moments, drawn: DrawnRows) -> None:
        assert moments.covariance is not None
        self._stage, self._ceiling = stage, drawn.ceiling
        self._sigma = by_group(moments.covariance)
        self._groups = range(stage.groups)
        self._fit, self._held = drawn.taken()
        wanted = self._held[1]
        spread = np.square(wanted - wanted.mean(axis=1, keepdims=True))
        self._energy = float(np.sum(spread, dtype=np.float64)) or 1.0

    @property
    def tells_of_layer(self) -> bool:
        """Whether the rows are enough to solve the whole layer, not only a last stage."""
        _, rows, columns = self._fit[0].shape
        return bool(rows >= ROWS_EACH * columns)

    def error(self, chain: Chain) -> float:
        """Relative error of a chain behind the ReLU on held-out rows."""
        x, y, s = self._held
        total = 0.0
        for g, (weight, bias) in enumerate(zip(*self._whole(chain), strict=True)):
            response = x[g] @ weight.T.astype(x.dtype) + bias.astype(x.dtype) + s[g]
            left = np.square(y[g] - rectified(response, self._ceiling))
            total += float(np.sum(left, dtype=np.float64))
        return total / self._energy

    def with_last_solved(self, chain: Chain) -> tuple[Chain, float]:
        """Solve the last stage again; return the better one of both chains, and its error."""
        last, maps = chain.last, _features(chain, self._stage.groups)
        assert isinstance(last, Stage)
        x, y, s = self._fit
        least = self.error(chain)
        weights, biases = last.matrices.astype(np.float64), _biases(last)
        found = []
        for g in self._groups:
            rows, sigma = x[g], self._sigma[g]
            if maps is not None:
                rows = rows @ maps[g].T.astype(rows.dtype)
                sigma = maps[g] @ sigma @ maps[g].T
            problem = ReluProblem(
                rows, y[g], weights[g], biases[g], given=s[g],
                sigma=sigma, ridge=RIDGE, ceiling=self._ceiling,
            )  # fmt: skip
            found.append(problem.solve())
        solved = last.with_matrices(
            np.stack([f.weight for f in found]), np.concatenate([f.bias for f in found])
        )
        tried = Chain((*chain.stages[:-1], solved))
        error = self.error(tried)
        return (tried, error) if error < least else (chain, least)

    def step(self, chain: Chain) -> Stage:
        """Solve the layer once, from the responses of ``chain``."""
        found = [
            problem.step(problem.response(weight, bias), SCHEDULE[0])
            for problem, weight, bias in zip(self._problems, *self._whole(chain), strict=True)
        ]
        weights, biases = zip(*found, strict=True)
        return self._stage.with_matrices(np.stack(weights), np.concatenate(biases))

    @cached_property
    def _problems(self) -> list[ReluProblem]:
        x, y, s = self._fit
        weights, biases = self._stage.matrices.astype(np.float64), _biases(self._stage)
        return [
            ReluProblem(
                x[g], y[g], weights[g], biases[g], given=s[g], sigma=self._sigma[g],
                ridge=RIDGE, ceiling=self._ceiling,
            )
            for g in self._groups
        ]  # fmt: skip

    def _whole(self, chain: Chain) -> tuple[Array, Array]:
        """Map of a chain ``(groups, N / groups, d)``, and its bias ``(groups, N / groups)``."""
        last = chain.last
        assert isinstance(last, Stage)
        return chain.dense(self._stage.groups).reshape(self._stage.matrices.shape), _biases(last)


def _biases(stage: Stage) -> Array:
    assert stage.bias is not None
    return stage.bias.astype(np.float64).reshape(stage.groups, -1)


def _plain(chain: Chain, groups: int) -> bool:
    """Whether all steps are plain stages, and the last one has the groups of the layer."""
    return chain.stages[-1].groups == groups and all(isinstance(s, Stage) for s in chain.stages)


def _features(chain: Chain, groups: int) -> Array | None:
    """Map ``A (groups, p, d)`` of all stages but the last; None if the last is alone."""
    if len(chain.stages) == 1:
        return None
    last = chain.last
    assert isinstance(last, Stage)
    columns = last.matrices.shape[2]
    unit = np.tile(np.eye(columns), (groups, 1)).reshape(groups * columns, *last.weight.shape[1:])
    whole = Chain((*chain.stages[:-1], replace(last, weight=unit, bias=None)))
    return whole.dense(groups).reshape(groups, columns, -1)
