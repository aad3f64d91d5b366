"""Which layers cost most of the loss, measured.

costliest(analysis, planned, built) -> the worst first
"""

from __future__ import annotations

from onnx_lowrank.engine.analyse import Analysis
from onnx_lowrank.engine.build import Built
from onnx_lowrank.engine.choose import Planned
from onnx_lowrank.refit.sensitivity import losses_of_layers
from onnx_lowrank.report.report import LayerLoss

__all__ = ["costliest"]

#: layers that are measured, those of the largest predicted losses, and layers that are told
_MEASURED, _TOLD = 6, 3
#: samples that they are measured on
_SAMPLES = 50


def costliest(analysis: Analysis, planned: Planned, built: Built) -> tuple[LayerLoss, ...]:
    """The layers without whose replacement the judge's loss would be least.

    Args:
        analysis: of the original model.
        planned: the plan.
        built: its model, with what became of its layers; else nothing is measured.
    """
    job, errors = analysis.job, planned.loss_by_layer
    names = sorted((n for n in errors if n in built.repaired), key=lambda n: -errors[n])
    if not names:
        return ()
    held = job.samples.validation
    with job.tools.stopwatch("blame"):
        judge = analysis.judge_on(held.subset(range(min(_SAMPLES, len(held)))))
        whole, losses = losses_of_layers(
            judge, planned.proposed.cut.work.model, built.repaired, names[:_MEASURED],
            job.tools.progress,
        )  # fmt: skip
    worst = sorted(losses, key=lambda n: -losses[n])[:_TOLD]
    return tuple(LayerLoss(name, losses[name], whole) for name in worst if losses[name] > 0)
