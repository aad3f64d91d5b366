"""The command ``batch``: its options to a library call, what became of each model to a table."""

from __future__ import annotations

import argparse
import shlex
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from onnx_lowrank.errors import BatchError
from onnx_lowrank.fleet.options import BatchOptions
from onnx_lowrank.options import options_of

if TYPE_CHECKING:
    from onnx_lowrank.fleet.batch import Standing

__all__ = ["run_batch"]


def run_batch(a: argparse.Namespace, out: Console) -> int:
    """Compress many models, and fail where one of them did.

    Raises:
        BatchError: some models failed; all others are written.
    """
    from onnx_lowrank.fleet.batch import batch  # other commands need nothing of it

    given = {name: getattr(a, name) for name in options_of(BatchOptions)}
    # texts go on as they are: the processes of the models read them
    keywords = {k: v for k, v in given.items() if v is not None and v is not False}
    seen: list[Standing] = []
    try:
        with _softly_terminated(), _standing(a.quiet) as show:

            def told(standing: Standing) -> None:
                seen[:] = [standing]
                show(standing)

            made = batch(
                a.source, a.output, told=told, command=shlex.join(["onnx-lowrank", *a.given]),
                **keywords,
            )  # fmt: skip
    except KeyboardInterrupt as interruption:
        last = f"{seen[0].done} of {seen[0].total}" if seen else "none"
        Console(stderr=True, highlight=False, soft_wrap=True).print(
            f"interrupted; {last} models are settled, and the same command goes on from there"
        )
        return 128 + (signal.SIGTERM if interruption.args else signal.SIGINT)
    if not a.quiet:
        out.print(_table(made.summary["models"]))
        out.print(_said(made.summary["counts"]))
        out.print(f"wrote {made.page}", markup=False)
    if made.failed:
        total = made.summary["counts"]["total"]
        raise BatchError(
            f"{made.failed} of {total} models failed; the others have results, the reasons are in "
            f"{made.page}, and --retry-failed tries these models again"
        )
    return 0


@contextmanager
def _softly_terminated() -> Iterator[None]:
    """Let SIGTERM, by which schedulers end jobs, do what Ctrl-C does; what is done is kept."""

    def interrupt(number: int, _: Any) -> None:
        raise KeyboardInterrupt(number)

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _said(counts: dict[str, int]) -> str:
    return ", ".join(
        f"{counts[status]} {status}" for status in ("done", "unchanged", "failed") if counts[status]
    )


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="models", title_justify="left", box=None, pad_edge=False)
    table.add_column("model", overflow="fold")
    table.add_column("status", no_wrap=True)
    for column in ("MACs left", "bytes left", "stays"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("reason", overflow="fold", style="dim")
    for row in rows:
        kept = row["kept"][0] if row["kept"] else None
        table.add_row(
            _text(row["model"]),
            Text(row["cause"] or row["status"], style="red" if row["status"] == "failed" else ""),
            *(_left(row, key) for key in ("macs", "bytes")),
            "" if kept is None else f"{kept:.1%}",
            _text(row["reason"]),
        )
    return table


def _text(text: str) -> Text:
    """Text to print, also of names of files that are none."""
    return Text(text.encode("utf-8", "replace").decode())


def _left(row: dict[str, Any], key: str) -> str:
    before, after = row["before"], row["after"]
    return f"{after[key] / before[key]:.3f}" if after and before and before[key] else ""


@contextmanager
def _standing(quiet: bool) -> Iterator[Callable[[Standing], None]]:
    """Show how far a batch is on a terminal: models done, failures, and the time left."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda _: None
        return
    columns = (
        TextColumn("models"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console, transient=True) as bars:
        task = bars.add_task("", total=None)

        def show(standing: Standing) -> None:
            # what an earlier run did took no time, and would flatter the time left
            skipped = standing.resumed
            bars.update(
                task,
                total=standing.total - skipped,
                completed=standing.done - skipped,
                description=f"{standing.failed} failed" if standing.failed else "",
            )

        yield show
