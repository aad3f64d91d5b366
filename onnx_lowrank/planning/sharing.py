"""Sharing: one chain for all the layers that use one weight.

Replaced one by one, layers that share a weight get a chain each, and the file may grow. Where a
budget on parameters or bytes cannot be met that way, or is met at more loss, they are one unit of
the plan instead: it has the MACs of all of them and the parameters of one chain, and is fitted to
the inputs of all together. With ``n_i`` rows each

    mu = sum n_i mu_i / n,     Sigma = sum n_i (Sigma_i + (mu_i - mu)(mu_i - mu)^T) / n
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from onnx_lowrank.analysis.cost import Cost
from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.analysis.preparation import Prepared
from onnx_lowrank.chains.chain import Chain
from onnx_lowrank.errors import PlanError
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import PlacedLayer
from onnx_lowrank.layers.writer import Written, apply_chain
from onnx_lowrank.linalg.phase_covariance import by_group
from onnx_lowrank.passkit.base import Factorization
from onnx_lowrank.planning.asking import NODE_BYTES, Question
from onnx_lowrank.planning.candidates import Candidate, Choice
from onnx_lowrank.planning.decisions import after_cut
from onnx_lowrank.planning.plan import Decision
from onnx_lowrank.planning.proposals import Proposals, cut_candidate, make_choices
from onnx_lowrank.progress import Progress

__all__ = [
    "SHARE",
    "Tie",
    "cut_together",
    "decided_together",
    "pooled",
    "proposed_together",
    "sharing",
    "ties",
    "write_together",
]

#: name of the decision on a layer that shares its chain with the layers of the same weight
SHARE = "share"

Tie: TypeAlias = tuple[PlacedLayer, ...]


def ties(graph: Graph, layers: Sequence[PlacedLayer]) -> list[Tie]:
    """Find the layers that use one weight in the same way, where nothing else uses it.

    Recurrent layers are left out: a part of their bias belongs to another product.
    """
    found: dict[object, list[PlacedLayer]] = {}
    for layer in layers:
        if layer.sharers > 1 and not layer.value.recurrent:
            names = [t.name for t in layer.nodes[0].inputs if graph.is_constant(t.name)]
            root = graph.views(names[0])[-1]
            key = (root, layer.op, layer.shape, layer.geometry, layer.value.dtype, layer.bias_shape)
            found.setdefault(key, []).append(layer)
    return [
        tuple(tied)
        for tied in found.values()
        if len(tied) == tied[0].sharers and all(_equal(tied[0], other) for other in tied[1:])
    ]


def _equal(first: PlacedLayer, second: PlacedLayer) -> bool:
    one, two = first.stage, second.stage
    if (one.bias is None) != (two.bias is None):
        return False
    same_bias = one.bias is None or two.bias is None or np.array_equal(one.bias, two.bias)
    return same_bias and np.array_equal(one.weight, two.weight)


def pooled(moments: Sequence[Moments]) -> Moments:
    """Moments of the rows of several layers together; of lookups the shares of all readings."""
    if all(m.one_hot for m in moments):
        total = sum(m.count for m in moments)
        parts = [m.mean * (m.count / max(total, 1)) for m in moments if m.mean is not None]
        return Moments(total, np.sum(parts, axis=0), one_hot=True) if total else moments[0]
    known = [
        (m.count, m.mean, np.stack([np.asarray(s) for s in by_group(m.covariance)]))
        for m in moments
        if m.count and m.mean is not None and m.covariance is not None
    ]
    count = sum(n for n, _, _ in known)
    if not count:
        return Moments()
    mean = sum((n / count * mu for n, mu, _ in known), np.zeros_like(known[0][1]))
    covariance = np.zeros_like(known[0][2])
    for n, mu, sigma in known:
        shift = mu - mean
        covariance += n / count * (sigma + shift[:, :, None] * shift[:, None, :])
    return Moments(count, mean, covariance)


def proposed_together(
    proposals: Proposals,
    work: Prepared,
    tied: Sequence[Tie],
    question: Question,
    progress: Progress,
) -> Proposals:
    """Proposals in which the first layer of each tie stands for all, and the others cost nothing.

    Args:
        proposals: proposals for every layer by itself.
        work: the model.
        tied: layers of the model that share weights.
        question: what passes are asked.
        progress: receives one step for each tie.
    """
    choices = {choice.layer: choice for choice in proposals.choices}
    made = dict(proposals.outlines)
    for tie in tied:
        moments = [work.moments[layer.name] for layer in tie]
        lead = replace(tie[0], sharers=1)
        alone = make_choices(
            [lead], question, {lead.name: pooled(moments)}, work.shapes, {}, progress
        )
        outlines = alone.outlines[lead.name]
        shapes = [work.shapes[layer.input] for layer in tie]
        (choice,) = alone.choices
        whole = [sum(lead.value.outline.macs(s) for s in shapes)]
        macs = whole + [sum(chain.macs(s) for s in shapes) for chain in outlines]
        nodes = [1] + [chain.nodes for chain in outlines]
        candidates = tuple(
            _together(c, m, n, len(tie), question.metric)
            for c, m, n in zip(choice.candidates, macs, nodes, strict=True)
        )
        weight = sum(choices[layer.name].weight for layer in tie)
        made[lead.name] = outlines
        choices[lead.name] = Choice(lead.name, candidates, weight)
        nothing = Candidate("", "", 0, 0.0, 0, 0, 0, 0)
        for layer in tie[1:]:
            made[layer.name] = ()
            choices[layer.name] = Choice(layer.name, (nothing,), 0.0)
    return replace(proposals, choices=tuple(choices.values()), outlines=made)


def _together(candidate: Candidate, macs: int, nodes: int, users: int, metric: str) -> Candidate:
    """A candidate of one layer, with the cost for all layers that use its weight."""
    size = candidate.bytes + (users - 1) * (nodes - 1) * NODE_BYTES
    cost = Cost(macs, candidate.parameters, size).of(metric)
    workload = candidate.workload * users if metric == "macs" else cost
    return replace(candidate, cost=cost, workload=workload, macs=macs, bytes=size)


def decided_together(
    decisions: Sequence[Decision], tied: Sequence[Tie], work: Prepared
) -> list[Decision]:
    """Decisions in which the decision on the first layer of a tie holds for all its layers."""
    made = {d.layer: d for d in decisions}
    for tie in tied:
        lead = made[tie[0].name]
        names = ", ".join(layer.name for layer in tie)
        shapes = [work.shapes[layer.input] for layer in tie]
        whole = [layer.value.outline.macs(s) for layer, s in zip(tie, shapes, strict=True)]
        for layer, macs in zip(tie, whole, strict=True):
            own = made[layer.name]
            if lead.decision == "keep":
                made[layer.name] = replace(
                    own, reason=lead.reason, macs_after=own.macs_before,
                    parameters_after=own.parameters_before,
                )  # fmt: skip
                continue
            made[layer.name] = replace(
                lead, layer=own.layer, decision=SHARE, macs_before=own.macs_before,
                parameters_before=own.parameters_before,
                macs_after=lead.macs_after * macs // max(sum(whole), 1),
                parameters_after=lead.parameters_after // len(tie),
                reason=f"one chain for {names}, which use the same weight",
            )  # fmt: skip
    return list(made.values())


def sharing(work: Prepared, decisions: Mapping[str, Decision]) -> list[Tie]:
    """Find the layers that share chains in a plan.

    Raises:
        PlanError: a layer has no other layer to share with, or the layers of one chain have
            different methods or ranks.
    """
    wanted = [la for la in work.layers if decisions[la.name].decision == SHARE]
    if not wanted:
        return []
    names = {layer.name for layer in wanted}
    found = [
        tuple(layer for layer in tie if layer.name in names)
        for tie in ties(work.graph, work.layers)
    ]
    if strange := names - {layer.name for tie in found for layer in tie}:
        raise PlanError(
            f"plan: layer {min(strange)!r} has the decision 'share', but no other layer uses its "
            "weight in the same way; change it to 'factorize' or 'keep'"
        )
    for tie in found:
        ways = {(d.method, d.variant, d.rank) for d in (decisions[layer.name] for layer in tie)}
        if len(ways) > 1:
            listed = ", ".join(repr(layer.name) for layer in tie)
            raise PlanError(
                f"plan: layers {listed} share a chain, but have different methods, variants or "
                "ranks; give them the same"
            )
    return [tie for tie in found if tie]


def cut_together(
    work: Prepared, tie: Tie, decisions: Mapping[str, Decision], passes: Sequence[Factorization]
) -> tuple[Chain, dict[str, Decision]]:
    """Compute the chain of a tie, and its layers' decisions with the chain's cost and error."""
    moments = pooled([work.moments[layer.name] for layer in tie])
    chain = cut_candidate(tie[0].value, decisions[tie[0].name], passes, moments)
    made = {}
    for layer in tie:
        cut = after_cut(layer, decisions[layer.name], chain, moments, work.shapes)
        made[layer.name] = replace(cut, parameters_after=chain.parameters // len(tie))
    return chain, made


def write_together(graph: Graph, layers: Sequence[PlacedLayer], chain: Chain) -> dict[str, Written]:
    """Write one chain in the place of each of ``layers``; all of them use the same constants."""
    first = apply_chain(graph, layers[0], chain)
    written = {layers[0].name: first}
    for layer in layers[1:]:
        written[layer.name] = apply_chain(graph, layer, chain, first.constants)
    return written
