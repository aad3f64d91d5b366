"""One model and its data, on the way from passes to a plan to a result.

prepare -> (prune) -> propose -> plan;        prepare -> (cut) -> rewrite -> refit -> check
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import checker

from onnx_lowrank._version import __version__
from onnx_lowrank.calibration import ImageOptions
from onnx_lowrank.candidates import Proposals, cut_candidate, make_choices, selected
from onnx_lowrank.chain import Chain
from onnx_lowrank.channel_cut import Remains
from onnx_lowrank.collect import batch_size
from onnx_lowrank.cost import Cost, model_cost, tensor_shapes
from onnx_lowrank.decide import after_cut, choose, decide
from onnx_lowrank.errors import BudgetError, OptionError, PlanError, ValidationError
from onnx_lowrank.graph import Graph
from onnx_lowrank.latency import corrected_budget
from onnx_lowrank.latency_cache import cache_folder
from onnx_lowrank.layer_weights import Repaired, recorded
from onnx_lowrank.layers import find_layers
from onnx_lowrank.model import Model, load
from onnx_lowrank.moment_cache import MomentCache
from onnx_lowrank.plan import Decision, GroupDecision, Plan
from onnx_lowrank.planner import Candidate, Choice, by_rule, recosted, reweighed
from onnx_lowrank.preparation import MEMORY, Prepared, canonicalise, measured_shapes, prepare
from onnx_lowrank.progress import Progress
from onnx_lowrank.prune_plan import Budget
from onnx_lowrank.prune_split import share_budget
from onnx_lowrank.prune_top_down import top_down
from onnx_lowrank.pruning import Kept, Pruner
from onnx_lowrank.refit import Refit, refit
from onnx_lowrank.refit_tasks import refit_tasks
from onnx_lowrank.registry import Passes
from onnx_lowrank.repairs import DEFAULT_REPAIR, check_repair
from onnx_lowrank.report import Report
from onnx_lowrank.rewrite import Written, apply_chain
from onnx_lowrank.run_data import gather
from onnx_lowrank.runtime import Feed, Runtime
from onnx_lowrank.targets import Target, cost_of
from onnx_lowrank.timed_choices import Timed, TimingOptions, losers, timed_choices
from onnx_lowrank.validate import LatencyPair, measure_latency, validate_models

__all__ = ["SLOWER_CHAINS", "Built", "DataOptions", "Run"]

#: how a note begins that names what does not pay
SLOWER_CHAINS = "slower than the layers whose place they take:"

#: a loss of all layers that is so little for each needs no pruning to be less
_LITTLE = 0.01

#: a measured time so near to the predicted one is not worth another plan
_NEAR = 0.03


@dataclass(frozen=True)
class DataOptions:
    """Where samples come from: as of :func:`onnx_lowrank.compress`."""

    calib: Any
    samples: int | None
    images: ImageOptions | None
    input_shapes: Mapping[str, Sequence[int]] | None
    seed: int


@dataclass(frozen=True)
class Built:
    """A model as a plan describes it.

    Attributes:
        model: signed and checked.
        plan: that it was built by.
        decisions: with what was cut in fact.
        refits: that were made.
        chains: by layer name.
        repaired: what became of the layers, by name, where that was to be kept.
    """

    model: Model
    plan: Plan
    decisions: tuple[Decision, ...]
    refits: tuple[Refit, ...]
    chains: Mapping[str, Chain]
    repaired: Mapping[str, Repaired]


class Run:
    """One model and its data; everything that does not depend on the budget is made once.

    Args:
        model: to compress.
        passes: to compress it with.
        data: samples.
        runtime: that counts.
        timing: how latency is measured.
        progress: told of each step.
        repair: how weights are mended, of :data:`onnx_lowrank.repairs.REPAIRS`.

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
    ) -> None:
        if len(passes.prunings) > 1:
            raise OptionError("one pruning pass at a time; its options say how")
        if not passes.factorizations and not passes.prunings:
            raise OptionError("no factorization among the passes; add spatial_svd, for one")
        self.repair = check_repair(repair)
        self.clock = _Clock()
        self.progress = progress or Progress()
        self.runtime, self.source = runtime, load(model)
        self._passes, self._options, self._timing = passes, data, timing
        self.data = gather(
            self.source, data.calib, data.samples, data.images, data.input_shapes, data.seed
        )
        self._pruned: tuple[Any, Prepared, Remains] | None = None
        self._proposed: tuple[Any, Proposals] | None = None
        self._timed: Timed | None = None  # of what was proposed
        self._pruners: dict[str, Pruner] = {}  # by metric
        self._notes: dict[str, list[str]] = {}  # by digest of the plan
        #: on the weights of layers, by name
        self.factors: Mapping[str, float] = {}
        self.refuse: Callable[[str], str | None] = lambda name: None

    def choose_layers(self, include: Sequence[str], exclude: Sequence[str]) -> None:
        """Leave out the layers that the user's globs leave out."""
        self.refuse = lambda name: selected(name, include, exclude)

    # -- the plan --------------------------------------------------------------------------------

    def plan(self, target: Target, seconds: float | None = None) -> Plan:
        """A decision for every layer and group of channels.

        Args:
            target: what is asked for.
            seconds: nanoseconds to plan for instead of the target's part of the original's time.

        Raises:
            BudgetError: the target is out of reach.
        """
        kept, groups = self._prune(target)
        work = self._cut(kept)[0]
        proposals, timed = self._propose(work, kept, target)
        with self.clock("plan"):
            chosen = self._choose(work, proposals, timed, target, seconds)
            decisions = decide(self.prepared, work, chosen, proposals)
        return Plan(
            self.source.digest, self.data.digest, str(target), self._options.seed,
            self._options.samples, self._passes.specs, tuple(decisions), tuple(groups),
            self.repair,
        )  # fmt: skip

    def timed_plan(self, target: Target) -> Plan:
        """:meth:`plan`; where time is asked for, made again by what the first plan took."""
        if target.latency is not None and not self._passes.factorizations:
            return self._pruned_in_time(target, target.latency)
        plan = self.plan(target)
        timed = self._timed
        if target.latency is None or timed is None:
            return plan
        whole = timed.whole
        predicted = _predicted(timed, plan)
        measured = self._measured(plan)
        note = (
            f"latency at batch {self._timing.batch}: {predicted / whole:.3f} of the original "
            f"predicted, {measured:.3f} measured; {timed.coverage}"
        )
        self._notes[plan.digest] = [note]
        if abs(measured - target.latency) <= _NEAR * target.latency:
            return plan
        wanted = target.latency * whole
        again = self.plan(target, corrected_budget(whole, predicted, measured * whole, wanted))
        self._notes[again.digest] = [f"{note}; planned again by that"]
        return again

    def _pruned_in_time(self, target: Target, wanted: float) -> Plan:
        """Pruning alone counts MACs in place of time; once more, by the time that they took."""
        plan = self.plan(target)
        measured = self._measured(plan)
        if not self._passes.prunings[0].options.keep and wanted < measured < 1:
            ratio = max(1 - (1 - wanted) ** 2 / (1 - measured), 0.0)
            with suppress(BudgetError):  # else what there is
                again = replace(self.plan(Target((("macs", ratio),))), target=str(target))
                plan, measured = again, self._measured(again)
        took = f"latency at batch {self._timing.batch}: {measured:.3f} of the original measured"
        self._notes[plan.digest] = [f"{took}; pruning alone counts MACs in place of time"]
        return plan

    def _measured(self, plan: Plan) -> float:
        """Part of the original's time that the model of a plan takes."""
        found = self.latency(self.build(plan).model, [self._timing.batch])[0]
        return found.new_ms / found.reference_ms

    def _prune(self, target: Target) -> tuple[Kept, list[GroupDecision]]:
        """Channels that stay, and a decision for every group where pruning was considered."""
        if not self._passes.prunings:
            return {}, []
        options, alone = self._passes.prunings[0].options, not self._passes.factorizations
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
            pruner = self._pruner(target.metric)
            kept = self._chained(pruner, self._channels(pruner, target, loss))
            considered = kept or options.gain <= 1
            return kept, pruner.decisions(kept) if considered else []

    def _unfit_to_prune(self, target: Target) -> bool:
        """Whether nobody asked for pruning in particular, and it can be of no use."""
        return target.rule is not None or self.data.calibration is None or self.source.large

    def _unpruned_loss(self, target: Target) -> float:
        """Predicted, where factorizations make up the whole budget; infinite out of reach."""
        counted = Target(((target.metric, target.ratio),))
        proposals, _ = self._propose(self.prepared, {}, counted)
        try:
            chosen = self._choose(self.prepared, proposals, None, counted, None)
        except BudgetError:
            return math.inf
        return sum(c.weight * p.error for c, p in zip(proposals.choices, chosen, strict=True))

    def _channels(self, pruner: Pruner, target: Target, unpruned: float | None) -> Kept:
        now = model_cost(self.prepared.model, self.prepared.shapes)
        whole, all_now = (cost_of(c, target.metric) for c in (self.before, now))
        movable = pruner.cost - _broadcast(self.prepared, target.metric)
        fixed = all_now - movable
        budget = Budget(target.ratio * whole - fixed, str(target), whole, fixed)
        if unpruned is None:
            return pruner.plan(budget)[0]
        return share_budget(
            pruner, self.prepared, self._passes.factorizations, budget,
            lambda model, graph, layers: measured_shapes(
                model, graph, layers, self.data.validation, self.runtime
            ),
            target.metric, unpruned, self._passes.prunings[0].options.gain,
        )  # fmt: skip

    def _chained(self, pruner: Pruner, kept: Kept) -> Kept:
        """The channels that stay, chosen in the order that the pass asks for."""
        chain, data = self._passes.prunings[0].options.chain, self.data.calibration
        if chain == "parallel":
            return pruner.refined(kept)
        if chain == "top_down" and data is not None:
            return top_down(
                pruner, self.prepared, kept, data, self.runtime, self._options.seed,
                self.progress,
            )  # fmt: skip
        return kept

    def _propose(
        self, work: Prepared, kept: Kept, target: Target
    ) -> tuple[Proposals, Timed | None]:
        """Candidates of every layer, and their times where these are asked for."""
        # several targets need one set of candidates, whose costs are then counted anew
        metric = target.metric if len(target.budgets) == 1 else "macs"
        key = (_key(kept), metric, target.rule)
        if self._proposed is None or self._proposed[0] != key:
            with self.clock("plan"):
                proposals = make_choices(
                    work.layers, self._passes.factorizations, work.moments, work.shapes, metric,
                    self.prepared.moments.totals, self.progress, target.rule,
                )  # fmt: skip
            self._proposed, self._timed = (key, proposals), None
        if target.latency is not None and self._timed is None and self._passes.factorizations:
            with self.clock("time"):
                self._timed = timed_choices(
                    work, self._proposed[1], *self._at_batch(work), self.runtime, self._timing,
                    self.progress,
                )  # fmt: skip
        return self._weighed(target)

    def _weighed(self, target: Target) -> tuple[Proposals, Timed | None]:
        """What was proposed last, layers weighed as is asked."""
        assert self._proposed is not None
        found, timed = self._proposed[1], None
        proposals = copy(found)
        proposals.choices = reweighed(found.choices, self.factors)
        if target.latency is not None and self._timed is not None:
            choices = tuple(reweighed(self._timed.choices, self.factors))
            timed = replace(self._timed, choices=choices)
        return proposals, timed

    @property
    def choices(self) -> Sequence[Choice]:
        """What the last plan was chosen from, with equal weights."""
        return [] if self._proposed is None else self._proposed[1].choices

    def planned_model(self, plan: Plan) -> Model:
        """What the chains of a plan are written into."""
        return self._cut(_kept(plan))[0].model

    def _choose(
        self,
        work: Prepared,
        proposals: Proposals,
        timed: Timed | None,
        target: Target,
        seconds: float | None,
    ) -> list[Candidate]:
        if not self._passes.factorizations:
            return [c.keep for c in proposals.choices]
        if target.rule is not None:
            return by_rule(proposals.choices, target.rule)
        now = model_cost(work.model, work.shapes)
        constraints: list[tuple[str, Sequence[Choice], int, int, int]] = []
        for metric, ratio in target.budgets:
            if metric == "latency":
                assert timed is not None
                wanted = ratio * timed.whole if seconds is None else seconds
                fixed = timed.whole - timed.movable
                budget = int(wanted) - fixed
                constraints.append((metric, timed.choices, budget, timed.whole, fixed))
                continue
            choices: Sequence[Choice] = proposals.choices
            if len(target.budgets) > 1:  # the same candidates for all, those that were timed
                choices = recosted(timed.choices if timed is not None else choices, metric)
            whole = cost_of(self.before, metric)
            movable = sum(c.keep.cost for c in choices) - _broadcast(work, metric)
            fixed = cost_of(now, metric) - movable
            constraints.append((metric, choices, int(ratio * whole) - fixed, whole, fixed))
        return choose(constraints)

    # -- the model -------------------------------------------------------------------------------

    def build(self, plan: Plan, *, keep_repaired: bool = False) -> Built:
        """The model that a plan describes, checked but not measured.

        Args:
            plan: what to do.
            keep_repaired: keep the solved weights of all layers too; they take much memory.

        Raises:
            PlanError: the plan is of another model, or names what is not there.
        """
        self._check_plan(plan)
        kept = _kept(plan)
        work, remains = self._cut(kept)
        with self.clock("rewrite"):
            compressed = Graph(work.model)
            named = {t.name: t for t in find_layers(compressed)[0]}
            made: dict[str, Decision] = {d.layer: d for d in plan.decisions}
            if missing := [la.name for la in work.layers if la.name not in made]:
                raise PlanError(f"the plan says nothing of layer {missing[0]!r}")
            written: dict[str, Written] = {}
            for layer in work.layers:
                decision = made[layer.name]
                if decision.decision == "factorize":
                    moments = work.moments[layer.name]
                    chain = cut_candidate(layer, decision, self._passes.factorizations, moments)
                    written[layer.name] = apply_chain(compressed, named[layer.name], chain)
                    made[layer.name] = after_cut(layer, decision, chain, moments, work.shapes)
        refits: list[Refit] = []
        repaired: dict[str, Repaired] = {}
        with self.clock("refit"):
            data = self.data.calibration if plan.repair != "none" else None
            if data is not None and (written or kept):
                tasks = refit_tasks(
                    self.prepared, work, remains, compressed, written, made,
                    self._passes.factorizations, plan.repair,
                )  # fmt: skip
                if keep_repaired:
                    tasks = [recorded(task, repaired) for task in tasks]
                size = batch_size(list(work.shapes), work.shapes, MEMORY)
                refits = refit(
                    self.prepared.graph, compressed, tasks, data, self.runtime, size=size,
                    seed=plan.seed, memory=MEMORY // 8, progress=self.progress,
                    behind_relu=plan.repair == "relu",
                )  # fmt: skip
        result = _sign(compressed.to_model(), plan)
        _check(self.source, result)
        chains = {name: w.chain for name, w in written.items()}
        return Built(result, plan, tuple(made.values()), tuple(refits), chains, repaired)

    def paying(self, target: Target, built: Built) -> Built:
        """``built``, or where it is slower than the original, one without what does not pay.

        The budget is then spent on other layers; where that cannot be, nothing is changed.
        """
        pair = self.latency(built.model, [self._timing.batch])[0]
        if self._proposed is None or target.rule or max(pair.speedup, pair.median_speedup) >= 1:
            return built
        proposals, timed = self._weighed(target)
        kept = _kept(built.plan)
        work = self._cut(kept)[0]
        with self.clock("time"):
            lost = losers(
                work, built.chains, *self._at_batch(work), self.runtime, self._timing,
                self.progress,
            )  # fmt: skip
        names = ", ".join(sorted(lost))
        if not lost:
            return built
        fewer = copy(proposals)
        fewer.choices = [
            replace(c, candidates=c.candidates[:1]) if c.layer in lost else c
            for c in proposals.choices
        ]
        try:
            chosen = self._choose(work, fewer, timed, target, None)
        except BudgetError:
            self.note(built.plan, f"{SLOWER_CHAINS} {names}")
            return built
        decisions = decide(self.prepared, work, chosen, fewer)
        plan = replace(built.plan, decisions=tuple(decisions))
        self._notes[plan.digest] = list(self._notes.get(built.plan.digest, []))
        self.note(plan, f"taken back, for they took more time than the layers: {names}")
        return self.build(plan)

    def note(self, plan: Plan, text: str) -> None:
        """Have the report of a plan say something."""
        self._notes.setdefault(plan.digest, []).append(text)

    def _at_batch(self, work: Prepared) -> tuple[Feed, dict[str, tuple[int, ...]]]:
        """An inference of the batch that counts, and the shapes of all tensors at it."""
        feed = self._feed(self._timing.batch)
        inputs = {name: value.shape for name, value in feed.items()}
        needed = [t.name for n in work.graph.nodes for t in n.outputs if t.name]
        return feed, tensor_shapes(work.model, inputs, feed, self.runtime, needed)

    def report(self, built: Built, notes: Sequence[str] = ()) -> Report:
        """Both models on samples that did not calibrate, and by the clock."""
        plan = built.plan
        with self.clock("validate"):
            size = batch_size(list(self.prepared.shapes), self.prepared.shapes, MEMORY)
            validation = validate_models(
                self.source, built.model, self.data.validation, self.runtime,
                size=size, progress=self.progress,
            )  # fmt: skip
            latency = self.latency(built.model, sorted({1, 16, self._timing.batch}))
            after = self.cost(built.model)
        said = [*self.data.notes, *self._resumed(), *self._notes.get(plan.digest, []), *notes]
        if plan.data != self.data.digest:
            said.append("the calibration data is not that of the plan; the weights differ from it")
        for part in plan.target.split():
            if part.startswith("size=") and after.bytes > float(part[5:]) * self.before.bytes:
                left = after.bytes / self.before.bytes
                said.append(f"{left:.4f} of the bytes are left, not {part}: names took the rest")
        return Report(
            self.before, after, plan.target, built.decisions, plan.groups, built.refits,
            validation, latency, tuple(said), self.clock.seconds, __version__, plan.digest,
            plan.seed,
        )  # fmt: skip

    def latency(self, model: Model, batches: Sequence[int]) -> tuple[LatencyPair, ...]:
        """Both models in alternation, at the batches that the data allows."""
        data = self.data.validation
        most = len(data) if data.batchable else 1
        feeds = [(b, self._feed(b)) for b in batches if b <= most] or [(1, self._feed(1))]
        return measure_latency(self.source, model, feeds, self.runtime, seconds=1.0)

    def _feed(self, batch: int) -> Feed:
        data = self.data.validation
        if batch == 1 or not data.batchable:
            return data.feed(0)
        return next(data.subset([i % len(data) for i in range(batch)]).batches(batch))

    def _check_plan(self, plan: Plan) -> None:
        if plan.model != self.source.digest:
            raise PlanError(
                f"the plan is of another model: its SHA-256 is {plan.model[:16]}..., that of "
                f"this one {self.source.digest[:16]}..."
            )
        there = {la.name for la in self.prepared.layers}
        there |= {o.name for o in self.prepared.left_out}
        if strange := [d.layer for d in plan.decisions if d.layer not in there]:
            raise PlanError(f"the plan decides on layer {strange[0]!r}, which is not there")
        cuts = [g for g in plan.groups if g.decision in ("cut", "gather")]
        if cuts and not self._passes.prunings:
            raise PlanError("the plan cuts channels, but there is no pruning pass in it")
        if cuts:
            _check_cuts(cuts, self._pruner("macs"))

    # -- what it works on ------------------------------------------------------------------------

    @cached_property
    def prepared(self) -> Prepared:
        """The canonical model, its layers and the moments of their inputs."""
        with self.clock("calibrate"):
            return self._prepare(canonicalise(self.source, self._passes.rewrites))

    @cached_property
    def before(self) -> Cost:
        """Of the model as given."""
        return self.cost(self.source)

    def cost(self, model: Model) -> Cost:
        """Of a model, at one sample."""
        shapes = measured_shapes(model, Graph(model), [], self.data.validation, self.runtime)
        return model_cost(model, shapes)

    def forget(self) -> None:
        """Remove what an interrupted run would have gone on from: this one has done its work."""
        for unfinished in self._unfinished:
            unfinished.clear()

    @property
    def _unfinished(self) -> list[MomentCache]:
        made = [self.__dict__.get("prepared"), self._pruned and self._pruned[1]]
        return [p.unfinished for p in made if p is not None and p.unfinished is not None]

    def _resumed(self) -> list[str]:
        if not any(u.resumed for u in self._unfinished):
            return []
        return ["what an interrupted run had read of the samples was not read again"]

    def _prepare(self, model: Model) -> Prepared:
        return prepare(
            model, self.data, self.runtime, self.refuse, self._options.seed, self.progress,
            every_shape=bool(self._passes.prunings),
            cache=cache_folder(self._timing.cache, "moments"),
        )  # fmt: skip

    def _pruner(self, metric: str) -> Pruner:
        if metric not in self._pruners:
            method = self._passes.prunings[0]
            self._pruners[metric] = Pruner(self.prepared, method, metric, self.progress)
        return self._pruners[metric]

    def _cut(self, kept: Kept) -> tuple[Prepared, Remains]:
        """The model without the channels that go, measured anew; computed once."""
        if not kept:
            return self.prepared, Remains({}, {})
        if self._pruned is None or self._pruned[0] != _key(kept):
            pruner = self._pruner("macs")
            with self.clock("cut"):
                graph = Graph(self.prepared.model)
                remains = pruner.apply(graph, kept)
                self._pruned = _key(kept), self._prepare(graph.to_model()), remains
        return self._pruned[1], self._pruned[2]


def _kept(plan: Plan) -> dict[str, npt.NDArray[np.intp]]:
    """Channels that a plan keeps."""
    return {
        g.name: np.array(g.kept, np.intp) for g in plan.groups if g.decision in ("cut", "gather")
    }


def _check_cuts(cuts: Sequence[GroupDecision], pruner: Pruner) -> None:
    names = {cut.name for cut in cuts}
    for cut in cuts:
        prunable = pruner.prunables.get(cut.name)
        if prunable is None:
            raise PlanError(f"the plan cuts {cut.name!r}, which is no group that may be cut")
        right = "gather" if prunable.group is None else "cut"
        if cut.decision != right or cut.size != prunable.size:
            raise PlanError(
                f"the plan has {cut.decision} for {cut.name!r} of {cut.size} channels; it should "
                f"have {right}, of {prunable.size}"
            )
        if both := names & pruner.found.excludes(prunable):
            raise PlanError(f"the plan has both {cut.name!r} and {min(both)!r}: the same channels")


def _key(kept: Kept) -> Any:
    return sorted((name, left.tolist()) for name, left in kept.items())


def _predicted(timed: Timed, plan: Plan) -> float:
    """Nanoseconds that the model of a plan should take."""
    decisions = {d.layer: d for d in plan.decisions}
    total = timed.whole - timed.movable
    for choice in timed.choices:
        d = decisions[choice.layer]
        total += next(
            c.cost
            for c in choice.candidates
            if (c.method, c.variant, c.rank) == (d.method, d.variant, d.rank)
        )
    return total


def _broadcast(work: Prepared, metric: str) -> int:
    """What biases of one element, counted as long as the refit makes them, do not cost now."""
    if metric == "macs":
        return 0
    return sum(la.broadcast * (la.dtype.itemsize if metric == "size" else 1) for la in work.layers)


class _Clock:
    """Wall time by step, less that of steps inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        start, inside = time.perf_counter(), sum(self.seconds.values())
        yield
        spent = time.perf_counter() - start - (sum(self.seconds.values()) - inside)
        self.seconds[step] = round(self.seconds.get(step, 0.0) + spent, 3)


def _sign(model: Model, plan: Plan) -> Model:
    proto = model.proto
    kept = [p for p in proto.metadata_props if not p.key.startswith("onnx_lowrank.")]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    for key, value in (("onnx_lowrank.plan", plan.digest), ("onnx_lowrank.version", __version__)):
        proto.metadata_props.add(key=key, value=value)
    return replace(model, path=None)


def _check(source: Model, result: Model) -> None:
    """The checker must accept what we wrote wherever it accepted what we read."""
    try:
        checker.check_model(source.skeleton)
    except (checker.ValidationError, ValueError):
        return
    try:
        checker.check_model(result.skeleton)
    except checker.ValidationError as error:
        raise ValidationError(
            f"the result does not pass onnx.checker, please report it: {error}"
        ) from error
