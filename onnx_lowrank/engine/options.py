"""The options of every command, each declared once; see :mod:`onnx_lowrank.options`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx_lowrank.engine.effort import NORMAL, Effort, effort_of
from onnx_lowrank.engine.job import JobOptions
from onnx_lowrank.engine.option_groups import (
    BudgetOptions,
    ClusterOptions,
    LayerOptions,
    PassOptions,
    ResultOptions,
    StartOptions,
    TargetOptions,
)
from onnx_lowrank.judge.options import JudgeOptions, KeepOptions
from onnx_lowrank.judge.requirement import GUARDED
from onnx_lowrank.planning.registry import parse_list
from onnx_lowrank.planning.timed_candidates import TimingOptions
from onnx_lowrank.runtime.caches import CacheOptions
from onnx_lowrank.runtime.options import RuntimeOptions
from onnx_lowrank.runtime.quantizer import QuantizeOptions
from onnx_lowrank.samples.images import ImageOptions
from onnx_lowrank.samples.padding import PaddingOptions
from onnx_lowrank.samples.split import CalibrationOptions, DataOptions, DrawOptions

__all__ = [
    "ApplyOptions",
    "ClusterOptions",
    "CompressOptions",
    "CurvesOptions",
    "PlanOptions",
    "SweepOptions",
    "ValidateOptions",
]


# A dataclass takes the fields of its bases from the last base to the first; so stands their order
# in help and reference.


@dataclass(frozen=True)
class _Samples:
    """The groups of samples."""

    data: DataOptions = DataOptions()
    draw: CalibrationOptions = CalibrationOptions()
    padding: PaddingOptions = PaddingOptions()


@dataclass(frozen=True)
class _Target:
    """The group of the one target."""

    target: TargetOptions = TargetOptions()


@dataclass(frozen=True)
class _Budgets:
    """The group of many budgets."""

    budgets: BudgetOptions = BudgetOptions()


@dataclass(frozen=True)
class _Work:
    """The groups that say how a model is worked on, whatever the budget."""

    methods: PassOptions = PassOptions()
    start: StartOptions = StartOptions()
    judge: JudgeOptions = JudgeOptions()
    timing: TimingOptions = TimingOptions()
    cache: CacheOptions = CacheOptions()
    runtime: RuntimeOptions = RuntimeOptions()
    images: ImageOptions = ImageOptions()
    cluster: ClusterOptions = ClusterOptions()


@dataclass(frozen=True)
class PlanOptions(_Work, _Target, _Samples):
    """Options of ``plan``."""

    def job(self) -> JobOptions:
        """What stays the same whatever the budget."""
        return _job(self, effort_of(self.target.effort))


@dataclass(frozen=True)
class CompressOptions(PlanOptions):
    """Options of ``compress``."""

    keep: KeepOptions = KeepOptions()
    quantize: QuantizeOptions = QuantizeOptions()
    result: ResultOptions = ResultOptions()


@dataclass(frozen=True)
class ApplyOptions:
    """Options of ``apply``; the plan has the others."""

    data: DataOptions = DataOptions()
    padding: PaddingOptions = PaddingOptions()
    start: StartOptions = StartOptions()
    judge: JudgeOptions = JudgeOptions()
    timing: TimingOptions = TimingOptions()
    cache: CacheOptions = CacheOptions()
    runtime: RuntimeOptions = RuntimeOptions()
    images: ImageOptions = ImageOptions()
    quantize: QuantizeOptions = QuantizeOptions()
    result: ResultOptions = ResultOptions()
    cluster: ClusterOptions = ClusterOptions()


@dataclass(frozen=True)
class SweepOptions(_Work, _Samples, _Budgets):
    """Options of ``sweep``."""

    def job(self) -> JobOptions:
        """What stays the same whatever the budget."""
        return _job(self, NORMAL)


@dataclass(frozen=True)
class ValidateOptions:
    """Options of ``validate``."""

    draw: DrawOptions = DrawOptions()
    padding: PaddingOptions = PaddingOptions()
    judge: JudgeOptions = JudgeOptions()
    runtime: RuntimeOptions = RuntimeOptions()
    images: ImageOptions = ImageOptions()


@dataclass(frozen=True)
class CurvesOptions:
    """Options of ``curves``, the command ``inspect --curves``."""

    data: DataOptions = DataOptions()
    draw: DrawOptions = DrawOptions()
    padding: PaddingOptions = PaddingOptions()
    layers: LayerOptions = LayerOptions()
    runtime: RuntimeOptions = RuntimeOptions()
    images: ImageOptions = ImageOptions()


def _listed(globs: str | Sequence[str]) -> Sequence[str]:
    """Globs as a list; from Python one may be given alone."""
    return [globs] if isinstance(globs, str) else globs


def _job(options: PlanOptions | SweepOptions, effort: Effort) -> JobOptions:
    methods = options.methods
    quantize = options.quantize.quantize if isinstance(options, CompressOptions) else None
    return JobOptions(
        passes=parse_list(methods.passes),
        data=options.data,
        draw=options.draw,
        padding=options.padding,
        images=options.images,
        runtime=options.runtime.runtime(),
        timing=options.timing,
        cache=options.cache,
        include=_listed(methods.include),
        exclude=_listed(methods.exclude),
        repair=methods.repair or effort.repair,
        simplify=options.start.simplify,
        judging=options.judge.judging(),
        min_kept=options.judge.kept(GUARDED),
        int8=methods.int8(quantize),
        scheduler=options.cluster.scheduler,
    )
