"""Take back the chains that are slower than their layers.

without_slow_chains(analysis, planned, draft) -> (Planned, Built)
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
    analysis: Analysis, planned: Planned, draft: Built | None = None
) -> tuple[Planned, Built]:
    """Build a plan, or where the model would be slower than the original, one without what is slow.

    The budget is then spent on other layers. Nothing is changed where that cannot be, or where no
    chain is to blame: what is slower all the same is for the guard to refuse.

    Args:
        analysis: of the original model.
        planned: the plan.
        draft: a model of the plan, which takes the same time whatever its weights are.
    """
    built = build(analysis, planned.plan) if draft is None else draft
    taken = _paying(analysis, planned, built)
    if draft is None and taken.plan is planned.plan:
        return taken, built
    return taken, build(analysis, taken.plan)


def _paying(analysis: Analysis, planned: Planned, built: Built) -> Planned:
    """The same plan, or one without the chains that are slower than their layers."""
    job = analysis.job
    if not built.chains or planned.proposed.target.rule:
        return planned
    (pair,) = timed_pairs(job, built.model, [job.tools.timing.batch])
    if max(pair.speedup, pair.median_speedup) >= 1:
        return planned
    work = planned.proposed.cut.work
    with job.tools.stopwatch("time"):
        feed, shapes = timed_inference(job, work)
        lost = losers(work, built.chains, feed, shapes, job.tools.latency_table())
    if not lost:
        return planned
    names = tuple(sorted(lost))
    try:
        fewer = choose_keeping(analysis, planned, lost, "its chain takes more time than the layer")
    except BudgetError:
        return planned.noting(ChainsAreSlower(names))
    return fewer.noting(ChainsTakenBack(names))
