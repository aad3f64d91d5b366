"""Times of chains that were not measured, from those that were.

    t(chain) = (a effort + b moved + c strayed + d nodes) * exp(r(effort)),      a, b, c, d >= 0

with the bytes that are moved, and those among them that stand between two steps in a number of
channels too small for blocks: the runtime leaves its own layout there, and comes back to it. a to d
are fitted to the measured chains of one place, in relative error; r is what the fit
leaves of the measured chains of the same form, interpolated between their efforts. So measured
chains are met exactly, and the others lie between their neighbours, bent as the model bends.

Reference:
    Lawson & Hanson 1974, Solving least squares problems (non-negative least squares).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from onnx_lowrank.chain import BLOCK, Chain, Stage
from onnx_lowrank.step import Step

__all__ = ["Features", "Fit", "Sample", "features", "form_of"]

Array = npt.NDArray[np.floating[Any]]

#: effort, bytes moved, bytes strayed and nodes of a chain
Features = tuple[float, float, float, float]

#: measured chains from which the rates of a place are fitted to it alone
_ENOUGH = 6


@dataclass(frozen=True)
class Sample:
    """A measured chain: its form, what it does, and its time in seconds."""

    form: str
    features: Features
    seconds: float


def features(chain: Chain, shape: Sequence[int], itemsize: int) -> Features:
    """What a chain does.

    Args:
        chain: its numbers do not matter.
        shape: of its input.
        itemsize: bytes of one number.
    """
    effort = chain.effort(shape)
    moved = strayed = 0
    for step, strays in _with_strays(chain):
        after = step.output_shape(shape)
        moved += math.prod(shape) + math.prod(after) + step.parameters
        if strays:
            strayed += math.prod(after)
        shape = after
    return float(effort), float(moved * itemsize), float(strayed * itemsize), float(chain.nodes)


def form_of(chain: Chain) -> str:
    """Equal for chains of one method at several ranks, as long as they fill blocks or do not."""
    parts = []
    for step, strays in _with_strays(chain):
        part = f"{type(step).__name__} {step.role}"
        if isinstance(step, Stage):
            part += f" {step.geometry.kernel}{' depthwise' if step.depthwise else ''}"
        if strays:
            part += " strayed"
        parts.append(part)
    return " > ".join(parts)


class Fit:
    """Times of the chains of one place.

    Args:
        samples: measured ones of the place.
        elsewhere: measured ones of other places, for a place that has few of its own.
    """

    def __init__(self, samples: Sequence[Sample], elsewhere: Sequence[Sample] = ()) -> None:
        basis = samples if len(samples) >= _ENOUGH else [*samples, *elsewhere]
        self._rates = _rates(basis)
        self._forms: dict[str, dict[float, list[float]]] = {}
        left = []
        for sample in samples:
            rest = math.log(sample.seconds / self._model(sample.features))
            left.append(rest)
            self._forms.setdefault(sample.form, {}).setdefault(sample.features[0], []).append(rest)
        self._usual = float(np.median(left)) if left else 0.0

    def seconds(self, form: str, about: Features) -> float:
        """The time of a chain of ``form`` with :func:`features` ``about``."""
        points = sorted(self._forms.get(form, {}).items())
        if not points:
            return self._model(about) * math.exp(self._usual)
        efforts, rests = [p[0] for p in points], [float(np.mean(p[1])) for p in points]
        return self._model(about) * math.exp(float(np.interp(about[0], efforts, rests)))

    def _model(self, about: Features) -> float:
        return max(float(self._rates @ np.array(about)), 1e-12)


def _rates(samples: Sequence[Sample]) -> Array:
    """Seconds for a unit of each feature, by relative least squares."""
    seconds = np.array([s.seconds for s in samples])
    rows = np.array([s.features for s in samples]) / seconds[:, None]
    scale = np.maximum(rows.max(axis=0), 1e-300)
    solution, _ = nnls(rows / scale, np.ones(len(samples)))
    rates: Array = solution / scale
    return rates


def _with_strays(chain: Chain) -> Iterator[tuple[Step, bool]]:
    """Each step, and whether its output cannot stay in blocks until the next step.

    A convolution reads fewer channels than a block in plain layout, and one with groups reads
    whole blocks alone.
    """
    for step, after in zip_longest(chain.stages, chain.stages[1:]):
        fills = after is None or (
            step.outputs >= BLOCK and (after.groups == 1 or step.outputs % BLOCK == 0)
        )
        yield step, not fills
