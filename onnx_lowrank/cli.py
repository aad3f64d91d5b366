"""The command line: arguments to a library call to an exit code; nothing imports it."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from onnx_lowrank._version import __version__
from onnx_lowrank.cli_options import (
    Parser,
    batch_option,
    calib_option,
    draw_options,
    images,
    pass_options,
    percentage,
    plan_options,
    ratios,
    requirement,
    result_options,
    run_options,
    search_options,
    shape_option,
    shapes,
)
from onnx_lowrank.curve_plot import check_picture
from onnx_lowrank.curves import curves
from onnx_lowrank.errors import BudgetError, LowRankError, OptionError, ValidationError
from onnx_lowrank.inspection import inspect
from onnx_lowrank.model import atomic_write, check_output, load
from onnx_lowrank.pipeline import Result, apply, compress, plan, sweep
from onnx_lowrank.plan import Plan
from onnx_lowrank.plan_summary import print_summary
from onnx_lowrank.progress import Progress
from onnx_lowrank.registry import available, pass_class
from onnx_lowrank.report import outputs_table
from onnx_lowrank.sweep import RATIOS
from onnx_lowrank.targets import METRICS
from onnx_lowrank.validate import validate

__all__ = ["main"]

_EXIT_CODES = """exit codes:
  0 done   2 wrong options   3 bad model   4 bad data
  5 the budget cannot be met, or the guard refused   6 validation failed   130 interrupted"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
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


def _compress(a: argparse.Namespace, out: Console) -> int:
    source = load(a.model)
    check_output(a.output, source, keep=[a.calib])
    for extra, others in ((a.report, ()), (a.plan, (a.report,))):
        if extra:
            check_output(extra, source, keep=[a.calib, a.output, *others])
    with _progress(a.quiet) as progress:
        result = compress(
            source,
            **_planning(a),
            **requirement(a),
            force=a.force,
            progress=progress,
        )
        written = result.save(a.output)
    if a.plan:
        _write_text(a.plan, result.plan.to_json())
    return _finish(a, out, result, written)


def _plan(a: argparse.Namespace, out: Console) -> int:
    source = load(a.model)
    check_output(a.plan, source, keep=[a.calib])
    with _progress(a.quiet) as progress:
        made = plan(source, **_planning(a), progress=progress)
    _write_text(a.plan, made.to_json())
    if not a.quiet:
        print_summary(made, out)
        out.print(f"wrote {a.plan}", markup=False)
    return 0


def _apply(a: argparse.Namespace, out: Console) -> int:
    source, decided = load(a.model), Plan.load(a.plan)
    check_output(a.output, source, keep=[a.calib, a.plan])
    if a.report:
        check_output(a.report, source, keep=[a.calib, a.plan, a.output])
    with _progress(a.quiet) as progress:
        result = apply(
            source,
            decided,
            **_running(a),
            force=a.force,
            progress=progress,
        )
        written = result.save(a.output)
    return _finish(a, out, result, written)


def _sweep(a: argparse.Namespace, out: Console) -> int:
    source = load(a.model)
    if a.plot:
        check_output(check_picture(a.plot), source, keep=[a.calib])
    if a.json:
        check_output(a.json, source, keep=[a.calib, a.plot])
    with _progress(a.quiet) as progress:
        found = sweep(
            source,
            **_choosing(a),
            metric=a.budget,
            ratios=ratios(a.ratios),
            folder=a.models,
            progress=progress,
        )
    if not found.points:
        raise BudgetError(found.missed[0][1])
    if a.json:
        _write_text(a.json, found.to_json())
    if a.plot:
        found.plot(a.plot)
    if not a.quiet:
        found.print(out)
        for written in (a.models, a.json, a.plot):
            if written:
                out.print(f"wrote {written}", markup=False)
    return 0


def _inspect(a: argparse.Namespace, out: Console) -> int:
    if a.curves:
        return _curves(a, out)
    for option in ("calib", "layer", "passes", "plot", "samples"):
        if getattr(a, option):
            raise OptionError(f"--{option} goes with --curves")
    inspection = inspect(a.model, input_shapes=shapes(a.input_shape))
    if a.json:
        _print_json(inspection.to_dict())
    elif not a.quiet:
        inspection.print(out)
    return 0


def _curves(a: argparse.Namespace, out: Console) -> int:
    source = load(a.model)
    if a.plot:
        check_output(check_picture(a.plot), source)
    with _progress(a.quiet) as progress:
        found = curves(
            source,
            calib=a.calib,
            layers=a.layer,
            passes=a.passes,
            samples=a.samples,
            images=images(a),
            input_shapes=shapes(a.input_shape),
            seed=a.seed,
            threads=a.threads,
            provider=a.provider,
            progress=progress,
        )
    if a.json:
        _print_json(found.to_dict())
    elif a.plot:
        found.plot(a.plot)
        if not a.quiet:
            found.print_notes(out)
            out.print(f"wrote {a.plot}", markup=False)
    elif not a.quiet:
        found.print(out)
    return 0


def _validate(a: argparse.Namespace, out: Console) -> int:
    limit = None if a.max_drop is None else percentage(a.max_drop)
    with _progress(a.quiet) as progress:
        checks = validate(
            a.reference,
            a.new,
            a.data,
            samples=a.samples,
            images=images(a),
            seed=a.seed,
            threads=a.threads,
            provider=a.provider,
            progress=progress,
        )
    if a.json:
        _print_json(checks.to_dict())
    elif not a.quiet:
        out.print(outputs_table(checks))
        if checks.accuracy is not None:
            accuracy = checks.accuracy
            out.print(
                f"top-1 of {accuracy.samples} samples: {accuracy.reference:.2%} -> "
                f"{accuracy.new:.2%} ({0.0 - 100 * accuracy.drop:+.2f} points)"
            )
    if limit is None:
        return 0
    if checks.drop is None:
        raise OptionError("--max-drop needs labels in the data, or an output of class scores")
    if checks.drop > limit:
        what = "accuracy fell by" if checks.accuracy is not None else "the top class changed in"
        raise ValidationError(f"{what} {checks.drop:.2%}; {limit:.2%} is allowed")
    return 0


def _passes(a: argparse.Namespace, out: Console) -> int:
    del a
    for name, cls in available().items():
        first = (cls.explain().splitlines() or [""])[0]
        out.print(first if first.startswith(name) else f"{name}: {first}", markup=False)
    return 0


def _explain(a: argparse.Namespace, out: Console) -> int:
    out.print(pass_class(a.name).explain(), markup=False)
    return 0


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
    for add in (shape_option, batch_option, draw_options, run_options):
        add(c)
    c.set_defaults(run=_compress)

    d = commands.add_parser("plan", help="say what compress would do, to be looked at and edited")
    d.add_argument("model", metavar="IN", help="the exported model")
    d.add_argument("plan", metavar="PLAN", help="where to write the plan, as JSON")
    for add in (calib_option, plan_options, shape_option, batch_option, draw_options, run_options):
        add(d)
    d.set_defaults(run=_plan)

    b = commands.add_parser("apply", help="do what a plan says, edited or not")
    b.add_argument("model", metavar="IN", help="the model that was planned for")
    b.add_argument("plan", metavar="PLAN", help="the plan; it says what samples to draw, too")
    b.add_argument("output", metavar="OUT", help="where to write the compressed model")
    for add in (calib_option, result_options, shape_option, batch_option, run_options):
        add(b)
    b.set_defaults(run=_apply)

    w = commands.add_parser("sweep", help="try many budgets: what each costs, and what it keeps")
    w.add_argument("model", metavar="IN", help="the exported model")
    w.add_argument("--budget", choices=METRICS, default="macs",
                   help="what is left less and less of (default: %(default)s)")  # fmt: skip
    w.add_argument("--ratios", default=",".join(f"{r:g}" for r in RATIOS), metavar="R,R,...",
                   help="parts of the original (default: %(default)s)")  # fmt: skip
    w.add_argument("--json", metavar="FILE", help="write all points as JSON")
    w.add_argument("--plot", metavar="FILE", help="draw them, .png or .svg")
    w.add_argument("--models", metavar="FOLDER", help="write the models")
    for add in (calib_option, pass_options, shape_option, batch_option, draw_options, run_options):
        add(w)
    w.set_defaults(run=_sweep)

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
    i.set_defaults(run=_inspect)

    v = commands.add_parser("validate", help="compare a model with its original")
    v.add_argument("reference", metavar="REF")
    v.add_argument("new", metavar="NEW")
    v.add_argument("--data", required=True, metavar="PATH", help="as --calib of compress")
    v.add_argument("--max-drop", metavar="1%", help="fail (exit 6) if more accuracy is lost; "
                   "without labels, if the top class changes more often")  # fmt: skip
    v.add_argument("--json", action="store_true", help="print JSON")
    draw_options(v)
    run_options(v)
    v.set_defaults(run=_validate)

    p = commands.add_parser("passes", help="list the passes")
    p.set_defaults(run=_passes)
    e = commands.add_parser("explain", help="say what a pass does, and its options")
    e.add_argument("name", metavar="PASS")
    e.set_defaults(run=_explain)
    return parser


def _running(a: argparse.Namespace) -> dict[str, Any]:
    """What :func:`apply` is told of data and runtime."""
    return {
        "calib": a.calib,
        "images": images(a),
        "input_shapes": shapes(a.input_shape),
        "threads": a.threads,
        "provider": a.provider,
        "batch": a.batch,
    }


def _choosing(a: argparse.Namespace) -> dict[str, Any]:
    """What :func:`sweep` is told of passes and layers, and what :func:`plan` is told as well."""
    return {
        **_running(a),
        "passes": a.passes,
        "include": a.include,
        "exclude": a.exclude,
        "samples": a.samples,
        "seed": a.seed,
        "timing_limit": a.timing_limit,
        "cache": a.cache,
        "repair": a.repair,
    }


def _planning(a: argparse.Namespace) -> dict[str, Any]:
    """What :func:`plan` is told."""
    return {**_choosing(a), "target": a.target, "ranks": a.ranks}


def _finish(a: argparse.Namespace, out: Console, result: Result, written: int) -> int:
    if a.report:
        _write_text(a.report, result.report.to_json())
    if not a.quiet:
        result.report.print(out)
        out.print(f"wrote {a.output}, {written:,} bytes")
    return 0


def _write_text(path: str, text: str) -> None:
    with atomic_write(Path(path)) as file:
        file.write(text.encode() + b"\n")


def _print_json(data: dict[str, Any]) -> None:
    print(json.dumps(data, indent=1, allow_nan=False))


def _escape(error: Exception) -> str:
    return str(error).replace("[", r"\[")


class _BarProgress(Progress):
    def __init__(self, bars: Bars) -> None:
        self._bars = bars

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        task = self._bars.add_task(name, total=total)
        yield lambda done: self._bars.advance(task, done)


@contextmanager
def _progress(quiet: bool) -> Iterator[Progress]:
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield Progress()
        return
    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=console, transient=True) as bars:
        yield _BarProgress(bars)
