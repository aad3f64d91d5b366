"""Wall time of the steps of a run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Stopwatch"]


class Stopwatch:
    """Wall time by step, less that of steps inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        """Count what is done inside for a step."""
        start, inside = time.perf_counter(), sum(self.seconds.values())
        yield
        spent = time.perf_counter() - start - (sum(self.seconds.values()) - inside)
        self.seconds[step] = round(self.seconds.get(step, 0.0) + spent, 3)
