"""The options of every command, each declared once; see :mod:`onnx_lowrank.options`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from onnx_lowrank.engine.effort import EFFORTS, NORMAL, QUICK, Effort, effort_of
from onnx_lowrank.engine.job import JobOptions
from onnx_lowrank.judge.comparison import Loss
from onnx_lowrank.judge.judge import AS_FOUND, Judging
from onnx_lowrank.judge.readings import parse_kinds
from onnx_lowrank.judge.requirement import (
    GUARDED,
    NEARLY_ALL,
    Metric,
    Requirement,
    check_bound,
    read_bound,
)
from onnx_lowrank.option_values import fraction, percent
from onnx_lowrank.options import OptionGroup, option
from onnx_lowrank.passkit.base import Pass
from onnx_lowrank.planning.refit_modes import DEFAULT_REPAIR, REPAIRS, check_repair
from onnx_lowrank.planning.registry import parse_list
from onnx_lowrank.planning.targets import DEFAULT_TARGET, METRICS
from onnx_lowrank.planning.timed_candidates import TimingOptions
from onnx_lowrank.runtime.quantizer import QuantizeOptions
from onnx_lowrank.runtime.runtime import Runtime
from onnx_lowrank.samples.images import ImageOptions
from onnx_lowrank.samples.split import CalibrationOptions, DataOptions, DrawOptions
from onnx_lowrank.samples.user_code import python_function

__all__ = [
    "DEFAULT_PASSES",
    "ApplyOptions",
    "ClusterOptions",
    "CompressOptions",
    "CurvesOptions",
    "JudgeOptions",
    "KeepOptions",
    "PassOptions",
    "PlanOptions",
    "ResultOptions",
    "RuntimeOptions",
    "StartOptions",
    "SweepOptions",
    "TargetOptions",
    "ValidateOptions",
]

DEFAULT_PASSES = (
    "fold_batchnorm,prune_channels{optional=true},attention_rank{optional=true},svd,spatial_svd,"
    "channel_svd,cp{form=three},recurrent_svd,embedding_svd"
)
#: parts of the original that a sweep tries
DEFAULT_RATIOS = (0.9, 0.75, 0.6, 0.5, 0.4, 0.33, 0.25, 0.2)


def _ratios(text: str) -> tuple[float, ...]:
    return tuple(fraction(t) for t in text.split(","))


def _judge(text: str) -> dict[str, str] | Loss:
    return python_function(text) or parse_kinds(text)


def _metric(text: str) -> Metric:
    found = python_function(text)
    if found is None:
        raise ValueError(f"{text!r}; write file.py:function")
    return found


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
        "layers are solved once. "
        "normal: the share of pruning is chosen by building some plans and judging them on "
        "held-out samples, then one more plan is made with measured sensitivities of layers. "
        "thorough: more shares, and up to three such plans.",
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
        "chain, each whole chain, or that and again for what a ReLU lets through. By default "
        f"{DEFAULT_REPAIR}; {QUICK.repair} with --effort {QUICK.name}.",
        choices=tuple(REPAIRS),
    )

    def __post_init__(self) -> None:
        if self.repair is not None:
            check_repair(self.repair)


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
class KeepOptions(OptionGroup):
    """What must be kept, at the smallest budget that keeps it."""

    title: ClassVar[str] = "the smallest model that keeps"

    max_drop: float | str | None = option(
        None,
        "Largest accuracy loss allowed, for instance 1%, counted in labels of the data; with a "
        "metric in its own units. The smallest budget that keeps it is searched: of what the "
        "target names without a ratio, else of MACs.",
        metavar="1%",
    )
    min_agreement: float | str | None = option(
        None,
        "Smallest part of samples that keep their first class, for instance 99%; searched alike.",
        metavar="99%",
    )
    min_snr: float | str | None = option(
        None,
        "Smallest signal-to-noise ratio of the outputs in dB, for instance 30dB; searched alike.",
        metavar="30dB",
    )
    max_loss: float | str | None = option(
        None,
        "Largest loss by the judge, for instance 2%: 0 is the original, 100% tells no sample from "
        "another; in its own units where the judge is a function. Searched alike.",
        metavar="2%",
    )
    metric: Metric | None = option(
        None,
        "For --max-drop, in the place of accuracy: a function of outputs by name and labels, and "
        "of inputs where it has such a parameter, which returns a number; higher is better.",
        metavar="FILE.py:FUNCTION",
        read=_metric,
    )

    def requirement(self) -> Requirement | None:
        """The requirement, or None where nothing must be kept.

        Raises:
            OptionError: more than one is given, or one is out of range.
        """
        own = self.metric is not None
        return Requirement.of(
            read_bound("drop", self.max_drop, own),
            read_bound("agreement", self.min_agreement),
            read_bound("snr", self.min_snr),
            self.metric,
            read_bound("loss", self.max_loss),
        )


@dataclass(frozen=True)
class JudgeOptions(OptionGroup):
    """What outputs are judged by, and how much of their answers must stay."""

    title: ClassVar[str] = "judge"

    judge: str | Mapping[str, str] | Loss | None = option(
        None,
        "What outputs mean, where that is not found out rightly: kl (class scores), bernoulli "
        "(behind a Sigmoid), cosine (directions), l2, equal or none, as scores=kl,boxes=l2; or a "
        "function of the original's outputs, the new ones and the inputs, which returns a loss.",
        metavar="OUTPUT=KIND,...|FILE.py:FUNCTION",
        read=_judge,
    )
    min_kept: float | str | None = option(
        None,
        "Smallest part of the answers that must stay: samples that keep their class (sequences "
        "their reading, pixels their class), or the correlation of other outputs. A result that "
        f"clearly keeps less is refused ({percent(GUARDED)} by default); without a target, the "
        f"smallest latency that keeps it is searched ({percent(NEARLY_ALL)}).",
        metavar="90%",
    )

    def judging(self) -> Judging:
        """What the user wants outputs to be judged by.

        Raises:
            OptionError: the text is of another form.
        """
        if self.judge is None:
            return AS_FOUND
        given = _judge(self.judge) if isinstance(self.judge, str) else self.judge
        return Judging(function=given) if callable(given) else Judging(dict(given))

    def kept(self, default: float) -> float:
        """The part of the answers that must stay.

        Raises:
            OptionError: it is no fraction.
        """
        bound = read_bound("kept", self.min_kept)
        if bound is None:
            return default
        check_bound("kept", bound)
        return bound


@dataclass(frozen=True)
class RuntimeOptions(OptionGroup):
    """How models are run."""

    title: ClassVar[str] = "runtime"

    threads: int = option(0, "Threads of ONNX Runtime; 0 leaves the choice to it.", metavar="N")
    provider: str = option(
        "CPUExecutionProvider",
        "ONNX Runtime execution provider that models run on and latency is measured on.",
        metavar="NAME",
    )

    def runtime(self) -> Runtime:
        """How to run models.

        Raises:
            OptionError: there is no such provider, or the number of threads is negative.
        """
        return Runtime(self.provider, self.threads)


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
class PlanOptions:
    """Options of ``plan``."""

    data: DataOptions = DataOptions()
    draw: CalibrationOptions = CalibrationOptions()
    target: TargetOptions = TargetOptions()
    methods: PassOptions = PassOptions()
    start: StartOptions = StartOptions()
    judge: JudgeOptions = JudgeOptions()
    timing: TimingOptions = TimingOptions()
    runtime: RuntimeOptions = RuntimeOptions()
    images: ImageOptions = ImageOptions()
    cluster: ClusterOptions = ClusterOptions()

    def job(self) -> JobOptions:
        """What stays the same whatever the budget."""
        return _job(self, effort_of(self.target.effort))


@dataclass(frozen=True)
class CompressOptions(PlanOptions):
    """Options of ``compress``."""

    keep: KeepOptions = KeepOptions()
    quantize: QuantizeOptions = QuantizeOptions()
    result: ResultOptions = ResultOptions()


@dataclass(frozen=True)
class ApplyOptions:
    """Options of ``apply``; the plan has the others."""

    data: DataOptions = DataOptions()
    start: StartOptions = StartOptions()
    judge: JudgeOptions = JudgeOptions()
    timing: TimingOptions = TimingOptions()
    runtime: RuntimeOptions = RuntimeOptions()
    images: ImageOptions = ImageOptions()
    quantize: QuantizeOptions = QuantizeOptions()
    result: ResultOptions = ResultOptions()
    cluster: ClusterOptions = ClusterOptions()


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
class SweepOptions:
    """Options of ``sweep``."""

    budgets: BudgetOptions = BudgetOptions()
    data: DataOptions = DataOptions()
    draw: CalibrationOptions = CalibrationOptions()
    methods: PassOptions = PassOptions()
    start: StartOptions = StartOptions()
    judge: JudgeOptions = JudgeOptions()
    timing: TimingOptions = TimingOptions()
    runtime: RuntimeOptions = RuntimeOptions()
    images: ImageOptions = ImageOptions()
    cluster: ClusterOptions = ClusterOptions()

    def job(self) -> JobOptions:
        """What stays the same whatever the budget."""
        return _job(self, NORMAL)


@dataclass(frozen=True)
class ValidateOptions:
    """Options of ``validate``."""

    draw: DrawOptions = DrawOptions()
    judge: JudgeOptions = JudgeOptions()
    runtime: RuntimeOptions = RuntimeOptions()
    images: ImageOptions = ImageOptions()


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


@dataclass(frozen=True)
class CurvesOptions:
    """Options of ``curves``, the command ``inspect --curves``."""

    data: DataOptions = DataOptions()
    draw: DrawOptions = DrawOptions()
    layers: LayerOptions = LayerOptions()
    runtime: RuntimeOptions = RuntimeOptions()
    images: ImageOptions = ImageOptions()


def _listed(globs: str | Sequence[str]) -> Sequence[str]:
    """Globs as a list; from Python one may be given alone."""
    return [globs] if isinstance(globs, str) else globs


def _job(options: PlanOptions | SweepOptions, effort: Effort) -> JobOptions:
    methods = options.methods
    return JobOptions(
        passes=parse_list(methods.passes),
        data=options.data,
        draw=options.draw,
        images=options.images,
        runtime=options.runtime.runtime(),
        timing=options.timing,
        include=_listed(methods.include),
        exclude=_listed(methods.exclude),
        repair=methods.repair or effort.repair,
        simplify=options.start.simplify,
        judging=options.judge.judging(),
        min_kept=options.judge.kept(GUARDED),
        scheduler=options.cluster.scheduler,
    )
