"""The functions of the library: a model and options in, a smaller model and its report out.

The data's way through :func:`compress`::

    job             = begin(model, options)             # the model, its samples, how to run them
    job             = simplified(job)                   # where that is asked for
    analysis        = analyse(job)                      # layers, moments, shapes, counts
    proposed        = propose(analysis, target)         # channels, candidates of every layer
    planned         = choose(analysis, proposed)        # a decision for each
    planned         = without_slow_chains(...)          # what does not pay is taken back
    built           = build(analysis, planned.plan)     # rewrite, solve again, sign, check
    built           = beside_int8(...)                  # where that is asked for
    report          = tell(analysis, built)             # outputs, time, bytes
    check_result(report)                                # and only then: save

:func:`~onnx_lowrank.engine.timed_plan.plan_for` proposes and chooses,
:func:`~onnx_lowrank.engine.rounds.plan_in_rounds` compares drafts of several plans,
:func:`~onnx_lowrank.engine.search.smallest_within` at many budgets.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import onnx

from onnx_lowrank.engine.analyse import Analysis, analyse
from onnx_lowrank.engine.blame import costliest
from onnx_lowrank.engine.build import Built, build
from onnx_lowrank.engine.choose import Planned
from onnx_lowrank.engine.effort import NORMAL, Effort, effort_of
from onnx_lowrank.engine.guard import check_result
from onnx_lowrank.engine.int8 import beside_int8
from onnx_lowrank.engine.job import JobOptions, begin
from onnx_lowrank.engine.options import (
    ApplyOptions,
    CompressOptions,
    PlanOptions,
    SweepOptions,
)
from onnx_lowrank.engine.rounds import plan_in_rounds
from onnx_lowrank.engine.search import smallest_within
from onnx_lowrank.engine.simplify import check_simplifier, simplified
from onnx_lowrank.engine.sweep import swept
from onnx_lowrank.engine.take_back import without_slow_chains
from onnx_lowrank.engine.tell import tell
from onnx_lowrank.judge.requirement import GUARDED, NEARLY_ALL, Requirement
from onnx_lowrank.latency.timer import Timer
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.modelfile.saving import save
from onnx_lowrank.options import documented, from_keywords
from onnx_lowrank.planning.notes import Note
from onnx_lowrank.planning.plan import Plan
from onnx_lowrank.planning.registry import parse_list
from onnx_lowrank.planning.targets import Target
from onnx_lowrank.progress import Progress
from onnx_lowrank.report.report import LayerLoss, Report
from onnx_lowrank.report.stages import Stage
from onnx_lowrank.report.sweep import Sweep
from onnx_lowrank.runtime.quantizable import check_quantizable
from onnx_lowrank.runtime.quantizer import Quantize
from onnx_lowrank.samples.split import CalibrationOptions

__all__ = ["Result", "apply", "compress", "compressed", "plan", "sweep"]

AnyModel = str | os.PathLike[str] | onnx.ModelProto | Model


@dataclass(frozen=True)
class Result:
    """A compressed model, the plan that made it, and what is known of it.

    Attributes:
        model: the compressed model.
        plan: a decision for every layer.
        report: costs, checks and times.
    """

    model: onnx.ModelProto
    plan: Plan
    report: Report
    _written: Model
    _source: Model

    @property
    def whole(self) -> onnx.ModelProto:
        """The model with all values inside, also those that :attr:`model` refers to in files."""
        return self._written.whole

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write the model in one step and return its bytes.

        Raises:
            ModelError: the path is the input itself or cannot be written.
        """
        return save(self._written, path, source=self._source)


@documented(CompressOptions)
def compress(
    model: AnyModel,
    *,
    progress: Progress | None = None,
    timer: Timer | None = None,
    **keywords: Any,
) -> Result:
    """Compress a model to a budget, without labels or retraining.

    Without a target, to the smallest latency at which nearly all answers stay.

    Args:
        model: path or ModelProto; it is not changed.
        progress: told of each step.
        timer: takes all times; None for one that runs models in ONNX Runtime.
        **keywords: options by name:
            {options}

    Raises:
        OptionError, ModelError, DataError, BudgetError, GuardError, ValidationError.
    """
    options = from_keywords(CompressOptions, keywords)
    requirement, asked = options.keep.requirement(), options.target
    if requirement is None and _unasked(options):
        requirement = Requirement("kept", options.judge.kept(NEARLY_ALL))
        asked = replace(asked, target="latency")
    target = Target.parse(asked.target, asked.ranks, search=requirement is not None)
    effort = effort_of(asked.effort)
    model, quantize = load(model), _int8(options)
    if quantize is not None:
        check_quantizable(model)
    own = requirement is not None and requirement.metric is not None
    job = replace(options.job(), labels_are_classes=not own)
    analysis = _analysed(model, job, progress, timer)
    force = options.result.force
    if requirement is None:
        return compressed(analysis, target, effort, force, quantize)
    analysis, found = smallest_within(analysis, target, requirement, effort)
    planned, built = found.planned.noting(found.note(requirement)), found.built
    told, built = _told(analysis, planned, built, effort)
    del found, planned
    return _finished(analysis, built, told, force, quantize)


def compressed(
    analysis: Analysis,
    target: Target,
    effort: Effort = NORMAL,
    force: bool = False,
    quantize: Quantize | None = None,
) -> Result:
    """Plan to a target, build the model, take back what does not pay, and report.

    Args:
        analysis: of the model.
        target: what is asked for.
        effort: how much is built and judged to find the plan.
        force: return the model even if it is slower or bigger, or gives other answers.
        quantize: how the result is put into int8; None leaves it as it is.

    Raises:
        BudgetError, GuardError, ValidationError.
    """
    chosen = plan_in_rounds(analysis, target, effort)
    planned, built = without_slow_chains(chosen.analysis, chosen.planned, chosen.draft)
    analysis = chosen.analysis
    told, built = _told(analysis, planned, built, effort)
    del chosen, planned  # they hold models
    return _finished(analysis, built, told, force, quantize)


@documented(PlanOptions)
def plan(
    model: AnyModel,
    *,
    progress: Progress | None = None,
    timer: Timer | None = None,
    **keywords: Any,
) -> Plan:
    """Say what :func:`compress` would do, to be looked at, edited, and applied.

    Args:
        model: path or ModelProto; it is not changed.
        progress: told of each step.
        timer: takes all times; None for one that runs models in ONNX Runtime.
        **keywords: options by name:
            {options}

    Raises:
        OptionError, ModelError, DataError, BudgetError.
    """
    options = from_keywords(PlanOptions, keywords)
    target = Target.parse(options.target.target, options.target.ranks)
    analysis = _analysed(model, options.job(), progress, timer)
    return plan_in_rounds(analysis, target, effort_of(options.target.effort)).planned.plan


@documented(ApplyOptions)
def apply(
    model: AnyModel,
    plan: Plan,
    *,
    progress: Progress | None = None,
    timer: Timer | None = None,
    **keywords: Any,
) -> Result:
    """Do what a plan says: on the same model and data the same bytes as :func:`compress`.

    Args:
        model: path or ModelProto; it is not changed.
        plan: from :func:`plan` or :meth:`Plan.load`, edited or not.
        progress: told of each step.
        timer: takes all times; None for one that runs models in ONNX Runtime.
        **keywords: options by name:
            {options}

    Raises:
        PlanError: the plan is of another model, or names what is not there.
        OptionError, ModelError, DataError, GuardError, ValidationError.
    """
    options = from_keywords(ApplyOptions, keywords)
    model, quantize = load(model), _int8(options)
    if quantize is not None:
        check_quantizable(model)
    skipped = {d.layer: d.reason for d in plan.decisions if d.decision == "skip"}
    job = JobOptions(
        passes=parse_list(plan.passes),
        data=options.data,
        draw=CalibrationOptions(plan.samples, plan.seed, plan.select),
        padding=options.padding,
        images=options.images,
        runtime=options.runtime.runtime(),
        timing=options.timing,
        cache=options.cache,
        skipped=skipped,
        repair=plan.repair,
        simplify=options.start.simplify,
        judging=options.judge.judging(),
        min_kept=options.judge.kept(GUARDED),
        scheduler=options.cluster.scheduler,
    )
    analysis = _analysed(model, job, progress, timer)
    return _finished(analysis, build(analysis, plan), _Told(), options.result.force, quantize)


@documented(SweepOptions)
def sweep(
    model: AnyModel,
    *,
    progress: Progress | None = None,
    timer: Timer | None = None,
    **keywords: Any,
) -> Sweep:
    """Compress to several budgets and measure each: the whole trade of cost for accuracy.

    Args:
        model: path or ModelProto; it is not changed.
        progress: told of each step.
        timer: takes all times; None for one that runs models in ONNX Runtime.
        **keywords: options by name:
            {options}

    Raises:
        OptionError, ModelError, DataError, ValidationError.
    """
    options = from_keywords(SweepOptions, keywords)
    budgets = options.budgets
    targets = [Target.parse(f"{budgets.budget}={ratio:g}") for ratio in budgets.ratios]
    analysis = _analysed(model, options.job(), progress, timer)
    made = swept(analysis, targets, budgets.models)
    analysis.forget()
    return made


def _analysed(
    model: AnyModel, options: JobOptions, progress: Progress | None, timer: Timer | None
) -> Analysis:
    """The analysis of a model, or of its simplified copy where that is asked for."""
    if options.simplify:
        check_simplifier()
    job = begin(model, options, progress, timer)
    return analyse(simplified(job) if options.simplify else job)


def _int8(options: CompressOptions | ApplyOptions) -> Quantize | None:
    """What is asked of the quantizer: to keep nearly all answers, where no part is given."""
    mode = options.quantize.quantize
    return None if mode is None else Quantize(mode, options.judge.kept(NEARLY_ALL))


def _unasked(options: CompressOptions) -> bool:
    """Whether nobody said how small, and there is data to find out by."""
    target, data = options.target, options.data
    return target.target is None and target.ranks == "planner" and data.calib is not None


@dataclass(frozen=True)
class _Told:
    """What is to be said of a plan.

    Attributes:
        notes: of how it was found.
        costliest: layers that cost most of the loss.
        effort: that it was looked for with; None for a plan that was given.
    """

    notes: tuple[Note, ...] = ()
    costliest: tuple[LayerLoss, ...] = ()
    effort: Effort | None = None


def _told(
    analysis: Analysis, planned: Planned, built: Built, effort: Effort
) -> tuple[_Told, Built]:
    """What is to be said of a plan, and its model without what layers were measured by."""
    told = _Told(planned.notes, costliest(analysis, planned, built), effort)
    return told, replace(built, repaired={})


def _finished(
    analysis: Analysis, built: Built, told: _Told, force: bool, quantize: Quantize | None
) -> Result:
    notes, stages = told.notes, tuple[Stage, ...]()
    if quantize is not None:
        int8 = beside_int8(analysis, built, quantize)
        built, stages, notes = int8.built, int8.stages, (*notes, *int8.notes)
    analysis.end_planning()
    report = tell(analysis, built, notes, told.costliest, stages)
    if not force:
        calibrated = analysis.job.samples.calibration is not None
        least = analysis.job.options.min_kept if calibrated else None
        check_result(report, least, told.effort)
    analysis.forget()
    return Result(built.model.proto, built.plan, report, built.model, analysis.job.source)
