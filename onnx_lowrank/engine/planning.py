"""From passes to a plan.

prepare -> (prune) -> propose -> plan
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from onnx_lowrank.analysis.cost import other_cost
from onnx_lowrank.analysis.preparation import Prepared, measured_shapes
from onnx_lowrank.engine.plan_checks import kept_by
from onnx_lowrank.engine.workbench import DataOptions, Workbench, channels_key
from onnx_lowrank.errors import BudgetError, NothingAppliesError, OptionError
from onnx_lowrank.latency.timer import Timer
from onnx_lowrank.planning.candidates import Candidate, Choice, by_rule, loss_of, recosted
from onnx_lowrank.planning.countable import check_countable, fixed_nodes
from onnx_lowrank.planning.decisions import Constraint, choose, decide
from onnx_lowrank.planning.plan import Decision, GroupDecision, Plan
from onnx_lowrank.planning.planned import Planned
from onnx_lowrank.planning.proposals import Proposals, make_choices
from onnx_lowrank.planning.refit_modes import DEFAULT_REPAIR, check_repair
from onnx_lowrank.planning.registry import Passes
from onnx_lowrank.planning.sharing import SHARE, Tie, decided_together, proposed_together, ties
from onnx_lowrank.planning.targets import Target
from onnx_lowrank.planning.timed_candidates import Timed, TimingOptions, timed_choices
from onnx_lowrank.progress import Progress
from onnx_lowrank.pruning.greedy import Budget
from onnx_lowrank.pruning.pruner import Kept, Pruner
from onnx_lowrank.pruning.shared_budget import share_budget
from onnx_lowrank.pruning.top_down import top_down
from onnx_lowrank.runtime.runtime import Runtime

__all__ = ["Planning"]

#: a loss of all layers that is so little for each needs no pruning to be less
_LITTLE = 0.01
#: how many times less the foreseen loss of one chain for several layers must be than that of one
#: for each, which the refit fits to each of them
SHARING_GAIN = 2

#: factors on the weights of layers where all are to count alike
_EQUAL: Mapping[str, float] = MappingProxyType({})

#: any budget that needs no clock
_BY_MACS = (("macs", 1.0),)
#: reasons that a message counts
_REASONS = 4


def _sharable(target: Target) -> bool:
    """Whether one chain for several layers may meet a target that one for each does not."""
    metrics = {metric for metric, _ in target.budgets}
    return target.rule is None and "latency" not in metrics and bool(metrics & {"params", "size"})


class Planning(Workbench):
    """Plans of one model.

    Args: as of :class:`Workbench`, and
        repair: how weights are mended, of :data:`onnx_lowrank.planning.refit_modes.REPAIRS`.

    Raises:
        OptionError: no such repair, no pass that compresses, or two that prune.
        ModelError, DataError: as the inputs deserve.
    """

    def __init__(
        self,
        model: Any,
        passes: Passes,
        data: DataOptions,
        runtime: Runtime,
        timing: TimingOptions,
        progress: Progress | None,
        repair: str = DEFAULT_REPAIR,
        timer: Timer | None = None,
    ) -> None:
        self.repair = check_repair(repair)
        super().__init__(model, passes, data, runtime, timing, progress, timer)
        # both by channels, metric and rule: what they hold depends on nothing else
        self._proposed: dict[Any, Proposals] = {}
        self._timed: dict[Any, Timed] = {}

    def plan(
        self,
        target: Target,
        weights: Mapping[str, float] = _EQUAL,
        time: float | None = None,
    ) -> Planned:
        """A decision for every layer and group of channels, and what it was chosen from.

        Args:
            target: what is asked for.
            weights: factors on the weights of layers, by name; 1 for others. Ranks are chosen by
                them. How much is pruned does not depend on them: what pruning loses cannot be
                weighed alike.
            time: nanoseconds to plan for instead of the target's part of the original's time.

        Raises:
            BudgetError: the target is out of reach, or on what cannot be counted or timed.
        """
        self.check_target(target)
        weights = MappingProxyType(dict(weights))
        try:
            return self._best_plan(target, weights, time)
        except BudgetError as error:
            if reasons := self._inapplicable(target):
                raise NothingAppliesError(f"{target}: {reasons}") from error
            raise

    def _best_plan(
        self, target: Target, weights: Mapping[str, float], time: float | None
    ) -> Planned:
        """The better of plans with chains for each layer and for all that use one weight."""
        tied = ties(self.prepared.graph, self.prepared.layers) if _sharable(target) else []
        tied = tied if self.passes.factorizations else []
        try:
            apart = self._plan_apart(target, weights, time)
        except BudgetError:
            if not tied:
                raise
            return self._plan_together(target, weights, tied)
        if not tied:
            return apart
        try:
            together = self._plan_together(target, weights, tied)
        except BudgetError:
            return apart
        losses = [self._foreseen(planned.plan, target, weights) for planned in (together, apart)]
        return together if losses[0] < losses[1] / SHARING_GAIN else apart

    def _foreseen(self, plan: Plan, target: Target, weights: Mapping[str, float]) -> float:
        """The loss that a plan foresees, of its chains and of the channels that it takes out."""
        proposals = self._propose(self.prepared, {}, target)[0].weighed(weights)
        losses = {c.layer: c.weight for c in proposals.choices}
        chains = sum(losses[d.layer] * d.error for d in plan.decisions if d.replaces)
        return chains + sum(g.loss for g in plan.groups if g.shrinks)

    def _plan_together(
        self, target: Target, weights: Mapping[str, float], tied: Sequence[Tie]
    ) -> Planned:
        """A plan in which layers that use one weight get one chain, and no channels go."""
        work = self.prepared
        metric = target.metric if len(target.budgets) == 1 else "macs"
        apart, _ = self._propose(work, {}, target)
        with self.clock("plan"):
            proposals = proposed_together(
                apart, work, tied, self.passes.factorizations, metric, self.progress
            )
            decisions = self._decided(work, proposals, None, target, weights, None)
            decisions = decided_together(decisions, tied, work)
        plan = self._as_plan(target, decisions, [])
        return Planned(plan, target, proposals, None, weights, None)

    def _as_plan(
        self, target: Target, decisions: Sequence[Decision], groups: Sequence[GroupDecision]
    ) -> Plan:
        return Plan(
            self.source.digest, self.data.digest, str(target), self.seed,
            self.samples, self.passes.specs, tuple(decisions), tuple(groups),
            self.repair,
        )  # fmt: skip

    def _plan_apart(
        self, target: Target, weights: Mapping[str, float], time: float | None
    ) -> Planned:
        """A plan in which every layer gets a chain of its own."""
        kept, groups = self._prune(target)
        work = self.cut(kept)[0]
        proposals, timed = self._propose(work, kept, target)
        with self.clock("plan"):
            decisions = self._decided(work, proposals, timed, target, weights, time)
        plan = self._as_plan(target, decisions, groups)
        return Planned(plan, target, proposals, timed, weights, time)

    def _inapplicable(self, target: Target) -> str:
        """Why no pass can do anything with any layer, with counts; empty where one can."""
        proposals = self._propose(self.prepared, {}, replace(target, budgets=_BY_MACS))[0]
        if any(len(choice.candidates) > 1 for choice in proposals.choices):
            return ""
        if self.passes.prunings and self.pruner(target.metric).prunables:
            return ""
        reasons = Counter(node.reason for node in self.prepared.left_out)
        reasons.update("; ".join(said) or "no pass is for it" for said in proposals.skips.values())
        said = ", ".join(f"{count} ({reason})" for reason, count in reasons.most_common(_REASONS))
        more = f" and {len(reasons) - _REASONS} more reasons" if len(reasons) > _REASONS else ""
        if not reasons:
            return "the model has no layers, so there is nothing to compress"
        return (
            f"none of the {reasons.total()} layers can be compressed by these passes: {said}{more};"
            " give other passes (onnx-lowrank passes lists them) or other layers"
        )

    def plan_keeping(self, planned: Planned, layers: Collection[str], reason: str) -> Planned:
        """Choose again from what a plan was chosen from, some layers being kept as they are.

        The channels that the plan takes out stay the same.

        Args:
            planned: the plan that it takes the place of.
            layers: names of those to keep.
            reason: that their decisions give.

        Raises:
            BudgetError: the target is out of reach without them.
        """
        work = self.cut(kept_by(planned.plan))[0]
        share = any(d.decision == SHARE for d in planned.plan.decisions)
        tied = ties(work.graph, work.layers) if share else []
        for tie in tied:  # one chain stays or goes for all
            names = {layer.name for layer in tie}
            layers = {*layers, *names} if names & set(layers) else layers
        proposals = planned.proposals.keeping(layers, reason)
        timed = planned.timed and planned.timed.keeping(layers)
        with self.clock("plan"):
            decisions = self._decided(
                work, proposals, timed, planned.target, planned.weights, planned.time
            )
        plan = replace(planned.plan, decisions=tuple(decided_together(decisions, tied, work)))
        return replace(planned, plan=plan, proposals=proposals, timed=timed)

    def check_target(self, target: Target) -> None:
        """Refuse a target that no result could be held against.

        Raises:
            BudgetError: the model has no MACs that can be counted, or nothing that can be timed.
        """
        check_countable(target, self.before, len(self.prepared.layers))

    def _prune(self, target: Target) -> tuple[Kept, list[GroupDecision]]:
        """Channels that stay, and a decision for every group where pruning was considered."""
        if not self.passes.prunings:
            return {}, []
        options, alone = self.passes.prunings[0].options, not self.passes.factorizations
        if alone and len(target.budgets) > 1:
            raise OptionError("pruning alone keeps one target; give one, or add a factorization")
        loss = None
        if not alone and not options.keep:
            if options.gain > 1 and self._unfit_to_prune(target):
                return {}, []
            if target.rule is not None:
                raise OptionError(
                    "ranks by rule leave pruning no budget; set prune_channels{keep=R}"
                )
            loss = self._unpruned_loss(target)
            if options.gain > 1 and loss <= _LITTLE * len(self.prepared.layers):
                return {}, []
        with self.clock("prune"):
            pruner = self.pruner(target.metric)
            kept = self._chained(pruner, self._channels(pruner, target, loss))
            considered = kept or options.gain <= 1
            return kept, pruner.decisions(kept) if considered else []

    def _unfit_to_prune(self, target: Target) -> bool:
        """Whether nobody asked for pruning in particular, and it can be of no use."""
        return target.rule is not None or self.data.calibration is None or self.source.large

    def _unpruned_loss(self, target: Target) -> float:
        """Predicted, where factorizations make up the whole budget; infinite out of reach.

        All layers weigh alike, as in the loss of pruning that it is compared with.
        """
        counted = Target(((target.metric, target.ratio),))
        proposals, _ = self._propose(self.prepared, {}, counted)
        try:
            chosen = self._choose(self.prepared, proposals, None, counted, None)
        except BudgetError:
            return math.inf
        return loss_of(proposals.choices, chosen)

    def _channels(self, pruner: Pruner, target: Target, unpruned: float | None) -> Kept:
        whole = self.before.of(target.metric)
        now = self.prepared
        fixed = other_cost(now.cost, now.shapes, now.layers, target.metric)
        named = fixed_nodes(now, whole) if target.metric == "macs" else ""
        budget = Budget(target.ratio * whole - fixed, str(target), whole, fixed, named)
        if unpruned is None:
            return pruner.plan(budget)[0]
        return share_budget(
            pruner, self.prepared, self.passes.factorizations, budget,
            lambda model, graph, layers: measured_shapes(
                model, graph, layers, self.data.validation, self.runtime
            ),
            target.metric, unpruned, self.passes.prunings[0].options.gain,
        )  # fmt: skip

    def _chained(self, pruner: Pruner, kept: Kept) -> Kept:
        """The channels that stay, chosen in the order that the pass asks for."""
        chain, data = self.passes.prunings[0].options.chain, self.data.calibration
        if chain == "parallel":
            return pruner.refined(kept)
        if chain == "top_down" and data is not None:
            return top_down(
                pruner, self.prepared, kept, data, self.runtime, self.seed,
                self.progress,
            )  # fmt: skip
        return kept

    def _propose(
        self, work: Prepared, kept: Kept, target: Target
    ) -> tuple[Proposals, Timed | None]:
        """Candidates of every layer, and their times where these are asked for."""
        # several targets need one set of candidates, whose costs are then counted anew
        metric = target.metric if len(target.budgets) == 1 else "macs"
        key = (channels_key(kept), metric, target.rule)
        if key not in self._proposed:
            with self.clock("plan"):
                proposals = make_choices(
                    work.layers, self.passes.factorizations, work.moments, work.shapes, metric,
                    self.prepared.moments.totals, self.progress, target.rule,
                )  # fmt: skip
            # plans that may prune ask for the whole model first; of pruned ones the last is kept
            self._proposed = {k: v for k, v in self._proposed.items() if not k[0]}
            self._timed = {k: v for k, v in self._timed.items() if not k[0]}
            self._proposed[key] = proposals
        proposals = self._proposed[key]
        if target.latency is None or not self.passes.factorizations:
            return proposals, None
        if key not in self._timed:
            with self.clock("time"):
                self._timed[key] = timed_choices(
                    work, proposals, *self.at_batch(work), self.latency_table()
                )
        return proposals, self._timed[key]

    def _decided(
        self,
        work: Prepared,
        proposals: Proposals,
        timed: Timed | None,
        target: Target,
        weights: Mapping[str, float],
        time: float | None,
    ) -> list[Decision]:
        """Decisions on all layers, those weighed by ``weights``."""
        weighed = proposals.weighed(weights)
        chosen = self._choose(work, weighed, timed and timed.weighed(weights), target, time)
        return decide(self.prepared, work, chosen, proposals)

    def _choose(
        self,
        work: Prepared,
        proposals: Proposals,
        timed: Timed | None,
        target: Target,
        time: float | None,
    ) -> list[Candidate]:
        if not self.passes.factorizations:
            return [c.keep for c in proposals.choices]
        if target.rule is not None:
            return by_rule(proposals.choices, target.rule)
        constraints: list[Constraint] = []
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
            whole = self.before.of(metric)
            fixed = other_cost(work.cost, work.shapes, work.layers, metric)
            budget = int(ratio * whole) - fixed
            constraints.append(Constraint(metric, choices, budget, whole, fixed))
        try:
            return choose(constraints)
        except BudgetError as error:
            named = fixed_nodes(work, self.before.macs)
            if named and "macs" in dict(target.budgets):
                raise BudgetError(f"{error}; {named}") from error
            raise
