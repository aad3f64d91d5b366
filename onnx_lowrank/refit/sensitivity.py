"""Sensitivities: how much of each layer's error reaches the outputs, measured around a plan.

    s_l = (E - E_l) / eps_l

``E`` is the relative error of the outputs of the model as planned and refitted, ``E_l`` the same
with layer ``l`` refitted but not factorized, ``eps_l`` its planned error. Sensitivities measured
around the original, one layer compressed at a time, or around a plan that is not refitted, made
worse plans than equal ones, as they ignore what later layers repair. The sensitivities measured
here hold only near the plan, so they are damped:

    factor_l = clip(s_l / median(s), 1/4, 4)^(1/2)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.chains.chain import Chain, Stage
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.judge.observation import Observer
from onnx_lowrank.layers import find_layers
from onnx_lowrank.layers.writer import apply_chain
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.progress import Progress
from onnx_lowrank.refit.task import Task
from onnx_lowrank.runtime.outputs import Values, difference, is_float
from onnx_lowrank.runtime.runtime import Feed, Runtime
from onnx_lowrank.samples.dataset import Dataset

__all__ = ["Repaired", "measured_factors", "recorded"]

#: largest and smallest number of samples to measure on
SAMPLES, FEWEST = 100, 10
#: largest size of the stored outputs of the original, in bytes
LARGEST = 64 << 20
#: number of runs through all samples that the measuring may cost, approximately
PASSES = 4
#: power and bound of a factor
DAMPING, BOUND = 0.5, 4.0
#: smallest improvement that counts, as a part of the whole error
_LEAST = 1e-4


@dataclass(frozen=True)
class Repaired:
    """Result of the refit of one layer.

    Attributes:
        solved: the layer, fitted to its input in the compressed model.
        chain: the chain that was factorized from it.
    """

    solved: Stage
    chain: Chain


def measured_factors(
    source: Model,
    work: Model,
    repaired: Mapping[str, Repaired],
    errors: Mapping[str, float],
    data: Dataset,
    runtime: Runtime,
    size: int,
    progress: Progress,
) -> dict[str, float]:
    """Measure factors on the weights of the layers that a plan replaces, by name.

    Args:
        source: the original model.
        work: the model that the plan is applied to, before its chains.
        repaired: results of the refit of all layers that it solved, also of those that are kept.
        errors: weighted errors of the layers that the plan replaces, by name.
        data: calibration samples.
        runtime: runs the models.
        size: number of samples in a batch.
        progress: receives one step for each layer.
    """
    count = PASSES * len(data) // max(len(errors), 1)
    count = min(max(count, FEWEST), SAMPLES, len(data))
    reference = _Reference(source, data.subset(range(count)), runtime, size)
    whole = reference.error(_built(work, repaired, None))
    shares = {}
    with progress.task("weigh layers", len(errors)) as advance:
        for name, error in errors.items():
            if name in repaired and error > 0 and 0 < whole < math.inf:
                without = reference.error(_built(work, repaired, name))
                if without < math.inf:  # a layer that cannot be measured keeps the factor 1
                    shares[name] = max(whole - without, _LEAST * whole) / error
            advance(1)
    middle = float(np.median(list(shares.values()))) if shares else 1.0
    return {
        name: float(np.clip(share / middle, 1 / BOUND, BOUND) ** DAMPING)
        for name, share in shares.items()
    }


def recorded(task: Task, into: dict[str, Repaired]) -> Task:
    """A copy of ``task`` that also stores its result in ``into``, by name of the layer."""

    def cut(stage: Stage, moments: Moments) -> Chain:
        chain = task.cut(stage, moments)
        into[task.written.layer.name] = Repaired(stage, chain)
        return chain

    return replace(task, cut=cut)


class _Reference:
    """Outputs of the original, on as many samples as may be stored."""

    def __init__(self, source: Model, data: Dataset, runtime: Runtime, size: int) -> None:
        self._observer = Observer(source, data, runtime, size)
        self._held: list[tuple[Feed, Values]] = []
        session, room = self._observer.session(source), LARGEST
        for feed in data.batches(size):
            outputs = self._observer.run(session, feed)
            room -= sum(a.nbytes for arrays in outputs.values() for a in arrays)
            if room < 0 and self._held:
                break
            self._held.append((feed, outputs))

    def error(self, model: Model) -> float:
        """Relative error of all floating-point outputs together; infinite where it is NaN."""
        session = self._observer.session(model)
        signal = noise = 0.0
        for feed, reference in self._held:
            for name, arrays in self._observer.run(session, feed).items():
                for old, new in zip(reference[name], arrays, strict=False):
                    if is_float(old) and old.shape == new.shape:
                        apart = difference(old, new, 1)
                        signal += float(apart.signal[0] + apart.lost[0])
                        noise += float(apart.noise[0] + apart.lost[0])
        error = noise / signal if signal > 0 else 0.0
        return error if math.isfinite(error) else math.inf


def _built(work: Model, repaired: Mapping[str, Repaired], whole: str | None) -> Model:
    """Write the refitted layers into ``work``; the layer ``whole`` without factorizing it."""
    graph = Graph(work)
    layers = {layer.name: layer for layer in find_layers(graph)[0]}
    for name, made in repaired.items():
        chain = Chain((made.solved,)) if name == whole else made.chain
        apply_chain(graph, layers[name], chain)
    return graph.to_model()
