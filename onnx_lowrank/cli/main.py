"""The command line: arguments to a command to an exit code; nothing imports it."""

from __future__ import annotations

import argparse
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rich.console import Console

from onnx_lowrank._version import __version__
from onnx_lowrank.cli.batch import run_batch
from onnx_lowrank.cli.commands import (
    run_apply,
    run_compress,
    run_explain,
    run_inspect,
    run_passes,
    run_plan,
    run_select,
    run_sweep,
    run_validate,
)
from onnx_lowrank.cli.completion import SHELLS, completion
from onnx_lowrank.cli.options import (
    CurveFiles,
    FeatureModel,
    GateOptions,
    Parser,
    PlanFile,
    PrintOptions,
    ReportFile,
    SampleFile,
    SweepFiles,
)
from onnx_lowrank.engine.options import (
    ApplyOptions,
    CompressOptions,
    CurvesOptions,
    PlanOptions,
    SweepOptions,
    ValidateOptions,
)
from onnx_lowrank.engine.select import SelectOptions
from onnx_lowrank.errors import LowRankError
from onnx_lowrank.fleet.options import BatchOptions
from onnx_lowrank.latency.timer import Timer
from onnx_lowrank.options import add_arguments
from onnx_lowrank.runtime.allocator import keep_freed_memory

__all__ = ["COMMANDS", "main"]


_EXIT_CODES = """exit codes:
  0 done   2 wrong options   3 bad model   4 bad data
  5 the budget cannot be met, or the guard refused   6 validation failed
  7 some models of a batch failed, or a cluster is lost   130 interrupted"""


def main(argv: Sequence[str] | None = None, timer: Timer | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: the arguments; None for those of the process.
        timer: takes all times; None for one that runs models in ONNX Runtime.
    """
    if argv is None:  # a process of our own
        keep_freed_memory()
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    with warnings.catch_warnings():
        warnings.showwarning = partial(_show_warning, errors)
        return _run(argv, timer, errors)


def _run(argv: Sequence[str] | None, timer: Timer | None, errors: Console) -> int:
    try:
        arguments = _parser().parse_args(argv)
        arguments.given, arguments.timer = sys.argv[1:] if argv is None else argv, timer
        run: Callable[[argparse.Namespace, Console], int] = arguments.run
        # tables in a pipe are not folded to a screen that is not there
        out = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
        return run(arguments, out)
    except LowRankError as error:
        errors.print(f"[red]error:[/] {_escape(error)}")
        return error.exit_code
    except KeyboardInterrupt:
        errors.print("interrupted; nothing was written")
        return 128 + signal.SIGINT
    except BrokenPipeError:
        return 128 + signal.SIGPIPE


def _show_warning(
    errors: Console, message: Warning | str, category: type[Warning], *_: Any, **__: Any
) -> None:
    """Say in one line what is meant for users; other categories are for developers.

    Filters come first: one that makes errors of warnings, as in tests, still does.
    """
    if issubclass(category, UserWarning):
        first = (str(message).strip().splitlines() or [category.__name__])[0]
        errors.print(f"[yellow]warning:[/] {_escape(first)}")


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        help: what it does, in a line.
        run: does it, and returns the exit code.
        operands: names of its positional arguments, and help for each.
        options: the dataclasses that declare its options.
    """

    help: str
    run: Callable[[argparse.Namespace, Console], int]
    operands: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    options: tuple[type[Any], ...] = ()


def _run_completion(a: argparse.Namespace, out: Console) -> int:
    """Print what a shell reads to complete command lines."""
    del out  # which would fold long lines
    print(completion(_parser(), a.shell))
    return 0


_IN = ("IN", "the exported model")
_OUT = ("OUT", "where to write the compressed model")

COMMANDS = {
    "compress": Command(
        "make a smaller, faster model and prove it",
        run_compress,
        {"model": _IN, "output": _OUT},
        (CompressOptions, ReportFile, PlanFile, PrintOptions),
    ),
    "plan": Command(
        "say what compress would do, to be looked at and edited",
        run_plan,
        {"model": _IN, "plan": ("PLAN", "where to write the plan, as JSON")},
        (PlanOptions, PrintOptions),
    ),
    "apply": Command(
        "do what a plan says, edited or not",
        run_apply,
        {
            "model": ("IN", "the model that was planned for"),
            "plan": ("PLAN", "the plan; it says which samples to draw, too"),
            "output": _OUT,
        },
        (ApplyOptions, ReportFile, PrintOptions),
    ),
    "sweep": Command(
        "try many budgets: what each costs, and what it keeps",
        run_sweep,
        {"model": _IN},
        (SweepOptions, SweepFiles, PrintOptions),
    ),
    "batch": Command(
        "compress many models, each in a process of its own",
        run_batch,
        {
            "source": ("FOLDER|MANIFEST", "models below a folder, or a list of them, as JSON"),
            "output": ("OUT", "folder of results, receipts, journal and summary"),
        },
        (BatchOptions, PrintOptions),
    ),
    "inspect": Command(
        "list layers, costs, and what can be taken apart",
        run_inspect,
        {"model": _IN},
        (CurveFiles, CurvesOptions, PrintOptions),
    ),
    "validate": Command(
        "compare a model with its original",
        run_validate,
        {"reference": ("REF", "the original"), "new": ("NEW", "the model to judge")},
        (GateOptions, SampleFile, ValidateOptions, ReportFile, PrintOptions),
    ),
    "select": Command(
        "choose the samples that are worth calibrating on",
        run_select,
        {
            "data": ("DATA", "the samples, as --calib of compress"),
            "output": ("OUT", "where to write those that were chosen, as .npz"),
        },
        (SelectOptions, FeatureModel, PrintOptions),
    ),
    "passes": Command("list the passes", run_passes),
    "explain": Command(
        "say what a pass does, and its options", run_explain, {"name": ("PASS", "its name")}
    ),
    "completion": Command(
        "print the script by which a shell completes commands, options and files",
        _run_completion,
        {"shell": ("SHELL", f"one of: {', '.join(SHELLS)}")},
    ),
}


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="onnx-lowrank",
        description="Compress an exported ONNX model, without labels or retraining.",
        epilog=_EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"onnx-lowrank {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    for name, command in COMMANDS.items():
        own = commands.add_parser(name, help=command.help, description=command.help)
        for operand, (metavar, text) in command.operands.items():
            own.add_argument(operand, metavar=metavar, help=text)
        for options in command.options:
            add_arguments(own, options)
        own.set_defaults(run=command.run)
    return parser


def _escape(error: Exception | str) -> str:
    return str(error).replace("[", r"\[")
