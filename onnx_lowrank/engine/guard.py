"""The check that refuses a result which is bigger, slower, or gives other answers.

Answers are others where the judge says that clearly fewer of them stay than must, in one of the
outputs: the whole 95 % interval lies below the bound. Where no output could be compared nothing
shows what the result does, and it is refused as well.
"""

from __future__ import annotations

from onnx_lowrank.engine.effort import NORMAL, QUICK, THOROUGH, Effort
from onnx_lowrank.errors import GuardError
from onnx_lowrank.planning.notes import ChainsAreSlower
from onnx_lowrank.report.report import Report
from onnx_lowrank.report.wording import kept_in_words, worded

__all__ = ["check_result"]

#: bytes that the plan's digest and our version may add to a model that stays as it is
SIGNATURE = 256
#: a time within this ratio of the original's counts as no slower: clocks are noisy
SLOWER = 1.05

#: how each refusal ends
_FORCE = "nothing was written (--force writes it all the same)"


def check_result(report: Report, min_kept: float | None, effort: Effort | None = None) -> None:
    """Refuse a result that nobody who asked for a smaller model would want.

    Args:
        report: what was measured of the result.
        min_kept: part of the answers that must stay; None where the outputs were not compared on
            real samples.
        effort: that the plan was looked for with; None where it was given.

    Raises:
        GuardError: it is bigger or slower than the original, or gives other answers.
    """
    if report.after.bytes > report.before.bytes + SIGNATURE:
        raise GuardError(
            f"the result has {report.after.bytes} bytes, the original {report.before.bytes}; "
            f"{_FORCE}"
        )
    slow = [p for p in report.latency if 1 / p.speedup > SLOWER and p.speedup_high < 1]
    if slow:
        named = "".join(
            f"; {worded(note)}" for note in report.notes if isinstance(note, ChainsAreSlower)
        )
        raise GuardError(
            f"the result takes {slow[0].new_ms:.3g} ms, the original {slow[0].reference_ms:.3g} ms "
            f"(batch {slow[0].batch}){named}; {_FORCE}"
        )
    validation = report.validation
    if not validation.compared:
        raise GuardError(
            "no output could be compared with the original's, so nothing shows what the result "
            f"does; {'; '.join(validation.notes) or 'the model gives none'}: give --calib samples "
            f"on which the original's outputs are finite and repeat; {_FORCE}"
        )
    worst = None if validation.verdict is None else validation.verdict.worst
    # chance must not refuse: the whole interval lies below what is asked
    if min_kept is not None and worst is not None and worst.kept.high < min_kept:
        raise GuardError(
            f"output {worst.reading.label!r} keeps {kept_in_words(worst)} of "
            f"{validation.samples} samples, and {min_kept:.0%} must stay (--min-kept)"
            f"{_blamed(report, effort)}; {_FORCE}"
        )


def _blamed(report: Report, effort: Effort | None) -> str:
    """Which layer costs most, where that was measured, and what would help."""
    help_ = f"{_more_effort(effort)}leave more than {report.target}, give more samples or passes, "
    help_ += "or search for what can be had (no --target)"
    if not report.costliest:
        return f"; {help_}"
    first = report.costliest[0]
    return (
        f"; layer {first.layer!r} costs most, {100 * first.loss:.2g} points of a loss of "
        f"{100 * first.whole:.2g} % on {first.samples} samples: leave it alone "
        f"(--exclude {first.layer!r}), or {help_}"
    )


def _more_effort(effort: Effort | None) -> str:
    """The effort that builds and judges what this one leaves out; else empty."""
    if effort is QUICK:
        return f"have plans built and judged (--effort {NORMAL.name}), "
    if effort is NORMAL:
        return f"have more plans built and judged (--effort {THOROUGH.name}), "
    return ""
