"""Plans that reckon with int8: chains are chosen, cut and rounded until the choice stands.

What int8 adds to the error of a chain (:mod:`onnx_lowrank.analysis.rounding`) less what it adds to
that of the layer as it is, which no plan can spare, counts as error of the candidate. Chains that
are cut for it are kept for the build.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.analysis.rounding import rounding_error
from onnx_lowrank.chains.chain import Chain
from onnx_lowrank.engine.analyse import Analysis
from onnx_lowrank.engine.propose import Proposed
from onnx_lowrank.layers import PlacedLayer
from onnx_lowrank.planning.plan import Decision
from onnx_lowrank.planning.rounded import Rounded
from onnx_lowrank.runtime.quantizable import LAYERS

__all__ = ["chosen_for_int8"]

#: how often a plan is chosen again; the last choice stands though some of its chains are new
_ROUNDS = 6
#: the largest error, which no plan takes, that numbers of any size are told by
_LARGEST = 1e6


def chosen_for_int8(
    analysis: Analysis,
    proposed: Proposed,
    choose: Callable[[Mapping[str, Rounded]], list[Decision]],
) -> list[Decision]:
    """Choose by the errors that chains have in int8, where the job asks for it.

    Args:
        analysis: of the original model.
        proposed: what is chosen from.
        choose: decisions by what is known of rounding, by the names of layers.
    """
    mode = analysis.job.options.int8
    if mode is None or proposed.tied:
        return choose({})
    kept, work = proposed.kept, proposed.cut.work
    pruner = analysis.pruner("macs") if kept else None
    layers = {la.name: la for la in work.layers if la.op in LAYERS[mode] and not la.value.lookup}
    channels = {n: pruner.channels_of(la, kept) if pruner else b"" for n, la in layers.items()}
    known = {name: Rounded() for name in layers}
    decisions = choose(known)
    for _ in range(_ROUNDS):
        new = [
            d for d in decisions if d.method and d.layer in layers and not known[d.layer].known(d)
        ]
        if not new:
            break
        for d in new:
            moments = work.moments[d.layer]
            known[d.layer].add(d, _added(analysis, layers[d.layer], channels[d.layer], d, moments))
        decisions = choose(known)
    return decisions


def _added(
    analysis: Analysis, layer: PlacedLayer, channels: bytes, decision: Decision, moments: Moments
) -> float:
    """What int8 adds to the error of a chain, more than to that of the layer as it is."""
    memo, form = analysis.memo, (decision.method, decision.variant, decision.rank)
    key = (layer.name, channels, form)
    if key not in memo.rounded:
        chain, stage = memo.chains.cut(channels, layer, decision, moments), layer.stage
        alone = rounding_error(stage, Chain((stage,)), moments)
        more = rounding_error(stage, chain, moments) - alone
        memo.rounded[key] = min(max(more, 0.0), _LARGEST) if math.isfinite(more) else _LARGEST
    return memo.rounded[key]
