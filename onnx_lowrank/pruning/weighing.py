"""Weights of groups of channels: what the judge says of a cut, against what was foreseen.

Losses of groups are parts of the response of the layers that read them. They do not tell how much
of it reaches the outputs, nor do errors of attention scores add up as those of a layer do. So each
group is cut to half of its channels, alone, and

    factor_g = (judge's divergence / foreseen loss) / median over the groups

multiplies its losses. How many samples that takes differs: ten are enough where each text gives a
vector, a hundred are few where some positions of a line of text lose most. So a few samples are
read first, and more of them for the groups whose interval is still wide.

A channel that is cut is one that no layer reads: half of a group is cut by zeros in the weights of
its readers, so that one opened model serves all groups. In nets with attention, factors between
1/10 and 10 are common: values that are mixed over positions lose less than is foreseen, first
feed-forward layers more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from onnx_lowrank.chains.chain import Stage
from onnx_lowrank.judge.judge import Judge
from onnx_lowrank.judge.verdict import Estimate
from onnx_lowrank.layers.variable_model import VariableModel
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.progress import Progress
from onnx_lowrank.samples.dataset import Dataset

__all__ = ["Halves", "divergence_of_halves", "measured_weights"]

#: bound of a factor
_BOUND = 30.0

#: samples that are read first, and at the most; each part after the second has twice as many as
#: the one before
_FIRST, _MOST = 10, 150

#: half of the 95 % interval of a divergence, as a part of it, at which no more samples are read:
#: factors of groups are a factor of 3 to 6 apart
_PRECISE = 0.4


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


def divergence_of_halves(judge: Judge, halves: Halves) -> Callable[[str], Estimate]:
    """The judge's divergence of the model with one group cut, as a function of its name."""
    variable = VariableModel(halves.model, halves.stages)
    divergence = judge.divergences(variable.model)

    def of_group(name: str) -> Estimate:
        stages = halves.zeroed(name)
        if stages.keys() <= variable.layers:
            return divergence(variable.constants(stages))
        return judge.divergences(halves.halved(name))({})  # states of recurrent nodes

    return of_group


@dataclass(frozen=True)
class _Measured:
    """The divergence of a cut on some samples.

    Attributes:
        samples: number of samples.
        value: mean over them.
        half: half of its 95 % interval.
    """

    samples: int
    value: float
    half: float

    @property
    def usable(self) -> bool:
        """Whether a factor can be made of it."""
        return 0 < self.value < math.inf

    @property
    def precise(self) -> bool:
        """Whether more samples are not worth their time."""
        return not self.usable or self.half <= _PRECISE * self.value

    def beside(self, other: _Measured) -> _Measured:
        """The same on the samples of both."""
        samples = self.samples + other.samples
        one, two = self.samples / samples, other.samples / samples
        value = one * self.value + two * other.value
        return _Measured(samples, value, math.hypot(one * self.half, two * other.half))


def measured_weights(
    divergence_on: Callable[[Dataset], Callable[[str], Estimate] | None],
    data: Dataset,
    losses: Mapping[str, float],
    runs: int,
    progress: Progress,
) -> dict[str, float]:
    """Measure the factors of groups, by name.

    Args:
        divergence_on: the judge's on some samples, of the model with one group cut, its readers
            solved again; None where there is nothing to judge by.
        data: samples that may be read.
        losses: foreseen losses of these cuts, by name of the group.
        runs: number of runs of a sample through the model, of all groups together, beyond which
            no more samples are read.
        progress: receives one step for each group.

    Returns:
        Groups that nothing is foreseen or measured for are left out.
    """
    found: dict[str, _Measured] = {}
    open_, left = [name for name, loss in losses.items() if loss > 0], runs
    for part in _parts(data):
        if found and left < len(open_) * len(part):
            break
        divergence = divergence_on(part)
        if divergence is None:
            return {}
        with progress.task("weigh groups", len(open_)) as advance:
            for name in open_:
                made = divergence(name)
                new = _Measured(len(part), made.value, (made.high - made.low) / 2)
                found[name] = found[name].beside(new) if name in found else new
                advance(1)
        left -= len(open_) * len(part)
        open_ = [name for name in open_ if not found[name].precise]
        if not open_:
            break
    ratios = {name: m.value / losses[name] for name, m in found.items() if m.usable}
    middle = float(np.median(list(ratios.values()))) if ratios else 1.0
    return {n: float(np.clip(r / middle, 1 / _BOUND, _BOUND)) for n, r in ratios.items()}


def _parts(data: Dataset) -> Iterator[Dataset]:
    """Samples in parts, each spread over the data."""
    order = np.random.default_rng(0).permutation(len(data))[:_MOST]
    begin, end = 0, _FIRST
    while begin < len(order):
        yield data.subset(np.sort(order[begin:end]))
        begin, end = end, 2 * end
