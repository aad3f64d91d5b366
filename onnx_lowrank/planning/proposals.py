"""Proposals: the candidates that all passes find for all layers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from scipy.linalg import LinAlgError, svdvals

from onnx_lowrank.analysis.cost import Cost, layer_cost
from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.analysis.time_model import time_in_macs
from onnx_lowrank.chains.chain import Chain, Rank
from onnx_lowrank.errors import PlanError
from onnx_lowrank.layers import Layer, PlacedLayer
from onnx_lowrank.linalg.blas_threads import blas_for, side_by_side
from onnx_lowrank.linalg.rank_rules import RankRule, evbmf_rank
from onnx_lowrank.passkit.base import Decomposition, Factorization, Skip, Unfolded
from onnx_lowrank.passkit.runner import cut, naming
from onnx_lowrank.passkit.weighed import taken_apart
from onnx_lowrank.planning.candidates import Candidate, Choice, reweighed, without_chains
from onnx_lowrank.planning.plan import Decision
from onnx_lowrank.progress import Progress

__all__ = ["NODE_BYTES", "Proposals", "beside", "cut_candidate", "make_choices", "together"]

#: bytes that one more node takes in the file, without the data of its initializers
NODE_BYTES = 400

#: begins the reason of a layer that no pass is for
_NONE = "none of the passes replaces"


@dataclass(frozen=True)
class Proposals:
    """All candidates that passes found for the layers of one model.

    Attributes:
        choices: a choice for each layer, in the order of the layers.
        skips: reasons why passes left a layer alone, by layer name.
        outlines: chains of the right shapes (their weights do not count) for every candidate but
            the first, which is the layer itself; by layer name.
    """

    choices: tuple[Choice, ...]
    skips: Mapping[str, tuple[str, ...]]
    outlines: Mapping[str, tuple[Chain, ...]]

    def by_layer(self) -> dict[str, Proposals]:
        """The same, each layer for itself, by name."""
        return {
            c.layer: Proposals(
                (c,), {c.layer: self.skips[c.layer]}, {c.layer: self.outlines[c.layer]}
            )
            for c in self.choices
        }

    def weighed(self, factors: Mapping[str, float]) -> Proposals:
        """The same with the weights of layers, by name, multiplied by factors."""
        return replace(self, choices=tuple(reweighed(self.choices, factors)))

    def keeping(self, layers: Iterable[str], reason: str) -> Proposals:
        """The same where some layers can only be kept as they are, for the given reason."""
        kept = frozenset(layers)
        return Proposals(
            tuple(without_chains(self.choices, kept)),
            {**self.skips, **dict.fromkeys(kept, (reason,))},
            {name: () if name in kept else found for name, found in self.outlines.items()},
        )


def together(parts: Iterable[Proposals]) -> Proposals:
    """Proposals of several layers as one, in the order given."""
    parts = list(parts)
    return Proposals(
        tuple(choice for part in parts for choice in part.choices),
        {name: found for part in parts for name, found in part.skips.items()},
        {name: found for part in parts for name, found in part.outlines.items()},
    )


def beside(first: Proposals, second: Proposals) -> Proposals:
    """What two lists of passes found for the same layers, as what both together find."""
    choices, skips, outlines = [], {}, {}
    for one, other in zip(first.choices, second.choices, strict=True):
        name = one.layer
        choices.append(replace(one, candidates=one.candidates + other.candidates[1:]))
        outlines[name] = first.outlines[name] + second.outlines[name]
        said = dict.fromkeys(first.skips[name] + second.skips[name])
        reasons = [reason for reason in said if not reason.startswith(_NONE)]
        found = len(choices[-1].candidates) > 1
        skips[name] = tuple(reasons if reasons or found else said)
    return Proposals(tuple(choices), skips, outlines)


def make_choices(
    layers: Sequence[PlacedLayer],
    passes: Sequence[Factorization],
    moments: Mapping[str, Moments],
    shapes: Mapping[str, tuple[int, ...]],
    metric: str,
    totals: Mapping[str, float],
    progress: Progress,
    rule: RankRule | None = None,
) -> Proposals:
    """Ask every pass for candidates of every layer, on aligned ranks, none dearer than the layer.

    Args:
        layers: the layers to replace.
        passes: the passes to ask.
        moments: moments of each layer's patches, by layer name.
        shapes: shapes of the layers' inputs, by tensor name.
        metric: unit of ``Candidate.cost``: ``macs``, ``params`` or ``size``.
        totals: variance of the sum that each layer's response enters, by layer name, where it is
            known: in front of a residual Add an error counts against the sum, not against the
            branch alone. A layer that makes class scores weighs 1: where its input is off by a
            part ``eps`` of its variance, its output is off by ``eps`` under its metric, so its
            own relative error and those of the layers before it are in one unit.
        progress: receives one step for each layer.
        rule: rule for ranks; where it gives the ranks itself (``fixed``, ``evbmf``), only these
            are candidates.
    """

    def proposed(layer: PlacedLayer) -> tuple[Choice, list[str], list[Chain]]:
        own = moments[layer.name]
        choice, reasons, found = _choice(layer, passes, own, shapes, metric, rule)
        total = totals.get(layer.name, 0.0)
        if total > 0 and own.outputs is None:
            weight = own.energy(layer.stage.matrices) / total
            if math.isfinite(weight):  # a weight that cannot be measured stays 1
                choice = replace(choice, weight=weight)
        return choice, reasons, found

    with progress.task("plan", len(layers)) as advance:
        answers = side_by_side(proposed, layers, [layer.patch for layer in layers], advance)
    names = [layer.name for layer in layers]
    return Proposals(
        tuple(choice for choice, _, _ in answers),
        {name: tuple(reasons) for name, (_, reasons, _) in zip(names, answers, strict=True)},
        {name: tuple(found) for name, (_, _, found) in zip(names, answers, strict=True)},
    )


def cut_candidate(
    layer: Layer,
    decision: Candidate | Decision,
    passes: Sequence[Factorization],
    moments: Moments,
    near: Chain | None = None,
) -> Chain:
    """Compute the chain that a plan decided on; plans hold ranks, not weights.

    Args:
        layer: the layer.
        decision: what becomes of it.
        passes: passes that may have made the decision.
        moments: moments of its input.
        near: chain by the same decision for a layer of similar weights and moments, to start from.

    Raises:
        PlanError: the plan names a pass, a form or a rank that does not exist for the layer.
    """
    factorization = next((p for p in passes if p.spec == decision.method), None)
    if factorization is None:
        raise PlanError(
            f"{layer.name}: method {decision.method!r} is not among the plan's passes; add it "
            "there, or choose one of them"
        )
    with naming(factorization, f"layer {layer.name!r}"):
        refusal = factorization.skips(layer)
        if refusal is not None:
            raise PlanError(f"{layer.name}: {decision.method}: {refusal.reason}")
    with blas_for(layer.patch), naming(factorization, f"layer {layer.name!r}"):
        # the plan's parameters bound the work; a rank edited by hand may need more
        for most in (decision.parameters, None):
            for decomposition in taken_apart(factorization, layer, moments, most):
                if decomposition.variant == decision.variant:
                    try:
                        needed = decomposition.outline(decision.rank).parameters
                    except (ValueError, ZeroDivisionError) as error:
                        raise PlanError(f"{layer.name}: rank {decision.rank}: {error}") from error
                    if most is None or needed <= most:
                        return cut(factorization, layer, decomposition, decision.rank, near)
    raise PlanError(
        f"{layer.name}: {decision.method} has no variant {decision.variant!r}; write the plan "
        "again to see the variants there are"
    )


def _choice(
    layer: PlacedLayer,
    passes: Sequence[Factorization],
    moments: Moments,
    shapes: Mapping[str, tuple[int, ...]],
    metric: str,
    rule: RankRule | None,
) -> tuple[Choice, list[str], list[Chain]]:
    """The choice of one layer, why passes left it alone, and the outlines of its candidates."""
    shape = shapes[layer.input]
    whole = layer_cost(layer, shapes)
    cost = whole.of(metric)
    workload = time_in_macs(Chain((layer.value.outline,)), shape) if metric == "macs" else cost
    keep = Candidate("", "", 0, 0.0, cost, workload, whole.macs, whole.parameters, whole.bytes)
    found: list[tuple[Candidate, Chain]] = []
    reasons: list[str] = []
    for factorization in passes:
        if layer.op not in factorization.ops:
            continue
        with naming(factorization, f"layer {layer.name!r}"):
            answer = _asked(factorization, layer.value, moments, shape, keep, metric, rule)
        if isinstance(answer, Skip):
            reasons.append(f"{factorization.name}: {answer.reason}")
        else:
            found += answer
    if passes and not reasons and not found:
        reasons.append(f"{_NONE} {layer.op}")
    candidates = (keep, *(candidate for candidate, _ in found))
    return Choice(layer.name, candidates), reasons, [outline for _, outline in found]


def _asked(
    factorization: Factorization,
    layer: Layer,
    moments: Moments,
    shape: tuple[int, ...],
    keep: Candidate,
    metric: str,
    rule: RankRule | None,
) -> list[tuple[Candidate, Chain]] | Skip:
    """Every candidate that one pass has for a layer, with its outline, or why there is none."""
    refusal = factorization.refuses(layer)
    if refusal is not None:
        return Skip(refusal.reason)
    try:
        found = [
            pair
            for decomposition in taken_apart(factorization, layer, moments, keep.parameters)
            for pair in _candidates(
                layer,
                factorization,
                decomposition,
                _ranks(decomposition, rule),
                shape,
                keep,
                metric,
            )
        ]
    except LinAlgError as error:  # the covariance of the layer's inputs is nearly singular
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
    found = [[evbmf_rank(svdvals(m), m.shape) for m in g] for g in decomposition.unfoldings()]
    wanted = [max(r) for r in zip(*found, strict=True)]
    large = [r for r in grid if all(a >= b for a, b in zip(_places(r), wanted, strict=True))]
    return sorted(large, key=lambda r: math.prod(_places(r)))[:1]


def _places(rank: Rank) -> tuple[int, ...]:
    return (rank,) if isinstance(rank, int) else rank


def _candidates(
    layer: Layer,
    factorization: Factorization,
    decomposition: Decomposition,
    ranks: Iterable[Rank],
    shape: tuple[int, ...],
    keep: Candidate,
    metric: str,
) -> Iterator[tuple[Candidate, Chain]]:
    # a recurrent node without bias gets one of twice the length, of which half are zeros
    zeros = layer.shape[0] if layer.recurrent and not layer.biased else 0
    for rank in ranks:
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
