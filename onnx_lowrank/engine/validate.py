"""Compare two models on data: the function ``validate``."""

from __future__ import annotations

import os
from typing import Any

import onnx

from onnx_lowrank.engine.options import ValidateOptions
from onnx_lowrank.judge.validation import Validation, validate_models
from onnx_lowrank.modelfile.model import load
from onnx_lowrank.options import documented, from_keywords
from onnx_lowrank.progress import Progress
from onnx_lowrank.samples.dataset import HELD_OUT, has_part, input_specs, load_dataset
from onnx_lowrank.samples.row_trial import RowTrial

__all__ = ["validate"]


@documented(ValidateOptions)
def validate(
    reference: str | os.PathLike[str] | onnx.ModelProto,
    new: str | os.PathLike[str] | onnx.ModelProto,
    data: Any,
    *,
    progress: Progress | None = None,
    **keywords: Any,
) -> Validation:
    """Compare two models on data, with labelled accuracy where the data has labels.

    Args:
        reference: path or ModelProto of the original.
        new: path or ModelProto of the model to judge.
        data: anything that ``calib`` of :func:`onnx_lowrank.compress` may be; of an archive with a
            held-out part, that part.
        progress: told of every sample.
        **keywords: options by name:
            {options}

    Raises:
        ModelError, DataError, OptionError: as the inputs deserve.
        ValidationError: outputs are missing, of other shapes, or not finite.
    """
    options = from_keywords(ValidateOptions, keywords)
    models = load(reference), load(new)
    runtime = options.runtime.runtime()
    dataset = load_dataset(
        data, input_specs(models[0]), samples=options.draw.samples, seed=options.draw.seed,
        images=options.images.given, part=HELD_OUT if has_part(data) else None,
        trial=RowTrial(models[0], runtime),
    )  # fmt: skip
    return validate_models(
        *models, dataset, runtime, progress=progress, judging=options.judge.judging()
    )
