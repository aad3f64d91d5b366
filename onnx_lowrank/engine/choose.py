"""From what was proposed to a plan.

choose(analysis, proposed, weights, time) -> Planned
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from onnx_lowrank.engine.analyse import Analysis
from onnx_lowrank.engine.constraints import chosen_under
from onnx_lowrank.engine.job import Job
from onnx_lowrank.engine.propose import Proposed
from onnx_lowrank.engine.reckon_int8 import chosen_for_int8
from onnx_lowrank.planning.decisions import decide
from onnx_lowrank.planning.notes import Note
from onnx_lowrank.planning.plan import Decision, Plan
from onnx_lowrank.planning.refit_modes import DEFAULT_REPAIR
from onnx_lowrank.planning.rounded import Rounded, with_rounding
from onnx_lowrank.planning.sharing import decided_together

__all__ = ["Planned", "choose", "choose_keeping"]

#: factors on the weights of layers where all are to count alike
EQUAL: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True)
class Planned:
    """A plan, and all that is needed to judge it, to choose again, and to report of it.

    Attributes:
        plan: a decision for every layer and group of channels.
        proposed: what it was chosen from, all layers weighing alike.
        sensitivity: factors on the weights of layers, by name, that it was chosen by; 1 for others.
        time: nanoseconds that it was chosen for, where not the target's part of the original's.
        notes: what the report of it has to say.
    """

    plan: Plan
    proposed: Proposed
    sensitivity: Mapping[str, float] = field(default_factory=lambda: EQUAL)
    time: float | None = None
    notes: tuple[Note, ...] = ()

    @property
    def errors(self) -> dict[str, float]:
        """Error of each layer that the plan takes apart, weighted as with equal factors."""
        weights = {c.layer: c.weight for c in self.proposed.proposals.choices}
        return {d.layer: weights[d.layer] * d.error for d in self.plan.decisions if d.method}

    def loss(self, sensitivity: Mapping[str, float]) -> float:
        """Sum of :attr:`errors`, each multiplied by the factor of its layer."""
        return sum(sensitivity.get(name, 1.0) * error for name, error in self.errors.items())

    @property
    def loss_by_layer(self) -> dict[str, float]:
        """:attr:`errors`, each multiplied by the factor that the plan was chosen by."""
        return {n: self.sensitivity.get(n, 1.0) * error for n, error in self.errors.items()}

    def noting(self, *notes: Note) -> Planned:
        """The same with more to say in the report."""
        return replace(self, notes=(*self.notes, *notes))


def choose(
    analysis: Analysis,
    proposed: Proposed,
    sensitivity: Mapping[str, float] = EQUAL,
    time: float | None = None,
) -> Planned:
    """A decision for every layer and group of channels.

    Args:
        analysis: of the original model.
        proposed: what to choose from.
        sensitivity: factors on the weights of layers, by name; 1 for others. Ranks are chosen by
            them. How much is pruned does not depend on them: what pruning loses cannot be weighed
            alike.
        time: nanoseconds to choose for, instead of the target's part of the original's time.

    Raises:
        BudgetError: the target is out of reach.
    """
    job = analysis.job
    frozen = MappingProxyType(dict(sensitivity))
    decisions = _decided(analysis, proposed, frozen, time)
    plan = Plan(
        model=job.source.digest,
        data=job.samples.digest,
        target=str(proposed.target),
        seed=job.seed,
        samples=job.options.draw.samples,
        select=job.options.draw.select,
        passes=job.passes.specs,
        decisions=decisions,
        groups=proposed.groups,
        repair=_repair(job),
    )
    return Planned(plan, proposed, frozen, time)


def choose_keeping(
    analysis: Analysis, planned: Planned, layers: Collection[str], reason: str
) -> Planned:
    """Choose again from what a plan was chosen from, some layers being kept as they are.

    The channels that the plan takes out stay the same. A light repair was enough for the first plan
    alone.

    Args:
        analysis: of the original model.
        planned: the plan that it takes the place of.
        layers: names of those to keep.
        reason: that their decisions give.

    Raises:
        BudgetError: the target is out of reach without them.
    """
    before, layers = planned.proposed, set(layers)
    for tie in before.tied:  # one chain stays or goes for all
        names = {layer.name for layer in tie}
        layers |= names if names & layers else set()
    timed = before.timed and before.timed.keeping(layers)
    proposed = replace(before, proposals=before.proposals.keeping(layers, reason), timed=timed)
    decisions = _decided(analysis, proposed, planned.sensitivity, planned.time)
    plan = replace(planned.plan, decisions=decisions, repair=_repair(analysis.job))
    return replace(planned, plan=plan, proposed=proposed)


def _repair(job: Job) -> str:
    return job.options.repair or DEFAULT_REPAIR


def _decided(
    analysis: Analysis,
    proposed: Proposed,
    sensitivity: Mapping[str, float],
    time: float | None,
) -> tuple[Decision, ...]:
    """Decisions on all layers, weighed by ``sensitivity``."""
    work = proposed.cut.work
    with analysis.job.tools.stopwatch("plan"):

        def chosen(rounded: Mapping[str, Rounded]) -> list[Decision]:
            proposals, timed = proposed.proposals, proposed.timed
            if rounded:
                proposals = replace(
                    proposals, choices=tuple(with_rounding(proposals.choices, rounded))
                )
                timed = timed and replace(
                    timed, choices=tuple(with_rounding(timed.choices, rounded))
                )
            candidates = chosen_under(
                analysis,
                work,
                proposals.weighed(sensitivity),
                timed and timed.weighed(sensitivity),
                proposed.target,
                time,
            )
            return decide(analysis.prepared, work, candidates, proposals)

        decisions = chosen_for_int8(analysis, proposed, chosen)
        return tuple(decided_together(decisions, proposed.tied, work))
