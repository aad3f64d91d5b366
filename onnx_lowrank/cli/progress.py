"""Progress on a terminal: the step at work, how far the whole run is, and the time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from onnx_lowrank.engine.effort import QUICK
from onnx_lowrank.engine.options import CompressOptions, PlanOptions
from onnx_lowrank.progress import Progress

__all__ = [
    "COMPRESSING",
    "COMPRESSING_QUICKLY",
    "Forecast",
    "progress_of",
    "steps_of",
    "time_left",
]

#: what the steps of ``compress`` usually take of it, in their order, in hundredths: rounded means
#: over a small classifier, a residual network and a sentence encoder, each with its own data
COMPRESSING = (
    ("calibrate", 8),
    ("plan", 7),
    ("attention", 1),
    ("prune", 6),
    ("weigh groups", 12),
    ("swap channels", 3),
    ("plan", 2),
    ("swap channels", 3),
    ("plan", 10),
    ("refit", 17),
    ("refit", 15),
    ("refit", 8),
    ("validate", 8),
)
#: likewise with ``--effort quick``
COMPRESSING_QUICKLY = (
    ("calibrate", 17),
    ("plan", 18),
    ("attention", 1),
    ("prune", 9),
    ("weigh groups", 5),
    ("swap channels", 8),
    ("plan", 9),
    ("refit", 26),
    ("validate", 7),
)
#: part of a run that must be done before it says anything of the rest
_ENOUGH = 0.05


def steps_of(options: CompressOptions | PlanOptions) -> Sequence[tuple[str, float]]:
    """The steps that are expected of ``compress`` and ``plan``; none where they search a budget."""
    keep = options.keep.requirement() if isinstance(options, CompressOptions) else None
    if options.target.target is None or keep is not None:
        return ()
    return COMPRESSING_QUICKLY if options.target.effort == QUICK.name else COMPRESSING


class Forecast:
    """How much of a run is done, by what its steps usually take of it.

    Steps that do not come are passed over, and steps that nobody expects do not count.

    Args:
        steps: names and shares of the steps that are expected, in order; empty where nothing is
            known of them.
    """

    def __init__(self, steps: Sequence[tuple[str, float]]) -> None:
        self._steps = steps
        self._whole = sum(share for _, share in steps)
        self._next = 0
        self._open: list[int | None] = []
        self.done = 0.0

    def begin(self, name: str) -> None:
        """A step begins, maybe inside another."""
        later = range(self._next, len(self._steps))
        place = next((i for i in later if self._steps[i][0] == name), None)
        if place is not None:
            self._next = place + 1
        self._open.append(place)
        self.advance(0.0)

    def advance(self, part: float) -> None:
        """So much of the innermost step is done, 0 to 1."""
        place = self._open[-1]
        if place is not None:
            before = sum(share for _, share in self._steps[:place])
            done = (before + part * self._steps[place][1]) / self._whole
            self.done = max(self.done, done)

    def end(self) -> None:
        """The innermost step ends."""
        self.advance(1.0)
        self._open.pop()


def time_left(done: float, elapsed: float) -> str:
    """The time that a run still takes, for people; empty as long as nobody can know.

    Args:
        done: part of the run that is done, 0 to 1.
        elapsed: seconds since it began.
    """
    if not _ENOUGH <= done < 1:
        return ""
    left = elapsed * (1 - done) / done
    if left < 10:
        return "a few seconds left"
    if left < 90:
        return f"about {10 * round(left / 10)} s left"
    minutes = round(left / 60)
    return f"about {minutes} min left" if minutes < 90 else f"about {round(left / 3600)} h left"


class _OnTerminal(Progress):
    """Two rows and more: the whole run where its steps are known, and the steps at work."""

    def __init__(
        self, bars: Bars, steps: Sequence[tuple[str, float]], clock: Callable[[], float]
    ) -> None:
        self._bars, self._clock, self._begun = bars, clock, clock()
        self._forecast = Forecast(steps)
        self._run = bars.add_task("whole run", total=1, note="") if steps else None

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        count = 0
        row = self._bars.add_task(name, total=total, note=f"0/{total}")
        self._forecast.begin(name)

        def advance(done: int) -> None:
            nonlocal count
            count += done
            self._bars.update(row, completed=count, note=f"{count}/{total}")
            self._forecast.advance(min(count / total, 1.0) if total else 1.0)
            self._tell()

        try:
            yield advance
        finally:
            self._forecast.end()
            self._bars.remove_task(row)
            self._tell()

    def _tell(self) -> None:
        if self._run is not None:
            done = self._forecast.done
            left = time_left(done, self._clock() - self._begun)
            self._bars.update(self._run, completed=done, note=left)


@contextmanager
def progress_of(
    quiet: bool,
    steps: Sequence[tuple[str, float]] = (),
    console: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Progress]:
    """Progress for a command: on a terminal while it works, and nothing in pipes.

    Args:
        quiet: whether to say nothing.
        steps: what is known of the steps of the command, as in :class:`Forecast`.
        console: where to draw; None for standard error.
        clock: seconds.
    """
    console = console or Console(stderr=True)
    if quiet or not console.is_terminal:
        yield Progress()
        return
    columns = (
        TextColumn("{task.description:>14}"),
        BarColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=console, transient=True) as bars:
        yield _OnTerminal(bars, steps, clock)
