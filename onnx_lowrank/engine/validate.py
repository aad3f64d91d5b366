"""Compare two models on data: the function ``validate``, and what there is to report of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from onnx_lowrank.analysis.cost import model_cost
from onnx_lowrank.analysis.preparation import measured_shapes
from onnx_lowrank.engine.analyse import feed_of
from onnx_lowrank.engine.options import ValidateOptions
from onnx_lowrank.errors import DataError, OptionError
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.judge.checks import Validation
from onnx_lowrank.judge.judge import Judging
from onnx_lowrank.judge.requirement import largest_loss
from onnx_lowrank.judge.validation import validate_models
from onnx_lowrank.latency.timer import RuntimeTimer, Timer
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.options import documented, from_keywords
from onnx_lowrank.progress import Progress
from onnx_lowrank.report.check import Basis, Check
from onnx_lowrank.runtime.machine import surroundings
from onnx_lowrank.runtime.runtime import Runtime
from onnx_lowrank.samples.dataset import HELD_OUT, Dataset, has_part, input_specs, load_dataset
from onnx_lowrank.samples.mask_trial import with_mask
from onnx_lowrank.samples.row_trial import RowTrial

__all__ = ["Opened", "beyond", "opened", "validate"]

#: samples of the inferences that are timed
BATCHES = (1, 16)


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
    return opened(reference, new, data, keywords).compared(progress)


@dataclass(frozen=True)
class Opened:
    """Two models, and the samples that they are compared on.

    Attributes:
        models: the original and the new one.
        data: the samples.
        runtime: runs both.
        judging: what outputs are judged by.
    """

    models: tuple[Model, Model]
    data: Dataset
    runtime: Runtime
    judging: Judging

    def compared(self, progress: Progress | None = None) -> Validation:
        """Compare the models on all samples.

        Raises:
            ValidationError: outputs are missing, of other shapes, or not finite.
        """
        return validate_models(
            *self.models, self.data, self.runtime, progress=progress, judging=self.judging
        )

    def check(
        self,
        validation: Validation | None,
        allowed: float | None = None,
        failed: str = "",
        timer: Timer | None = None,
    ) -> Check:
        """What there is to be reported of both: costs, times, and the comparison.

        Args:
            validation: what :meth:`compared` returned; None where it could not be made, and then
                nothing is timed.
            allowed: largest drop allowed, as a fraction; None for no bound.
            failed: why the new model may not take the original's place; empty where it may.
            timer: takes all times; None for one that runs models in ONNX Runtime.
        """
        before, after = (
            model_cost(m, measured_shapes(m, Graph(m), [], self.data, self.runtime))
            for m in self.models
        )
        feeds = [(b, feed_of(self.data, b)) for b in BATCHES if b == 1 or self._holds(b)]
        timer = timer or RuntimeTimer(self.runtime)
        basis = Basis(
            model=self.models[0].digest,
            result=self.models[1].digest,
            data=self.data.digest(),
            surroundings=surroundings(self.runtime),
        )
        latency = () if validation is None else timer.models(*self.models, feeds)
        return Check(before, after, validation, latency, basis, allowed, failed)

    def _holds(self, batch: int) -> bool:
        return self.data.batchable and batch <= len(self.data)


def opened(reference: Any, new: Any, data: Any, keywords: Mapping[str, Any]) -> Opened:
    """Open what :func:`validate` compares; its arguments and errors are the same."""
    options = from_keywords(ValidateOptions, keywords)
    models = load(reference), load(new)
    runtime = options.runtime.runtime()
    read = load_dataset(
        data, input_specs(models[0]), samples=options.draw.samples, seed=options.draw.seed,
        images=options.images.given, part=HELD_OUT if has_part(data) else None,
        trial=RowTrial(models[0], runtime),
    )  # fmt: skip
    dataset, _ = with_mask(read, models[0], runtime, options.padding)
    return Opened(models, dataset, runtime, options.judge.judging())


def beyond(validation: Validation, allowed: float | None) -> str:
    """Why a comparison shows more lost than is allowed, in a line; empty where it does not.

    Args:
        validation: the comparison.
        allowed: largest drop, as a fraction; None for no bound.

    Raises:
        DataError: the labels cannot tell.
        OptionError: nothing that could drop was compared.
    """
    if allowed is None:
        return ""
    if validation.uncounted:
        raise DataError(validation.uncounted)
    if validation.accuracy is not None and validation.accuracy.doubt:
        raise DataError(
            f"{validation.accuracy.doubt}; --max-drop would let any model pass: check the labels "
            "and how the inputs are prepared, or give more samples"
        )
    if validation.drop is None:
        raise OptionError("--max-drop needs labels in the data, or an output of class scores")
    if validation.drop <= allowed:
        return ""
    labelled = validation.accuracy is not None
    what = "accuracy fell by" if labelled else "the top class changed in"
    return f"{what} {validation.drop:.2%}; {largest_loss(allowed, labelled=labelled)}"
