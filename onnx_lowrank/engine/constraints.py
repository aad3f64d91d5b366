"""The budgets of a target as constraints on layers, and what is chosen under them."""

from __future__ import annotations

from collections.abc import Sequence

from onnx_lowrank.analysis.cost import other_cost
from onnx_lowrank.analysis.preparation import Prepared
from onnx_lowrank.engine.analyse import Analysis
from onnx_lowrank.errors import BudgetError
from onnx_lowrank.planning.candidates import Candidate, Choice, by_rule, recosted
from onnx_lowrank.planning.countable import fixed_nodes
from onnx_lowrank.planning.decisions import Constraint, choose
from onnx_lowrank.planning.proposals import Proposals
from onnx_lowrank.planning.targets import Target
from onnx_lowrank.planning.timed_candidates import Timed

__all__ = ["chosen_under"]


def chosen_under(
    analysis: Analysis,
    work: Prepared,
    proposals: Proposals,
    timed: Timed | None,
    target: Target,
    time: float | None = None,
) -> list[Candidate]:
    """One candidate a layer, all budgets of the target kept.

    Args:
        analysis: of the original model, whose costs the budgets are parts of.
        work: the model that the proposals are of.
        proposals: candidates of its layers.
        timed: the same with times as costs, where time is asked for.
        target: what is asked for.
        time: nanoseconds to choose for, instead of the target's part of the original's time.

    Raises:
        BudgetError: the target is out of reach.
    """
    if not analysis.job.passes.factorizations:
        return [c.keep for c in proposals.choices]
    if target.rule is not None:
        return by_rule(proposals.choices, target.rule)
    constraints = []
    for metric, ratio in target.budgets:
        if metric == "latency":
            assert timed is not None
            wanted = ratio * timed.whole if time is None else time
            fixed = timed.whole - timed.movable
            budget = int(wanted) - fixed
            constraints.append(Constraint(metric, timed.choices, budget, timed.whole, fixed))
            continue
        choices: Sequence[Choice] = proposals.choices
        if len(target.budgets) > 1:  # the same candidates for all, those that were timed
            choices = recosted(timed.choices if timed is not None else choices, metric)
        whole = analysis.before.of(metric)
        fixed = other_cost(work.cost, work.shapes, work.layers, metric)
        constraints.append(Constraint(metric, choices, int(ratio * whole) - fixed, whole, fixed))
    try:
        return choose(constraints)
    except BudgetError as error:
        named = fixed_nodes(work, analysis.before.macs)
        if named and "macs" in dict(target.budgets):
            raise BudgetError(f"{error}; {named}") from error
        raise
