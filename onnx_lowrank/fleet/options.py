"""Options of ``batch``: those of ``compress`` for every model, and how the fleet is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from onnx_lowrank.engine.options import ClusterOptions, CompressOptions
from onnx_lowrank.errors import OptionError
from onnx_lowrank.option_values import check_count, check_seconds, read_bytes, read_duration
from onnx_lowrank.options import option

__all__ = ["BatchOptions", "FleetOptions", "Limits"]

T = TypeVar("T", int, float)


def _value(name: str, given: T | str | None, read: Callable[[str], T]) -> T | None:
    if not isinstance(given, str):
        return given
    try:
        return read(given)
    except ValueError as error:
        raise OptionError(f"{name} {error}") from None


@dataclass(frozen=True)
class Limits:
    """What one model may take.

    Attributes:
        seconds: wall time; None for no limit.
        bytes: resident memory of its process and the children of that; None for no limit.
    """

    seconds: float | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class FleetOptions(ClusterOptions):
    """How many models at a time, within which limits, and where."""

    title: ClassVar[str] = "fleet"

    workers: int = option(
        1,
        "Models that are compressed at the same time, each in a process of its own; the cores are "
        "shared out among them. Times are truest with one.",
        metavar="N",
    )
    time_limit: float | str | None = option(
        None,
        "Longest time for one model, in seconds or as 10min or 2h; one that takes longer is ended "
        "and recorded. None by default.",
        metavar="10min",
    )
    memory_limit: int | str | None = option(
        None,
        "Most memory for one model, in bytes or as 2GiB: what is resident of its process and its "
        "children, without the pages of mapped files. None by default.",
        metavar="2GiB",
    )
    retry_failed: bool = option(
        False, "Try the models again that failed before, for instance with higher limits."
    )

    def __post_init__(self) -> None:
        check_count("workers", self.workers)
        if self.scheduler is not None and self.workers != type(self).workers:
            raise OptionError("workers and a scheduler at once; Dask has workers of its own")
        limits = self.limits()
        if limits.seconds is not None:
            check_seconds("time limit", limits.seconds)
        if limits.bytes is not None:
            check_count("memory limit", limits.bytes)

    def limits(self) -> Limits:
        """What one model may take.

        Raises:
            OptionError: a text cannot be read.
        """
        return Limits(
            _value("time limit", self.time_limit, read_duration),
            _value("memory limit", self.memory_limit, read_bytes),
        )


@dataclass(frozen=True)
class BatchOptions(CompressOptions):
    """Options of ``batch``."""

    cluster: FleetOptions = FleetOptions()
