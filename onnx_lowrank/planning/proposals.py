"""Proposals: the candidates that all passes find for all layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.chains.chain import Chain
from onnx_lowrank.errors import PlanError
from onnx_lowrank.layers import Layer, PlacedLayer
from onnx_lowrank.linalg.blas_threads import blas_for, side_by_side
from onnx_lowrank.passkit.base import Decomposition, Factorization
from onnx_lowrank.passkit.runner import cut, naming
from onnx_lowrank.passkit.two_stage import TwoStage
from onnx_lowrank.passkit.weighed import taken_apart
from onnx_lowrank.planning.asking import NONE, About, Answer, Question, answers_elsewhere, asked
from onnx_lowrank.planning.candidates import Candidate, Choice, reweighed, without_chains
from onnx_lowrank.planning.plan import Decision
from onnx_lowrank.progress import Progress
from onnx_lowrank.runtime.workers import Workers

__all__ = ["Proposals", "beside", "cut_candidate", "make_choices", "outlined", "together"]

#: bytes of the moments of a layer that workers are asked about
_LARGEST_SENT = 1 << 30


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
        reasons = [reason for reason in said if not reason.startswith(NONE)]
        found = len(choices[-1].candidates) > 1
        skips[name] = tuple(reasons if reasons or found else said)
    return Proposals(tuple(choices), skips, outlines)


def make_choices(
    layers: Sequence[PlacedLayer],
    question: Question,
    moments: Mapping[str, Moments],
    shapes: Mapping[str, tuple[int, ...]],
    totals: Mapping[str, float],
    progress: Progress,
    workers: Workers | None = None,
) -> Proposals:
    """Ask every pass for candidates of every layer, on aligned ranks, none dearer than the layer.

    Args:
        layers: the layers to replace.
        question: what passes are asked.
        moments: moments of each layer's patches, by layer name.
        shapes: shapes of the layers' inputs, by tensor name.
        totals: variance of the sum that each layer's response enters, by layer name, where it is
            known: in front of a residual Add an error counts against the sum, not against the
            branch alone. A layer that makes class scores weighs 1: where its input is off by a
            part ``eps`` of its variance, its output is off by ``eps`` under its metric, so its
            own relative error and those of the layers before it are in one unit.
        progress: receives one step for each layer.
        workers: who ask the passes, with the same answers; None asks them here.
    """

    def about(layer: PlacedLayer) -> About:
        total = totals.get(layer.name, 0.0)
        return question.about(layer, moments[layer.name], shapes[layer.input], total)

    sent: list[PlacedLayer] = []
    if workers is not None and len(layers) > 1:
        # what takes longest goes first
        sent = sorted((la for la in layers if _sendable(la)), key=lambda la: -la.patch)
    names = {layer.name for layer in sent}
    here = [layer for layer in layers if layer.name not in names]
    answers: dict[str, Answer] = {}
    with progress.task("plan", len(layers)) as advance:
        if workers is not None and sent:
            for answer in answers_elsewhere(question, map(about, sent), workers):
                answers[answer.choice.layer] = answer
                advance(1)
        found = side_by_side(
            lambda layer: asked(question, about(layer)), here, [la.patch for la in here], advance
        )
    answers |= {answer.choice.layer: answer for answer in found}
    return Proposals(
        tuple(answers[layer.name].choice for layer in layers),
        {layer.name: answers[layer.name].reasons for layer in layers},
        {layer.name: answers[layer.name].outlines for layer in layers},
    )


def _sendable(layer: PlacedLayer) -> bool:
    """Whether the moments of a layer are small enough for a message."""
    return layer.value.lookup or 8 * layer.groups * layer.patch**2 <= _LARGEST_SENT


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
    factorization, decomposition = _decomposed(layer, decision, passes, moments)
    with blas_for(layer.patch):
        return cut(factorization, layer, decomposition, decision.rank, near)


def outlined(
    layer: Layer,
    decision: Candidate | Decision,
    passes: Sequence[Factorization],
    moments: Moments,
) -> Chain | None:
    """The chain that a plan decided on without its numbers, where these are not needed.

    Where the layer is solved anew, what is found begins with nothing of the first chain, unless it
    is found step by step.

    Args:
        layer: the layer.
        decision: what becomes of it.
        passes: passes that may have made the decision.
        moments: moments of its input.

    Returns:
        None where the numbers are needed, or where the form of the chain depends on them.

    Raises:
        PlanError: the plan names a pass, a form or a rank that does not exist for the layer.
    """
    if moments.mean is None or moments.outputs is not None:
        return None
    if any(p.slow for p in passes if p.spec == decision.method):  # it would be proposed twice
        return None
    _, decomposition = _decomposed(layer, decision, passes, moments)
    if not isinstance(decomposition, TwoStage):
        return None
    outline = decomposition.outline(decision.rank)
    # a rank that was edited by hand may be beyond what there is of the layer
    return outline if outline.parameters <= layer.outline.parameters else None


def _decomposed(
    layer: Layer,
    decision: Candidate | Decision,
    passes: Sequence[Factorization],
    moments: Moments,
) -> tuple[Factorization, Decomposition]:
    """The pass that made a decision, and the form of what it makes of the layer."""
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
                        return factorization, decomposition
    raise PlanError(
        f"{layer.name}: {decision.method} has no variant {decision.variant!r}; write the plan "
        "again to see the variants there are"
    )
