"""A plan together with what it was chosen from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from onnx_lowrank.planning.plan import Plan
from onnx_lowrank.planning.proposals import Proposals
from onnx_lowrank.planning.targets import Target
from onnx_lowrank.planning.timed_candidates import Timed

__all__ = ["Planned"]


@dataclass(frozen=True)
class Planned:
    """A plan, and all that is needed to judge it, to choose again, and to report of it.

    Attributes:
        plan: a decision for every layer and group of channels.
        target: that it was chosen for.
        proposals: that it was chosen from, with equal weights of the layers; they are of the model
            without the channels that this plan takes out.
        timed: the same with times as costs; None where time was not asked for.
        weights: factors on the weights of layers, by name, that it was chosen by; 1 for others.
        time: nanoseconds that it was chosen for, where not the target's part of the original's.
        notes: what the report of it has to say.
    """

    plan: Plan
    target: Target
    proposals: Proposals
    timed: Timed | None
    weights: Mapping[str, float]
    time: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def errors(self) -> dict[str, float]:
        """Error of each layer that the plan takes apart, weighted as with equal factors."""
        weights = {c.layer: c.weight for c in self.proposals.choices}
        return {d.layer: weights[d.layer] * d.error for d in self.plan.decisions if d.method}

    def loss(self, weights: Mapping[str, float]) -> float:
        """Sum of :attr:`errors`, each multiplied by the factor of its layer."""
        return sum(weights.get(name, 1.0) * error for name, error in self.errors.items())

    def noting(self, *texts: str) -> Planned:
        """The same with more to say in the report."""
        return replace(self, notes=(*self.notes, *texts))
