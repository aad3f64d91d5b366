"""Shares of pruning that plans are made at, and which of them is made first.

    alternatives(analysis, target) -> the plan to begin with, and what others there may be

Losses of pruning are measured in nets with attention: these begin with the plan that foresees the
least. In others they are guessed, and of 18 plans of 15 nets (0.5 to 0.93 of their MACs) whose
drafts without pruning lost less than 1 %, only two lost noticeably less at another share (0.02 %
instead of 0.15, 0.01 instead of 0.13). So these begin without pruning, which need not even be
looked at where that is enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from onnx_lowrank.engine.analyse import Analysis
from onnx_lowrank.engine.choose import Planned
from onnx_lowrank.engine.plan_once import foreseen_loss
from onnx_lowrank.engine.propose import PruningShare, may_prune
from onnx_lowrank.engine.timed_plan import plan_for
from onnx_lowrank.errors import BudgetError
from onnx_lowrank.planning.targets import Target

__all__ = ["PRUNING", "Alternatives", "alternatives", "new_plans", "others"]

#: predictions err by less than this factor between plans of different shares: those that foresee
#: more than this times the least loss are not drafted
CERTAIN = 4.0

#: how much pruning does in plans besides that without it
PRUNING: tuple[PruningShare, ...] = ("some", 1.0)


@dataclass(frozen=True)
class Alternatives:
    """Plans at several shares of pruning, not all of which are made so far.

    Attributes:
        first: the plan to begin with.
        made: further plans.
        shares: that more plans may be made at.
    """

    first: Planned
    made: tuple[Planned, ...] = ()
    shares: tuple[PruningShare, ...] = ()

    @property
    def several(self) -> bool:
        """Whether there may be more than the first."""
        return bool(self.made or self.shares)


def alternatives(analysis: Analysis, target: Target) -> Alternatives:
    """The plan to begin with, and what others there may be.

    Args:
        analysis: of the original model.
        target: what is asked for.

    Raises:
        BudgetError: the target is out of reach.
    """
    passes = analysis.job.passes
    if passes.cutting is None or not passes.factorizations or passes.cutting.keep:
        return Alternatives(plan_for(analysis, target))
    pruner = analysis.pruner(target.metric) if may_prune(analysis, target) else None
    if pruner is None or not pruner.prunables:
        return Alternatives(plan_for(analysis, target, pruning=0.0))
    if not pruner.weighs:
        with suppress(BudgetError):
            return Alternatives(plan_for(analysis, target, pruning=0.0), shares=PRUNING)
    found = list(new_plans(analysis, target, (0.0, *PRUNING), []))
    if not found:
        return Alternatives(plan_for(analysis, target, pruning=0.0))  # which says why not
    first, *rest = _likely(analysis, found)
    return Alternatives(first, tuple(rest))


def _likely(analysis: Analysis, found: Sequence[Planned]) -> list[Planned]:
    """Plans that do not foresee much more loss than the best of them, that one first."""
    losses = [foreseen_loss(analysis, planned) for planned in found]
    ranked = sorted(zip(losses, range(len(found)), strict=True))
    return [found[number] for loss, number in ranked if loss <= CERTAIN * min(losses)]


def others(
    analysis: Analysis, target: Target, begun: Alternatives, drafted: Planned
) -> list[Planned]:
    """The plans that were not drafted, but for those that foresee much more loss than another.

    Args:
        analysis: that they are made from.
        target: what is asked for.
        begun: of :func:`alternatives`.
        drafted: the plan that was drafted, of the same share as the first or that itself.
    """
    found = [drafted]
    found += [p for p in (begun.first, *begun.made) if not _known(p, found)]
    found += new_plans(analysis, target, begun.shares, list(found))
    return [planned for planned in _likely(analysis, found) if planned is not drafted]


def new_plans(
    analysis: Analysis, target: Target, shares: Iterable[PruningShare], made: list[Planned]
) -> Iterator[Planned]:
    """Plans at shares that are in reach, and that take out other channels than all made so far.

    Args:
        analysis: that they are made from.
        target: what is asked for.
        shares: of pruning.
        made: plans that are known; each new one is added.
    """
    for share in shares:
        try:
            planned = plan_for(analysis, target, pruning=share)
        except BudgetError:
            continue
        if not _known(planned, made):
            made.append(planned)
            yield planned


def _known(planned: Planned, plans: Sequence[Planned]) -> bool:
    """Whether a plan takes out the same channels as another."""
    return any(planned.plan.groups == other.plan.groups for other in plans) or (
        not any(g.shrinks for g in planned.plan.groups)
        and any(not any(g.shrinks for g in other.plan.groups) for other in plans)
    )
