"""What a job works on: one model, its samples and passes, and how models are run and timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnx_lowrank.engine.stopwatch import Stopwatch
from onnx_lowrank.errors import OptionError
from onnx_lowrank.judge.judge import AS_FOUND, Judging
from onnx_lowrank.judge.requirement import GUARDED
from onnx_lowrank.judge.validation import check_classes
from onnx_lowrank.latency.table import LatencyTable
from onnx_lowrank.latency.timer import RuntimeTimer, Timer
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.planning.refit_modes import check_repair
from onnx_lowrank.planning.registry import Passes
from onnx_lowrank.planning.timed_candidates import TimingOptions, latency_table
from onnx_lowrank.progress import Progress
from onnx_lowrank.report.simplified import Simplified
from onnx_lowrank.runtime.caches import CacheOptions
from onnx_lowrank.runtime.cluster import Cluster
from onnx_lowrank.runtime.quantizable import Mode
from onnx_lowrank.runtime.runtime import Runtime
from onnx_lowrank.runtime.workers import Workers
from onnx_lowrank.samples.images import ImageOptions
from onnx_lowrank.samples.padding import PaddingOptions
from onnx_lowrank.samples.split import CalibrationOptions, DataOptions, Samples, gather

__all__ = ["Job", "JobOptions", "Tools", "begin"]


@dataclass(frozen=True)
class JobOptions:
    """What a job is asked to do, whatever its budget.

    Attributes:
        passes: that may be applied.
        data: where samples come from.
        draw: which samples are drawn, and the seed of all draws.
        padding: which positions of the samples are padding.
        images: how pictures become inputs.
        runtime: that models are run in, and that latency counts in.
        timing: how latency is measured.
        cache: where times and unfinished moments are kept.
        include: globs of layer names; only these layers are touched.
        exclude: globs of layer names; these layers are not touched.
        skipped: layers that are not touched, by name, with the reason.
        repair: how weights are solved again, of :data:`~onnx_lowrank.planning.refit_modes.REPAIRS`;
            None as drafts of the plan say, or its default where none are made.
        judging: what outputs are judged by.
        min_kept: part of the answers that a result must keep.
        simplify: whether to start from a simplified copy of the model where one is worth taking.
        labels_are_classes: whether labels of the data are class numbers; else a metric of the user
            reads them.
        int8: how the result will be quantized, which plans reckon with; None for not at all.
        scheduler: address of the Dask scheduler whose workers share the work; None for none.

    Raises:
        OptionError: no pass compresses, two of them prune, or there is no such repair.
    """

    passes: Passes
    data: DataOptions
    draw: CalibrationOptions = CalibrationOptions()
    padding: PaddingOptions = PaddingOptions()
    images: ImageOptions = ImageOptions()
    runtime: Runtime = field(default_factory=Runtime)
    timing: TimingOptions = field(default_factory=TimingOptions)
    cache: CacheOptions = field(default_factory=CacheOptions)
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    repair: str | None = None
    simplify: bool = False
    labels_are_classes: bool = True
    judging: Judging = AS_FOUND
    min_kept: float = GUARDED
    int8: Mode | None = None
    scheduler: str | None = None

    def __post_init__(self) -> None:
        if self.repair is not None:
            check_repair(self.repair)
        if len(self.passes.prunings) > 1 or len(self.passes.narrowings) > 1:
            raise OptionError("one pruning pass at a time; its options say how")
        if not self.passes.factorizations and self.passes.cutting is None:
            raise OptionError("no factorization among the passes; add spatial_svd, for one")


@dataclass(frozen=True)
class Tools:
    """How models are run and timed, and who is told of it.

    Attributes:
        runtime: that models are run in.
        timing: how latency is measured.
        cache: where times and unfinished moments are kept.
        timer: takes all times; a test has one whose times are written down.
        progress: told of each step.
        stopwatch: wall time of each step, for the report.
        workers: who share the work; None where all of it is done here.
    """

    runtime: Runtime
    timing: TimingOptions
    cache: CacheOptions
    timer: Timer
    progress: Progress
    stopwatch: Stopwatch
    workers: Workers | None = None

    def latency_table(self) -> LatencyTable:
        """An empty table of times of layers and chains."""
        folder = self.cache.folder("latency")
        return latency_table(self.timer, self.runtime, self.timing, folder, self.progress)


@dataclass(frozen=True)
class Job:
    """A model, its samples, and what may be done with it.

    Attributes:
        source: the model as given, or its simplified copy.
        samples: to calibrate on and to validate on.
        options: what is asked for, whatever the budget.
        tools: how models are run and timed.
        simplified: the model as given beside ``source``, where that is a simplified copy.
        said: what the report has to say of the beginning.
    """

    source: Model
    samples: Samples
    options: JobOptions
    tools: Tools
    simplified: Simplified | None = None
    said: tuple[str, ...] = ()

    @property
    def passes(self) -> Passes:
        """The passes that may be applied."""
        return self.options.passes

    @property
    def seed(self) -> int:
        """Random seed of every draw."""
        return self.options.draw.seed


def begin(
    model: Any,
    options: JobOptions,
    progress: Progress | None = None,
    timer: Timer | None = None,
) -> Job:
    """Load a model and split its samples.

    Args:
        model: path, ModelProto or Model.
        options: what is asked for, whatever the budget.
        progress: told of each step.
        timer: takes all times; None for one that runs models in ``options.runtime``.

    Raises:
        ModelError, DataError, OptionError: as the inputs deserve.
    """
    source = load(model)
    workers = None if options.scheduler is None else Cluster(options.scheduler)
    if workers is not None:
        workers.check()
    tools = Tools(
        options.runtime,
        options.timing,
        options.cache,
        timer or RuntimeTimer(options.runtime),
        progress or Progress(),
        Stopwatch(),
        workers,
    )
    samples = gather(
        source, options.data, options.draw, options.images, options.padding, options.runtime,
        tools.progress,
    )  # fmt: skip
    if samples.validation.labels is not None and options.labels_are_classes:
        check_classes(source, samples.validation, options.runtime)
    return Job(source, samples, options, tools)
