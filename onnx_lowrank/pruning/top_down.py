"""Choice of channels from the input on, by the readers' inputs in the pruned model.

The numbers of channels are those of the plan. Group by group, the readers' inputs ``x`` in the
model with the groups before already cut are set against the original's responses
``y = W x0 + b``:

    W* = W + (E[y x^T] - W E[x x^T]) (E[x x^T] + lambda I)^-1,     b* = E[y] - W* E[x]

and the group is ordered, cut, and its readers solved as if ``W*`` were their weights and the
moments of ``x`` those of their inputs.

Reference:
    He, Zhang & Sun 2017, section 3.2 (whole model: from the input on, against the original's
    responses); Zhang et al. 2015 (asymmetric reconstruction).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from onnx_lowrank.analysis.accumulator import Accumulator
from onnx_lowrank.analysis.counted_rows import counted_rows, only
from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.analysis.phase_sums import PhaseSums, phase_rows, sums_for
from onnx_lowrank.analysis.preparation import Prepared
from onnx_lowrank.analysis.reader import batch_size, drawn_positions
from onnx_lowrank.analysis.streaming import MEMORY
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import Layer, PlacedLayer
from onnx_lowrank.linalg.blas_threads import blas_for
from onnx_lowrank.linalg.phase_covariance import by_group
from onnx_lowrank.progress import Progress
from onnx_lowrank.pruning.channel_cuts import KeptChannels
from onnx_lowrank.pruning.pruner import Pruner
from onnx_lowrank.pruning.reader_target import ReaderTarget
from onnx_lowrank.refit.regression import solution
from onnx_lowrank.refit.shared import responses_of
from onnx_lowrank.runtime.runtime import Runtime
from onnx_lowrank.samples.dataset import Dataset

__all__ = ["top_down"]

Labels = npt.NDArray[np.intp]

#: ridge lambda, in units of the mean variance of the inputs
_RIDGE = 1e-3


def top_down(
    pruner: Pruner,
    prepared: Prepared,
    kept: KeptChannels,
    calibration: Dataset,
    runtime: Runtime,
    seed: int,
    progress: Progress,
) -> dict[str, Labels]:
    """Choose channels again from the input on, as many in each group as ``kept`` has.

    Args:
        pruner: prunes the model.
        prepared: the model.
        kept: channels that stay by the plan; only their numbers count.
        calibration: calibration samples; they are read once for every group.
        runtime: runs the models.
        seed: random seed of the drawn positions.
        progress: receives one step for each group.
    """
    numbers = {layer.name: i for i, layer in enumerate(prepared.products)}
    names = sorted(
        kept, key=lambda n: min((numbers[la.name] for la, _ in _readers(pruner, n)), default=0)
    )
    chosen: dict[str, Labels] = {}
    targets: dict[str, ReaderTarget] = {}
    with progress.task("prune from the input on", len(names)) as advance:
        for number, name in enumerate(names):
            whole = [la for la, _ in _readers(pruner, name) if la.name not in targets]
            current = Graph(prepared.model)
            pruner.cuts.apply(current, chosen, targets)
            rng = np.random.default_rng([seed, number])
            targets |= _measured(prepared, current, whole, calibration, runtime, rng)
            order = pruner.order_of(pruner.prunables[name], {}, targets).order
            chosen[name] = np.sort(order[: len(kept[name])])
            advance(1)
    return chosen


def _readers(pruner: Pruner, name: str) -> Sequence[tuple[PlacedLayer, Labels]]:
    return pruner.prunables[name].readers


def _measured(
    prepared: Prepared,
    current: Graph,
    readers: Sequence[PlacedLayer],
    calibration: Dataset,
    runtime: Runtime,
    rng: np.random.Generator,
) -> dict[str, ReaderTarget]:
    """Measure ``W*``, ``b*`` and the moments of the readers' inputs in the pruned model."""
    inputs = list(dict.fromkeys(layer.input for layer in readers))
    parts = [g.extract(g.input_types(), inputs) for g in (prepared.graph, current)]
    sessions = [runtime.session(p, lean=True) if p.proto.graph.node else None for p in parts]
    sums = {la.name: sums_for(la.geometry, la.patch, la.shape[0] // la.groups) for la in readers}
    stages = {la.name: la.stage for la in readers}
    size = batch_size(inputs * 2, prepared.shapes, MEMORY // 4)
    for feed in calibration.batches(size):
        counted = calibration.counted(feed)
        first, now = (
            {**feed, **(session.run(feed) if session is not None else {})} for session in sessions
        )
        for layer in readers:
            x = now[layer.input].astype(np.float32, copy=False)
            positions = layer.geometry.positions(x.shape)
            shape = layer.groups, layer.patch
            index = drawn_positions(positions, shape, len(calibration), rng)
            before = first[layer.input].shape
            if before[:1] != x.shape[:1] or layer.geometry.positions(before) != positions:
                continue  # the number of rows depends on data: rows of both models do not match
            phases = phase_rows(layer.geometry, x.shape, index)
            for part, phase in zip(sums[layer.name].parts, phases, strict=True):
                y = responses_of(stages[layer.name], first[layer.input], phase)
                rows = counted_rows(counted, layer.geometry, x.shape, phase.index)
                with blas_for(layer.patch):
                    part.update(only(phase.patches(layer.geometry, x), rows), only(y, rows))
    return {la.name: _solved(la.value, sums[la.name]) for la in readers}


def _solved(layer: Layer, both: Accumulator | PhaseSums) -> ReaderTarget:
    stage, width = layer.stage, layer.patch
    moments: Moments = both.moments()
    if moments.covariance is None or not np.isfinite(both.cross_scatter).all():
        return ReaderTarget(layer, moments)
    with blas_for(width):
        weights = np.stack(
            [
                solution(matrix, inputs, cross, _RIDGE)
                for matrix, inputs, cross in zip(
                    stage.matrices, by_group(both.scatter), both.cross_scatter, strict=True
                )
            ]
        )
    inputs, outputs = both.mean[:, :width], both.mean[:, width:]
    bias = (outputs - np.einsum("gnd,gd->gn", weights, inputs)).reshape(-1)
    return ReaderTarget(layer.with_stage(stage.with_matrices(weights, bias)), moments)
