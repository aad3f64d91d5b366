"""The command line: arguments to a command to an exit code; nothing imports it."""

from __future__ import annotations

import argparse
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from rich.console import Console

from onnx_lowrank._version import __version__
from onnx_lowrank.cli.commands import (
    run_apply,
    run_compress,
    run_explain,
    run_inspect,
    run_passes,
    run_plan,
    run_sweep,
    run_validate,
)
from onnx_lowrank.cli.options import (
    Parser,
    calib_option,
    draw_options,
    pass_options,
    plan_options,
    result_options,
    run_options,
    search_options,
    shape_option,
    time_options,
)
from onnx_lowrank.engine.sweep import RATIOS
from onnx_lowrank.errors import LowRankError
from onnx_lowrank.planning.targets import METRICS

__all__ = ["main"]

_EXIT_CODES = """exit codes:
  0 done   2 wrong options   3 bad model   4 bad data
  5 the budget cannot be met, or the guard refused   6 validation failed   130 interrupted"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    with warnings.catch_warnings():
        warnings.showwarning = partial(_show_warning, errors)
        return _run(argv, errors)


def _run(argv: Sequence[str] | None, errors: Console) -> int:
    try:
        arguments = _parser().parse_args(argv)
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


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="onnx-lowrank",
        description="Compress an exported ONNX model, without labels or retraining.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"onnx-lowrank {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)

    c = commands.add_parser("compress", help="make a smaller, faster model and prove it")
    c.add_argument("model", metavar="IN", help="the exported model")
    c.add_argument("output", metavar="OUT", help="where to write the compressed model")
    c.add_argument("--plan", metavar="FILE", help="write the plan as well, as JSON")
    for add in (calib_option, plan_options, search_options, result_options):
        add(c)
    for add in (shape_option, time_options, draw_options, run_options):
        add(c)
    c.set_defaults(run=run_compress)

    d = commands.add_parser("plan", help="say what compress would do, to be looked at and edited")
    d.add_argument("model", metavar="IN", help="the exported model")
    d.add_argument("plan", metavar="PLAN", help="where to write the plan, as JSON")
    for add in (calib_option, plan_options, shape_option, time_options, draw_options, run_options):
        add(d)
    d.set_defaults(run=run_plan)

    b = commands.add_parser("apply", help="do what a plan says, edited or not")
    b.add_argument("model", metavar="IN", help="the model that was planned for")
    b.add_argument("plan", metavar="PLAN", help="the plan; it says what samples to draw, too")
    b.add_argument("output", metavar="OUT", help="where to write the compressed model")
    for add in (calib_option, result_options, shape_option, time_options, run_options):
        add(b)
    b.set_defaults(run=run_apply)

    w = commands.add_parser("sweep", help="try many budgets: what each costs, and what it keeps")
    w.add_argument("model", metavar="IN", help="the exported model")
    w.add_argument("--budget", choices=METRICS, default="macs",
                   help="what is left less and less of (default: %(default)s)")  # fmt: skip
    w.add_argument("--ratios", default=",".join(f"{r:g}" for r in RATIOS), metavar="R,R,...",
                   help="parts of the original (default: %(default)s)")  # fmt: skip
    w.add_argument("--json", metavar="FILE", help="write all points as JSON")
    w.add_argument("--plot", metavar="FILE", help="draw them, .png or .svg")
    w.add_argument("--models", metavar="FOLDER", help="write the models")
    for add in (calib_option, pass_options, shape_option, time_options, draw_options, run_options):
        add(w)
    w.set_defaults(run=run_sweep)

    i = commands.add_parser("inspect", help="list layers, costs, and what can be taken apart")
    i.add_argument("model", metavar="IN")
    i.add_argument("--curves", action="store_true",
                   help="error against MACs of every layer by every method")  # fmt: skip
    i.add_argument("--calib", metavar="PATH", help="for --curves: typical inputs, as of compress")
    i.add_argument("--layer", action="append", default=[], metavar="GLOB",
                   help="for --curves: only these layers; may be repeated")  # fmt: skip
    i.add_argument("--passes", metavar="LIST", help="for --curves: passes with options (all)")
    form = i.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--plot", metavar="FILE", help="for --curves: draw them, .png or .svg")
    shape_option(i)
    draw_options(i)
    run_options(i)
    i.set_defaults(run=run_inspect)

    v = commands.add_parser("validate", help="compare a model with its original")
    v.add_argument("reference", metavar="REF")
    v.add_argument("new", metavar="NEW")
    v.add_argument("--data", required=True, metavar="PATH", help="as --calib of compress")
    v.add_argument("--max-drop", metavar="1%", help="fail (exit 6) if more accuracy is lost; "
                   "without labels, if the top class changes more often")  # fmt: skip
    v.add_argument("--json", action="store_true", help="print JSON")
    draw_options(v)
    run_options(v)
    v.set_defaults(run=run_validate)

    p = commands.add_parser("passes", help="list the passes")
    p.set_defaults(run=run_passes)
    e = commands.add_parser("explain", help="say what a pass does, and its options")
    e.add_argument("name", metavar="PASS")
    e.set_defaults(run=run_explain)
    return parser


def _escape(error: Exception | str) -> str:
    return str(error).replace("[", r"\[")
