"""From a model to its report: both models on samples that did not calibrate, and by the clock.

tell(analysis, built, notes) -> Report
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

import numpy as np

from onnx_lowrank._version import __version__
from onnx_lowrank.analysis.cost import Cost
from onnx_lowrank.engine.analyse import Analysis, cost_of_model, feed_of_batch
from onnx_lowrank.engine.build import Built
from onnx_lowrank.engine.job import Job
from onnx_lowrank.errors import ModelError
from onnx_lowrank.graph.protos import weights_as_inputs
from onnx_lowrank.judge.validation import validate_models
from onnx_lowrank.latency.operators import beside_products, layer_times, operator_times
from onnx_lowrank.latency.pairs import LatencyPair
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.planning.amounts import said as amount_text
from onnx_lowrank.planning.notes import (
    AlreadyKept,
    Note,
    OtherData,
    Remark,
    Resumed,
    SizeNotReached,
    SomeCompared,
    TimeBesideProducts,
    WeightsAsInputs,
)
from onnx_lowrank.planning.targets import METRICS, Target
from onnx_lowrank.report.check import Basis
from onnx_lowrank.report.report import LayerLoss, Report
from onnx_lowrank.report.stages import Stage
from onnx_lowrank.runtime.allocator import return_freed_memory
from onnx_lowrank.runtime.machine import surroundings
from onnx_lowrank.samples.dataset import Dataset

__all__ = ["enough_of", "tell", "timed_pair", "timed_pairs"]

#: part of the speed-up that MACs promise with which nothing is to be said of the time
_PROMISED = 0.9

#: MACs of the original that comparing takes, on samples without labels, and the smallest number of
#: samples whatever they take: some seconds, and 95 % intervals of a few points
_ENOUGH_MACS, _ENOUGH_SAMPLES = 2e11, 250


def tell(
    analysis: Analysis,
    built: Built,
    notes: Sequence[Note] = (),
    costliest: tuple[LayerLoss, ...] = (),
    stages: tuple[Stage, ...] = (),
) -> Report:
    """Compare a model with the original, time both, and say what was done.

    Args:
        analysis: of the original model.
        built: the new one.
        notes: what else is to be said of it.
        costliest: layers that cost most of the loss.
        stages: what the new model came from, where it is in int8.

    Raises:
        ValidationError: outputs are missing, of other shapes, or not finite.
    """
    job, plan = analysis.job, built.plan
    compared = enough_of(job.samples.validation, analysis.before.macs)
    with job.tools.stopwatch("validate"):
        validation = validate_models(
            job.source, built.model, compared, job.tools.runtime,
            size=analysis.prepared.batch_size, progress=job.tools.progress,
            labels_are_classes=job.options.labels_are_classes, judging=job.options.judging,
        )  # fmt: skip
        return_freed_memory()
        latency = timed_pairs(job, built.model, (1, 16, job.tools.timing.batch), built.timed)
        after = cost_of_model(job, built.model)
    said: list[Note] = [Remark(text) for text in (*job.said, *job.samples.notes)]
    if listed := weights_as_inputs(job.source.proto):
        said.append(WeightsAsInputs(listed))
    if analysis.resumed:
        said.append(Resumed())
    if len(compared) < len(job.samples.validation):
        said.append(SomeCompared(len(compared), len(job.samples.validation)))
    said += [Remark(text) for text in validation.notes]
    said += notes
    said += [Remark(text) for text in (*analysis.before.remarks, *analysis.prepared.notes)]
    if not stages:  # the time of int8 is not that of its MACs
        said += _time_beside_products(analysis, built.model, after, plan.target, latency[0])
    if plan.data != job.samples.digest:
        said.append(OtherData())
    timed = next((p for p in latency if p.batch == job.tools.timing.batch), latency[0])
    said += _of_target(analysis.before, after, Target.from_text(plan.target), timed)
    return Report(
        before=analysis.before,
        after=after,
        target=plan.target,
        decisions=built.decisions,
        groups=plan.groups,
        refits=built.refits,
        validation=validation,
        latency=latency,
        notes=tuple(said),
        seconds=dict(job.tools.stopwatch.seconds),
        version=__version__,
        plan=plan.digest,
        seed=plan.seed,
        costliest=costliest,
        stages=stages,
        simplified=job.simplified,
        layer_times=_layer_times(analysis, built),
        basis=Basis(
            model=job.source.digest,
            result=built.model.digest,
            data=job.samples.digest,
            surroundings=surroundings(job.tools.runtime),
        ),
    )


def enough_of(data: Dataset, macs: int) -> Dataset:
    """Samples to compare on: all, or where they take long and have no labels, some spread evenly.

    Args:
        data: samples that did not calibrate.
        macs: of the original, at one sample.
    """
    most = max(int(_ENOUGH_MACS / max(macs, 1)), _ENOUGH_SAMPLES)
    if data.sample_labels is not None or len(data) <= most:
        return data
    return data.subset(np.linspace(0, len(data) - 1, most).astype(int).tolist())


def _layer_times(analysis: Analysis, built: Built) -> dict[str, tuple[float | None, float | None]]:
    """Milliseconds of each layer, and of what became of it, at the batch that counts."""
    job, names = analysis.job, [d.layer for d in built.decisions]
    feed = feed_of_batch(job, job.tools.timing.batch)
    before: dict[str, float] = {}
    after: dict[str, float] = {}
    # a profile may not be written or read, as where names have quotes; no result is lost for that
    with job.tools.stopwatch("validate"), suppress(ModelError):
        before = layer_times(job.tools.runtime, job.source, feed, names)
        after = layer_times(job.tools.runtime, built.model, feed, names)
    return {
        name: (_milliseconds(before.get(name)), _milliseconds(after.get(name)))
        for name in names
        if name in before or name in after
    }


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds


def _of_target(before: Cost, after: Cost, target: Target, timed: LatencyPair) -> list[Note]:
    """What is to be said of a target that was missed, or that the original keeps as it is."""
    has = {m: float(before.of(m)) for m in METRICS if m != "latency"}
    has["latency"] = timed.reference_ms
    said: list[Note] = [
        AlreadyKept(str(a), amount_text(a.metric, has[a.metric]))
        for a in target.amounts
        if has[a.metric] <= a.value
    ]
    asked = dict(target.of(has).budgets).get("size")
    if asked is not None and after.bytes > asked * before.bytes:
        text = next(t for t in str(target).split() if t.startswith("size="))
        said.append(SizeNotReached(text, after.bytes, after.bytes / before.bytes))
    return said


def _time_beside_products(
    analysis: Analysis, model: Model, after: Cost, target: str, pair: LatencyPair
) -> list[Note]:
    """What else takes time, where it does not fall as the MACs that were asked for do."""
    job, promised = analysis.job, analysis.before.macs / max(after.macs, 1)
    asked = "macs" in dict(Target.from_text(target).budgets)
    if not asked or pair.speedup >= _PROMISED * promised:
        return []
    feed = feed_of_batch(job, pair.batch)
    before, now = (
        beside_products(operator_times(job.tools.runtime, m, feed)) for m in (job.source, model)
    )
    return [TimeBesideProducts(pair.batch, pair.speedup, promised, before, now)]


def timed_pair(job: Job, model: Model) -> LatencyPair:
    """The original and a model in alternation, at the batch whose latency counts."""
    (pair,) = timed_pairs(job, model, [job.tools.timing.batch])
    return pair


def timed_pairs(
    job: Job, model: Model, batches: Iterable[int], known: LatencyPair | None = None
) -> tuple[LatencyPair, ...]:
    """The original and a model in alternation, at the batches that the data allows, in order.

    Args:
        job: whose model is the original.
        model: the new one.
        batches: samples of an inference.
        known: what was measured of them before.
    """
    data = job.samples.validation
    most = len(data) if data.batchable else 1
    found = [] if known is None else [known]
    allowed = {b for b in batches if b <= most} or {1}
    missing = sorted(allowed - {pair.batch for pair in found})
    if missing:
        feeds = [(b, feed_of_batch(job, b)) for b in missing]
        found += job.tools.timer.models(job.source, model, feeds)
    return tuple(sorted(found, key=lambda pair: pair.batch))
