"""Weights of groups of channels: what the judge says of a cut, against what was foreseen.

Losses of groups are parts of the response of the layers that read them. They do not tell how much
of it reaches the outputs, nor do errors of attention scores add up as those of a layer do. So each
group is cut to half of its channels, alone, and

    factor_g = (judge's divergence / foreseen loss) / median over the groups

multiplies its losses. A channel that is cut is one that no layer reads: half of a group is cut by
zeros in the weights of its readers, so that one opened model serves all groups. In nets with
attention, factors between 1/10 and 10 are common: values that are mixed over positions lose less
than is foreseen, first feed-forward layers more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from onnx_lowrank.chains.chain import Stage
from onnx_lowrank.judge.judge import Judge
from onnx_lowrank.layers.variable_model import VariableModel
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.progress import Progress

__all__ = ["Halves", "divergence_of_halves", "measured_weights"]

#: bound of a factor
_BOUND = 30.0


@dataclass(frozen=True)
class Halves:
    """A model with one of its groups of channels cut to half, in two ways.

    Attributes:
        model: before any cut.
        stages: layers that the cuts may change, by name.
        zeroed: layers that a cut changes, by name of the group, with zeros for channels that go.
        halved: the model after a cut, by name of the group.
    """

    model: Model
    stages: Mapping[str, Stage]
    zeroed: Callable[[str], Mapping[str, Stage]]
    halved: Callable[[str], Model]


def divergence_of_halves(judge: Judge, halves: Halves) -> Callable[[str], float]:
    """The judge's divergence of the model with one group cut, as a function of its name."""
    variable = VariableModel(halves.model, halves.stages)
    divergence = judge.divergences(variable.model)

    def of_group(name: str) -> float:
        stages = halves.zeroed(name)
        if stages.keys() <= variable.layers:
            return divergence(variable.constants(stages))
        return judge.divergence(halves.halved(name))  # states of recurrent nodes

    return of_group


def measured_weights(
    divergence: Callable[[str], float], losses: Mapping[str, float], progress: Progress
) -> dict[str, float]:
    """Measure the factors of groups, by name.

    Args:
        divergence: the judge's, of the model with one group cut, its readers solved again.
        losses: foreseen losses of these cuts, by name of the group.
        progress: receives one step for each group.

    Returns:
        Groups that nothing is foreseen or measured for are left out.
    """
    ratios: dict[str, float] = {}
    with progress.task("weigh groups", len(losses)) as advance:
        for name, loss in losses.items():
            found = divergence(name) if loss > 0 else math.inf
            if 0 < found < math.inf:
                ratios[name] = found / loss
            advance(1)
    middle = float(np.median(list(ratios.values()))) if ratios else 1.0
    return {n: float(np.clip(r / middle, 1 / _BOUND, _BOUND)) for n, r in ratios.items()}
