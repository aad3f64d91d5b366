"""The main flow: load, canonicalise, moments, plan, rewrite, refit, validate, guard.

``compress`` is ``plan`` and ``apply`` in one: what is written depends on the plan alone. The steps
themselves are in :mod:`onnx_lowrank.engine.run`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from onnx_lowrank.engine.guard import check_result
from onnx_lowrank.engine.rounds import weighed_plan
from onnx_lowrank.engine.run import Built, Run
from onnx_lowrank.engine.search import smallest_within
from onnx_lowrank.engine.sweep import RATIOS, Sweep, swept
from onnx_lowrank.engine.workbench import DataOptions
from onnx_lowrank.errors import OptionError
from onnx_lowrank.judge.requirement import Metric, Requirement
from onnx_lowrank.modelfile.model import Model, save
from onnx_lowrank.passkit.base import Pass
from onnx_lowrank.planning.plan import Plan
from onnx_lowrank.planning.refit_modes import DEFAULT_REPAIR
from onnx_lowrank.planning.registry import parse_list
from onnx_lowrank.planning.targets import DEFAULT_TARGET, Target
from onnx_lowrank.planning.timed_candidates import TimingOptions
from onnx_lowrank.progress import Progress
from onnx_lowrank.report.report import Report
from onnx_lowrank.runtime.runtime import Runtime
from onnx_lowrank.samples.dataset import ImageOptions

__all__ = [
    "DEFAULT_PASSES",
    "DEFAULT_TARGET",
    "Result",
    "apply",
    "compress",
    "compressed",
    "plan",
    "sweep",
]

DEFAULT_PASSES = (
    "fold_batchnorm,prune_channels{gain=2},svd,spatial_svd,channel_svd,cp{form=three},recurrent_svd"
)


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

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write the model in one step and return its bytes.

        Raises:
            ModelError: the path is the input itself or cannot be written.
        """
        return save(self._written, path, source=self._source)


def compress(
    model: str | os.PathLike[str] | onnx.ModelProto | Model,
    *,
    calib: Any = None,
    target: str | Sequence[str] | None = None,
    ranks: str = "planner",
    passes: str | Sequence[str | Pass] = DEFAULT_PASSES,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    samples: int | None = None,
    images: ImageOptions | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    threads: int = 0,
    provider: str = "CPUExecutionProvider",
    batch: int = 1,
    timing_limit: float = 120.0,
    cache: str | os.PathLike[str] | None = None,
    max_drop: float | None = None,
    min_agreement: float | None = None,
    min_snr: float | None = None,
    metric: Metric | None = None,
    repair: str = DEFAULT_REPAIR,
    rounds: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Compress a model to a budget, without labels or retraining.

    Args:
        model: path or ModelProto; it is not changed.
        calib: typical inputs, without labels: anything that
            :func:`onnx_lowrank.samples.dataset.load_dataset` reads. None fits weights instead of
            responses, at a price in accuracy.
        target: ``macs=R``, ``params=R``, ``size=R`` or ``latency=R``: what is left, as a part of
            the original; several to keep all of them; ``macs=0.5`` where nothing is said.
        ranks: ``planner`` plans them under the target by response error. A rule instead gives
            every layer its own: ``fixed=R``, ``ratio=R`` of its MACs, ``energy=R`` of its
            response kept, ``error=R`` of it lost, or ``evbmf``.
        passes: names with options, ``svd,spatial_svd{split=vh}``, or Pass objects.
        include: globs of layer names; only these are touched.
        exclude: globs of layer names; these are not touched.
        samples: calibration samples to draw; all by default, less a fifth for validation where
            there are no others.
        images: how pictures become inputs, where ``calib`` is a folder of them.
        input_shapes: shapes of inputs with dynamic axes beside the batch, without ``calib``.
        seed: of every random draw.
        threads: of ONNX Runtime; 0 leaves the choice to it.
        provider: ONNX Runtime execution provider.
        batch: samples of an inference whose latency counts.
        timing_limit: seconds to measure chains for, about, where a target is on latency.
        cache: folder for their times, and for moments as long as they are being collected, so that
            an interrupted run goes on where it was; None for the user's own, empty for none.
        max_drop: largest drop of labelled accuracy (0.01 is a point), or of ``metric``. The least
            ratio that keeps it is searched, of what ``target`` names without one, as in
            ``["latency", "params=0.25"]``.
        min_agreement: least part of samples that keep their first class, likewise.
        min_snr: least signal-to-noise ratio of the outputs in dB, likewise.
        metric: ``metric(outputs, labels) -> float``, higher being better; ``outputs`` by name,
            labels of any type as the data has them. One with a parameter ``inputs`` gets these by
            name as well.
        repair: what mends the weights, with the prefix compressed: ``none``, ``last`` (solve the
            last stage of each chain again), ``chain`` (solve and factorize each again) or
            ``relu`` (and again for what a ReLU lets through).
        rounds: plan again, so many times at the most, by weights of the layers that are measured
            around the plan; what is best on held-out samples is kept. None for one round where the
            repair solves whole layers; 0 is faster.
        force: return the model even if it is slower or bigger than the original.
        progress: told of each step.

    Raises:
        OptionError, ModelError, DataError, BudgetError, GuardError, ValidationError.
    """
    requirement = Requirement.of(max_drop, min_agreement, min_snr, metric)
    asked = Target.parse(target, ranks, search=requirement is not None)
    if requirement is not None and rounds:
        raise OptionError("rounds are for one target; first search, then give rounds what it found")
    data = DataOptions(calib, samples, images, input_shapes, seed)
    timing = TimingOptions(batch, timing_limit, None if cache is None else os.fspath(cache))
    runtime = Runtime(provider, threads)
    run = Run(model, parse_list(passes), data, runtime, timing, progress, repair)
    run.choose_layers(include, exclude)
    if requirement is None:
        return compressed(run, asked, rounds, force)
    run.check_target(asked)  # before what is searched finds it out of reach at every ratio
    run.labels_are_classes = requirement.metric is None
    found = smallest_within(run, asked, requirement)
    notes = [*found.planned.notes, requirement.understood, found.text(requirement)]
    return _finished(run, found.built, force, notes)


def compressed(run: Run, target: Target, rounds: int | None, force: bool) -> Result:
    """Plan a run to a target, build the model, take back what does not pay, and report.

    Args: as of :func:`compress`.

    Raises:
        OptionError, ModelError, DataError, BudgetError, GuardError, ValidationError.
    """
    run.check_labels()
    planned, made = weighed_plan(run, target, rounds)
    built = made if made is not None else run.build(planned.plan)
    planned, built = run.paying(planned, built)
    return _finished(run, built, force, planned.notes)


def plan(
    model: str | os.PathLike[str] | onnx.ModelProto | Model,
    *,
    calib: Any = None,
    target: str | Sequence[str] | None = None,
    ranks: str = "planner",
    passes: str | Sequence[str | Pass] = DEFAULT_PASSES,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    samples: int | None = None,
    images: ImageOptions | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    threads: int = 0,
    provider: str = "CPUExecutionProvider",
    batch: int = 1,
    timing_limit: float = 120.0,
    cache: str | os.PathLike[str] | None = None,
    repair: str = DEFAULT_REPAIR,
    rounds: int | None = None,
    progress: Progress | None = None,
) -> Plan:
    """What :func:`compress` would do, to be looked at, edited, and applied.

    Args: as of :func:`compress`.

    Raises:
        OptionError, ModelError, DataError, BudgetError.
    """
    asked = Target.parse(target, ranks)
    data = DataOptions(calib, samples, images, input_shapes, seed)
    timing = TimingOptions(batch, timing_limit, None if cache is None else os.fspath(cache))
    runtime = Runtime(provider, threads)
    run = Run(model, parse_list(passes), data, runtime, timing, progress, repair)
    run.choose_layers(include, exclude)
    return weighed_plan(run, asked, rounds)[0].plan


def apply(
    model: str | os.PathLike[str] | onnx.ModelProto | Model,
    plan: Plan,
    *,
    calib: Any = None,
    images: ImageOptions | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    threads: int = 0,
    provider: str = "CPUExecutionProvider",
    batch: int = 1,
    cache: str | os.PathLike[str] | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Do what a plan says: on the same model and data the same bytes as :func:`compress`.

    Args: as of :func:`compress`, and
        plan: from :func:`plan` or :meth:`Plan.load`, edited or not.

    Raises:
        PlanError: the plan is of another model, or names what is not there.
        OptionError, ModelError, DataError, GuardError, ValidationError.
    """
    data = DataOptions(calib, plan.samples, images, input_shapes, plan.seed)
    runtime = Runtime(provider, threads)
    timing = TimingOptions(batch, cache=None if cache is None else os.fspath(cache))
    run = Run(model, parse_list(plan.passes), data, runtime, timing, progress)
    run.refuse = {d.layer: d.reason for d in plan.decisions if d.decision == "skip"}.get
    run.check_labels()
    return _finished(run, run.build(plan), force)


def sweep(
    model: str | os.PathLike[str] | onnx.ModelProto | Model,
    *,
    calib: Any = None,
    metric: str = "macs",
    ratios: Sequence[float] = RATIOS,
    folder: str | os.PathLike[str] | None = None,
    passes: str | Sequence[str | Pass] = DEFAULT_PASSES,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    samples: int | None = None,
    images: ImageOptions | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    threads: int = 0,
    provider: str = "CPUExecutionProvider",
    batch: int = 1,
    timing_limit: float = 120.0,
    cache: str | os.PathLike[str] | None = None,
    repair: str = DEFAULT_REPAIR,
    progress: Progress | None = None,
) -> Sweep:
    """Compress to several budgets and measure each: the whole trade of cost for accuracy.

    Args: as of :func:`compress`, and
        metric: what the budgets are on, ``macs``, ``params``, ``size`` or ``latency``.
        ratios: parts of the original.
        folder: where to write the models; None writes none.

    Raises:
        OptionError, ModelError, DataError, ValidationError.
    """
    targets = [Target.parse(f"{metric}={ratio:g}") for ratio in ratios]
    data = DataOptions(calib, samples, images, input_shapes, seed)
    timing = TimingOptions(batch, timing_limit, None if cache is None else os.fspath(cache))
    runtime = Runtime(provider, threads)
    run = Run(model, parse_list(passes), data, runtime, timing, progress, repair)
    run.choose_layers(include, exclude)
    run.check_labels()
    made = swept(run, targets, folder, batch)
    run.forget()
    return made


def _finished(run: Run, built: Built, force: bool, notes: Sequence[str] = ()) -> Result:
    report = run.report(built, notes)
    if not force:
        check_result(report, calibrated=run.data.calibration is not None)
    run.forget()
    return Result(built.model.proto, built.plan, report, built.model, run.source)
