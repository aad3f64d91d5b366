"""Take back the chains that are slower than their layers.

without_slow_chains(analysis, planned, built) -> (Planned, Built)
"""

from __future__ import annotations

from onnx_lowrank.engine.analyse import Analysis, timed_inference
from onnx_lowrank.engine.build import Built, build
from onnx_lowrank.engine.choose import Planned, choose_keeping
from onnx_lowrank.engine.tell import timed_pairs
from onnx_lowrank.errors import BudgetError
from onnx_lowrank.planning.notes import ChainsAreSlower, ChainsTakenBack
from onnx_lowrank.planning.timed_candidates import losers

__all__ = ["without_slow_chains"]


def without_slow_chains(
    analysis: Analysis, planned: Planned, built: Built
) -> tuple[Planned, Built]:
    """The same, or where the model is slower than the original, one without what does not pay.

    The budget is then spent on other layers. Nothing is changed where that cannot be, or where no
    chain is to blame: what is slower all the same is for the guard to refuse.

    Args:
        analysis: of the original model.
        planned: the plan.
        built: its model.
    """
    job = analysis.job
    if not built.chains or planned.proposed.target.rule:
        return planned, built
    (pair,) = timed_pairs(job, built.model, [job.tools.timing.batch])
    if max(pair.speedup, pair.median_speedup) >= 1:
        return planned, built
    work = planned.proposed.cut.work
    with job.tools.stopwatch("time"):
        feed, shapes = timed_inference(job, work)
        lost = losers(work, built.chains, feed, shapes, job.tools.latency_table())
    if not lost:
        return planned, built
    names = tuple(sorted(lost))
    try:
        fewer = choose_keeping(analysis, planned, lost, "its chain takes more time than the layer")
    except BudgetError:
        return planned.noting(ChainsAreSlower(names)), built
    return fewer.noting(ChainsTakenBack(names)), build(analysis, fewer.plan)
