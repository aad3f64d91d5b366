"""Models made ready for passes, with the moments of their layers, as the engine makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnx_lowrank.analysis.preparation import Prepared
from onnx_lowrank.engine.run import Run
from onnx_lowrank.engine.workbench import DataOptions
from onnx_lowrank.planning.registry import parse_list
from onnx_lowrank.planning.timed_candidates import TimingOptions
from onnx_lowrank.runtime.runtime import Feed, Runtime

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
    return _run(model, calib, samples, 1).prepared


def prepared_to_time(
    model: Path, calib: Any, samples: int, batch: int
) -> tuple[Prepared, Feed, dict[str, tuple[int, ...]]]:
    """The same with an inference of ``batch`` samples, and the shapes of all tensors in it."""
    run = _run(model, calib, samples, batch)
    return run.prepared, *run.at_batch(run.prepared)


def _run(model: Path, calib: Any, samples: int | None, batch: int) -> Run:
    return Run(
        model, parse_list(_PASSES), DataOptions(calib, samples, None, None, 0),
        Runtime(threads=1), TimingOptions(batch, cache=""), None,
    )  # fmt: skip
