"""The last step: ONNX Runtime's own quantizer, with the layers that the judge cannot bear left out.

First everything goes into int8, then the layers alone, each with weights of eight and of seven bits
(processors without instructions for int8 saturate at eight). Where nothing of that keeps what must
stay, layers are quantized a group at a time, to see what each costs; the costliest stay as they
are, as few of them as will do. Every decision is the judge's, on held-out samples.

beside_int8(analysis, built, quantize) -> Built, the same in int8; what each stage is worth; notes
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from onnx_lowrank.engine.analyse import Analysis
from onnx_lowrank.engine.build import Built
from onnx_lowrank.engine.shares import judge_between
from onnx_lowrank.engine.signing import check, sign
from onnx_lowrank.engine.tell import timed_pairs
from onnx_lowrank.errors import DataError
from onnx_lowrank.judge.judge import Judge
from onnx_lowrank.judge.requirement import NEARLY_ALL
from onnx_lowrank.judge.verdict import Verdict
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.planning.notes import InInt8, Note
from onnx_lowrank.report.stages import Stage
from onnx_lowrank.runtime.quantizable import Mode, Ready, made_ready
from onnx_lowrank.runtime.quantizer import Quantize, quantized, untaken

__all__ = ["Finished", "Quantized", "beside_int8", "within"]

#: groups of layers that are quantized alone, to see what each costs
GROUPS = 16
#: samples of a batch that ranges are collected on
_BATCH = 16


@dataclass(frozen=True)
class Quantized:
    """A model in int8, and how it came about.

    Attributes:
        model: the model; the one that was given where no layer can be borne in int8.
        left: names of the layers that stay as they are.
        layers: number of layers in int8.
        narrow: whether weights have seven bits.
        every_kind: whether other operators are in int8 too.
        runs: number of models that were quantized and judged.
    """

    model: Model
    left: tuple[str, ...]
    layers: int
    narrow: bool
    every_kind: bool
    runs: int


@dataclass(frozen=True)
class Finished:
    """A result in int8, beside what it came from.

    Attributes:
        built: the result.
        stages: the original, it in int8 alone, the result before int8, and the result.
        notes: what the report has to say.
    """

    built: Built
    stages: tuple[Stage, ...]
    notes: tuple[Note, ...]


def beside_int8(analysis: Analysis, built: Built, asked: Quantize) -> Finished:
    """Quantize a result, and the original for comparison.

    Args:
        analysis: of the original model.
        built: the result in floating point.
        asked: how, and what must stay.

    Raises:
        OptionError, ModelError: the model cannot be quantized so.
        DataError: ranges are asked for, and there are no calibration samples.
    """
    job = analysis.job
    with job.tools.stopwatch("int8"):
        judge = judge_between(analysis)
        readied = [
            _made_ready(analysis, m, asked.mode) for m in (analysis.prepared.model, built.model)
        ]
        alone, both = (
            within(ready, model, judge, asked.kept)
            for ready, model in zip(readied, (job.source, built.model), strict=True)
        )
        signed = sign(both.model, built.plan)
    check(job.source, signed)
    final = replace(built, model=signed, timed=None)
    models = {
        "original": job.source,
        f"int8 ({asked.mode})": alone.model,
        "compressed": built.model,
        f"compressed, int8 ({asked.mode})": signed,
    }
    note = InInt8(
        mode=asked.mode,
        layers=both.layers,
        left=both.left,
        bits=7 if both.narrow else 8,
        every_kind=both.every_kind,
        runs=both.runs,
        remarks=(*readied[1].remarks, *_domains(built.model, signed)),
    )
    return Finished(final, _stages(analysis, models), (note,))


def within(ready: Ready, plain: Model, judge: Judge, kept: float) -> Quantized:
    """The model with as much in int8 as keeps a part of the answers.

    A model that keeps less than that before it is quantized must keep nearly all of what it does.

    Args:
        ready: the model, ready for the quantizer.
        plain: the same in floating point, as it is to be returned where nothing helps.
        judge: of models against the original.
        kept: part of the original's answers that must stay.
    """
    has = judge.compare(plain).kept.value
    least = kept if has >= kept else NEARLY_ALL * has
    runs = 0

    def judged(leaving: Collection[str], every_kind: bool, narrow: bool) -> tuple[Model, Verdict]:
        nonlocal runs
        runs += 1
        made = quantized(ready, leaving=leaving, every_kind=every_kind, narrow=narrow)
        return made, judge.compare(made)

    def finished(model: Model, left: Collection[str]) -> Quantized:
        floats = ready.layers if model is plain else untaken(ready, model)
        names = tuple(name for name in ready.layers if name in left)
        layers = len(ready.layers) - len(floats)
        return Quantized(model, names, layers, narrow, every_kind, runs)

    narrow = every_kind = False
    for every_kind in (True, False) if ready.mode == "static" else (False,):
        tried = {n: judged((), every_kind, n) for n in (False, True)}
        narrow = tried[True][1].loss.value < tried[False][1].loss.value
        made, verdict = tried[narrow]
        if verdict.kept.value >= least:
            return finished(made, ())
    groups = _by_cost(ready, judge, narrow)
    runs += len(groups)
    least_left, most_left, found = 0, len(groups), None
    while most_left - least_left > 1:  # that fewer left out keep more is not looked for
        count = (least_left + most_left) // 2
        left = {name for group in groups[:count] for name in group}
        made, verdict = judged(left, False, narrow)
        if verdict.kept.value >= least:
            most_left, found = count, (made, left)
        else:
            least_left = count
    model, left = found or (plain, set(ready.layers))
    return finished(model, left)


def _by_cost(ready: Ready, judge: Judge, narrow: bool) -> list[tuple[str, ...]]:
    """Groups of layers, the one that costs most when it alone is quantized coming first."""
    names = ready.layers
    size = -(-len(names) // GROUPS)
    groups = [names[i : i + size] for i in range(0, len(names), size)]
    costs = {}
    for group in groups:
        others = [n for n in names if n not in group]
        costs[group] = judge.divergence(quantized(ready, leaving=others, narrow=narrow))
    return sorted(groups, key=lambda g: -costs[g])


def _made_ready(analysis: Analysis, model: Model, mode: Mode) -> Ready:
    if mode == "dynamic":
        return made_ready(model, mode)
    data = analysis.job.samples.calibration
    if data is None:
        raise DataError(
            "--quantize static finds the ranges of activations on calibration samples; give "
            "--calib, or --quantize dynamic, which does without"
        )
    size = min(_BATCH, analysis.prepared.batch_size)
    return made_ready(model, mode, data.batches(size))


def _domains(before: Model, after: Model) -> tuple[str, ...]:
    """Operators of ONNX Runtime's own that a model has and did not have, in words."""
    had = {n.domain for n in before.proto.graph.node}
    own = sorted({
        n.op_type for n in after.proto.graph.node if n.domain not in {*had, "", "ai.onnx"}
    })  # fmt: skip
    return (f"operators that ONNX Runtime alone has: {', '.join(own)}",) if own else ()


def _stages(analysis: Analysis, models: dict[str, Model]) -> tuple[Stage, ...]:
    """Bytes, times and the judge's word for each model, on all samples that did not calibrate."""
    job = analysis.job
    with job.tools.stopwatch("int8"):
        judge = analysis.judge_on(job.samples.validation)
        batches = sorted({1, 16, job.tools.timing.batch})
        found = []
        for name, model in models.items():
            pairs = () if model is job.source else timed_pairs(job, model, batches)
            verdict = judge.compare(model)
            found.append(Stage(name, model.bytes, pairs, verdict.loss, verdict.kept))
    return tuple(found)
