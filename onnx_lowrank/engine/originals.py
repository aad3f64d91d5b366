"""What the original has of each quantity, which amounts in a target are parts of.

in_parts(analysis, target) -> Target
"""

from __future__ import annotations

from onnx_lowrank.engine.analyse import Analysis
from onnx_lowrank.engine.tell import timed_pair
from onnx_lowrank.planning.targets import Target

__all__ = ["in_parts"]


def in_parts(analysis: Analysis, target: Target) -> Target:
    """The same target with its amounts as parts of the original.

    Milliseconds are those of the original at the batch that counts, timed here and now.

    Args:
        analysis: of the original model.
        target: what is asked for.
    """
    asked = {a.metric for a in target.amounts}
    if not asked:
        return target
    has = {m: float(analysis.before.of(m)) for m in asked if m != "latency"}
    if "latency" in asked:
        job = analysis.job
        with job.tools.stopwatch("time"):
            pair = timed_pair(job, job.source)
        has["latency"] = pair.reference_ms
    return target.of(has)
