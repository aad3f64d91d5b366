"""What a benchmark is, and how one is run: cells that are known are told, the others measured."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import dropwhile, groupby
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.nets import NETS
from benchmarks.rows import Cell, FormError, Results, Row
from benchmarks.tables import Column, head, line

__all__ = ["Command", "Measure", "add_common_arguments", "measured", "run"]

#: measures one cell
Measure = Callable[[Cell], Row]


def _path_of_net(name: str) -> Path:
    return NETS[name].path


def _no_arguments(_: argparse.ArgumentParser) -> None:
    """Declare nothing beside what all benchmarks have."""


def _nothing_to_add(rows: Sequence[Row], arguments: argparse.Namespace) -> None:
    """Print nothing behind the table."""


@dataclass(frozen=True)
class Command:
    """A benchmark.

    Attributes:
        name: of the sub-command.
        summary: one sentence for the help.
        models: names of the models that are measured where none are named.
        choices: names of the models that can be.
        columns: of its table.
        cells: what is to be measured of the models that the arguments name, model by model.
        begin: given a model's name, an empty folder and the arguments, the function that measures
            its cells; it may keep what several cells need.
        add_arguments: declares what this benchmark alone has on the command line.
        close: prints or writes what follows from all rows together.
        path_of: the file of a model; models whose file is absent are left out.
        epilog: more about it, for its own help.
    """

    name: str
    summary: str
    models: Sequence[str]
    choices: Sequence[str]
    columns: Sequence[Column]
    cells: Callable[[argparse.Namespace], list[Cell]]
    begin: Callable[[str, Path, argparse.Namespace], Measure]
    add_arguments: Callable[[argparse.ArgumentParser], None] = _no_arguments
    close: Callable[[Sequence[Row], argparse.Namespace], None] = _nothing_to_add
    path_of: Callable[[str], Path] = _path_of_net
    epilog: str = ""


def add_common_arguments(parser: argparse.ArgumentParser, command: Command) -> None:
    """Declare what every benchmark has on the command line."""
    parser.add_argument(
        "--models", nargs="+", default=list(command.models), choices=command.choices,
        metavar="MODEL", help="models to measure; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--again", action="store_true", help="measure cells again that have a row already"
    )
    parser.add_argument(
        "--page", type=Path, metavar="FILE",
        help=f"measure nothing; write the rows that are known into the table of this page that "
        f"stands below <!-- benchmark {command.name} -->",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=Path(f"benchmarks/results/{command.name}.json"),
        metavar="FILE", help="file of the rows; default: %(default)s",
    )  # fmt: skip


def run(command: Command, arguments: argparse.Namespace) -> None:
    """Measure what the arguments name, print the table, and keep the rows."""
    results = Results(arguments.out)
    if arguments.page is not None:
        arguments.page.write_text(_filled(command, arguments, results.rows), encoding="utf-8")
        return
    known = {} if arguments.again else dict(results.rows)
    print(head(command.columns))
    told = []
    for row in measured(command, arguments, known):
        results.add(row)
        told.append(row)
        print(line(row, command.columns), flush=True)
    command.close(told, arguments)


def _filled(command: Command, arguments: argparse.Namespace, known: Mapping[str, Row]) -> str:
    """The text of the page with the table of all cells; those without a row are not filled in."""
    told = [known.get(c.key, c.measured({}, {})) for c in command.cells(arguments)]
    table = "\n".join([head(command.columns), *(line(row, command.columns) for row in told)])
    mark = f"<!-- benchmark {command.name} -->\n\n"
    before, found, after = arguments.page.read_text(encoding="utf-8").partition(mark)
    if not found:
        raise FormError(f"{arguments.page} has no line {mark.strip()} with an empty one below it")
    rest = "".join(dropwhile(lambda text: text.startswith("|"), after.splitlines(keepends=True)))
    return f"{before}{mark}{table}\n\n{rest.lstrip()}"


def measured(
    command: Command, arguments: argparse.Namespace, known: Mapping[str, Row]
) -> Iterator[Row]:
    """The row of every cell, in order: the known one, or a new one.

    Args:
        command: the benchmark.
        arguments: of its command line.
        known: rows by key.
    """
    for name, cells in groupby(command.cells(arguments), key=lambda c: c.model):
        with ExitStack() as stack:
            measure: Measure | None = None
            for cell in cells:
                if cell.key in known:
                    yield known[cell.key]
                    continue
                if not command.path_of(name).is_file():
                    print(f"{name} is left out: {command.path_of(name)} is not there")
                    break
                if measure is None:
                    folder = Path(stack.enter_context(TemporaryDirectory()))
                    measure = command.begin(name, folder, arguments)
                yield measure(cell)
