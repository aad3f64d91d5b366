"""What a run works on: one model, its data, and what is measured of both only once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from onnx_lowrank.analysis.cost import Cost, model_cost, tensor_shapes
from onnx_lowrank.analysis.moment_cache import MomentCache
from onnx_lowrank.analysis.preparation import Prepared, measured_shapes, prepare
from onnx_lowrank.channels.cut import Remains
from onnx_lowrank.engine.stopwatch import Clock
from onnx_lowrank.errors import OptionError
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.judge.validation import check_classes
from onnx_lowrank.latency.pairs import LatencyPair
from onnx_lowrank.latency.table import LatencyTable
from onnx_lowrank.latency.timer import RuntimeTimer, Timer
from onnx_lowrank.layers import find_layers
from onnx_lowrank.modelfile.model import Model, load
from onnx_lowrank.option_values import check_count
from onnx_lowrank.passkit.runner import canonicalise
from onnx_lowrank.planning.layer_globs import check_globs, selected
from onnx_lowrank.planning.registry import Passes
from onnx_lowrank.planning.timed_candidates import TimingOptions, latency_table
from onnx_lowrank.progress import Progress
from onnx_lowrank.pruning.pruner import Kept, Pruner
from onnx_lowrank.runtime.machine import cache_folder
from onnx_lowrank.runtime.runtime import Feed, Runtime
from onnx_lowrank.samples.dataset import ImageOptions
from onnx_lowrank.samples.split import gather

__all__ = ["DataOptions", "Workbench", "channels_key"]


@dataclass(frozen=True)
class DataOptions:
    """Where samples come from: as of :func:`onnx_lowrank.compress`.

    Raises:
        OptionError: ``samples`` is below 1, or ``seed`` below 0.
    """

    calib: Any
    samples: int | None
    images: ImageOptions | None
    input_shapes: Mapping[str, Sequence[int]] | None
    seed: int

    def __post_init__(self) -> None:
        if self.samples is not None:
            check_count("samples", self.samples)
        check_count("seed", self.seed, least=0)


class Workbench:
    """One model and its data; what does not depend on the budget is made once.

    Args:
        model: to compress.
        passes: to compress it with.
        data: samples.
        runtime: that counts.
        timing: how latency is measured.
        progress: told of each step.
        timer: takes all times; None for one that runs models on ``runtime``.

    Raises:
        OptionError: no pass that compresses, or two that prune.
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
        timer: Timer | None = None,
    ) -> None:
        if len(passes.prunings) > 1:
            raise OptionError("one pruning pass at a time; its options say how")
        if not passes.factorizations and not passes.prunings:
            raise OptionError("no factorization among the passes; add spatial_svd, for one")
        self.clock = Clock()
        self.progress = progress or Progress()
        self.runtime, self.source = runtime, load(model)
        self.passes, self.timing = passes, timing
        self.timer: Timer = timer or RuntimeTimer(runtime)
        self.samples, self.seed = data.samples, data.seed
        self.data = gather(
            self.source, data.calib, data.samples, data.images, data.input_shapes, data.seed,
            runtime,
        )  # fmt: skip
        self._pruned: tuple[Any, Prepared, Remains] | None = None
        self._pruners: dict[str, Pruner] = {}  # by metric
        self.refuse: Callable[[str], str | None] = lambda name: None
        #: else a metric of the user reads them
        self.labels_are_classes = True

    def choose_layers(self, include: Sequence[str], exclude: Sequence[str]) -> None:
        """Leave out the layers that the user's globs leave out.

        Raises:
            OptionError: a glob matches no layer.
        """
        include, exclude = (
            [globs] if isinstance(globs, str) else globs for globs in (include, exclude)
        )
        if include or exclude:
            found, others = find_layers(Graph(self.canonical))
            names = [layer.name for layer in found] + [node.name for node in others]
            check_globs("--include", include, names)
            check_globs("--exclude", exclude, names)
        self.refuse = lambda name: selected(name, include, exclude)

    def check_labels(self) -> None:
        """Refuse labels that are no classes of the model, before the work begins.

        Raises:
            DataError: as said.
        """
        data = self.data.validation
        if data.labels is not None:
            check_classes(self.source, data, self.runtime)

    @cached_property
    def canonical(self) -> Model:
        """The model as passes see it."""
        return canonicalise(self.source, self.passes.rewrites)

    @cached_property
    def prepared(self) -> Prepared:
        """The canonical model, its layers and the moments of their inputs."""
        with self.clock("calibrate"):
            return self._prepare(self.canonical)

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

    def resumed(self) -> list[str]:
        """What is to be said of an interrupted run that this one goes on from."""
        if not any(u.resumed for u in self._unfinished):
            return []
        return ["what an interrupted run had read of the samples was not read again"]

    def _prepare(self, model: Model) -> Prepared:
        return prepare(
            model, self.data, self.runtime, self.refuse, self.seed, self.progress,
            every_shape=bool(self.passes.prunings),
            cache=cache_folder(self.timing.cache, "moments"),
        )  # fmt: skip

    def pruner(self, metric: str) -> Pruner:
        """Of the model, under budgets of a metric."""
        if metric not in self._pruners:
            method = self.passes.prunings[0]
            self._pruners[metric] = Pruner(self.prepared, method, metric, self.progress)
        return self._pruners[metric]

    def cut(self, kept: Kept) -> tuple[Prepared, Remains]:
        """The model without the channels that go, measured anew; computed once."""
        if not kept:
            return self.prepared, Remains({}, {})
        if self._pruned is None or self._pruned[0] != channels_key(kept):
            pruner = self.pruner("macs")
            with self.clock("cut"):
                graph = Graph(self.prepared.model)
                remains = pruner.apply(graph, kept)
                self._pruned = channels_key(kept), self._prepare(graph.to_model()), remains
        return self._pruned[1], self._pruned[2]

    def latency(self, model: Model, batches: Sequence[int]) -> tuple[LatencyPair, ...]:
        """Both models in alternation, at the batches that the data allows."""
        data = self.data.validation
        most = len(data) if data.batchable else 1
        feeds = [(b, self._feed(b)) for b in batches if b <= most] or [(1, self._feed(1))]
        return self.timer.models(self.source, model, feeds)

    def latency_table(self) -> LatencyTable:
        """An empty table of times of layers and chains."""
        return latency_table(self.timer, self.runtime, self.timing, self.progress)

    def _feed(self, batch: int) -> Feed:
        data = self.data.validation
        if batch == 1 or not data.batchable:
            return data.feed(0)
        return next(data.subset([i % len(data) for i in range(batch)]).batches(batch))

    def at_batch(self, work: Prepared) -> tuple[Feed, dict[str, tuple[int, ...]]]:
        """An inference of the batch that counts, and the shapes of all tensors at it."""
        feed = self._feed(self.timing.batch)
        inputs = {name: value.shape for name, value in feed.items()}
        wished = [t.name for n in work.graph.nodes for t in n.outputs if t.name]
        return feed, tensor_shapes(work.model, inputs, feed, self.runtime, wished=wished)


def channels_key(kept: Kept) -> tuple[Any, ...]:
    """Equal where the same channels stay."""
    return tuple(sorted((name, tuple(left.tolist())) for name, left in kept.items()))
