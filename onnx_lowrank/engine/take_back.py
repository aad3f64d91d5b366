"""Take back the chains that are slower than their layers.

without_slow_chains(analysis, planned, draft) -> (Planned, Built)
"""

from __future__ import annotations

from dataclasses import replace

from onnx_lowrank.engine.analyse import Analysis, timed_inference
from onnx_lowrank.engine.blame import suspects
from onnx_lowrank.engine.build import Built, build
from onnx_lowrank.engine.choose import Planned, choose_keeping
from onnx_lowrank.engine.tell import timed_pair
from onnx_lowrank.engine.timed_plan import timed_plan
from onnx_lowrank.errors import BudgetError
from onnx_lowrank.latency.pairs import LatencyPair
from onnx_lowrank.planning.notes import ChainsAreSlower, ChainsTakenBack
from onnx_lowrank.planning.timed_candidates import losers

__all__ = ["without_slow_chains"]


def without_slow_chains(
    analysis: Analysis, planned: Planned, draft: Built | None = None
) -> tuple[Planned, Built]:
    """Build a plan, or where the model would be slower than the original, one without what is slow.

    The budget is then spent on other layers. Nothing is changed where that cannot be, where no
    chain is to blame, or where the other plan is no faster: what is slower all the same is for the
    guard to refuse.

    Args:
        analysis: of the original model.
        planned: the plan.
        draft: a model of the plan's chains, which takes the same time whatever its weights are; it
            is the model if it is of the plan itself.
    """
    built = _blamable(analysis, planned) if draft is None else draft
    taken, pair = _paying(analysis, planned, built)
    if taken.plan != built.plan:
        built = _blamable(analysis, taken)
    return taken, replace(built, timed=pair)


def _blamable(analysis: Analysis, planned: Planned) -> Built:
    return build(analysis, planned.plan, weighable=suspects(analysis, planned))


def _paying(
    analysis: Analysis, planned: Planned, built: Built
) -> tuple[Planned, LatencyPair | None]:
    """The same plan, or a faster one without the chains that are slower than their layers.

    Beside it its time, if it was taken, which does not depend on weights.
    """
    job = analysis.job
    if not built.chains or planned.proposed.target.rule:
        return planned, None
    pair = timed_pair(job, built.model)
    if pair.speedup_high >= 1:  # chance must not take chains back
        return planned, pair
    work = planned.proposed.cut.work
    with job.tools.stopwatch("time"):
        feed, shapes = timed_inference(job, work)
        lost = losers(work, built.chains, feed, shapes, job.tools.latency_table())
    if not lost:
        return planned, pair
    names = tuple(sorted(lost))
    slow = planned.noting(ChainsAreSlower(names))
    try:
        fewer = choose_keeping(analysis, planned, lost, "its chain takes more time than the layer")
    except BudgetError:
        return slow, pair
    again = timed_plan(analysis, fewer.plan)
    if again.speedup <= pair.speedup:
        return slow, pair
    return fewer.noting(ChainsTakenBack(names)), again
