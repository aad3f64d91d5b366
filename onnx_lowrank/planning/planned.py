"""A plan together with the proposals that it was chosen from."""

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
    """A plan with all that is needed to judge it, to choose again, and to report on it.

    Attributes:
        plan: a decision for every layer and group of channels.
        target: the target that the plan was chosen for.
        proposals: the proposals that it was chosen from, all layers with equal factors; they are
            proposals for the model without the channels that this plan prunes.
        timed: the same choices with times as costs; None where the target has no latency.
        weights: factors on the weights of layers, by layer name, that the plan was chosen with;
            1 for layers that are not listed.
        time: budget on time in nanoseconds, where it is another than the target's part of the
            original's time.
        notes: sentences for the report.
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
        """Error of each layer that the plan replaces, times its weight at equal factors."""
        weights = {c.layer: c.weight for c in self.proposals.choices}
        return {d.layer: weights[d.layer] * d.error for d in self.plan.decisions if d.method}

    def loss(self, weights: Mapping[str, float]) -> float:
        """Sum of :attr:`errors`, each multiplied by the factor of its layer."""
        return sum(weights.get(name, 1.0) * error for name, error in self.errors.items())

    def noting(self, *texts: str) -> Planned:
        """The same plan with more notes for the report."""
        return replace(self, notes=(*self.notes, *texts))
