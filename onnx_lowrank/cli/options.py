"""Options that several commands have, and their texts as values."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from onnx_lowrank.engine.api import DEFAULT_PASSES, DEFAULT_TARGET
from onnx_lowrank.errors import OptionError
from onnx_lowrank.option_values import fraction
from onnx_lowrank.planning.refit_modes import DEFAULT_REPAIR, REPAIRS
from onnx_lowrank.samples.dataset import ImageOptions
from onnx_lowrank.samples.user_code import python_function

__all__ = [
    "Parser",
    "calib_option",
    "draw_options",
    "images",
    "pass_options",
    "percentage",
    "plan_options",
    "ratios",
    "requirement",
    "result_options",
    "run_options",
    "search_options",
    "shape_option",
    "shapes",
    "time_options",
]


class Parser(argparse.ArgumentParser):
    """Raises instead of leaving, so that every error goes one way."""

    def error(self, message: str) -> NoReturn:
        """See the base.

        Raises:
            OptionError: always.
        """
        raise OptionError(f"{message} (see {self.prog} --help)")


def calib_option(parser: argparse.ArgumentParser) -> None:
    """Typical inputs."""
    parser.add_argument("--calib", metavar="PATH", help="typical inputs: .npz, .npy, a folder of "
                        "these, of images or of test_data_set_*, or file.py:function")  # fmt: skip


def plan_options(parser: argparse.ArgumentParser) -> None:
    """What a plan is made under."""
    parser.add_argument(
        "--target",
        action="append",
        metavar="WHAT=R",
        help="macs=R, params=R, size=R or latency=R left; may be repeated "
        f"(default: {DEFAULT_TARGET})",
    )
    parser.add_argument("--ranks", default="planner", metavar="RULE",
                        help="planner, or for every layer alike fixed=R, ratio=R, energy=R, "
                        "error=R, evbmf (default: %(default)s)")  # fmt: skip
    parser.add_argument("--rounds", type=int, metavar="N",
                        help="plan again up to N times by what the errors of each layer do to the "
                        "outputs, which takes N more repairs; 0 is faster (default: 1 where the "
                        "repair solves layers)")  # fmt: skip
    pass_options(parser)


def pass_options(parser: argparse.ArgumentParser) -> None:
    """Passes, what they touch, and how their results are timed."""
    parser.add_argument("--passes", default=DEFAULT_PASSES, metavar="LIST",
                        help="passes with options (default: %(default)s)")  # fmt: skip
    parser.add_argument("--include", action="append", default=[], metavar="GLOB",
                        help="touch only these layers; may be repeated")  # fmt: skip
    parser.add_argument("--exclude", action="append", default=[], metavar="GLOB",
                        help="leave these layers alone; may be repeated")  # fmt: skip
    parser.add_argument("--repair", choices=REPAIRS, default=DEFAULT_REPAIR,
                        help="solve nothing again, each last stage, each chain, or these for "
                        "what a ReLU lets through (default: %(default)s)")  # fmt: skip
    parser.add_argument("--timing-limit", type=float, default=120.0, metavar="S",
                        help="for latency=R: seconds to measure (default: 120)")  # fmt: skip


def search_options(parser: argparse.ArgumentParser) -> None:
    """What must be kept, at the least budget that keeps it."""
    group = parser.add_argument_group(
        "the smallest model that keeps",
        "searched by the ratio of what --target names without one (default: macs)",
    )
    one = group.add_mutually_exclusive_group()
    one.add_argument("--max-drop", metavar="1%", help="labelled accuracy but for so much, "
                     "1%% or 0.01; with --metric, in its own units")  # fmt: skip
    one.add_argument("--min-agreement", metavar="99%", help="the first class of so many samples")
    one.add_argument("--min-snr", metavar="30dB", help="all outputs at such a ratio to the error")
    group.add_argument("--metric", metavar="FILE.py:FUNCTION", help="for --max-drop: "
                       "function(outputs, labels) or (outputs, labels, inputs), "
                       "higher being better, for accuracy")  # fmt: skip


def result_options(parser: argparse.ArgumentParser) -> None:
    """How a plan is carried out."""
    parser.add_argument("--report", metavar="FILE", help="write the report as JSON")
    parser.add_argument(
        "--force", action="store_true", help="write the result even if it is slower or bigger"
    )


def time_options(parser: argparse.ArgumentParser) -> None:
    """What is timed, and where that and other work is kept."""
    parser.add_argument("--batch", type=int, default=1, metavar="N",
                        help="samples of an inference that is timed (default: 1)")  # fmt: skip
    parser.add_argument("--cache", metavar="FOLDER", help="where measured times are kept, and what "
                        "an interrupted run goes on from; '' for nowhere (default: the user's own)"
                        )  # fmt: skip


def shape_option(parser: argparse.ArgumentParser) -> None:
    """Shapes of inputs."""
    parser.add_argument("--input-shape", action="append", default=[], metavar="NAME:1,3,224,224",
                        help="shape of an input with dynamic axes; may be repeated")  # fmt: skip


def draw_options(parser: argparse.ArgumentParser) -> None:
    """Random draws."""
    parser.add_argument("--samples", type=int, metavar="N", help="draw N samples of the data")
    parser.add_argument("--seed", type=int, default=0, help="of every random draw (default: 0)")


def run_options(parser: argparse.ArgumentParser) -> None:
    """How models are run, and what pictures become."""
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


def images(a: argparse.Namespace) -> ImageOptions | None:
    """How pictures become inputs; None where nothing was said of it."""
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


def shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Shapes of inputs by name, from ``name:1,3,224,224``."""
    found = {}
    for text in texts:
        name, _, dims = text.rpartition(":")
        numbers = dims.strip("[]").split(",")
        if not name or not all(n.strip().isdigit() for n in numbers):
            raise OptionError(f"--input-shape {text!r}; write name:1,3,224,224")
        if name in found:
            raise OptionError(f"--input-shape {text!r}: {name} has a shape already; give one")
        found[name] = tuple(int(n) for n in numbers)
    return found


def percentage(text: str, option: str = "--max-drop") -> float:
    """``1%`` or ``0.01`` as a number; a bare ``1`` may mean either 1 % or all, and is refused."""
    try:
        return fraction(text, bare_one=False)
    except ValueError as error:
        raise OptionError(f"{option} {error}") from None


def requirement(a: argparse.Namespace) -> dict[str, Any]:
    """What :func:`search_options` said."""
    metric = None
    if a.metric is not None:
        metric = python_function(a.metric)
        if metric is None:
            raise OptionError(f"--metric {a.metric!r}; write file.py:function")
    drop = None
    if a.max_drop is not None:
        drop = percentage(a.max_drop) if metric is None else _in_units(a.max_drop)
    return {
        "max_drop": drop,
        "min_agreement": None
        if a.min_agreement is None
        else percentage(a.min_agreement, "--min-agreement"),
        "min_snr": None if a.min_snr is None else _decibels(a.min_snr),
        "metric": metric,
    }


def ratios(text: str) -> list[float]:
    """``0.9,0.5`` or ``90%,50%`` as numbers."""
    try:
        return [fraction(t) for t in text.split(",")]
    except ValueError as error:
        raise OptionError(f"--ratios {text!r}: {error}") from None


def _in_units(text: str) -> float:
    """A drop of the user's own metric, which need not be a fraction."""
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise OptionError(f"--max-drop {text!r}; write a number in units of the metric") from None


def _decibels(text: str) -> float:
    number = text[:-2] if text.lower().endswith("db") else text
    try:
        return float(number)
    except ValueError:
        raise OptionError(f"--min-snr {text!r}; write 30dB or 30") from None


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
