"""What comparing a model with the original found: of each output, of labels, of the whole."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from onnx_lowrank.judge.disagreements import Disagreement
from onnx_lowrank.judge.verdict import Verdict

__all__ = ["Accuracy", "OutputCheck", "Validation"]


@dataclass(frozen=True)
class OutputCheck:
    """Comparison of one output of the new model with the reference's.

    Errors of strings are NaN.

    Attributes:
        name: name of the output.
        relative_error: ``|new - reference| / |reference|``, Frobenius norms over all samples.
        snr_db: the same as a signal-to-noise ratio in dB; infinite for equal outputs.
        cosine: mean cosine similarity of a sample's output with its reference.
        max_abs_error: largest difference of one element.
        top1_agreement: part of samples with the same first class; None without class scores.
        top5_agreement: part of samples whose first class in the reference is among the first five
            of the new model; None without class scores.
        equal: part of samples whose values are equal, for integers, booleans and strings; None for
            other outputs.
        places: number of values compared: finite in both models, or strings. Without any, all
            errors are NaN.
        mismatches: number of places where one model has NaN or Inf and the other has not, or has
            Inf of the other sign.
        unlike: number of batches in which the output had another shape than the reference's.
        varied: whether the reference differs from sample to sample.
        single: whether a sample is one value, as a label is.
    """

    name: str
    relative_error: float
    snr_db: float
    cosine: float
    max_abs_error: float
    top1_agreement: float | None
    top5_agreement: float | None
    equal: float | None = None
    places: int = 1
    mismatches: int = 0
    unlike: int = 0
    varied: bool = True
    single: bool = False


@dataclass(frozen=True)
class Accuracy:
    """Labelled accuracy of both models on the same samples (first class, between 0 and 1).

    Attributes:
        output: name of the output with the class scores.
        samples: number of samples counted.
        reference: accuracy of the original.
        new: accuracy of the new model.
        doubt: reason why the labels say nothing about the original; empty where they do.
    """

    output: str
    samples: int
    reference: float
    new: float
    doubt: str = ""

    @property
    def drop(self) -> float:
        """Loss of accuracy, as a fraction."""
        return self.reference - self.new


@dataclass(frozen=True)
class Validation:
    """Comparison of a pair of models.

    Attributes:
        samples: number of feeds that both models ran on.
        outputs: a comparison for each output that could be compared, or for each tensor in its
            place.
        accuracy: accuracy by labels; None without labels, or without an output of class scores.
        notes: sentences that say what was not compared and what else a reader should know.
        uncounted: reason why no accuracy was counted though there are labels; else empty.
        verdict: what the judge says; None where nothing was run.
        disagreements: the samples on which the models differ most, the worst first.
    """

    samples: int
    outputs: tuple[OutputCheck, ...]
    accuracy: Accuracy | None
    notes: tuple[str, ...] = ()
    uncounted: str = ""
    verdict: Verdict | None = None
    disagreements: tuple[Disagreement, ...] = ()

    @property
    def compared(self) -> bool:
        """Whether anything was compared at all."""
        return any(o.places for o in self.outputs)

    @property
    def drop(self) -> float | None:
        """Loss of accuracy with labels, else part of samples whose first class changes."""
        if self.accuracy is not None:
            return self.accuracy.drop
        readings = () if self.verdict is None else self.verdict.readings
        same = (r.figures.get("same_samples") for r in readings if r.reading.kind == "kl")
        return next((1 - s.value for s in same if s is not None), None)

    def to_dict(self) -> dict[str, Any]:
        """The comparison as plain data for JSON; infinite ratios and NaN become None."""
        outputs = [{k: _plain(v) for k, v in asdict(o).items()} for o in self.outputs]
        accuracy = None
        if self.accuracy is not None:
            accuracy = {**asdict(self.accuracy), "drop": self.accuracy.drop}
            del accuracy["doubt"]  # stands in the notes
        readings = [] if self.verdict is None else [r.to_dict() for r in self.verdict.readings]
        return {
            "samples": self.samples,
            "loss": None if self.verdict is None else self.verdict.loss.to_list(),
            "judged": readings,
            "outputs": outputs,
            "accuracy": accuracy,
            "disagreements": [d.to_dict() for d in self.disagreements],
            "notes": list(self.notes),
        }


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
