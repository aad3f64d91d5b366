"""``python -m benchmarks NAME ...``: measure, write rows as JSON, and print them as a table."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from benchmarks.command import add_common_arguments, run
from benchmarks.commands import COMMANDS
from benchmarks.rows import FormError

__all__ = ["main", "parser"]


def parser() -> argparse.ArgumentParser:
    """The parser of the command line, with a sub-command for each benchmark."""
    made = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = made.add_subparsers(dest="name", metavar="NAME", required=True)
    for command in COMMANDS.values():
        sub = names.add_parser(
            command.name, help=command.summary, description=command.summary, epilog=command.epilog
        )
        add_common_arguments(sub, command)
        command.add_arguments(sub)
    return made


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what the arguments name."""
    made = parser()
    arguments = made.parse_args(argv)
    try:
        run(COMMANDS[arguments.name], arguments)
    except FormError as error:
        made.error(str(error))


if __name__ == "__main__":
    main()
