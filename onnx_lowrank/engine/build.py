"""From a plan to a model: cut, rewrite, solve again, sign, check.

build(analysis, plan) -> Built
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from onnx_lowrank.analysis.streaming import MEMORY, Streaming
from onnx_lowrank.chains.chain import Chain
from onnx_lowrank.engine.analyse import Analysis, cut
from onnx_lowrank.engine.memo import Cut
from onnx_lowrank.engine.plan_checks import check_plan, kept_by
from onnx_lowrank.engine.signing import check, sign
from onnx_lowrank.errors import PlanError
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.latency.pairs import LatencyPair
from onnx_lowrank.layers import PlacedLayer
from onnx_lowrank.layers.finder import find_layers
from onnx_lowrank.layers.writer import Written, apply_chain, update_chain
from onnx_lowrank.linalg.blas_threads import side_by_side
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.planning.decisions import after_cut, as_written
from onnx_lowrank.planning.plan import Decision, Plan
from onnx_lowrank.planning.refit_modes import DRAFTED, SOLVES_LAYERS
from onnx_lowrank.planning.sharing import cut_together, sharing, write_together
from onnx_lowrank.refit.refit import Manner, Refit, refit
from onnx_lowrank.refit.sensitivity import Repaired, recorded
from onnx_lowrank.refit.task import Task
from onnx_lowrank.refit.tasks import refit_tasks
from onnx_lowrank.runtime.allocator import return_freed_memory
from onnx_lowrank.samples.dataset import Dataset

__all__ = ["Built", "build", "draft", "draft_samples"]

#: a light repair solves on one of so many samples, or of more where a run over these takes more
#: multiply-adds than the last figure, but on this number at the least
_LIGHT, _LEAST_LIGHT, _LONGEST_LIGHT = 2, 50, 25 * 10**10

#: and on this part of the rows
_LIGHT_ROWS = 0.5


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
        timed: its time beside the original's at the batch whose latency counts, where it was taken.
    """

    model: Model
    plan: Plan
    decisions: tuple[Decision, ...]
    refits: tuple[Refit, ...]
    chains: Mapping[str, Chain]
    repaired: Mapping[str, Repaired]
    timed: LatencyPair | None = None


def build(
    analysis: Analysis,
    plan: Plan,
    *,
    weighable: Collection[str] | None = None,
) -> Built:
    """The model that a plan describes, checked but not measured.

    Args:
        analysis: of the original model.
        plan: what to do.
        weighable: names of layers whose solved weights are kept beside their chains, so that what
            they cost can be measured; they take memory, and so do the chains of all layers, which
            are kept too. None keeps nothing.

    Raises:
        PlanError: the plan is of another model, or names what is not there.
    """
    job = analysis.job
    pruner = partial(analysis.pruner, "macs") if job.passes.cutting else None
    check_plan(plan, job.source.digest, analysis.prepared, pruner)
    kept = kept_by(plan)
    without = cut(analysis, kept)
    compressed = Graph(without.work.model)
    with job.tools.stopwatch("rewrite"):
        decisions, written, outlined = _rewritten(analysis, plan, without, compressed)
    repaired: dict[str, Repaired] = {}
    refits: list[Refit] = []
    if written or kept:
        with job.tools.stopwatch("refit"):
            record = None
            if weighable is not None:
                record = partial(recorded, into=repaired, whole=weighable)
            refits = _solved(
                analysis, plan, without, compressed, decisions, written, outlined, record
            )
            decisions |= _after_solving(without, decisions, written, refits, outlined)
            if record is not None:
                lookups = [layer.name for layer in without.work.layers if layer.value.lookup]
                repaired |= {n: Repaired(None, written[n].chain) for n in lookups if n in written}
            return_freed_memory()
    model = sign(compressed.to_model(), plan)
    check(job.source, model)
    return Built(
        model=model,
        plan=plan,
        decisions=tuple(decisions.values()),
        refits=tuple(refits),
        chains={name: w.chain for name, w in written.items()},
        repaired=repaired,
    )


def draft(analysis: Analysis, plan: Plan, *, weighable: Collection[str] | None = None) -> Built:
    """The model that a plan describes, repaired with less work.

    Args:
        analysis: of the original model.
        plan: what to do; it solves whole layers.
        weighable: as :func:`build` has it.
    """
    return build(analysis, replace(plan, repair=DRAFTED), weighable=weighable)


def draft_samples(analysis: Analysis, data: Dataset) -> tuple[Dataset, Dataset]:
    """The samples that drafts are solved on, and the others.

    Args:
        analysis: of the original model.
        data: calibration samples.
    """
    taken = np.zeros(len(data), dtype=bool)
    taken[:: _apart(len(data), analysis.before.macs)] = True
    return data.subset(np.flatnonzero(taken)), data.subset(np.flatnonzero(~taken))


def _apart(samples: int, macs: int) -> int:
    """How far the samples of a light repair are apart: one in so many is taken."""
    apart = 1
    while samples >= (apart + 1) * _LEAST_LIGHT and (
        apart < _LIGHT or samples * macs > apart * _LONGEST_LIGHT
    ):
        apart += 1
    return apart


def _rewritten(
    analysis: Analysis, plan: Plan, without: Cut, compressed: Graph
) -> tuple[dict[str, Decision], dict[str, Written], dict[str, Callable[[], Chain]]]:
    """Write the chains of a plan into ``compressed``.

    Returns:
        Decisions and chains by layer name, and what makes the chains that have no numbers so far,
        as these come with the solution.
    """
    work = without.work
    chains = analysis.memo.chains
    anew = analysis.job.samples.calibration is not None and plan.repair in SOLVES_LAYERS
    decisions: dict[str, Decision] = {d.layer: d for d in plan.decisions}
    if missing := [la.name for la in work.layers if la.name not in decisions]:
        raise PlanError(f"the plan has no decision for layer {missing[0]!r}")
    targets = {t.name: t for t in find_layers(compressed)[0]}
    kept = kept_by(plan)
    pruner = analysis.pruner("macs") if kept else None

    def first(layer: PlacedLayer) -> Chain:
        channels = pruner.channels_of(layer, kept) if pruner else b""
        return chains.cut(channels, layer, decisions[layer.name], work.moments[layer.name])

    def made(layer: PlacedLayer) -> tuple[Decision, Chain, bool]:
        decision, moments = decisions[layer.name], work.moments[layer.name]
        if anew and (outline := chains.outline(layer, decision, moments)) is not None:
            return decision, outline, True
        chain = first(layer)
        return after_cut(layer, decision, chain, moments, work.shapes), chain, False

    apart = [la for la in work.layers if decisions[la.name].decision == "factorize"]
    written: dict[str, Written] = {}
    outlined: dict[str, Callable[[], Chain]] = {}
    for layer, (decision, chain, zeros) in zip(
        apart, side_by_side(made, apart, [la.patch for la in apart]), strict=True
    ):
        decisions[layer.name] = decision
        written[layer.name] = apply_chain(compressed, targets[layer.name], chain)
        if zeros:
            outlined[layer.name] = partial(first, layer)
    for tie in sharing(work, decisions):
        chain, shared = cut_together(work, tie, decisions, analysis.job.passes.factorizations)
        decisions |= shared
        written |= write_together(compressed, [targets[la.name] for la in tie], chain)
    return decisions, written, outlined


def _solved(
    analysis: Analysis,
    plan: Plan,
    without: Cut,
    compressed: Graph,
    decisions: Mapping[str, Decision],
    written: Mapping[str, Written],
    outlined: Mapping[str, Callable[[], Chain]],
    record: Callable[[Task], Task] | None,
) -> list[Refit]:
    """Solve the layers of ``compressed`` again; ``record`` changes their tasks."""
    job, work = analysis.job, without.work
    data = job.samples.calibration if plan.repair != "none" else None
    if data is None:
        return []
    light = plan.repair == "light"
    if light:
        data, _ = draft_samples(analysis, data)
    both = zip(analysis.prepared.layers, without.reference.layers, strict=True)
    turned = {first.name for first, second in both if first.value is not second.value}
    tasks = refit_tasks(
        without.reference, work, without.remains, compressed, written, decisions,
        job.passes.factorizations, plan.repair, turned, outlined,
    )  # fmt: skip
    for name in sorted(outlined.keys() - {task.name for task in tasks}):
        update_chain(compressed, written[name], outlined[name]())
    if record is not None:
        tasks = [record(task) for task in tasks]
    streaming = Streaming(job.tools.runtime, plan.seed, job.tools.progress, MEMORY // 8)
    return refit(
        analysis.prepared.graph, compressed, tasks, data, streaming,
        Manner(
            work.batch_size,
            behind_relu=plan.repair == "relu",
            rows=_LIGHT_ROWS if light else 1.0,
        ),
    )  # fmt: skip


def _after_solving(
    without: Cut,
    decisions: Mapping[str, Decision],
    written: Mapping[str, Written],
    refits: Sequence[Refit],
    outlined: Collection[str],
) -> dict[str, Decision]:
    """Decisions on layers whose chains got their numbers by the solution, or have those of before.

    The error is that against the layer that was solved, where one was.
    """
    work, made = without.work, {}
    errors = {refit.layer: refit.chain_error for refit in refits}
    for layer in work.layers:
        if layer.name not in outlined:
            continue
        decision, chain = decisions[layer.name], written[layer.name].chain
        if layer.name in errors:
            error = errors[layer.name]
            made[layer.name] = as_written(layer, decision, chain, error, work.shapes)
        else:
            moments = work.moments[layer.name]
            made[layer.name] = after_cut(layer, decision, chain, moments, work.shapes)
    return made
