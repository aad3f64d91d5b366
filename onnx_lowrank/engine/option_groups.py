"""Groups of options about the work itself: target, methods, budgets, layers, start and result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from onnx_lowrank.engine.effort import EFFORTS, NORMAL, QUICK, effort_of
from onnx_lowrank.errors import OptionError
from onnx_lowrank.option_values import fraction
from onnx_lowrank.options import OptionGroup, option
from onnx_lowrank.passkit.base import Pass
from onnx_lowrank.planning.refit_modes import DEFAULT_REPAIR, DRAFTED, REPAIRS, check_repair
from onnx_lowrank.planning.targets import DEFAULT_TARGET, METRICS
from onnx_lowrank.runtime.quantizable import MODES, Mode

__all__ = [
    "DEFAULT_PASSES",
    "BudgetOptions",
    "ClusterOptions",
    "LayerOptions",
    "PassOptions",
    "ResultOptions",
    "StartOptions",
    "TargetOptions",
]

DEFAULT_PASSES = (
    "fold_batchnorm,prune_channels{optional=true},attention_rank{optional=true},svd,spatial_svd,"
    "channel_svd,cp{form=three},recurrent_svd,embedding_svd"
)
#: to reckon with the int8 that the result is put into, if any
AS_QUANTIZED = "auto"
_FOR_INT8 = (AS_QUANTIZED, *MODES, "none")

#: parts of the original that a sweep tries
DEFAULT_RATIOS = (0.9, 0.75, 0.6, 0.5, 0.4, 0.33, 0.25, 0.2)


def _ratios(text: str) -> tuple[float, ...]:
    return tuple(fraction(t) for t in text.split(","))


@dataclass(frozen=True)
class TargetOptions(OptionGroup):
    """What is asked for."""

    title: ClassVar[str] = "target"

    target: str | Sequence[str] | None = option(
        None,
        "What is left, as a part of the original: macs=R, params=R, size=R or latency=R; or as an "
        "amount: macs=300M, params=1M, bytes=2MiB, latency=8ms (at --batch). Several are kept "
        "together. By default the smallest latency at which nearly all answers stay "
        f"(see --min-kept); without --calib {DEFAULT_TARGET}.",
        metavar="WHAT=R",
        repeat=True,
    )
    ranks: str = option(
        "planner",
        "How ranks are found: planner chooses them under the target; fixed=R, ratio=R, energy=R, "
        "error=R or evbmf is one rule for every layer, in the place of a target.",
        metavar="RULE",
    )
    effort: str = option(
        NORMAL.name,
        "Time to spend on the plan. quick: predictions alone decide, nothing is built twice, and "
        "layers are solved once, on half of the samples or fewer. "
        "normal: the share of pruning is chosen by building some plans and judging them on "
        "held-out samples. thorough: more shares, and up to three more plans with measured "
        "sensitivities of layers.",
        metavar="|".join(EFFORTS),
    )

    def __post_init__(self) -> None:
        effort_of(self.effort)


@dataclass(frozen=True)
class PassOptions(OptionGroup):
    """Which methods may be used, and on which layers."""

    title: ClassVar[str] = "methods"

    passes: str | Sequence[str | Pass] = option(
        DEFAULT_PASSES,
        "Passes with their options, as svd,spatial_svd{split=vh}; see the command passes.",
        metavar="LIST",
    )
    include: str | Sequence[str] = option(
        (),
        "Touch only layers whose name matches this glob; may be repeated.",
        metavar="GLOB",
        repeat=True,
    )
    exclude: str | Sequence[str] = option(
        (),
        "Leave layers alone whose name matches this glob; may be repeated.",
        metavar="GLOB",
        repeat=True,
    )
    repair: str | None = option(
        None,
        "How layers are solved again behind layers that changed: none, the last stage of each "
        "chain, each whole chain on half of the samples or fewer, on all, or that and again for "
        f"what a ReLU lets through. By default {DEFAULT_REPAIR}, or {DRAFTED} where a draft loses "
        "so little that no more is gained, where a run takes long, and with "
        f"--effort {QUICK.name}.",
        choices=tuple(REPAIRS),
    )

    for_int8: str = option(
        AS_QUANTIZED,
        "The int8 that the plan reckons with: static or dynamic counts what rounding adds to the "
        f"error of each chain, none does not; {AS_QUANTIZED} does as --quantize says.",
        choices=_FOR_INT8,
    )

    def __post_init__(self) -> None:
        if self.repair is not None:
            check_repair(self.repair)
        if self.for_int8 not in _FOR_INT8:
            known = ", ".join(_FOR_INT8)
            raise OptionError(f"for_int8 is {self.for_int8!r}; write one of {known}")

    def int8(self, quantize: Mode | None) -> Mode | None:
        """The int8 that plans reckon with.

        Args:
            quantize: how the result will be quantized; None where it will not.
        """
        if self.for_int8 == AS_QUANTIZED:
            return quantize
        return next((mode for mode in MODES if mode == self.for_int8), None)


@dataclass(frozen=True)
class StartOptions(OptionGroup):
    """What is done to the model before anything else."""

    title: ClassVar[str] = "start"

    simplify: bool = option(
        False,
        "Start from a copy that onnxslim simplifies (extra simplify), where that has fewer nodes "
        "and the same outputs; its gain is reported apart. A plan made so is applied so.",
    )


@dataclass(frozen=True)
class ClusterOptions(OptionGroup):
    """Who does the work."""

    title: ClassVar[str] = "cluster"

    scheduler: str | None = option(
        None,
        "Share the work out among the workers of the Dask scheduler at this address (extra dask): "
        "of a batch its models, which workers see under the same names; of one model the "
        "calibration and the candidates of layers, with the same result.",
        metavar="HOST:PORT",
    )


@dataclass(frozen=True)
class ResultOptions(OptionGroup):
    """What is done with a result that does not pay."""

    title: ClassVar[str] = "result"

    force: bool = option(
        False, "Write the result even if it is slower or bigger, or says something else."
    )


@dataclass(frozen=True)
class BudgetOptions(OptionGroup):
    """Budgets that a sweep tries."""

    title: ClassVar[str] = "budgets"

    budget: str = option("macs", "What is left less and less of.", choices=METRICS)
    ratios: Sequence[float] = option(
        DEFAULT_RATIOS, "Parts of the original to try.", metavar="R,R,...", read=_ratios
    )
    models: str | None = option(None, "Write the models into this folder.", metavar="FOLDER")


@dataclass(frozen=True)
class LayerOptions(OptionGroup):
    """Which layers and methods the curves are of."""

    title: ClassVar[str] = "curves"

    layers: str | Sequence[str] = option(
        (),
        "Only layers whose name matches this glob; may be repeated.",
        metavar="GLOB",
        repeat=True,
        flag="--layer",
    )
    passes: str | Sequence[str | Pass] | None = option(
        None, "Passes with their options; all of them by default.", metavar="LIST"
    )
