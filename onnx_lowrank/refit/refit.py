"""Refit of each chain, from input to output, with the layers before it already compressed.

Every layer is fitted to the responses ``y`` of the original model on its input ``x`` in the
compressed model (:mod:`onnx_lowrank.refit.regression`), and the solution ``W*`` is factorized
again, in the metric of that input, by the method and rank of the plan; so errors of earlier layers
are repaired rather than passed on. Solving the whole chain instead of its last stage needs larger
moments and gains more: on CIFAR-10 ResNet-56 at half its MACs one point of accuracy. Layers that
the plan keeps are solved in the same way where a layer before them changed. In front of a residual
Add the target is the original sum minus the current skip branch.

Both models advance layer by layer from stored tensors of the last step, so the whole costs about
one run of each, and only the tensors that are still needed are stored. Layers that read the same
tensor are solved in one step.

Reference:
    Zhang et al. 2015, section 3.2 (asymmetric reconstruction); He et al. 2017.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from onnx_lowrank.analysis.moments import relative_error
from onnx_lowrank.analysis.streaming import Streaming
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import Destination
from onnx_lowrank.layers.writer import update_chain
from onnx_lowrank.linalg.blas_threads import blas_for
from onnx_lowrank.one_ahead import one_ahead
from onnx_lowrank.refit.behind_relu import Behind, DrawnRows, ceiling_behind, fitted_behind_relu
from onnx_lowrank.refit.regression import best_ridge
from onnx_lowrank.refit.shared import Batch, Shared, Sums, shared_tasks
from onnx_lowrank.refit.stepwise import Walker
from onnx_lowrank.refit.task import Task
from onnx_lowrank.samples.dataset import Dataset
from onnx_lowrank.samples.padding import Counted

__all__ = ["Manner", "Refit", "refit"]

#: one of this many batches is held out to choose the ridge
HELD_OUT = 5


@dataclass(frozen=True)
class Refit:
    """Result of refitting one layer.

    Attributes:
        layer: name of the layer.
        ridge: ridge that was chosen; infinite where the weights stayed.
        error_before: relative error of the unfactorized layer with its present weights, on its
            input in the compressed model, on held-out samples.
        error_after: the same error with the weights ``W*``.
        chain_error: relative error of the chain against ``W*``, on all rows; of chains that had no
            numbers before, whose error is not known otherwise.
        behind_relu: errors of the chain behind the ReLU, where it was fitted there.
    """

    layer: str
    ridge: float
    error_before: float
    error_after: float
    chain_error: float = 0.0
    behind_relu: Behind | None = None


@dataclass(frozen=True)
class Manner:
    """How chains are solved.

    Attributes:
        size: number of samples in a batch.
        behind_relu: whether to fit chains behind the ReLU that follows, where one does.
        rows: part of the rows that covariances are made of otherwise.
    """

    size: int
    behind_relu: bool = False
    rows: float = 1.0


def refit(
    original: Graph,
    compressed: Graph,
    tasks: Sequence[Task],
    dataset: Dataset,
    streaming: Streaming,
    manner: Manner,
) -> list[Refit]:
    """Solve the chains of ``compressed`` again, in place.

    Args:
        original: the canonical model that was compressed.
        compressed: the model with chains in the place of layers; it is changed.
        tasks: chains to solve, in topological order.
        dataset: calibration samples.
        streaming: how to run both models over them; its progress is told of each chain.
        manner: how chains are solved.

    Returns:
        A result for each chain that could be solved, in the order of the tasks.
    """
    runtime, memory = streaming.runtime, streaming.memory
    size = min(manner.size, max(1, len(dataset) // (2 * HELD_OUT)))
    groups = shared_tasks(compressed, tasks)
    reference = Walker(original, dataset, size, runtime, memory)
    reference.plan([group.wanted for group in groups], [() for _ in groups])
    current = Walker(compressed, dataset, size, runtime, memory)
    # a skip branch may hold layers that are solved later, and is computed again then
    current.plan([group.reads[:1] for group in groups], [group.reads[1:] for group in groups])
    masks = list(dataset.masks(size))  # once, for every step would read all inputs again
    done: dict[str, Refit] = {}
    waiting = {task.written.layer.output: task for task in tasks if task.first is not None}
    with streaming.progress.task("refit", len(tasks)) as advance:
        for group in groups:
            _begin_skipped(compressed, group, waiting)
            batches = one_ahead(_batches(reference, current, masks))
            own = [[streaming.seed, zlib.crc32(task.name.encode())] for task in group.tasks]
            drawn = [
                _drawn(compressed, *pair, len(dataset) / size, [*own[n], 1])
                if manner.behind_relu and pair[0].written.biased
                else None
                for n, pair in enumerate(zip(group.tasks, group.ends, strict=True))
            ]
            rng = np.random.default_rng(own[0])
            with blas_for(group.width):
                samples = round(len(dataset) / manner.rows)
                sums = partial(group.sums, batches, samples, rng, drawn)
                done |= _solved(compressed, group, sums, drawn)
            advance(len(group.tasks))
    return [done[task.name] for task in tasks if task.name in done]


def _begin_skipped(graph: Graph, group: Shared, waiting: dict[str, Task]) -> None:
    """Begin the chains that skip branches of a group's sums hold, and that are solved later.

    Args:
        graph: the compressed model.
        group: what is solved next.
        waiting: tasks whose chains have no numbers yet, by the tensor that they make; what is begun
            or solved next is taken out.
    """
    for task in group.tasks:
        waiting.pop(task.written.layer.output, None)
    skips = group.reads[1:]
    if skips and waiting:
        for tensor in sorted(waiting.keys() & graph.ancestors(skips)):
            _begin(graph, waiting.pop(tensor))


def _begin(graph: Graph, task: Task) -> None:
    """Give a chain the numbers of the layer as it was, where it has none yet."""
    if task.first is not None:
        update_chain(graph, task.written, task.first())


def _batches(
    reference: Walker, current: Walker, masks: Sequence[Counted | None]
) -> Iterator[Batch]:
    every = zip(reference.advance(), current.advance(), masks, strict=True)
    for number, (original, compressed, counted) in enumerate(every):
        yield Batch(original, compressed, number % HELD_OUT == HELD_OUT - 1, counted)


def _drawn(
    graph: Graph, task: Task, end: Destination, batches: float, seed: list[int]
) -> DrawnRows | None:
    """Make an empty collection of rows where a ReLU follows; None where none does."""
    ceiling = ceiling_behind(graph, end.total) if end.total else None
    if ceiling is None:
        return None
    shape = task.stage.shape
    return DrawnRows(shape, math.ceil(batches), ceiling, np.random.default_rng(seed))


def _solved(
    graph: Graph,
    group: Shared,
    sums: Callable[[], tuple[Sums, Sums]],
    drawn: Sequence[DrawnRows | None],
) -> dict[str, Refit]:
    """Solve the tasks of a group, and write their chains; results by layer name.

    Args:
        graph: the compressed model.
        group: the tasks.
        sums: returns the sums to fit on and those held out, which are let go as soon as may be.
        drawn: rows for tasks that are fitted behind a ReLU.
    """
    fit, held = sums()
    if not fit.count or not held.count:
        fit = held = fit if fit.count else held
    if not fit.count:
        for task in group.tasks:
            _begin(graph, task)
        return {}
    found = _ridges(group, fit, held)
    both = fit if held is fit else fit.merge(held)  # type: ignore[arg-type]
    del fit, held
    moments = both.leading(group.width).moments()
    stages = []
    for place, task in enumerate(group.tasks):
        problem, stage = group.regression(place, both), task.stage.read()
        start = task.weighed(stage.matrices.astype(np.float64))
        weights = problem.solved(start, found[place].ridge)
        bias = task.plain(problem.bias(weights)).reshape(-1) if task.written.biased else None
        stages.append(stage.with_matrices(task.plain(weights), bias))
    del both, problem, stage, start, weights
    for place, (task, solved, rows) in enumerate(zip(group.tasks, stages, drawn, strict=True)):
        chain = task.cut(solved, moments)
        if rows is not None and rows.any:
            better = fitted_behind_relu(chain, solved, task.cut, moments, rows)
            if better is not None:
                chain, behind = better
                found[place] = replace(found[place], behind_relu=behind)
        if task.first is not None:
            seen = replace(moments, outputs=task.outputs)
            error = relative_error(solved, chain, seen)
            found[place] = replace(found[place], chain_error=error)
        update_chain(graph, task.written, chain)
    return {result.layer: result for result in found}


def _ridges(group: Shared, fit: Sums, held: Sums) -> list[Refit]:
    """The best ridge of each task of a group, with the errors on what is held out."""
    finite = fit.finite and held.finite and not fit.says_nothing(group.width)
    found = []
    for place, task in enumerate(group.tasks):
        start = task.weighed(task.stage.read().matrices.astype(np.float64))
        seen = group.regression(place, held)
        ridge, before, after = best_ridge(group.regression(place, fit), seen, start, finite)
        energy = seen.energy / seen.count or 1.0
        found.append(Refit(task.name, ridge, before / energy, after / energy))
    return found
