"""Analyses of small models, to plan and build with."""

from __future__ import annotations

from typing import Any

from onnx_lowrank.engine.analyse import Analysis, analyse
from onnx_lowrank.engine.job import JobOptions, begin
from onnx_lowrank.latency.timer import Timer
from onnx_lowrank.planning.registry import parse_list
from onnx_lowrank.planning.timed_candidates import TimingOptions
from onnx_lowrank.runtime.caches import CacheOptions
from onnx_lowrank.samples.images import ImageOptions
from onnx_lowrank.samples.padding import PaddingOptions
from onnx_lowrank.samples.split import CalibrationOptions, DataOptions, Samples, gather
from tests import fixtures_models as fm

__all__ = ["analysis_of", "samples_of"]


def analysis_of(
    model: Any,
    passes: str,
    calib: Any,
    timer: Timer | None = None,
    cache: str | None = "",
    **timing: Any,
) -> Analysis:
    """What one pass over ``calib`` says of a model, run on one thread and without a cache."""
    options = JobOptions(
        passes=parse_list(passes),
        data=DataOptions(calib),
        runtime=fm.ONE_THREAD,
        timing=TimingOptions(**timing),
        cache=CacheOptions(cache),
    )
    return analyse(begin(model, options, timer=timer))


def samples_of(model: Any, calib: Any, **options: Any) -> Samples:
    """Samples of a model, read on one thread."""
    data = DataOptions(calib, **options)
    return gather(
        model, data, CalibrationOptions(), ImageOptions(), PaddingOptions(), fm.ONE_THREAD
    )
