"""Refit of each chain, from input to output, with the layers before it already compressed.

Every layer is fitted to the responses ``y`` of the original model on its input ``x`` in the
compressed model:

    W* = W + (E[y x^T] - W E[x x^T]) (E[x x^T] + lambda I)^-1,     b* = E[y] - W* E[x]

(moments centred) and ``W*`` is factorized again, in the metric of that input, by the method and
rank of the plan; so errors of earlier layers are repaired rather than passed on. Solving the whole
chain instead of its last stage needs larger moments and gains more: on CIFAR-10 ResNet-56 at half
its MACs one point of accuracy. Layers that the plan keeps are solved in the same way where a layer
before them changed. In front of a residual Add the target is the original sum minus the current
skip branch. ``lambda`` shrinks towards the present weights and is chosen on calibration samples
that the fit did not see; keeping the weights is among the choices.

Both models advance layer by layer from stored tensors of the last step, so the whole costs about
one run of each, and only the tensors that are still needed are stored.

Reference:
    Zhang et al. 2015, section 3.2 (asymmetric reconstruction); He et al. 2017.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg

from onnx_lowrank.analysis.collect import drawn_positions
from onnx_lowrank.analysis.moments import Accumulator, Moments
from onnx_lowrank.chains.chain import Chain, Stage
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import Destination, destination
from onnx_lowrank.layers.writer import Written, update_chain
from onnx_lowrank.linalg.blas_threads import blas_for
from onnx_lowrank.progress import Progress
from onnx_lowrank.refit.behind_relu import Behind, DrawnRows, ceiling_behind, fitted_behind_relu
from onnx_lowrank.refit.stepwise import Walker
from onnx_lowrank.runtime.runtime import Runtime
from onnx_lowrank.samples.dataset import Dataset

__all__ = ["Refit", "Task", "refit", "responses_of", "solution"]

Array = npt.NDArray[np.floating[Any]]
Rows = dict[str, npt.NDArray[Any]]

#: one of this many batches is held out to choose the ridge
HELD_OUT = 5
#: ridges tried, in units of the mean variance of the inputs
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, np.inf)


@dataclass(frozen=True)
class Task:
    """A chain to solve again.

    Attributes:
        written: the chain in the compressed graph.
        stage: the stage to solve: the layer before it was replaced, or the chain's last stage.
        cut: makes the chain from the solved stage and the moments of its input.
        reads: name of the tensor that ``stage`` reads in the compressed graph.
        original: the layer of the original model, with all its channels.
        source: name of the tensor that the layer reads in the original model.
        rows: mask of the outputs that stay; None for all.
    """

    written: Written
    stage: Stage
    cut: Callable[[Stage, Moments], Chain]
    reads: str
    original: Stage
    source: str
    rows: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Refit:
    """Result of refitting one layer.

    Attributes:
        layer: name of the layer.
        ridge: ridge that was chosen; infinite where the weights stayed.
        error_before: relative error of the unfactorized layer with its present weights, on its
            input in the compressed model, on held-out samples.
        error_after: the same error with the weights ``W*``.
        behind_relu: errors of the chain behind the ReLU, where it was fitted there.
    """

    layer: str
    ridge: float
    error_before: float
    error_after: float
    behind_relu: Behind | None = None


def refit(
    original: Graph,
    compressed: Graph,
    tasks: Sequence[Task],
    dataset: Dataset,
    runtime: Runtime,
    *,
    size: int,
    seed: int,
    memory: int,
    progress: Progress,
    behind_relu: bool = False,
) -> list[Refit]:
    """Solve the chains of ``compressed`` again, in place.

    Args:
        original: the canonical model that was compressed.
        compressed: the model with chains in the place of layers; it is changed.
        tasks: chains to solve, in topological order.
        dataset: calibration samples.
        runtime: runs the models.
        size: number of samples in a batch.
        seed: random seed of the drawn positions.
        memory: largest size of tensors stored in memory, in bytes; the rest is stored on disk.
        progress: receives one step for each chain.
        behind_relu: whether to fit chains behind the ReLU that follows, where one does.

    Returns:
        A result for each chain that could be solved.
    """
    size = min(size, max(1, len(dataset) // (2 * HELD_OUT)))
    targets = [destination(compressed, t.written.layer) for t in tasks]
    reference = Walker(original, dataset, size, runtime, memory)
    # a response that is not a tensor is computed from the input of the original layer
    seen = [g.total or t.source for t, g in zip(tasks, targets, strict=True)]
    reference.plan([(tensor,) for tensor in seen])
    current = Walker(compressed, dataset, size, runtime, memory)
    current.plan([(t.reads, *g.skip) for t, g in zip(tasks, targets, strict=True)])
    done = []
    with progress.task("refit", len(tasks)) as advance:
        for number, (task, target) in enumerate(zip(tasks, targets, strict=True)):
            pairs = zip(reference.advance(), current.advance(), strict=True)
            rng = np.random.default_rng([seed, number])
            drawn = None
            if behind_relu and task.written.biased:
                drawn = _drawn(compressed, task, target, len(dataset) / size, [seed, number, 1])
            with blas_for(task.written.layer.patch):
                fit, held = _accumulate(task, target, pairs, len(dataset), rng, drawn)
                if fit.count:
                    done.append(_solve(compressed, task, fit, held, drawn))
            advance(1)
    return done


def _accumulate(
    task: Task,
    target: Destination,
    pairs: Iterator[tuple[Rows, Rows]],
    samples: int,
    rng: np.random.Generator,
    drawn: DrawnRows | None,
) -> tuple[Accumulator, Accumulator]:
    """Accumulate the moments of ``[x, y]`` over the batches to fit on, and over those held out."""
    geometry = task.stage.geometry
    groups, outputs, width = task.stage.matrices.shape
    fit, held = (Accumulator(groups, width + outputs) for _ in range(2))
    for number, (reference, current) in enumerate(pairs):
        x = current[task.reads].astype(np.float32, copy=False)
        index = drawn_positions(geometry.positions(x.shape), width, samples, rng)
        if target.total:
            y = reference[target.total].astype(np.float32, copy=False)
            if task.rows is not None:
                y = y.compress(task.rows, geometry.channel_axis)
            whole = y
            for skip in target.skip:
                y = y - current[skip].astype(np.float32, copy=False)
            responses = geometry.responses(y, index)
        else:
            responses = responses_of(task.original, reference[task.source], index)
            if task.rows is not None:
                responses = responses[:, :, task.rows]
        rows = (geometry.patches(x, index), responses)
        last = number % HELD_OUT == HELD_OUT - 1
        (held if last else fit).update(np.concatenate(rows, axis=2))
        if drawn is not None:
            total = geometry.responses(whole, index)
            drawn.add(rows[0], total, total - responses, last)
    if not fit.count:
        return held, held
    return fit, held if held.count else fit


def responses_of(
    stage: Stage, values: npt.NDArray[Any], index: npt.NDArray[np.intp] | None
) -> Array:
    """Responses ``(groups, rows, N / groups)`` of ``stage`` to its input ``values``."""
    patches = stage.geometry.patches(values.astype(np.float32, copy=False), index)
    weights = stage.matrices.astype(np.float32)
    made: Array = patches @ weights.swapaxes(1, 2)
    if stage.bias is not None:
        made += stage.bias.astype(np.float32).reshape(len(weights), 1, -1)
    return made


def _drawn(
    graph: Graph, task: Task, target: Destination, batches: float, seed: list[int]
) -> DrawnRows | None:
    """Make an empty collection of rows where a ReLU follows; None where none does."""
    ceiling = ceiling_behind(graph, target.total) if target.total else None
    if ceiling is None:
        return None
    groups, outputs, width = task.stage.matrices.shape
    return DrawnRows(
        groups * (width + 2 * outputs), math.ceil(batches), ceiling, np.random.default_rng(seed)
    )


def _solve(
    graph: Graph, task: Task, fit: Accumulator, held: Accumulator, drawn: DrawnRows | None
) -> Refit:
    start = task.stage.matrices.astype(np.float64)
    width = start.shape[2]
    both = fit if held is fit else fit.merge(held)
    silent = fit.says_nothing(width) or not np.isfinite(both.covariance).all()

    @cache
    def error(ridge: float) -> float:
        return sum(
            _held_error(solution(start[g], fit.covariance[g], ridge), seen, held.mean[g] - mean)
            for g, (seen, mean) in enumerate(zip(held.covariance, fit.mean, strict=True))
        )

    ridge = np.inf if silent else _least(error)
    weights = np.stack([
        solution(start[g], covariance, ridge) for g, covariance in enumerate(both.covariance)
    ])  # fmt: skip
    inputs, outputs = both.mean[:, :width], both.mean[:, width:]
    bias = None
    if task.written.biased:
        bias = (outputs - np.einsum("gnd,gd->gn", weights, inputs)).reshape(-1)
    solved = task.stage.with_matrices(weights, bias)
    moments = both.leading(width).moments()
    chain, behind = task.cut(solved, moments), None
    if drawn is not None and drawn.any:
        better = fitted_behind_relu(chain, solved, task.cut, moments, drawn)
        if better is not None:
            chain, behind = better
    update_chain(graph, task.written, chain)
    energy = float(np.trace(held.covariance[:, width:, width:], axis1=1, axis2=2).sum()) or 1.0
    name = task.written.layer.name
    return Refit(name, ridge, error(np.inf) / energy, error(ridge) / energy, behind)


def _least(error: Callable[[float], float]) -> float:
    """Find the ridge of least error, downhill from the middle, as each one costs a solve."""
    best = len(RIDGES) // 2
    for step in (-1, 1):
        while 0 <= best + step < len(RIDGES) and error(RIDGES[best + step]) < error(RIDGES[best]):
            best += step
    return min(RIDGES[best], np.inf, key=error)


def solution(start: Array, covariance: Array, ridge: float) -> Array:
    """Weights ``W*`` of one group under a ridge, by the module's formula.

    Args:
        start: present weights, ``(n, d)``.
        covariance: covariance of ``[x, y]``, ``(d + n, d + n)``.
        ridge: ridge in units of the mean variance of ``x``; infinite keeps the present weights.
    """
    width = start.shape[1]
    inputs = covariance[:width, :width]
    unit = float(np.trace(inputs)) / width
    if not np.isfinite(ridge) or unit <= 0:
        return start
    shifted = inputs.copy()
    shifted[np.diag_indices(width)] += ridge * unit
    residual = (covariance[width:, :width] - start @ inputs).T
    try:
        step: Array = linalg.solve(shifted, residual, assume_a="pos", check_finite=False)
    except linalg.LinAlgError:  # the ridge is smaller than the rounding of the sums
        return start
    return start + step.T


def _held_error(weight: Array, covariance: Array, shift: Array) -> float:
    """Error ``E ||y - W x - b||^2`` on the held-out part, with ``b`` from the fitted part.

    Args:
        weight: weights ``W (n, d)``.
        covariance: covariance of the held-out ``[x, y]``, ``(d + n, d + n)``.
        shift: mean of the held-out ``[x, y]`` minus that of the fitted part, ``(d + n,)``.
    """
    width = weight.shape[1]
    inputs, cross = covariance[:width, :width], covariance[width:, :width]
    offset = shift[width:] - weight @ shift[:width]
    spread = np.trace(covariance[width:, width:]) - 2 * np.sum(weight * cross)
    return float(spread + np.sum((weight @ inputs) * weight) + offset @ offset)
