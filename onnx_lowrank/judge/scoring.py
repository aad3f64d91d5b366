"""Choice of the scorer that a requirement needs."""

from __future__ import annotations

from onnx_lowrank.judge.accuracy import AccuracyScorer
from onnx_lowrank.judge.judge import AS_FOUND, Judge, Judging
from onnx_lowrank.judge.judged import JudgeScorer
from onnx_lowrank.judge.own_metric import MetricScorer
from onnx_lowrank.judge.requirement import BY_JUDGE, Requirement
from onnx_lowrank.judge.sample_runs import SampleRuns
from onnx_lowrank.judge.scorer import Scorer
from onnx_lowrank.judge.snr import SnrScorer
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.runtime.runtime import Runtime
from onnx_lowrank.samples.dataset import Dataset

__all__ = ["scorer_for"]


def scorer_for(
    requirement: Requirement,
    reference: Model,
    data: Dataset,
    runtime: Runtime,
    size: int,
    expected: bool = False,
    judging: Judging = AS_FOUND,
) -> Scorer:
    """Make a scorer of models by one requirement.

    Args:
        requirement: bound on what may be lost.
        reference: the original.
        data: samples, with labels where the requirement needs them.
        runtime: runs the models.
        size: number of samples in a batch.
        expected: whether to estimate drops of accuracy by the original's probabilities, calibrated
            by the labels, instead of counting them.
        judging: what the user wants outputs to be judged by.

    Raises:
        DataError: the labels are missing or do not fit, or no output can be judged.
    """
    if requirement.kind in BY_JUDGE:
        classes = requirement.kind == "agreement"
        judge = Judge(reference, data, runtime, size, judging, classes=classes)
        return JudgeScorer(judge, requirement)
    runs = SampleRuns(reference, data, runtime, size)
    if requirement.kind == "snr":
        return SnrScorer(runs)
    if requirement.metric is not None:
        outputs = [o.name for o in reference.proto.graph.output]
        return MetricScorer(runs, requirement.metric, outputs)
    return AccuracyScorer(runs, expected)
