"""Options that only the command line has: files beside the result, and what is printed."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

from rich_argparse import RawDescriptionRichHelpFormatter

from onnx_lowrank.errors import OptionError
from onnx_lowrank.judge.requirement import check_bound, read_bound
from onnx_lowrank.options import OptionGroup, option

__all__ = [
    "CurveFiles",
    "FeatureModel",
    "GateOptions",
    "HelpFormatter",
    "Parser",
    "PlanFile",
    "PrintOptions",
    "ReportFile",
    "SampleFile",
    "SweepFiles",
]


class HelpFormatter(RawDescriptionRichHelpFormatter):
    """Help with colours on a terminal, where ``NO_COLOR`` is not set; plain text elsewhere."""

    group_name_formatter = staticmethod(str)
    help_markup = text_markup = False  # brackets are brackets


class Parser(argparse.ArgumentParser):
    """Raises instead of leaving, so that every error goes one way."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"formatter_class": HelpFormatter, **options})

    def error(self, message: str) -> NoReturn:
        """See the base.

        Raises:
            OptionError: always.
        """
        raise OptionError(f"{message} (see {self.prog} --help)")


@dataclass(frozen=True)
class PrintOptions(OptionGroup):
    """What is printed."""

    title: ClassVar[str] = "output"

    quiet: bool = option(False, "Print nothing but errors.", short="-q")


@dataclass(frozen=True)
class ReportFile(OptionGroup):
    """The report as a file."""

    title: ClassVar[str] = "files"

    report: str | None = option(
        None, "Write the report, as a page to read (.html) or as JSON.", metavar="FILE"
    )


@dataclass(frozen=True)
class PlanFile(OptionGroup):
    """The plan as a file."""

    title: ClassVar[str] = "files"

    plan: str | None = option(None, "Write the plan as well, as JSON.", metavar="FILE")


@dataclass(frozen=True)
class SweepFiles(OptionGroup):
    """What a sweep writes."""

    title: ClassVar[str] = "files"

    report: str | None = option(
        None,
        "Write all points, as a page (.html) with what each cost keeps, or as JSON.",
        metavar="FILE",
    )
    plot: str | None = option(None, "Draw them, .png or .svg.", metavar="FILE")


@dataclass(frozen=True)
class CurveFiles(OptionGroup):
    """What inspect shows, and in which form."""

    title: ClassVar[str] = "form"

    curves: bool = option(False, "Show error against MACs of every layer by every method.")
    every_layer: bool = option(
        False,
        "Give every layer a row of its own; by default layers that are alike share one, with the "
        "sums of their costs.",
        flag="--all",
    )
    json: bool = option(False, "Print JSON.")
    plot: str | None = option(
        None, "With --curves: draw them into this file, .png or .svg.", metavar="FILE"
    )


@dataclass(frozen=True)
class SampleFile(OptionGroup):
    """The samples that models are compared on."""

    title: ClassVar[str] = "data"

    data: str = option("", "Samples, as --calib of compress; needed.", metavar="PATH", needed=True)


@dataclass(frozen=True)
class FeatureModel(OptionGroup):
    """What samples are compared by, and how the choice is told."""

    title: ClassVar[str] = "form"

    model: str | None = option(
        None,
        "Compare samples by what the last layers of this model read; without it by the inputs "
        "themselves, of an .npz alone.",
        metavar="MODEL",
    )
    json: bool = option(False, "Print which samples were chosen, by their numbers, as JSON.")


@dataclass(frozen=True)
class GateOptions(OptionGroup):
    """When validate fails."""

    title: ClassVar[str] = "gate"

    max_drop: str | None = option(
        None,
        "Fail (exit code 6) where more accuracy is lost, for instance 1%; without labels, where "
        "the first class changes on more samples.",
        metavar="1%",
    )
    json: bool = option(False, "Print JSON.")

    def limit(self) -> float | None:
        """The largest drop allowed, as a fraction; None for no gate.

        Raises:
            OptionError: it cannot be read, or every model would keep it.
        """
        bound = read_bound("drop", self.max_drop)
        if bound is not None:
            check_bound("drop", bound)
        return bound
