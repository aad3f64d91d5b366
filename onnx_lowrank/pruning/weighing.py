"""Weights of groups of channels: what the judge says of a cut, against what was foreseen.

Losses of groups are parts of the response of the layers that read them. They do not tell how much
of it reaches the outputs, nor do errors of attention scores add up as those of a layer do. So each
group is cut to half of its channels, alone, and

    factor_g = (judge's divergence / foreseen loss) / median over the groups

multiplies its losses. In nets with attention, factors between 1/10 and 10 are common: values that
are mixed over positions lose less than is foreseen, first feed-forward layers more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from onnx_lowrank.judge.judge import Judge
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.progress import Progress

__all__ = ["measured_weights"]

#: bound of a factor
_BOUND = 30.0


def measured_weights(
    judge: Judge,
    halved: Callable[[str], Model],
    losses: Mapping[str, float],
    progress: Progress,
) -> dict[str, float]:
    """Measure the factors of groups, by name.

    Args:
        judge: of the original.
        halved: makes the model with one group cut, its readers solved again.
        losses: foreseen losses of these cuts, by name of the group.
        progress: receives one step for each group.

    Returns:
        Groups that nothing is foreseen or measured for are left out.
    """
    ratios: dict[str, float] = {}
    with progress.task("weigh groups", len(losses)) as advance:
        for name, loss in losses.items():
            divergence = judge.divergence(halved(name)) if loss > 0 else math.inf
            if 0 < divergence < math.inf:
                ratios[name] = divergence / loss
            advance(1)
    middle = float(np.median(list(ratios.values()))) if ratios else 1.0
    return {n: float(np.clip(r / middle, 1 / _BOUND, _BOUND)) for n, r in ratios.items()}
