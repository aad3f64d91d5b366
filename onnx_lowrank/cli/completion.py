"""Completion of commands, options and file names, as scripts that shells read."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from onnx_lowrank.errors import OptionError
from onnx_lowrank.planning.registry import available

__all__ = ["SHELLS", "completion"]

#: shells that there are scripts for
SHELLS = ("bash", "zsh", "fish")

_FILES = ("FILE", "IN", "NEW", "OUT", "PATH", "PLAN", "REF")


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script by which a shell completes a command line.

    Args:
        parser: of the command line, with all its commands; it is changed and of no use after.
        shell: one of :data:`SHELLS`.

    Raises:
        OptionError: there is no script for this shell.
    """
    import shtab

    if shell not in SHELLS:
        raise OptionError(f"no completion for {shell!r}; choose from {', '.join(SHELLS)}")
    for action in _actions(parser):
        if action.metavar in _FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.metavar == "FOLDER":
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif action.metavar == "PASS":
            action.choices = list(available())
        elif action.metavar == "SHELL":
            action.choices = SHELLS
    return str(shtab.complete(parser, shell=shell))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Arguments of a parser and of its commands; argparse has no public way to list them."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
