"""From an analysis and a target to everything that a plan may choose from.

    propose(analysis, target, pruning) -> Proposed
    propose_together(analysis, target, tied) -> Proposed      one chain for layers of one weight

Channels come first: how many go depends on what factorization would lose on the rest. Then every
pass is asked for candidates of every layer of what is left, which are timed where the target is on
latency.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from onnx_lowrank.analysis.cost import layer_cost, other_cost
from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.analysis.preparation import measured_shapes
from onnx_lowrank.engine.analyse import Analysis, channels_key, cut, timed_inference
from onnx_lowrank.engine.constraints import chosen_under
from onnx_lowrank.engine.memo import Channels, Cut
from onnx_lowrank.errors import BudgetError, OptionError
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import PlacedLayer
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.passkit.base import Factorization
from onnx_lowrank.planning.asking import Question
from onnx_lowrank.planning.candidates import Choice, loss_of, scaled
from onnx_lowrank.planning.countable import fixed_nodes
from onnx_lowrank.planning.plan import GroupDecision
from onnx_lowrank.planning.proposals import Proposals, beside, make_choices, together
from onnx_lowrank.planning.sharing import Tie, proposed_together
from onnx_lowrank.planning.targets import Target
from onnx_lowrank.planning.timed_candidates import Timed, timed_choices
from onnx_lowrank.pruning.channel_cuts import KeptChannels
from onnx_lowrank.pruning.greedy import Budget
from onnx_lowrank.pruning.pruner import Pruner
from onnx_lowrank.pruning.shared_budget import Factorizing, Shared, share_budget, with_share
from onnx_lowrank.pruning.top_down import top_down

__all__ = [
    "Proposed",
    "PruningShare",
    "may_prune",
    "propose",
    "propose_together",
    "whole_proposals",
]

#: part of the saving that taking channels out makes: a number; that of which least loss is foreseen
#: among those that take some out; or among all, none included
PruningShare = float | Literal["some", "foreseen"]


#: columns of layers whose candidates without some channels are foreseen from those with all
_WIDE = 2048

#: why layers stay that passes make smaller, but not cheaper
_NO_MACS = "it multiplies nothing; a target on params or size makes it smaller"


@dataclass(frozen=True)
class Proposed:
    """What a plan may choose from.

    Attributes:
        target: what is asked for.
        share: part of the saving that taking channels out makes.
        kept: channels that stay, by group.
        groups: a decision for every group of channels, where pruning was considered.
        cut: the model without the channels that go.
        proposals: candidates of its layers, all layers weighing alike.
        timed: the same with times as costs; None where no time is asked for.
        tied: layers that use one weight and get one chain.
    """

    target: Target
    share: float
    kept: KeptChannels
    groups: tuple[GroupDecision, ...]
    cut: Cut
    proposals: Proposals
    timed: Timed | None = None
    tied: tuple[Tie, ...] = ()


def propose(analysis: Analysis, target: Target, pruning: PruningShare = "foreseen") -> Proposed:
    """Choose channels, and ask every pass for candidates of what is left.

    Args:
        analysis: of the model.
        target: what is asked for.
        pruning: part of the saving that taking channels out makes.

    Raises:
        BudgetError: the target is out of reach.
        OptionError: the target and the pruning pass contradict each other.
    """
    # they depend on the target alone: rounds ask again with other sensitivities
    shared, groups = analysis.memo.channels.get(
        (target, pruning, analysis.weighed), lambda: _channels(analysis, target, pruning)
    )
    kept = shared.kept
    without = cut(analysis, kept)
    proposals = _whole_if_enough(analysis, without, kept, target)
    if proposals is None:
        proposals = _proposals(analysis, without, kept, target)
    timed = None
    if target.latency is not None and analysis.job.passes.factorizations:
        timed = _timed(analysis, without, kept, target, proposals)
    return Proposed(target, shared.share, kept, groups, without, proposals, timed)


def propose_together(analysis: Analysis, target: Target, tied: Sequence[Tie]) -> Proposed:
    """Ask every pass for one chain for all layers that use one weight; no channels go.

    Args:
        analysis: of the model.
        target: what is asked for.
        tied: layers that use one weight.
    """
    job, whole = analysis.job, cut(analysis, {})
    apart = whole_proposals(analysis, target)
    with job.tools.stopwatch("plan"):
        proposals = proposed_together(
            apart, whole.work, tied, Question(job.passes.factorizations, _counted_in(target)),
            job.tools.progress,
        )  # fmt: skip
    return Proposed(target, 0.0, {}, (), whole, proposals, tied=tuple(tied))


def whole_proposals(analysis: Analysis, target: Target) -> Proposals:
    """Candidates of every layer of the whole model, all layers weighing alike."""
    return _proposals(analysis, cut(analysis, {}), {}, target)


def _proposals(analysis: Analysis, without: Cut, kept: KeptChannels, target: Target) -> Proposals:
    """Candidates of every layer of a model without some of its channels."""
    job, work = analysis.job, without.work
    passes = _useful(job.passes.factorizations, target)
    only = {op for p in job.passes.factorizations if p not in passes for op in p.ops}
    only -= {op for p in passes for op in p.ops}

    def make() -> Proposals:
        found = _asked(analysis, work.layers, passes, kept, work.moments, work.shapes, target)
        return found.keeping([la.name for la in work.layers if la.op in only], _NO_MACS)

    memo = analysis.memo.narrowed if kept else analysis.memo.whole
    return memo.get(
        (channels_key(kept), _counted_in(target), target.rule, target.limits_size), make
    )


def _whole_if_enough(
    analysis: Analysis, without: Cut, kept: KeptChannels, target: Target
) -> Proposals | None:
    """The layers as they are, where pruning meets the target already; None where it does not.

    No pass is asked for what would not be taken, as it loses something.
    """
    asked = analysis.job.passes.factorizations and target.rule is None and target.latency is None
    if not kept or not asked:
        return None
    work, layers = without.work, without.work.layers
    found = _asked(analysis, layers, (), kept, work.moments, work.shapes, target)
    try:
        chosen_under(analysis, work, found, None, target)
    except BudgetError:
        return None
    return found.keeping([la.name for la in layers], "pruning meets the budget")


def _useful(passes: Sequence[Factorization], target: Target) -> list[Factorization]:
    """The passes that can be of use for a target."""
    return [p for p in passes if p.saves_macs or target.limits_size]


def _asked(
    analysis: Analysis,
    layers: Sequence[PlacedLayer],
    passes: Sequence[Factorization],
    kept: KeptChannels,
    moments: Mapping[str, Moments],
    shapes: Mapping[str, tuple[int, ...]],
    target: Target,
) -> Proposals:
    """Candidates of layers by some passes; those of a layer that no cut reaches are found once."""
    # slow passes apart: the others are asked without them too
    quick, slow = ([p for p in passes if p.slow is which] for which in (False, True))
    if quick and slow:
        return beside(*(
            _asked(analysis, layers, some, kept, moments, shapes, target) for some in (quick, slow)
        ))  # fmt: skip
    job, metric, known = analysis.job, _counted_in(target), analysis.memo.layers
    pruner = analysis.pruner(target.metric) if kept else None
    specs = tuple(p.spec for p in passes)
    keys = {
        layer.name: (
            layer.name, pruner.channels_of(layer, kept) if pruner else b"", metric, target.rule,
            specs,
        )
        for layer in layers
    }  # fmt: skip
    new = [layer for layer in layers if keys[layer.name] not in known]
    if new:
        with job.tools.stopwatch("plan"):
            found = make_choices(
                new, Question(tuple(passes), metric, target.rule), moments, shapes,
                analysis.prepared.moments.totals, job.tools.progress, job.tools.workers,
            )  # fmt: skip
        known |= {keys[name]: own for name, own in found.by_layer().items()}
    return together([known[keys[layer.name]] for layer in layers])


def _timed(
    analysis: Analysis, without: Cut, kept: KeptChannels, target: Target, proposals: Proposals
) -> Timed:
    """The candidates with measured or predicted times."""
    job = analysis.job

    def make() -> Timed:
        with job.tools.stopwatch("time"):
            feed, shapes = timed_inference(job, without.work)
            table = job.tools.latency_table()
            return timed_choices(without.work, proposals, feed, shapes, table)

    key = (channels_key(kept), _counted_in(target), target.rule, target.limits_size)
    return analysis.memo.timed.get(key, make)


def _counted_in(target: Target) -> str:
    """The unit of candidates: several targets count one set of candidates anew."""
    return target.metric if len(target.budgets) == 1 else "macs"


def _channels(analysis: Analysis, target: Target, pruning: PruningShare) -> Channels:
    """Channels that stay, and a decision for every group where pruning was considered."""
    passes = analysis.job.passes
    options, alone = passes.cutting, not passes.factorizations
    if options is None:
        return Shared(0.0, {}), ()
    if alone and len(target.budgets) > 1:
        raise OptionError("pruning alone keeps one target; give one, or add a factorization")
    both = not alone and not options.keep
    if both:
        if pruning == 0 or not may_prune(analysis, target):
            return Shared(0.0, {}), ()
        if target.rule is not None:
            raise OptionError("ranks by rule leave pruning no budget; set prune_channels{keep=R}")
    with analysis.job.tools.stopwatch("prune"):
        pruner = analysis.pruner(target.metric)
        found = _numbers(analysis, pruner, target, pruning if both else None)
        kept = _ordered(analysis, pruner, found.kept)
        return replace(found, kept=kept), tuple(pruner.decisions(kept))


def may_prune(analysis: Analysis, target: Target) -> bool:
    """Whether channels may go: where nobody asked for that in particular, not in every model."""
    job, options = analysis.job, analysis.job.passes.cutting
    unfit = target.rule is not None or job.samples.calibration is None or job.source.large
    return options is not None and not (options.optional and unfit)


def _unpruned_loss(analysis: Analysis, target: Target) -> float:
    """Predicted loss where factorizations make up the whole budget; infinite out of reach.

    All layers weigh alike, as in the loss of pruning that it is compared with.
    """
    counted = _alone(target)
    proposals = whole_proposals(analysis, counted)
    try:
        chosen = chosen_under(analysis, analysis.prepared, proposals, None, counted)
    except BudgetError:
        return math.inf
    return loss_of(proposals.choices, chosen)


def _alone(target: Target) -> Target:
    """The first of a target's budgets, which pruning shares with factorization."""
    return Target(((target.metric, target.ratio),))


def _numbers(
    analysis: Analysis, pruner: Pruner, target: Target, pruning: PruningShare | None
) -> Shared:
    """How many channels stay in each group, and which by the first order; None prunes alone."""
    prepared, job = analysis.prepared, analysis.job
    whole = analysis.before.of(target.metric)
    fixed = other_cost(prepared.cost, prepared.shapes, prepared.products, target.metric)
    named = fixed_nodes(prepared, whole) if target.metric == "macs" else ""
    rest = fixed - pruner.products
    budget = Budget(target.ratio * whole - rest, str(target), whole, rest, named, target.metric)
    if pruning is None:
        return Shared(1.0, pruner.plan(budget)[0])
    counted = _alone(target)
    # the passes take seconds for each of these, at each share
    wide = {layer.name for layer in prepared.layers if layer.patch >= _WIDE}
    uncut = {choice.layer: choice for choice in whole_proposals(analysis, counted).choices}

    def measure(
        model: Model, graph: Graph, layers: Sequence[PlacedLayer]
    ) -> Mapping[str, tuple[int, ...]]:
        return measured_shapes(model, graph, layers, job.samples.validation, job.tools.runtime)

    def ask(
        layers: Sequence[PlacedLayer],
        passes: Sequence[Factorization],
        kept: KeptChannels,
        shapes: Mapping[str, tuple[int, ...]],
    ) -> Sequence[Choice]:
        passes = _useful(passes, counted)
        rough = {la.name for la in layers if la.name in wide and pruner.channels_of(la, kept)}
        exact = [la for la in layers if la.name not in rough]
        moments = pruner.cuts.moments(kept)
        asked = _asked(analysis, exact, passes, kept, moments, shapes, counted)
        found = {choice.layer: choice for choice in asked.choices}
        specs = {"", *(p.spec for p in passes)}
        for layer in (la for la in layers if la.name in rough):
            choice = uncut[layer.name]
            some = tuple(c for c in choice.candidates if c.method in specs)
            left = layer_cost(layer, shapes).of(target.metric) / max(choice.keep.cost, 1)
            found[layer.name] = scaled(replace(choice, candidates=some), left)
        return [found[layer.name] for layer in layers]

    factorizing = Factorizing(
        pruner, prepared, job.passes.factorizations, measure, target.metric, ask
    )
    if not isinstance(pruning, str):
        return with_share(pruner, factorizing, budget, pruning)
    unpruned = _unpruned_loss(analysis, target) if pruning == "foreseen" else math.inf
    return share_budget(pruner, factorizing, budget, unpruned)


def _ordered(analysis: Analysis, pruner: Pruner, kept: KeptChannels) -> KeptChannels:
    """Choose the same numbers of channels again, in the order that the pass asks for."""
    job = analysis.job
    assert job.passes.cutting is not None
    chain, data = job.passes.cutting.chain, job.samples.calibration
    if chain == "parallel":
        return pruner.refined(kept)
    if chain == "top_down" and data is not None:
        return top_down(
            pruner, analysis.prepared, kept, data, job.tools.runtime, job.seed, job.tools.progress
        )
    return kept
