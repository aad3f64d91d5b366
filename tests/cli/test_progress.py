"""What a terminal shows while a command works."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator

import pytest
from rich.console import Console

from onnx_lowrank.cli.progress import (
    COMPRESSING,
    COMPRESSING_QUICKLY,
    Forecast,
    progress_of,
    steps_of,
    time_left,
)
from onnx_lowrank.engine.options import CompressOptions
from onnx_lowrank.options import from_keywords

STEPS = (("read", 1.0), ("solve", 2.0), ("solve", 4.0), ("check", 1.0))


def test_steps_count_as_much_as_they_usually_take() -> None:
    forecast = Forecast(STEPS)
    assert forecast.done == 0
    found = []
    for name in ("read", "solve", "solve", "check"):
        forecast.begin(name)
        forecast.advance(0.5)
        found.append(forecast.done)
        forecast.end()
    assert found == [0.5 / 8, 2 / 8, 5 / 8, 7.5 / 8]
    assert forecast.done == 1


def test_steps_that_do_not_come_are_passed_over_and_others_do_not_count() -> None:
    forecast = Forecast(STEPS)
    forecast.begin("solve")
    assert forecast.done == 1 / 8
    forecast.begin("draw")  # inside it
    forecast.advance(1.0)
    forecast.end()
    assert forecast.done == 1 / 8
    forecast.advance(0.5)
    forecast.end()
    forecast.begin("check")
    assert forecast.done == 7 / 8
    forecast.end()
    for name in ("solve", "check", "read"):  # again: the run never goes back
        forecast.begin(name)
        forecast.end()
    assert forecast.done == 1


def test_nothing_is_known_of_other_commands() -> None:
    forecast = Forecast(())
    forecast.begin("solve")
    forecast.advance(0.5)
    forecast.end()
    assert forecast.done == 0


@pytest.mark.parametrize(
    ("done", "elapsed", "text"),
    [
        (0.0, 5.0, ""),
        (0.049, 5.0, ""),
        (0.5, 4.0, "a few seconds left"),
        (0.5, 42.0, "about 40 s left"),
        (0.1, 20.0, "about 3 min left"),
        (0.1, 3600.0, "about 9 h left"),
        (1.0, 60.0, ""),
    ],
)
def test_time_left(done: float, elapsed: float, text: str) -> None:
    assert time_left(done, elapsed) == text


def clock() -> Iterator[float]:
    """Ten seconds pass between any two looks."""
    now = 0.0
    while True:
        yield now
        now += 10.0


def shown(steps: tuple[tuple[str, float], ...], terminal: bool = True, quiet: bool = False) -> str:
    stream, seconds = io.StringIO(), clock()
    console = Console(file=stream, force_terminal=terminal, width=100)
    with progress_of(quiet, steps, console, lambda: next(seconds)) as progress:
        with progress.task("read", 2) as advance:
            advance(1)
            advance(1)
        with progress.task("solve", 3) as advance:
            advance(2)
            time.sleep(0.3)  # rows are drawn ten times a second
            console.print("---")
            advance(1)
    return stream.getvalue()


def test_the_run_and_the_step_at_work() -> None:
    text = shown(STEPS)
    assert "whole run" in text
    assert "min left" in text
    assert "2/3" in text
    last = text.rpartition("---")[2]
    assert "solve" in last
    assert "read" not in last  # it has ended


def test_steps_alone_where_the_run_is_not_known() -> None:
    text = shown(())
    assert "whole run" not in text
    assert "2/3" in text


@pytest.mark.parametrize(("terminal", "quiet"), [(False, False), (True, True)])
def test_silent_in_pipes_and_when_asked(terminal: bool, quiet: bool) -> None:
    assert shown(STEPS, terminal, quiet).strip() == "---"


def test_the_row_of_a_step_goes_when_it_is_interrupted() -> None:
    console = Console(file=io.StringIO(), force_terminal=True)
    with progress_of(False, STEPS, console) as progress:
        with pytest.raises(KeyboardInterrupt), progress.task("read", 2):
            raise KeyboardInterrupt
        with progress.task("solve", 0) as advance:
            advance(0)


@pytest.mark.parametrize("steps", [COMPRESSING, COMPRESSING_QUICKLY])
def test_shares_are_hundredths(steps: tuple[tuple[str, float], ...]) -> None:
    assert sum(share for _, share in steps) == 100


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ({"target": "macs=0.5"}, COMPRESSING),
        ({"target": "macs=0.5", "effort": "quick"}, COMPRESSING_QUICKLY),
        ({"target": "latency", "max_drop": "1%"}, ()),
        ({}, ()),
    ],
)
def test_a_search_takes_nobody_knows_how_long(given: dict[str, str], steps: object) -> None:
    assert steps_of(from_keywords(CompressOptions, given)) == steps
