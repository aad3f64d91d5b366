"""Sensitivities: how much of each layer's error reaches the outputs, measured around a plan.

    s_l = (E - E_l) / eps_l

``E`` is the judge's divergence of the model as planned and refitted, ``E_l`` the same with layer
``l`` refitted but not factorized, ``eps_l`` its planned error. Sensitivities measured around the
original, one layer compressed at a time, or around a plan that is not refitted, made worse plans
than equal ones, as they ignore what later layers repair. The sensitivities measured here hold only
near the plan, so they are damped:

    factor_l = clip(s_l / median(s), 1/4, 4)^(1/2)
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.chains.chain import Chain, Stage
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.judge.judge import Judge
from onnx_lowrank.layers import find_layers
from onnx_lowrank.layers.variable_model import VariableModel
from onnx_lowrank.layers.writer import apply_chain
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.progress import Progress
from onnx_lowrank.refit.task import Task
from onnx_lowrank.samples.dataset import Dataset

__all__ = [
    "Measured",
    "Repaired",
    "losses_of_layers",
    "measured_factors",
    "recorded",
    "samples_to_weigh",
]

#: largest and smallest number of samples to measure on
_MOST, _FEWEST = 100, 10
#: number of runs through all samples that the measuring may cost, approximately
_PASSES = 4
#: power and bound of a factor
DAMPING, BOUND = 0.5, 4.0
#: smallest improvement that counts, as a part of the whole error
_LEAST = 1e-4


@dataclass(frozen=True)
class Measured:
    """What the layers of a plan cost, measured.

    Attributes:
        factors: factors on the weights of layers, by name.
        losses: how much less the judge's loss is with one layer whole, by name.
        whole: the judge's loss of the model as built, on the same samples.
    """

    factors: Mapping[str, float]
    losses: Mapping[str, float]
    whole: float


@dataclass(frozen=True)
class Repaired:
    """Result of the refit of one layer.

    Attributes:
        solved: the layer, fitted to its input in the compressed model; None for the layer as it
            was, or where it is not to be measured.
        chain: the chain that was factorized from it.
    """

    solved: Stage | None
    chain: Chain


def samples_to_weigh(data: Dataset, layers: int) -> Dataset:
    """Choose as many samples as may be run once for each of a number of layers."""
    some = min(max(_PASSES * len(data) // max(layers, 1), _FEWEST), _MOST, len(data))
    return data.subset(np.linspace(0, len(data) - 1, some).astype(int))


def measured_factors(
    judge: Judge,
    work: Model,
    repaired: Mapping[str, Repaired],
    errors: Mapping[str, float],
    progress: Progress,
) -> Measured:
    """Measure factors on the weights of the layers that a plan replaces.

    Args:
        judge: of the original, on :func:`samples_to_weigh`.
        work: the model that the plan is applied to, before its chains.
        repaired: results of the refit of all layers that it solved, also of those that are kept.
        errors: weighted errors of the layers that the plan replaces, by name.
        progress: receives one step for each layer.
    """
    names = [name for name, error in errors.items() if name in repaired and error > 0]
    whole, losses = losses_of_layers(judge, work, repaired, names, progress)
    shares = {n: max(loss, _LEAST * whole) / errors[n] for n, loss in losses.items()}
    middle = float(np.median(list(shares.values()))) if shares else 1.0
    factors = {
        name: float(np.clip(share / middle, 1 / BOUND, BOUND) ** DAMPING)
        for name, share in shares.items()
    }
    return Measured(factors, losses, whole)


def losses_of_layers(
    judge: Judge,
    work: Model,
    repaired: Mapping[str, Repaired],
    names: Sequence[str],
    progress: Progress,
) -> tuple[float, dict[str, float]]:
    """The judge's divergence of a model, and how much less it is with one layer whole, by name.

    Args:
        judge: of the original.
        work: the model that the plan is applied to, before its chains.
        repaired: results of the refit of all layers that it solved.
        names: the layers to measure.
        progress: receives one step for each layer.

    Returns:
        Layers that cannot be measured, because the model gives NaN or Inf, are left out.
    """
    dense = {
        name: stage
        for name, made in repaired.items()
        if not work.large and (stage := _dense(made)) is not None
    }
    rest = {n: made for n, made in repaired.items() if n not in dense}
    variable = VariableModel(_built(work, rest, None) if rest else work, dense)
    del dense
    divergence = judge.divergences(variable.model)
    whole, losses = divergence({}).value, {}
    places = {name: number for number, name in enumerate(variable.layers)}
    with progress.task("weigh layers", len(names)) as advance:
        # in the order of the graph, for each run begins where the one before did or behind it
        for name in sorted(names, key=lambda name: places.get(name, -1)):
            if 0 < whole < math.inf:
                solved = repaired[name].solved
                if name in variable.layers and solved is not None:
                    without = divergence(variable.constants({name: solved})).value
                else:
                    without = judge.divergence(_built(work, repaired, name))
                if without < math.inf:
                    losses[name] = whole - without
            advance(1)
    return whole, losses


def _dense(made: Repaired) -> Stage | None:
    """A layer as one of its chain's dense kernel; None where it has no such form."""
    if made.solved is None or not made.chain.last.parameters:
        return None
    kernel = made.chain.dense(made.solved.groups).reshape(made.solved.weight.shape)
    return replace(made.solved, weight=kernel, bias=made.chain.last.bias)


def recorded(task: Task, into: dict[str, Repaired], whole: Container[str]) -> Task:
    """A copy of ``task`` that also stores its result in ``into``, by name of the layer.

    Of layers that are not in ``whole`` the chain alone is stored.
    """

    def cut(stage: Stage, moments: Moments) -> Chain:
        chain, name = task.cut(stage, moments), task.written.layer.name
        into[name] = Repaired(_single(stage) if name in whole else None, _single_chain(chain))
        return chain

    return replace(task, cut=cut)


def _single_chain(chain: Chain) -> Chain:
    stages = (_single(s) if isinstance(s, Stage) else s for s in chain.stages)
    return replace(chain, stages=tuple(stages))


def _single(stage: Stage) -> Stage:
    """The same in float32, which takes half of the memory."""
    bias = None if stage.bias is None else stage.bias.astype(np.float32)
    return replace(stage, weight=stage.weight.astype(np.float32), bias=bias)


def _built(work: Model, repaired: Mapping[str, Repaired], whole: str | None) -> Model:
    """Write refitted layers into ``work``; the layer ``whole`` without factorizing it."""
    graph = Graph(work)
    layers = {layer.name: layer for layer in find_layers(graph)[0]}
    for name, made in repaired.items():
        if name != whole:
            apply_chain(graph, layers[name], made.chain)
        elif made.solved is not None:
            apply_chain(graph, layers[name], Chain((made.solved,)))
    return graph.to_model()
