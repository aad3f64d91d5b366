"""From a job to its analysis: the canonical model, its layers, their moments and costs.

analyse(job) -> Analysis
cut(analysis, kept) -> Cut          the same without the channels that go
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from onnx_lowrank.analysis.cost import Cost, model_cost, tensor_shapes
from onnx_lowrank.analysis.moment_store import MomentStore
from onnx_lowrank.analysis.preparation import (
    Prepared,
    measured_shapes,
    prepare,
)
from onnx_lowrank.analysis.streaming import Streaming
from onnx_lowrank.channels.cut import Remains
from onnx_lowrank.engine.job import Job
from onnx_lowrank.engine.memo import Cut, Memo
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.judge.judge import Judge
from onnx_lowrank.judge.verdict import Estimate
from onnx_lowrank.layers import PlacedLayer
from onnx_lowrank.layers.finder import find_layers
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.passkit.runner import canonicalise
from onnx_lowrank.planning.chain_cutter import ChainCutter
from onnx_lowrank.planning.layer_globs import check_globs, selected
from onnx_lowrank.pruning.channel_cuts import KeptChannels
from onnx_lowrank.pruning.cutting import Cutting
from onnx_lowrank.pruning.head_moments import ScoreMoments, score_moments
from onnx_lowrank.pruning.prunable import Found
from onnx_lowrank.pruning.pruner import Pruner
from onnx_lowrank.pruning.remaining import remaining_moments
from onnx_lowrank.pruning.weighing import Halves, divergence_of_halves, measured_weights
from onnx_lowrank.runtime.allocator import return_freed_memory
from onnx_lowrank.runtime.session import Feed
from onnx_lowrank.samples.dataset import Dataset

__all__ = [
    "Analysis",
    "analyse",
    "channels_key",
    "cost_of_model",
    "cut",
    "feed_of",
    "feed_of_batch",
    "leaving",
    "timed_inference",
]


#: MACs that weighing groups of channels may cost at the most, about half a minute on two cores
_MACS_TO_WEIGH = 12 * 10**11


@dataclass(frozen=True)
class Analysis:
    """A job, and what one pass over its data says of its model.

    Attributes:
        job: what is worked on.
        before: cost of the model as given, at one sample.
        prepared: the canonical model, its layers and the moments of their inputs.
        memo: what was computed once.
        weighed: whether losses of groups of channels are measured wherever some go.
    """

    job: Job
    before: Cost
    prepared: Prepared
    memo: Memo
    weighed: bool = False

    def pruner(self, metric: str) -> Pruner:
        """The pruner of the model, under budgets of a metric.

        Args:
            metric: ``macs | params | size``.
        """

        def make() -> Pruner:
            if self.weighed:
                return replace(self, weighed=False).pruner(metric).weighed()
            return Pruner(self.prepared, self._cutting(), metric, self.job.tools.progress)

        return self.memo.pruners.get((metric, self.weighed), make)

    def _cutting(self) -> Cutting:
        """The passes that take channels out; heads stay where no data says how they are used."""
        job = self.job
        passes, data = job.passes, job.samples.calibration
        assert passes.cutting is not None
        channels = next(iter(passes.prunings), None)
        heads = next(iter(passes.narrowings), None) if data is not None else None

        def measure(found: Found) -> Mapping[str, ScoreMoments]:
            assert data is not None
            return self.memo.scores.get(
                (),
                lambda: score_moments(
                    found.blocks, self.prepared, data, job.tools.runtime, job.seed,
                    job.tools.progress,
                ),
            )  # fmt: skip

        def weigh(halves: Halves, losses: Mapping[str, float]) -> Mapping[str, float]:
            def make() -> Mapping[str, float]:
                if data is None:
                    return {}
                runs = _MACS_TO_WEIGH // max(self.before.macs, 1)

                def divergence_on(part: Dataset) -> Callable[[str], Estimate] | None:
                    judge = self.judge_on(part)
                    return divergence_of_halves(judge, halves) if judge.has_a_say else None

                return measured_weights(divergence_on, data, losses, runs, job.tools.progress)

            for known in self.memo.weights.values():  # of the whole model, where layers are left
                if losses.keys() <= known.keys():
                    return {name: known[name] for name in losses}
            return self.memo.weights.get(tuple(losses), make)

        return Cutting(passes.cutting, channels, heads, measure, weigh)

    def judge_on(self, data: Dataset, more: Dataset | None = None) -> Judge:
        """The judge of models against the original, on some samples, and on more without labels."""
        job = self.job
        return Judge(
            job.source, data, job.tools.runtime, self.prepared.batch_size, job.options.judging,
            more=more,
        )  # fmt: skip

    @property
    def resumed(self) -> bool:
        """Whether an interrupted job had read some of the samples, which were not read again."""
        return any(cache.resumed for cache in self.memo.unfinished)

    def end_planning(self) -> None:
        """Let go of what only plans are made from."""
        self.memo.clear()
        return_freed_memory()

    def forget(self) -> None:
        """Remove what an interrupted job would have gone on from: this one has done its work."""
        for cache in self.memo.unfinished:
            cache.clear()


def analyse(job: Job) -> Analysis:
    """Make the model canonical, find its layers, and stream the samples through them once.

    Raises:
        ModelError: the model does not run, or ONNX Runtime has laid it out for itself.
        OptionError: a glob names no layer.
    """
    memo = Memo(ChainCutter(job.passes.factorizations))
    with job.tools.stopwatch("calibrate"):
        canonical = canonicalise(job.source, job.passes.rewrites)
        _check_globs(job, canonical)
        prepared = _measured(job, canonical, memo)
        before = cost_of_model(job, job.source)
    return_freed_memory()
    return Analysis(job, before, prepared, memo)


def leaving(analysis: Analysis, layers: Collection[str], reason: str) -> Analysis:
    """The same, where some layers are left alone, as if they had been excluded.

    Args:
        analysis: of the whole model.
        layers: names of those to leave alone.
        reason: that their decisions give.
    """
    before, job = analysis.prepared, analysis.job
    left = [layer.left_alone(reason) for layer in before.layers if layer.name in layers]
    prepared = replace(
        before,
        layers=tuple(layer for layer in before.layers if layer.name not in layers),
        left_out=(*before.left_out, *left),
    )
    skipped = {**job.options.skipped, **dict.fromkeys(layers, reason)}
    job = replace(job, options=replace(job.options, skipped=skipped))
    return replace(analysis, job=job, prepared=prepared, memo=analysis.memo.of_fewer_layers())


def cut(analysis: Analysis, kept: KeptChannels) -> Cut:
    """The model without the channels that go.

    Its moments are those of the original without these channels: what is left changes little by
    the cut, and the refit measures anew what it solves with.

    Args:
        analysis: of the whole model.
        kept: channels that stay.
    """
    if not kept:
        return Cut(analysis.prepared, Remains({}, {}), analysis.prepared)

    def make() -> Cut:
        with analysis.job.tools.stopwatch("cut"):
            graph, pruner = Graph(analysis.prepared.model), analysis.pruner("macs")
            remains = pruner.cuts.apply(graph, kept)
            known = partial(remaining_moments, analysis.prepared.moments, pruner.cuts.moments(kept))
            work = _measured(analysis.job, graph.to_model(), analysis.memo, known)
            reference = replace(analysis.prepared, layers=pruner.cuts.turned(kept))
            return Cut(work, remains, reference)

    return analysis.memo.cuts.get(channels_key(kept), make)


def cost_of_model(job: Job, model: Model) -> Cost:
    """Cost of a model at one sample."""
    shapes = measured_shapes(model, Graph(model), [], job.samples.validation, job.tools.runtime)
    return model_cost(model, shapes)


def feed_of_batch(job: Job, batch: int) -> Feed:
    """An inference of so many samples, where the data allows it; else of one."""
    return feed_of(job.samples.validation, batch)


def feed_of(data: Dataset, batch: int) -> Feed:
    """An inference of so many of some samples, where they allow it; else of one."""
    if batch == 1 or not data.batchable:
        return data.feed(data.typical)
    return next(data.subset([i % len(data) for i in range(batch)]).batches(batch))


def timed_inference(job: Job, work: Prepared) -> tuple[Feed, dict[str, tuple[int, ...]]]:
    """An inference of the batch whose latency counts, and the shapes of all tensors at it."""
    feed = feed_of_batch(job, job.tools.timing.batch)
    inputs = {name: value.shape for name, value in feed.items()}
    wished = [t.name for n in work.graph.nodes for t in n.outputs if t.name]
    return feed, tensor_shapes(work.model, inputs, feed, job.tools.runtime, wished=wished)


def channels_key(kept: KeptChannels) -> Hashable:
    """A key that is equal where the same channels stay."""
    return tuple(sorted((name, tuple(left.tolist())) for name, left in kept.items()))


def _check_globs(job: Job, canonical: Model) -> None:
    options = job.options
    if options.include or options.exclude:
        found, others = find_layers(Graph(canonical))
        names = [layer.name for layer in found] + [node.name for node in others]
        check_globs("--include", options.include, names)
        check_globs("--exclude", options.exclude, names)


def _measured(
    job: Job,
    model: Model,
    memo: Memo,
    known: Callable[[Sequence[PlacedLayer]], MomentStore] | None = None,
) -> Prepared:
    """A model, with the moments that are known of it, or measured ones."""
    options = job.options

    def refuse(name: str) -> str | None:
        return options.skipped.get(name) or selected(name, options.include, options.exclude)

    tools = job.tools
    streaming = Streaming(tools.runtime, job.seed, tools.progress, workers=tools.workers)
    found = prepare(
        model, job.samples, streaming, refuse,
        every_shape=job.passes.cutting is not None,
        cache=job.tools.cache.folder("moments"), known=known,
    )  # fmt: skip
    if found.unfinished is not None:
        memo.unfinished.append(found.unfinished)
    return found
