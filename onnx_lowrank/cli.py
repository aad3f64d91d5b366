"""The command line: arguments to a library call to an exit code; nothing imports it."""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from onnx_lowrank._version import __version__
from onnx_lowrank.calibration import ImageOptions
from onnx_lowrank.curve_plot import check_picture
from onnx_lowrank.curves import curves
from onnx_lowrank.errors import LowRankError, OptionError, ValidationError
from onnx_lowrank.inspection import inspect
from onnx_lowrank.model import atomic_write, check_output, load
from onnx_lowrank.pipeline import DEFAULT_PASSES, DEFAULT_TARGET, compress
from onnx_lowrank.progress import Progress
from onnx_lowrank.registry import available, pass_class
from onnx_lowrank.report import outputs_table
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
    if a.report:
        check_output(a.report, source, keep=[a.calib, a.output])
    with _progress(a.quiet) as progress:
        result = compress(
            source,
            calib=a.calib,
            target=a.target,
            passes=a.passes,
            include=a.include,
            exclude=a.exclude,
            samples=a.samples,
            images=_images(a),
            input_shapes=_shapes(a.input_shape),
            seed=a.seed,
            threads=a.threads,
            provider=a.provider,
            ranks=a.ranks,
            repair=not a.no_refit,
            force=a.force,
            progress=progress,
        )
        written = result.save(a.output)
    if a.report:
        with atomic_write(Path(a.report)) as file:
            file.write(result.report.to_json().encode() + b"\n")
    if not a.quiet:
        result.report.print(out)
        out.print(f"wrote {a.output}, {written:,} bytes")
    return 0


def _inspect(a: argparse.Namespace, out: Console) -> int:
    if a.curves:
        return _curves(a, out)
    for option in ("calib", "layer", "passes", "plot", "samples"):
        if getattr(a, option):
            raise OptionError(f"--{option} goes with --curves")
    inspection = inspect(a.model, input_shapes=_shapes(a.input_shape))
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
            images=_images(a),
            input_shapes=_shapes(a.input_shape),
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
    limit = None if a.max_drop is None else _percentage(a.max_drop)
    with _progress(a.quiet) as progress:
        checks = validate(
            a.reference,
            a.new,
            a.data,
            samples=a.samples,
            images=_images(a),
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
    parser = _Parser(
        prog="onnx-lowrank",
        description="Compress an exported ONNX model, without labels or retraining.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"onnx-lowrank {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    c = commands.add_parser("compress", help="make a smaller, faster model and prove it")
    c.add_argument("model", metavar="IN", help="the exported model")
    c.add_argument("output", metavar="OUT", help="where to write the compressed model")
    c.add_argument("--calib", metavar="PATH", help="typical inputs: .npz, .npy, a folder of these, "
                   "of images or of test_data_set_*, or file.py:function")  # fmt: skip
    c.add_argument(
        "--target",
        metavar="WHAT=R",
        help=f"macs=R, params=R or size=R left (default: {DEFAULT_TARGET})",
    )
    c.add_argument("--passes", default=DEFAULT_PASSES, metavar="LIST",
                   help="passes with options (default: %(default)s)")  # fmt: skip
    c.add_argument("--include", action="append", default=[], metavar="GLOB",
                   help="touch only these layers; may be repeated")  # fmt: skip
    c.add_argument("--exclude", action="append", default=[], metavar="GLOB",
                   help="leave these layers alone; may be repeated")  # fmt: skip
    c.add_argument("--ranks", default="planner", metavar="RULE",
                   help="planner, or for every layer alike fixed=R, ratio=R, energy=R, error=R, "
                   "evbmf (default: %(default)s)")  # fmt: skip
    c.add_argument("--no-refit", action="store_true", help="do not solve the chains again")
    c.add_argument("--report", metavar="FILE", help="write the report as JSON")
    c.add_argument(
        "--force", action="store_true", help="write the result even if it is slower or bigger"
    )
    _shape_option(c)
    _run_options(c)
    c.set_defaults(run=_compress)

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
    _shape_option(i)
    _run_options(i)
    i.set_defaults(run=_inspect)

    v = commands.add_parser("validate", help="compare a model with its original")
    v.add_argument("reference", metavar="REF")
    v.add_argument("new", metavar="NEW")
    v.add_argument("--data", required=True, metavar="PATH", help="as --calib of compress")
    v.add_argument("--max-drop", metavar="1%", help="fail (exit 6) if more accuracy is lost; "
                   "without labels, if the top class changes more often")  # fmt: skip
    v.add_argument("--json", action="store_true", help="print JSON")
    _run_options(v)
    v.set_defaults(run=_validate)

    p = commands.add_parser("passes", help="list the passes")
    p.set_defaults(run=_passes)
    e = commands.add_parser("explain", help="say what a pass does, and its options")
    e.add_argument("name", metavar="PASS")
    e.set_defaults(run=_explain)
    return parser


class _Parser(argparse.ArgumentParser):
    """Raises instead of leaving, so that every error goes one way."""

    def error(self, message: str) -> NoReturn:
        raise OptionError(f"{message} (see {self.prog} --help)")


def _shape_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input-shape", action="append", default=[], metavar="NAME:1,3,224,224",
                        help="shape of an input with dynamic axes; may be repeated")  # fmt: skip


def _run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--samples", type=int, metavar="N", help="draw N samples of the data")
    parser.add_argument("--seed", type=int, default=0, help="of every random draw (default: 0)")
    parser.add_argument("--threads", type=int, default=0, metavar="N",
                        help="of ONNX Runtime (default: its own choice)")  # fmt: skip
    parser.add_argument("--provider", default="CPUExecutionProvider", metavar="NAME",
                        help="ONNX Runtime execution provider (default: %(default)s)")  # fmt: skip
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    pictures = parser.add_argument_group("folders of images")
    pictures.add_argument("--resize", metavar="HxW|N", help="resize; N is the shorter side")
    pictures.add_argument("--crop", metavar="HxW|N", help="centre crop")
    pictures.add_argument("--mean", metavar="M,M,M", help="subtracted after scaling")
    pictures.add_argument("--std", metavar="S,S,S", help="divided by, last")
    pictures.add_argument("--scale", type=float, metavar="F", help="multiplies 0..255 (1/255)")
    pictures.add_argument("--layout", choices=("NCHW", "NHWC"))
    pictures.add_argument("--channel-order", choices=("RGB", "BGR", "GRAY"))


def _images(a: argparse.Namespace) -> ImageOptions | None:
    given: dict[str, Any] = {
        "resize": _extent(a.resize),
        "crop": _extent(a.crop),
        "mean": _numbers("--mean", a.mean),
        "std": _numbers("--std", a.std),
        "scale": a.scale,
        "layout": a.layout,
        "channel_order": a.channel_order,
    }
    given = {k: v for k, v in given.items() if v is not None}
    return ImageOptions(**given) if given else None


def _extent(text: str | None) -> int | tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)(?:[x,](\d+))?", text)
    if match is None:
        raise OptionError(f"size {text!r}; write 256 or 224x320")
    return int(match[1]) if match[2] is None else (int(match[1]), int(match[2]))


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(t) for t in text.split(","))
    except ValueError:
        raise OptionError(f"{option} {text!r}; write numbers as 0.5,0.5,0.5") from None


def _shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for text in texts:
        name, _, dims = text.rpartition(":")
        numbers = dims.strip("[]").split(",")
        if not name or not all(n.strip().isdigit() for n in numbers):
            raise OptionError(f"--input-shape {text!r}; write name:1,3,224,224")
        shapes[name] = tuple(int(n) for n in numbers)
    return shapes


def _percentage(text: str) -> float:
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise OptionError(f"--max-drop {text!r}; write 1% or 0.01") from None


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
