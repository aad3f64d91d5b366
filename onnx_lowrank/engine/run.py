"""From a plan to a result.

prepare -> (cut) -> rewrite -> refit -> check
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from onnx_lowrank._version import __version__
from onnx_lowrank.analysis.collect import batch_size
from onnx_lowrank.analysis.preparation import MEMORY, Prepared
from onnx_lowrank.chains.chain import Chain
from onnx_lowrank.engine.plan_checks import check_plan, kept_by
from onnx_lowrank.engine.planning import Planning
from onnx_lowrank.engine.signing import check, sign
from onnx_lowrank.engine.workbench import channels_key
from onnx_lowrank.errors import BudgetError, PlanError
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.judge.validation import validate_models
from onnx_lowrank.layers import PlacedLayer, find_layers
from onnx_lowrank.layers.writer import Written, apply_chain
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.planning.decisions import after_cut
from onnx_lowrank.planning.plan import Decision, Plan
from onnx_lowrank.planning.planned import Planned
from onnx_lowrank.planning.proposals import cut_candidate
from onnx_lowrank.planning.registry import Passes
from onnx_lowrank.planning.sharing import cut_together, sharing, write_together
from onnx_lowrank.planning.timed_candidates import losers
from onnx_lowrank.pruning.pruner import Kept
from onnx_lowrank.refit.refit import Refit, refit
from onnx_lowrank.refit.sensitivity import Repaired, recorded
from onnx_lowrank.refit.tasks import refit_tasks
from onnx_lowrank.report.report import Report

__all__ = ["SLOWER_CHAINS", "Built", "Run"]

#: how a note begins that names what does not pay
SLOWER_CHAINS = "slower than the layers whose place they take:"


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


class Run(Planning):
    """Builds what is planned, and reports of it."""

    def build(self, plan: Plan, *, keep_repaired: bool = False) -> Built:
        """The model that a plan describes, checked but not measured.

        Args:
            plan: what to do.
            keep_repaired: keep the solved weights of all layers too; they take much memory.

        Raises:
            PlanError: the plan is of another model, or names what is not there.
        """
        pruner = partial(self.pruner, "macs") if self.passes.prunings else None
        check_plan(plan, self.source.digest, self.prepared, pruner)
        kept = kept_by(plan)
        work, remains = self.cut(kept)
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
                    chain, made[layer.name] = self._chains.cut(work, kept, layer, decision)
                    written[layer.name] = apply_chain(compressed, named[layer.name], chain)
            for tie in sharing(work, made):
                chain, cut = cut_together(work, tie, made, self.passes.factorizations)
                made |= cut
                written |= write_together(compressed, [named[la.name] for la in tie], chain)
        refits: list[Refit] = []
        repaired: dict[str, Repaired] = {}
        with self.clock("refit"):
            data = self.data.calibration if plan.repair != "none" else None
            if data is not None and (written or kept):
                tasks = refit_tasks(
                    self.prepared, work, remains, compressed, written, made,
                    self.passes.factorizations, plan.repair,
                )  # fmt: skip
                if keep_repaired:
                    tasks = [recorded(task, repaired) for task in tasks]
                size = batch_size(list(work.shapes), work.shapes, MEMORY)
                refits = refit(
                    self.prepared.graph, compressed, tasks, data, self.runtime, size=size,
                    seed=plan.seed, memory=MEMORY // 8, progress=self.progress,
                    behind_relu=plan.repair == "relu",
                )  # fmt: skip
        result = sign(compressed.to_model(), plan)
        check(self.source, result)
        chains = {name: w.chain for name, w in written.items()}
        return Built(result, plan, tuple(made.values()), tuple(refits), chains, repaired)

    @cached_property
    def _chains(self) -> _Chains:
        return _Chains(self.passes)

    def paying(self, planned: Planned, built: Built) -> tuple[Planned, Built]:
        """The same, or where the model is slower than the original, one without what does not pay.

        The budget is then spent on other layers. Nothing is changed where that cannot be, or where
        no chain is to blame: what is slower all the same is for the guard to refuse.

        Args:
            planned: the plan.
            built: its model.
        """
        if not built.chains or planned.target.rule:
            return planned, built
        pair = self.latency(built.model, [self.timing.batch])[0]
        if max(pair.speedup, pair.median_speedup) >= 1:
            return planned, built
        work = self.cut(kept_by(planned.plan))[0]
        with self.clock("time"):
            lost = losers(work, built.chains, *self.at_batch(work), self.latency_table())
        if not lost:
            return planned, built
        names = ", ".join(sorted(lost))
        try:
            fewer = self.plan_keeping(planned, lost, "its chain takes more time than the layer")
        except BudgetError:
            return planned.noting(f"{SLOWER_CHAINS} {names}"), built
        fewer = fewer.noting(f"taken back, for they took more time than the layers: {names}")
        return fewer, self.build(fewer.plan)

    def report(self, built: Built, notes: Sequence[str] = ()) -> Report:
        """Both models on samples that did not calibrate, and by the clock.

        Args:
            built: the new one.
            notes: what else is to be said of it.
        """
        plan = built.plan
        with self.clock("validate"):
            size = batch_size(list(self.prepared.shapes), self.prepared.shapes, MEMORY)
            validation = validate_models(
                self.source, built.model, self.data.validation, self.runtime,
                size=size, progress=self.progress, labels_are_classes=self.labels_are_classes,
            )  # fmt: skip
            latency = self.latency(built.model, sorted({1, 16, self.timing.batch}))
            after = self.cost(built.model)
        said = [*self.data.notes, *self.resumed(), *validation.notes, *notes]
        said += self.before.remarks
        said += self.prepared.notes
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


class _Chains:
    """Chains of layers as decisions have them; as many as may be are kept for the next plan."""

    def __init__(self, passes: Passes) -> None:
        self._passes = passes.factorizations
        self._cut: dict[Any, tuple[Chain, Decision]] = {}
        self._room = MEMORY  # bytes of them that may yet be kept

    def cut(
        self, work: Prepared, kept: Kept, layer: PlacedLayer, decision: Decision
    ) -> tuple[Chain, Decision]:
        """The chain of one layer, and the decision with what it costs and loses."""
        key = (channels_key(kept), layer.name, decision)
        if key in self._cut:
            return self._cut[key]
        moments = work.moments[layer.name]
        chain = cut_candidate(layer.value, decision, self._passes, moments)
        made = after_cut(layer, decision, chain, moments, work.shapes)
        size = 8 * chain.parameters
        if size <= self._room:  # the next plan may well have it too
            self._room -= size
            self._cut[key] = chain, made
        return chain, made
