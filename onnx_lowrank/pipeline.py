"""The main flow: load, canonicalise, moments, plan, rewrite, refit, validate, guard.

``compress`` is ``plan`` and ``apply`` in one: what is written depends on the plan alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import checker

from onnx_lowrank._version import __version__
from onnx_lowrank.base import Pass
from onnx_lowrank.calibration import Dataset, ImageOptions
from onnx_lowrank.candidates import METRICS, cut_candidate, make_choices, selected
from onnx_lowrank.channel_cut import Remains
from onnx_lowrank.collect import batch_size
from onnx_lowrank.cost import Cost, model_cost
from onnx_lowrank.decide import after_cut, budget_of, choose, decide
from onnx_lowrank.errors import GuardError, OptionError, PlanError, ValidationError
from onnx_lowrank.graph import Graph
from onnx_lowrank.layers import find_layers
from onnx_lowrank.linalg.rank_rules import RankRule
from onnx_lowrank.model import Model, load, save
from onnx_lowrank.plan import Decision, Plan
from onnx_lowrank.planner import by_rule
from onnx_lowrank.preparation import MEMORY, Prepared, canonicalise, measured_shapes, prepare
from onnx_lowrank.progress import Progress
from onnx_lowrank.prune_split import share_budget
from onnx_lowrank.prune_top_down import top_down
from onnx_lowrank.pruning import Kept, Pruner
from onnx_lowrank.refit import Refit, refit
from onnx_lowrank.refit_tasks import refit_tasks
from onnx_lowrank.registry import Passes, parse_list
from onnx_lowrank.report import Report
from onnx_lowrank.rewrite import Written, apply_chain
from onnx_lowrank.run_data import gather
from onnx_lowrank.runtime import Runtime
from onnx_lowrank.validate import LatencyPair, measure_latency, validate_models

__all__ = ["DEFAULT_PASSES", "DEFAULT_TARGET", "Result", "apply", "compress", "plan"]

DEFAULT_PASSES = "fold_batchnorm,svd,spatial_svd,channel_svd,cp{form=three},recurrent_svd"
DEFAULT_TARGET = "macs=0.5"

#: bytes that the plan's digest and our version may add to a model that stays as it is
SIGNATURE = 256
#: a time within this ratio of the original's counts as no slower: clocks are noisy
SLOWER = 1.05


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
    target: str | None = None,
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
    repair: bool = True,
    force: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Compress a model to a budget, without labels or retraining.

    Args:
        model: path or ModelProto; it is not changed.
        calib: typical inputs, without labels: anything that
            :func:`onnx_lowrank.calibration.load_dataset` reads. None fits weights instead of
            responses, at a price in accuracy.
        target: ``macs=R``, ``params=R`` or ``size=R``: what is left, as a part of the original;
            ``macs=0.5`` where nothing is said.
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
        repair: solve the chains again from input to output with the prefix compressed.
        force: return the model even if it is slower or bigger than the original.
        progress: told of each step.

    Raises:
        OptionError, ModelError, DataError, BudgetError, GuardError, ValidationError.
    """
    asked = _asked(target, ranks)
    chosen = parse_list(passes)
    data = _Data(calib, samples, images, input_shapes, seed)
    run = _Run(model, chosen, data, Runtime(provider, threads), progress)
    run.choose_layers(include, exclude)
    return run.apply(run.plan(asked), repair=repair, force=force)


def plan(
    model: str | os.PathLike[str] | onnx.ModelProto | Model,
    *,
    calib: Any = None,
    target: str | None = None,
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
    progress: Progress | None = None,
) -> Plan:
    """What :func:`compress` would do, to be looked at, edited, and applied.

    Args: as of :func:`compress`.

    Raises:
        OptionError, ModelError, DataError, BudgetError.
    """
    asked = _asked(target, ranks)
    chosen = parse_list(passes)
    data = _Data(calib, samples, images, input_shapes, seed)
    run = _Run(model, chosen, data, Runtime(provider, threads), progress)
    run.choose_layers(include, exclude)
    return run.plan(asked)


def apply(
    model: str | os.PathLike[str] | onnx.ModelProto | Model,
    plan: Plan,
    *,
    calib: Any = None,
    images: ImageOptions | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    threads: int = 0,
    provider: str = "CPUExecutionProvider",
    repair: bool = True,
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
    data = _Data(calib, plan.samples, images, input_shapes, plan.seed)
    run = _Run(model, parse_list(plan.passes), data, Runtime(provider, threads), progress)
    skipped = {d.layer: d.reason for d in plan.decisions if d.decision == "skip"}
    run.refuse = skipped.get
    return run.apply(plan, repair=repair, force=force)


@dataclass(frozen=True)
class _Target:
    metric: str
    ratio: float
    rule: RankRule | None

    def __str__(self) -> str:
        return f"ranks {self.rule}" if self.rule else f"{self.metric}={self.ratio:g}"


@dataclass(frozen=True)
class _Data:
    calib: Any
    samples: int | None
    images: ImageOptions | None
    input_shapes: Mapping[str, Sequence[int]] | None
    seed: int


class _Run:
    """One model and its data, on the way from passes to a plan to a result."""

    def __init__(
        self, model: Any, passes: Passes, data: _Data, runtime: Runtime, progress: Progress | None
    ) -> None:
        if len(passes.prunings) > 1:
            raise OptionError("one pruning pass at a time; its options say how")
        if not passes.factorizations and not passes.prunings:
            raise OptionError("no factorization among the passes; add spatial_svd, for one")
        self._clock = _Clock()
        self._progress = progress or Progress()
        self._passes, self._runtime, self._options = passes, runtime, data
        self._source = load(model)
        self._data = gather(
            self._source, data.calib, data.samples, data.images, data.input_shapes, data.seed
        )
        self._pruned: tuple[Any, Prepared, Remains] | None = None
        self.refuse: Any = lambda name: None

    def choose_layers(self, include: Sequence[str], exclude: Sequence[str]) -> None:
        """Leave out the layers that the user's globs leave out."""
        self.refuse = lambda name: selected(name, include, exclude)

    # -- the plan --------------------------------------------------------------------------------

    def plan(self, target: _Target) -> Plan:
        """A decision for every layer and group of channels."""
        kept: Kept = {}
        groups = []
        prepared, before = self._prepared, self._before
        now = model_cost(prepared.model, prepared.shapes)
        if self._passes.prunings:
            with self._clock("prune"):
                pruner = self._pruner(target.metric)
                kept = self._channels(pruner, target, before, now)
                kept = self._chained(pruner, kept)
                groups = pruner.decisions(kept)
        work = self._cut(kept)[0]
        with self._clock("plan"):
            proposals = make_choices(
                work.layers, self._passes.factorizations, work.moments, work.shapes,
                target.metric, prepared.moments.totals, self._progress, target.rule,
            )  # fmt: skip
            if not self._passes.factorizations:
                chosen = [c.keep for c in proposals.choices]
            elif target.rule is not None:
                chosen = by_rule(proposals.choices, target.rule)
            else:
                now = model_cost(work.model, work.shapes)
                budget, movable = budget_of(proposals, before, now, target.metric, target.ratio)
                chosen = choose(proposals, budget, movable, before, target.metric)
            decisions = decide(prepared, work, chosen, proposals)
        return Plan(
            self._source.digest, self._data.digest, str(target), self._options.seed,
            self._options.samples, self._passes.specs, tuple(decisions), tuple(groups),
        )  # fmt: skip

    def _chained(self, pruner: Pruner, kept: Kept) -> Kept:
        """The channels that go, chosen in the order that the pass asks for."""
        chain, data = self._passes.prunings[0].options.chain, self._data.calibration
        if chain == "parallel":
            return pruner.refined(kept)
        if chain == "top_down" and data is not None:
            return top_down(
                pruner, self._prepared, kept, data, self._runtime, self._options.seed,
                self._progress,
            )  # fmt: skip
        return kept

    def _channels(self, pruner: Pruner, target: _Target, before: Cost, now: Cost) -> Kept:
        whole, all_now = (_of(c, target.metric) for c in (before, now))
        budget = target.ratio * whole - (all_now - pruner.cost)
        if self._passes.prunings[0].options.keep or not self._passes.factorizations:
            return pruner.plan(budget, str(target))[0]
        if target.rule is not None:
            raise OptionError("ranks by rule leave pruning no budget; set prune_channels{keep=R}")
        return share_budget(
            pruner, self._prepared, self._passes.factorizations, budget, str(target),
            lambda model, graph, layers: measured_shapes(
                model, graph, layers, self._data.validation, self._runtime
            ),
            target.metric,
        )  # fmt: skip

    # -- the result ------------------------------------------------------------------------------

    def apply(self, plan: Plan, *, repair: bool, force: bool) -> Result:
        """The model that a plan describes, checked and measured."""
        self._check_plan(plan)
        kept = {
            g.name: np.array(g.kept, np.intp)
            for g in plan.groups
            if g.decision in ("cut", "gather")
        }
        work, remains = self._cut(kept)
        with self._clock("rewrite"):
            compressed = Graph(work.model)
            named = {t.name: t for t in find_layers(compressed)[0]}
            made: dict[str, Decision] = {d.layer: d for d in plan.decisions}
            if missing := [la.name for la in work.layers if la.name not in made]:
                raise PlanError(f"the plan says nothing of layer {missing[0]!r}")
            written: dict[str, Written] = {}
            for layer in work.layers:
                decision = made[layer.name]
                if decision.decision == "factorize":
                    moments = work.moments[layer.name]
                    chain = cut_candidate(layer, decision, self._passes.factorizations, moments)
                    written[layer.name] = apply_chain(compressed, named[layer.name], chain)
                    made[layer.name] = after_cut(layer, decision, chain, moments, work.shapes)
        refits: list[Refit] = []
        with self._clock("refit"):
            if repair and self._data.calibration is not None and (written or kept):
                tasks = refit_tasks(
                    self._prepared, work, remains, compressed, written, made,
                    self._passes.factorizations,
                )  # fmt: skip
                size = batch_size(list(work.shapes), work.shapes, MEMORY)
                refits = refit(
                    self._prepared.graph, compressed, tasks, self._data.calibration,
                    self._runtime, size=size, seed=plan.seed, memory=MEMORY // 8,
                    progress=self._progress,
                )  # fmt: skip
        result = _sign(compressed.to_model(), plan)
        _check(self._source, result)
        report = self._report(result, plan, tuple(made.values()), tuple(refits))
        if not force:
            _guard(report)
        return Result(result.proto, plan, report, result, self._source)

    def _check_plan(self, plan: Plan) -> None:
        if plan.model != self._source.digest:
            raise PlanError(
                f"the plan is of another model: its SHA-256 is {plan.model[:16]}..., that of "
                f"this one {self._source.digest[:16]}..."
            )
        prunables = {}
        if any(g.decision in ("cut", "gather") for g in plan.groups):
            prunables = self._pruner("macs").prunables
        for group in plan.groups:
            if group.decision not in ("cut", "gather"):
                continue
            prunable = prunables.get(group.name)
            if prunable is None:
                raise PlanError(f"the plan cuts {group.name!r}, which is no group that may be cut")
            inside = all(k < prunable.size for k in group.kept)
            if not group.kept or not inside or list(group.kept) != sorted(set(group.kept)):
                raise PlanError(
                    f"the plan keeps channels of {group.name!r} that are not "
                    f"rising numbers below {prunable.size}"
                )

    def _report(
        self, result: Model, plan: Plan, decisions: tuple[Decision, ...], refits: tuple[Refit, ...]
    ) -> Report:
        with self._clock("validate"):
            data, shapes = self._data.validation, self._prepared.shapes
            size = batch_size(list(shapes), shapes, MEMORY)
            validation = validate_models(
                self._source, result, data, self._runtime, size=size, progress=self._progress
            )
            latency = _latency(self._source, result, data, self._runtime)
            after = self._cost(result)
        notes, before = list(self._data.notes), self._before
        if plan.data != self._data.digest:
            notes.append("the calibration data is not that of the plan; the weights differ from it")
        if plan.target.startswith("size=") and after.bytes > float(plan.target[5:]) * before.bytes:
            left = after.bytes / before.bytes
            notes.append(
                f"{left:.4f} of the bytes are left, not {plan.target}: names took the rest"
            )
        return Report(
            before, after, plan.target, decisions, plan.groups, refits, validation, latency,
            tuple(notes), self._clock.seconds, __version__, plan.digest, plan.seed,
        )  # fmt: skip

    # -- what it works on ------------------------------------------------------------------------

    @cached_property
    def _prepared(self) -> Prepared:
        with self._clock("calibrate"):
            model = canonicalise(self._source, self._passes.rewrites)
            return self._prepare(model)

    @cached_property
    def _before(self) -> Cost:
        return self._cost(self._source)

    def _prepare(self, model: Model) -> Prepared:
        return prepare(
            model, self._data, self._runtime, self.refuse, self._options.seed, self._progress,
            every_shape=bool(self._passes.prunings),
        )  # fmt: skip

    def _pruner(self, metric: str) -> Pruner:
        return Pruner(self._prepared, self._passes.prunings[0], metric, self._progress)

    def _cut(self, kept: Kept) -> tuple[Prepared, Remains]:
        """The model without the channels that go, measured anew; computed once."""
        if not kept:
            return self._prepared, Remains({}, {})
        key = sorted((name, left.tolist()) for name, left in kept.items())
        if self._pruned is None or self._pruned[0] != key:
            with self._clock("cut"):
                graph = Graph(self._prepared.model)
                remains = self._pruner("macs").apply(graph, kept)
                self._pruned = key, self._prepare(graph.to_model()), remains
        return self._pruned[1], self._pruned[2]

    def _cost(self, model: Model) -> Cost:
        shapes = measured_shapes(model, Graph(model), [], self._data.validation, self._runtime)
        return model_cost(model, shapes)


def _of(cost: Cost, metric: str) -> float:
    return {"macs": cost.macs, "params": cost.parameters, "size": cost.bytes}[metric]


def _asked(target: str | None, ranks: str) -> _Target:
    rule = parse_ranks(ranks)
    if rule is not None and target is not None:
        raise OptionError(f"ranks by {rule} know of no target; give one of the two")
    return _Target(*parse_target(target or DEFAULT_TARGET), rule)


def parse_ranks(text: str) -> RankRule | None:
    """The rule for ranks; None for the planner.

    Raises:
        OptionError: it is neither.
    """
    if text == "planner":
        return None
    try:
        return RankRule.parse(text)
    except ValueError as error:
        raise OptionError(f"{error}, or planner") from error


def parse_target(text: str) -> tuple[str, float]:
    """``macs=0.5`` to its metric and ratio.

    Raises:
        OptionError: it is not of that form.
    """
    metric, equals, value = text.partition("=")
    try:
        ratio = float(value)
    except ValueError:
        ratio = float("nan")
    if not equals or metric not in METRICS or not 0 < ratio <= 1:
        raise OptionError(
            f"target {text!r}; write {' or '.join(f'{m}=R' for m in METRICS)} with 0 < R <= 1"
        )
    return metric, ratio


class _Clock:
    """Wall time by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        spent = self.seconds.get(step, 0.0) + time.perf_counter() - start
        self.seconds[step] = round(spent, 3)


def _sign(model: Model, plan: Plan) -> Model:
    proto = model.proto
    kept = [p for p in proto.metadata_props if not p.key.startswith("onnx_lowrank.")]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    for key, value in (("onnx_lowrank.plan", plan.digest), ("onnx_lowrank.version", __version__)):
        proto.metadata_props.add(key=key, value=value)
    return replace(model, path=None)


def _check(source: Model, result: Model) -> None:
    """The checker must accept what we wrote wherever it accepted what we read."""
    try:
        checker.check_model(source.proto)
    except (checker.ValidationError, ValueError):
        return
    try:
        checker.check_model(result.proto)
    except checker.ValidationError as error:
        raise ValidationError(
            f"the result does not pass onnx.checker, please report it: {error}"
        ) from error


def _latency(
    source: Model, result: Model, dataset: Dataset, runtime: Runtime
) -> tuple[LatencyPair, ...]:
    feeds = [(1, dataset.feed(0))]
    if dataset.batchable and len(dataset) >= 16:
        feeds.append((16, next(dataset.batches(16))))
    return measure_latency(source, result, feeds, runtime, seconds=1.0)


def _guard(report: Report) -> None:
    if report.after.bytes > report.before.bytes + SIGNATURE:
        raise GuardError(
            f"the result has {report.after.bytes} bytes, the original {report.before.bytes}; "
            "nothing was written (--force writes it all the same)"
        )
    slow = [p for p in report.latency if min(1 / p.speedup, 1 / p.median_speedup) > SLOWER]
    if slow:
        raise GuardError(
            f"the result takes {slow[0].new_ms:.3g} ms, the original {slow[0].reference_ms:.3g} ms "
            f"(batch {slow[0].batch}); nothing was written (--force writes it all the same)"
        )
