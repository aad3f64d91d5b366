"""The check that refuses a result which is bigger, slower, or gives other answers.

Answers are others where the first class changed on more than half of the samples, where numbers
that are not class scores err by more than they are, or where most texts and labels differ. Where no
output could be compared nothing shows what the result does, and it is refused as well.
"""

from __future__ import annotations

import math

from onnx_lowrank.errors import GuardError
from onnx_lowrank.judge.validation import OutputCheck
from onnx_lowrank.planning.notes import ChainsAreSlower
from onnx_lowrank.report.report import Report
from onnx_lowrank.report.wording import worded

__all__ = ["check_result"]

#: bytes that the plan's digest and our version may add to a model that stays as it is
SIGNATURE = 256
#: a time within this ratio of the original's counts as no slower: clocks are noisy
SLOWER = 1.05

#: how each refusal ends
_FORCE = "nothing was written (--force writes it all the same)"


def check_result(report: Report, *, calibrated: bool) -> None:
    """Refuse a result that nobody who asked for a smaller model would want.

    Args:
        report: what was measured of the result.
        calibrated: whether its outputs were compared on real samples.

    Raises:
        GuardError: it is bigger or slower than the original, or gives other answers.
    """
    if report.after.bytes > report.before.bytes + SIGNATURE:
        raise GuardError(
            f"the result has {report.after.bytes} bytes, the original {report.before.bytes}; "
            f"{_FORCE}"
        )
    slow = [p for p in report.latency if min(1 / p.speedup, 1 / p.median_speedup) > SLOWER]
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
    if calibrated and all(_lost(o) for o in validation.outputs if o.places):
        first = next(o for o in validation.outputs if o.places)
        kept = f"an SNR of {first.snr_db:.1f} dB"
        if first.equal is not None:
            kept = f"{first.equal:.1%} of {validation.samples} samples equal"
        if 2 * first.mismatches > first.places + first.mismatches:
            kept = f"NaN or Inf at {first.mismatches} places where the other has none"
        if first.top1_agreement is not None:
            kept = (
                f"the first class of {first.top1_agreement:.1%} of {validation.samples} samples, "
                "which is less than half"
            )
        raise GuardError(
            f"all that the result keeps of the original is {kept}; leave more than "
            f"{report.target}, or ask by --min-agreement or --min-snr for what can be had, or give "
            f"more samples or passes; {_FORCE}"
        )


def _lost(output: OutputCheck) -> bool:
    if output.top1_agreement is not None:
        return output.top1_agreement < 0.5
    if output.mismatches > output.places:
        return True
    if output.equal is not None and (math.isnan(output.snr_db) or output.single):
        return output.equal < 0.5
    return output.snr_db < 0
