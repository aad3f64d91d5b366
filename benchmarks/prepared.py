"""Models made ready for passes, with the moments of their layers, as the engine makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnx_lowrank.analysis.preparation import Prepared
from onnx_lowrank.engine.analyse import Analysis, analyse, timed_inference
from onnx_lowrank.engine.job import JobOptions, begin
from onnx_lowrank.planning.registry import parse_list
from onnx_lowrank.planning.timed_candidates import TimingOptions
from onnx_lowrank.runtime.caches import CacheOptions
from onnx_lowrank.runtime.runtime import Runtime
from onnx_lowrank.runtime.session import Feed
from onnx_lowrank.samples.split import CalibrationOptions, DataOptions

__all__ = ["prepared", "prepared_to_time"]

#: BatchNormalization is folded; any factorization will do beside it
_PASSES = "fold_batchnorm,svd"


def prepared(model: Path, calib: Any, samples: int | None = None) -> Prepared:
    """A model with BatchNormalization folded, its layers and the moments of their inputs.

    Args:
        model: path of the model.
        calib: its data, as :func:`onnx_lowrank.compress` takes it.
        samples: calibration samples to draw; None for all that there are.
    """
    return _analysis(model, calib, samples, 1).prepared


def prepared_to_time(
    model: Path, calib: Any, samples: int, batch: int
) -> tuple[Prepared, Feed, dict[str, tuple[int, ...]]]:
    """The same with an inference of ``batch`` samples, and the shapes of all tensors in it."""
    found = _analysis(model, calib, samples, batch)
    return found.prepared, *timed_inference(found.job, found.prepared)


def _analysis(model: Path, calib: Any, samples: int | None, batch: int) -> Analysis:
    options = JobOptions(
        passes=parse_list(_PASSES),
        data=DataOptions(calib),
        draw=CalibrationOptions(samples),
        runtime=Runtime(threads=1),
        timing=TimingOptions(batch),
        cache=CacheOptions(""),
    )
    return analyse(begin(model, options))
