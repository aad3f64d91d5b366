"""Outcomes: what became of one model, as plain data for pipes and for the journal."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from onnx_lowrank.fleet.options import Limits

__all__ = [
    "CRASH",
    "INTERNAL",
    "MEMORY",
    "REFUSED",
    "TIME",
    "Outcome",
    "ended_by",
    "over_memory",
    "over_time",
]

#: why a model failed: a typed error said so, a limit was reached, or its process ended
REFUSED, TIME, MEMORY, CRASH, INTERNAL = (
    "refused",
    "time-limit",
    "memory-limit",
    "crash",
    "internal",
)

#: exit codes of commands that are ended by ``timeout`` and by the kernel for want of memory
_TIME_CODE, _MEMORY_CODE = 124, 137


@dataclass(frozen=True)
class Outcome:
    """What became of one model.

    Attributes:
        status: ``done``; ``unchanged``, where nothing was asked for and nothing could be gained,
            and the model was copied; or ``failed``.
        cause: of a failure ``refused | time-limit | memory-limit | crash | internal``; else empty.
        error: name of the exception of a failure; empty where there was none.
        exit_code: that ``compress`` would have ended with; 0 without a failure.
        reason: of what is not done, in a sentence.
        figures: ``before`` and ``after`` (MACs, parameters, bytes), ``latency``, ``kept``, ``loss``
            and ``accuracy``, as the summary has them; empty for failures.
        files: names of what was written, the model last.
        seconds: wall time.
        peak_bytes: largest resident memory that was seen; None where it was not measured.
    """

    status: str
    cause: str = ""
    error: str = ""
    exit_code: int = 0
    reason: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    seconds: float = 0.0
    peak_bytes: int | None = None

    @property
    def failed(self) -> bool:
        """Whether there is no result."""
        return self.status == "failed"

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"files": list(self.files)}

    @staticmethod
    def of(data: Mapping[str, Any]) -> Outcome:
        """The outcome that :meth:`to_dict` made plain.

        Raises:
            KeyError, TypeError: the data has another form.
        """
        names = Outcome.__dataclass_fields__
        found = Outcome(**{name: data[name] for name in names})
        return replace(found, files=tuple(found.files))


def over_time(limits: Limits) -> Outcome:
    """The outcome of a model that took too long."""
    return Outcome(
        "failed",
        TIME,
        exit_code=_TIME_CODE,
        reason=f"took longer than {limits.seconds:g} seconds; raise --time-limit and give "
        "--retry-failed",
    )


def over_memory(limits: Limits | None, used: int = 0) -> Outcome:
    """The outcome of a model that took too much memory.

    Args:
        limits: that it went beyond; None where the system had no more.
        used: bytes that were seen.
    """
    if limits is None or limits.bytes is None:
        reason = "the system had no more memory; give fewer --workers or samples and --retry-failed"
    else:
        reason = (
            f"took {used / 2**20:,.0f} MiB of memory, and {limits.bytes / 2**20:,.0f} MiB are "
            "allowed; raise --memory-limit and give --retry-failed"
        )
    return Outcome("failed", MEMORY, exit_code=_MEMORY_CODE, reason=reason)


def ended_by(code: int, last: str) -> Outcome:
    """The outcome of a process that ended without a word.

    Args:
        code: its exit code; minus the number of a signal that ended it.
        last: the last line that it printed.
    """
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        how = f"its process was ended by {name}"
        if name == "SIGKILL":
            how += ", as the system does where memory runs out"
    else:
        how = f"its process ended with code {code}"
    said = f": {last}" if last else ""
    return Outcome(
        "failed",
        CRASH,
        exit_code=128 - code if code < 0 else code or 1,
        reason=f"{how}{said}; give --retry-failed to try it again",
    )
