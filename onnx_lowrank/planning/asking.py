"""Asking: what all passes have to say about one layer, here or on a worker.

A question holds values alone, arrays and geometry, so that it can be sent; its answer as well. The
outlines of an answer are many chains of zeros, which are sent as their shapes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from onnx_lowrank.analysis.cost import Cost, layer_cost
from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.analysis.time_model import time_in_macs
from onnx_lowrank.chains.chain import Chain, Rank
from onnx_lowrank.layers import Layer, PlacedLayer
from onnx_lowrank.linalg.blas_threads import blas_for
from onnx_lowrank.linalg.rank_rules import RankRule, evbmf_rank
from onnx_lowrank.passkit.base import Decomposition, Factorization, Skip, Unfolded
from onnx_lowrank.passkit.runner import naming
from onnx_lowrank.passkit.weighed import taken_apart
from onnx_lowrank.planning.candidates import Candidate, Choice
from onnx_lowrank.runtime.workers import Workers

__all__ = ["NODE_BYTES", "NONE", "About", "Answer", "Question", "answers_elsewhere", "asked"]

#: bytes that one more node takes in the file, without the data of its initializers
NODE_BYTES = 400

#: begins the reason of a layer that no pass is for
NONE = "none of the passes replaces"


@dataclass(frozen=True)
class Question:
    """What passes are asked about every layer.

    Attributes:
        passes: the passes to ask.
        metric: unit of ``Candidate.cost``: ``macs``, ``params`` or ``size``.
        rule: rule for ranks; where it gives the ranks itself (``fixed``, ``evbmf``), only these
            are candidates.
    """

    passes: Sequence[Factorization]
    metric: str
    rule: RankRule | None = None

    def about(
        self, layer: PlacedLayer, moments: Moments, shape: tuple[int, ...], total: float
    ) -> About:
        """The question about one layer.

        Args:
            layer: the layer.
            moments: of its input.
            shape: of its input.
            total: variance of the sum that its response enters; 0 where it is not known.
        """
        whole = layer_cost(layer, {layer.input: shape})
        cost = whole.of(self.metric)
        workload = cost
        if self.metric == "macs":
            workload = time_in_macs(Chain((layer.value.outline,)), shape)
        keep = Candidate("", "", 0, 0.0, cost, workload, whole.macs, whole.parameters, whole.bytes)
        return About(layer.value, moments, shape, keep, total)


@dataclass(frozen=True)
class About:
    """What passes need to know of one layer.

    Attributes:
        layer: the layer.
        moments: of its input.
        shape: of its input.
        keep: the layer as it is.
        total: variance of the sum that its response enters; 0 where it is not known.
    """

    layer: Layer
    moments: Moments
    shape: tuple[int, ...]
    keep: Candidate
    total: float


class Answer(NamedTuple):
    """What passes say about one layer.

    Attributes:
        choice: its candidates.
        reasons: why passes left it alone.
        outlines: chains of all candidates but the first.
    """

    choice: Choice
    reasons: tuple[str, ...]
    outlines: tuple[Chain, ...]


def asked(question: Question, about: About) -> Answer:
    """Ask every pass about one layer.

    Raises:
        PassError: a pass fails.
    """
    layer, keep = about.layer, about.keep
    found: list[tuple[Candidate, Chain]] = []
    reasons: list[str] = []
    for factorization in question.passes:
        if layer.op not in factorization.ops:
            continue
        with naming(factorization, f"layer {layer.name!r}"):
            answer = _asked(factorization, question, about)
        if isinstance(answer, Skip):
            reasons.append(f"{factorization.name}: {answer.reason}")
        else:
            found += answer
    if question.passes and not reasons and not found:
        reasons.append(f"{NONE} {layer.op}")
    choice = Choice(layer.name, (keep, *(candidate for candidate, _ in found)))
    if about.total > 0 and about.moments.outputs is None:
        weight = about.moments.energy(layer.stage.matrices) / about.total
        if math.isfinite(weight):  # a weight that cannot be measured stays 1
            choice = replace(choice, weight=weight)
    return Answer(choice, tuple(reasons), tuple(outline for _, outline in found))


def answers_elsewhere(
    question: Question, abouts: Iterable[About], workers: Workers
) -> Iterator[Answer]:
    """Let workers ask the passes; yield the answers in the order of the layers.

    Raises:
        LowRankError: a pass fails, or the workers do.
    """
    sent = (replace(about, layer=about.layer.portable) for about in abouts)
    with closing(workers.answers(_asked_elsewhere, question, sent)) as answers:
        for choice, reasons, outlines in answers:
            yield Answer(choice, reasons, _mapped(outlines, _spread))


def _asked_elsewhere(question: Question, about: About) -> Answer:
    """The answer as it is sent."""
    with blas_for(about.layer.patch):
        choice, reasons, outlines = asked(question, about)
    return Answer(choice, reasons, _mapped(outlines, _gathered))


@dataclass(frozen=True)
class _Same:
    """An array whose elements are all the same.

    Attributes:
        value: of every element, an array without axes.
        shape: of the array.
    """

    value: Any
    shape: tuple[int, ...]


def _gathered(value: Any) -> Any:
    """An array without its repetitions."""
    if isinstance(value, np.ndarray) and value.size and not any(value.strides):
        return _Same(value.reshape(-1)[0].reshape(()).copy(), value.shape)
    return value


def _spread(value: Any) -> Any:
    """The array that was sent without its repetitions."""
    return np.broadcast_to(value.value, value.shape) if isinstance(value, _Same) else value


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """A value whose parts are changed, in tuples and dataclasses; these are not checked anew."""
    value = change(value)
    if isinstance(value, tuple):
        return tuple(_mapped(v, change) for v in value)
    if is_dataclass(value) and not isinstance(value, _Same):
        made = copy.copy(value)
        for f in fields(value):
            object.__setattr__(made, f.name, _mapped(getattr(value, f.name), change))
        return made
    return value


def _asked(
    factorization: Factorization, question: Question, about: About
) -> list[tuple[Candidate, Chain]] | Skip:
    """Every candidate that one pass has for a layer, with its outline, or why there is none."""
    layer, keep = about.layer, about.keep
    refusal = factorization.refuses(layer)
    if refusal is not None:
        return Skip(refusal.reason)
    try:
        found = [
            pair
            for decomposition in taken_apart(factorization, layer, about.moments, keep.parameters)
            for pair in _candidates(factorization, decomposition, question, about)
        ]
    except np.linalg.LinAlgError as error:
        # the covariance of the layer's inputs is nearly singular
        return Skip(f"{error}; give more samples")
    return found or Skip("no rank saves anything")


def _ranks(decomposition: Decomposition, rule: RankRule | None) -> Iterable[Rank]:
    """The ranks to try: the grid of the decomposition, or the ranks that a rule gives."""
    grid = list(decomposition.ranks())
    if rule is None or rule.kind not in ("fixed", "evbmf") or not grid:
        return grid
    places = 1 if isinstance(grid[0], int) else len(grid[0])
    if rule.kind == "fixed":
        wanted = [int(rule.value)] * places
        return [wanted[0] if places == 1 else tuple(wanted)]
    if not isinstance(decomposition, Unfolded):
        return []
    found = [
        [evbmf_rank(np.linalg.svd(m, compute_uv=False), m.shape) for m in g]
        for g in decomposition.unfoldings()
    ]
    wanted = [max(r) for r in zip(*found, strict=True)]
    large = [r for r in grid if all(a >= b for a, b in zip(_places(r), wanted, strict=True))]
    return sorted(large, key=lambda r: math.prod(_places(r)))[:1]


def _places(rank: Rank) -> tuple[int, ...]:
    return (rank,) if isinstance(rank, int) else rank


def _candidates(
    factorization: Factorization, decomposition: Decomposition, question: Question, about: About
) -> Iterator[tuple[Candidate, Chain]]:
    layer, shape, keep, metric = about.layer, about.shape, about.keep, question.metric
    # a recurrent node without bias gets one of twice the length, of which half are zeros
    zeros = layer.shape[0] if layer.recurrent and not layer.biased else 0
    for rank in _ranks(decomposition, question.rule):
        outline = decomposition.outline(rank)
        macs, parameters = outline.macs(shape), outline.parameters + zeros
        if (macs >= keep.macs and not layer.lookup) or parameters >= keep.parameters:
            continue
        size = parameters * layer.dtype.itemsize + NODE_BYTES * (outline.nodes - 1)
        cost = Cost(macs, parameters, size).of(metric)
        workload = time_in_macs(outline, shape) if metric == "macs" else cost
        error = decomposition.error(rank)
        if not math.isfinite(error):  # squares of very large or small numbers overflow
            continue
        yield (
            Candidate(
                factorization.spec, decomposition.variant, rank, error, cost, workload, macs,
                parameters, size,
            ),
            outline,
        )  # fmt: skip
