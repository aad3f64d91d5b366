"""Which layers cost most of the loss, measured.

suspects(analysis, planned)         -> names of layers whose solved weights are to be kept
costliest(analysis, planned, built) -> the worst first
"""

from __future__ import annotations

from onnx_lowrank.engine.analyse import Analysis
from onnx_lowrank.engine.build import Built
from onnx_lowrank.engine.choose import Planned
from onnx_lowrank.planning.refit_modes import SOLVES_LAYERS
from onnx_lowrank.refit.sensitivity import losses_of_layers
from onnx_lowrank.report.report import LayerLoss

__all__ = ["costliest", "suspects"]

#: layers that are measured, those of the largest predicted losses, and layers that are told
_MEASURED, _TOLD = 6, 3

#: largest and smallest number of samples that they are measured on, and the multiply-adds that
#: this may take: a second or two on two cores
_MOST, _LEAST, _WORK = 50, 8, 5 * 10**10


def suspects(analysis: Analysis, planned: Planned) -> tuple[str, ...] | None:
    """Names of the layers that may cost most; None where nothing is to be measured.

    Nothing is without data, nor where layers are not solved whole, nor in a model that is too large
    for one protobuf: what is kept of its layers would take more memory than all else.
    """
    job, errors = analysis.job, planned.loss_by_layer
    solved = job.samples.calibration is not None and planned.plan.repair in SOLVES_LAYERS
    if not solved or job.source.large or not errors:
        return None
    return tuple(sorted(errors, key=lambda name: -errors[name])[:_MEASURED])


def costliest(analysis: Analysis, planned: Planned, built: Built) -> tuple[LayerLoss, ...]:
    """The layers without whose replacement the judge's loss would be least.

    Args:
        analysis: of the original model.
        planned: the plan.
        built: its model, with what became of :func:`suspects`; else nothing is measured.
    """
    job = analysis.job
    names = [n for n in suspects(analysis, planned) or () if n in built.repaired]
    if not names:
        return ()
    held, runs = job.samples.validation, len(names) + 1
    bearable = max(_WORK // max(analysis.before.macs * runs, 1), _LEAST)
    with job.tools.stopwatch("blame"):
        count = min(bearable, _MOST, len(held))
        judge = analysis.judge_on(held.subset(range(count)))
        whole, losses = losses_of_layers(
            judge, planned.proposed.cut.work.model, built.repaired, names, job.tools.progress
        )
    worst = sorted(losses, key=lambda n: -losses[n])[:_TOLD]
    return tuple(LayerLoss(n, losses[n], whole, count) for n in worst if losses[n] > 0)
