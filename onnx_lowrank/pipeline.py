"""The main flow: load, canonicalise, moments, plan, rewrite, refit, validate, guard."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import onnx
from onnx import checker

from onnx_lowrank._version import __version__
from onnx_lowrank.base import Factorization, Pass, Rewrite
from onnx_lowrank.calibration import (
    Dataset,
    ImageOptions,
)
from onnx_lowrank.candidates import METRICS, cut_candidate, make_choices, selected
from onnx_lowrank.chain import Chain, Stage
from onnx_lowrank.collect import MomentStore, batch_size, collect_moments
from onnx_lowrank.cost import model_cost, node_tensors, tensor_shapes
from onnx_lowrank.decide import budget_of, choose, decide
from onnx_lowrank.errors import GuardError, OptionError, ValidationError
from onnx_lowrank.graph import Graph
from onnx_lowrank.layers import Ineligible, Layer, find_layers
from onnx_lowrank.linalg.rank_rules import RankRule
from onnx_lowrank.model import Model, load, save
from onnx_lowrank.moments import Moments, relative_error
from onnx_lowrank.planner import Candidate, Plan, by_rule
from onnx_lowrank.progress import Progress
from onnx_lowrank.refit import Refit, Task, refit
from onnx_lowrank.registry import parse_list
from onnx_lowrank.report import Report
from onnx_lowrank.rewrite import Written, apply_chain
from onnx_lowrank.run_data import RunData, gather
from onnx_lowrank.runtime import Runtime
from onnx_lowrank.validate import LatencyPair, measure_latency, validate_models

__all__ = ["DEFAULT_PASSES", "Result", "compress"]

DEFAULT_PASSES = "fold_batchnorm,svd,spatial_svd,channel_svd,cp{form=three},recurrent_svd"

DEFAULT_TARGET = "macs=0.5"

#: bytes for moments and stored tensors at a time
MEMORY = 512 << 20
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
    clock = _Clock()
    progress = progress or Progress()
    rule = parse_ranks(ranks)
    if rule is not None and target is not None:
        raise OptionError(f"ranks by {rule} know of no target; give one of the two")
    metric, ratio = parse_target(target or DEFAULT_TARGET)
    rewrites, factorizations = parse_list(passes)
    if not factorizations:
        raise OptionError("no factorization among the passes; add spatial_svd, for one")
    runtime = Runtime(provider, threads)
    source = load(model)
    data = gather(source, calib, samples, images, input_shapes, seed)

    with clock("calibrate"):
        canonical = canonicalise(source, rewrites)
        original = Graph(canonical)
        layers, others = find_layers(original)
        shapes = measured_shapes(canonical, original, layers, data.validation, runtime)
        size = batch_size(list(shapes), shapes, MEMORY)
        layers, left_out = _select(layers, others, shapes, include, exclude)
        moments = moments_of(original, layers, data.calibration, runtime, shapes, seed, progress)
    with clock("plan"):
        before = model_cost(source, _source_shapes(source, data, runtime))
        proposals = make_choices(
            layers, factorizations, moments, shapes, metric, moments.totals, progress, rule
        )
        if rule is not None:
            chosen = by_rule(proposals.choices, rule)
        else:
            now = model_cost(canonical, shapes)
            budget, movable = budget_of(proposals, before, now, metric, ratio)
            chosen = choose(proposals, budget, movable, before, metric)
    with clock("rewrite"):
        compressed = Graph(canonical)
        targets, _ = find_layers(compressed)
        named = {t.name: t for t in targets}
        written = {
            layer.name: apply_chain(
                compressed,
                named[layer.name],
                cut_candidate(layer, candidate, factorizations, moments[layer.name]),
            )
            for layer, candidate in zip(layers, chosen, strict=True)
            if candidate.method
        }
        errors = {
            layer.name: relative_error(layer.stage, written[layer.name].chain, moments[layer.name])
            for layer in layers
            if layer.name in written
        }
        decisions = decide(layers, chosen, errors, proposals, left_out)
        asked = f"{metric}={ratio:g}" if rule is None else f"ranks {rule}"
        plan = Plan(source.digest, asked, seed, tuple(decisions))
    refits: list[Refit] = []
    with clock("refit"):
        if repair and data.calibration is not None and written:
            tasks = _tasks(compressed, layers, chosen, written, factorizations)
            refits = refit(
                original,
                compressed,
                tasks,
                data.calibration,
                runtime,
                size=size,
                seed=seed,
                memory=MEMORY // 8,
                progress=progress,
            )
    result = _sign(compressed.to_model(), plan)
    _check(source, result)
    with clock("validate"):
        validation = validate_models(
            source, result, data.validation, runtime, size=size, progress=progress
        )
        latency = _latency(source, result, data.validation, runtime)
        after = model_cost(result, _source_shapes(result, data, runtime))
    notes = list(data.notes)
    if rule is None and metric == "size" and after.bytes > ratio * before.bytes:
        left = after.bytes / before.bytes
        notes.append(f"{left:.4f} of the bytes are left, {ratio:g} was asked: names took the rest")
    report = Report(
        before, after, plan.target, plan.decisions, tuple(refits), validation, latency,
        tuple(notes), clock.seconds, __version__, plan.digest, seed,
    )  # fmt: skip
    if not force:
        _guard(report)
    return Result(result.proto, plan, report, result, source)


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
        self.seconds[step] = round(time.perf_counter() - start, 3)


def canonicalise(source: Model, rewrites: Sequence[Rewrite]) -> Model:
    """The model as the passes see it: BatchNormalization folded, and the like."""
    graph = Graph(source)
    for rewrite in rewrites:
        rewrite.run(graph)
    return graph.to_model()


def _source_shapes(model: Model, data: RunData, runtime: Runtime) -> dict[str, tuple[int, ...]]:
    return measured_shapes(model, Graph(model), [], data.validation, runtime)


def measured_shapes(
    model: Model, graph: Graph, layers: Sequence[Layer], dataset: Dataset, runtime: Runtime
) -> dict[str, tuple[int, ...]]:
    """Shapes at the first sample of what layers read, and of all that costs are counted from."""
    feed = dataset.feed(0)
    needed = dict.fromkeys([layer.input for layer in layers])
    needed |= dict.fromkeys(t for n in graph.nodes for t in node_tensors(n))
    inputs = {name: value.shape for name, value in feed.items()}
    return tensor_shapes(model, inputs, feed, runtime, needed)


def _select(
    layers: Sequence[Layer],
    others: Sequence[Ineligible],
    shapes: Mapping[str, tuple[int, ...]],
    include: Sequence[str],
    exclude: Sequence[str],
) -> tuple[list[Layer], list[Ineligible]]:
    kept, left = [], list(others)
    for layer in layers:
        reason = selected(layer.name, include, exclude)
        if reason is None and layer.input not in shapes:
            reason = "the shape of its input is not known"
        if reason is None:
            kept.append(layer)
        else:
            left.append(Ineligible(layer.name, layer.op, reason))
    return kept, left


def moments_of(
    graph: Graph,
    layers: Sequence[Layer],
    calibration: Dataset | None,
    runtime: Runtime,
    shapes: Mapping[str, tuple[int, ...]],
    seed: int,
    progress: Progress,
) -> MomentStore:
    """Moments of the layers' inputs; without data those of weight space."""
    if calibration is None:
        store = MomentStore()
        for layer in layers:
            store.add(layer.name, Moments())
        return store
    return collect_moments(
        graph, layers, calibration, runtime, shapes,
        seed=seed, memory=MEMORY, progress=progress,
    )  # fmt: skip


def _tasks(
    compressed: Graph,
    layers: Sequence[Layer],
    chosen: Sequence[Candidate],
    written: dict[str, Written],
    passes: Sequence[Factorization],
) -> list[Task]:
    """What to solve again: every chain, and kept layers behind the first of them."""
    targets = {layer.name: layer for layer in find_layers(compressed)[0]}
    changed: set[str] = set()
    tasks = []
    for layer, candidate in zip(layers, chosen, strict=True):
        stage = layer.stage
        if candidate.method:
            tasks.append(Task(written[layer.name], stage, _cutter(layer, candidate, passes)))
        elif (
            changed & compressed.ancestors([layer.input])
            and stage.bias is not None
            and layer.sharers == 1
        ):
            kept = apply_chain(compressed, targets[layer.name], Chain((stage,)))
            tasks.append(Task(kept, stage, lambda solved, _: Chain((solved,))))
        else:
            continue
        changed.add(layer.output)
    return tasks


def _cutter(layer: Layer, candidate: Candidate, passes: Sequence[Factorization]) -> Any:
    def cut(stage: Stage, moments: Moments) -> Chain:
        return cut_candidate(layer.with_stage(stage), candidate, passes, moments)

    return cut


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
