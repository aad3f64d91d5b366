"""One call for scripts that convert models: a model in, a model out, or one typed error."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import Any

import onnx

from onnx_lowrank.engine.api import AnyModel, Result, compress
from onnx_lowrank.engine.options import CompressOptions
from onnx_lowrank.errors import BudgetError, GuardError, OptionError
from onnx_lowrank.latency.timer import Timer
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.options import documented, from_keywords
from onnx_lowrank.progress import Progress

__all__ = ["Unchanged", "compress_or_leave", "optimize"]


@dataclass(frozen=True)
class Unchanged:
    """A model that stays as it is, as there is nothing to gain.

    Attributes:
        model: the model as it was given.
        reason: why nothing can be gained, in a sentence.
    """

    model: Model
    reason: str


@documented(CompressOptions)
def optimize(
    model: str | os.PathLike[str] | onnx.ModelProto,
    calibration: Any = None,
    *,
    progress: Progress | None = None,
    timer: Timer | None = None,
    **keywords: Any,
) -> onnx.ModelProto:
    """Compress a model and return it, for scripts that convert many models unattended.

    It writes nothing: the cache folder is used only where ``cache`` names one. Values in files
    beside the model (``.onnx_data``, ``.data``, any name) are read, and the result has all values
    inside; above 2 GB save it with ``onnx.save(..., save_as_external_data=True)``.

    What was asked for is met, or an error is raised. Where nothing was asked for (no target,
    ranks, bound or quantization) and nothing can be gained, as in a model without layers that can
    be taken apart or whose result would be slower, the model comes back as it is, with a warning
    that says why: every model of a hub has a result without a special case.

    Args:
        model: path or ModelProto; it is not changed.
        calibration: typical inputs without labels, as ``calib`` of :func:`compress`, which may
            be given instead.
        progress: told of each step.
        timer: takes all times; None for one that runs models in ONNX Runtime.
        **keywords: options by name:
            {options}

    Returns:
        A model of its own, with the names, shapes, opset and metadata of the original.

    Raises:
        LowRankError: one of its kinds, for all that can be expected to fail: OptionError,
            ModelError, DataError, BudgetError, GuardError, PassError, ValidationError.
    """
    if not isinstance(model, str | os.PathLike | onnx.ModelProto):
        raise OptionError(
            f"model is {type(model).__name__}; give a path or an onnx.ModelProto "
            "(onnx.load_from_string makes one of bytes)"
        )
    if calibration is not None:
        if keywords.get("calib") is not None:
            raise OptionError("calibration and calib at once; give one of them")
        keywords["calib"] = calibration
    made = compress_or_leave(model, progress=progress, timer=timer, **{"cache": "", **keywords})
    if isinstance(made, Result):
        return made.whole
    name = "the ModelProto" if made.model.path is None else str(made.model.path)
    warnings.warn(f"{name} is returned as it is: {made.reason}", UserWarning, stacklevel=2)
    proto = onnx.ModelProto()
    proto.CopyFrom(made.model.whole)
    return proto


def compress_or_leave(
    model: AnyModel,
    *,
    progress: Progress | None = None,
    timer: Timer | None = None,
    **keywords: Any,
) -> Result | Unchanged:
    """Compress a model, or say that it stays as it is.

    Args:
        model: path or ModelProto; it is not changed.
        progress: told of each step.
        timer: takes all times; None for one that runs models in ONNX Runtime.
        **keywords: options of :func:`compress` by name.

    Returns:
        The result; or that nothing can be gained, where nothing was asked for.

    Raises:
        LowRankError: as :func:`compress`.
    """
    options = from_keywords(CompressOptions, keywords)
    source = load(model)
    try:
        return compress(source, progress=progress, timer=timer, **keywords)
    except (BudgetError, GuardError) as error:
        if _asked(options):
            raise
        return Unchanged(source, f"nothing can be gained: {error}")


def _asked(options: CompressOptions) -> bool:
    """Whether the caller asked for something that an unchanged model does not give."""
    target = options.target
    return (
        target.target is not None
        or target.ranks != "planner"
        or options.keep.requirement() is not None
        or options.quantize.quantize is not None
    )
