"""One table maker: columns say how a row becomes a cell, and every table is Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.figures import speedup_name
from benchmarks.rows import MEASURED, Row

__all__ = [
    "Column",
    "accuracy",
    "asked",
    "figure",
    "head",
    "line",
    "markdown",
    "model",
    "seconds",
    "speedup",
    "text_line",
]


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        heading: its name.
        text: what it shows of a row.
        of_question: whether it shows what was asked, which is known without any figure.
    """

    heading: str
    text: Callable[[Row], str]
    of_question: bool = False


def model() -> Column:
    """The name of the model."""
    return Column("model", lambda row: row.model, of_question=True)


def asked(heading: str, option: str, form: str = "{}") -> Column:
    """An option of the row's cell."""
    return Column(heading, lambda row: form.format(row.options[option]), of_question=True)


def figure(heading: str, name: str, form: str = "{:.2f}", unbounded: str = "") -> Column:
    """A figure of the row; empty where the row has none.

    Args:
        heading: of the column.
        name: of the figure.
        form: how it is written.
        unbounded: what is written where it is without bound.
    """

    def text(row: Row) -> str:
        if name not in row.figures:
            return ""
        value = row.figures[name]
        return unbounded if value is None else form.format(value)

    return Column(heading, text)


def accuracy() -> Column:
    """Labelled accuracy before and after, and of how many samples; empty without labels."""

    def text(row: Row) -> str:
        before, after = (row.figures.get(k) for k in ("accuracy_before", "accuracy"))
        if before is None or after is None:
            return ""
        return f"{before:.1%} -> {after:.1%} of {row.samples['test']}"

    return Column("top-1", text)


def speedup(heading: str, threads: int, batch: int) -> Column:
    """The speed-up at so many threads and samples."""
    return figure(heading, speedup_name(threads, batch), "{:.2f}x")


def seconds() -> Column:
    """How long it took."""
    return figure("seconds", "seconds", "{:.0f}")


def head(columns: Sequence[Column]) -> str:
    """The first two lines of a table."""
    return _head([c.heading for c in columns])


def line(row: Row, columns: Sequence[Column]) -> str:
    """A row of the table; of one that was not measured the first empty cell says why."""
    cells = [column.text(row) for column in columns]
    if row.status != MEASURED:
        empty = (i for i, c in enumerate(columns) if not (c.of_question or cells[i]))
        cells[next(empty)] = f"{row.status}: {_last_line(row.message)}"
    return text_line(cells)


def markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A whole table of texts."""
    return "\n".join([_head(headings), *map(text_line, lines)])


def text_line(cells: Sequence[str]) -> str:
    """One line of a table; a cell that is longer than a line becomes one."""
    return f"| {' | '.join(' '.join(cell.split()) for cell in cells)} |"


def _head(headings: Sequence[str]) -> str:
    return f"{text_line(headings)}\n|{'---|' * len(headings)}"


def _last_line(message: str) -> str:
    """The line that names the fault: the last one of a traceback, the only one of a message."""
    return message.strip().splitlines()[-1] if message.strip() else ""
