"""What a refit solves again: every chain, and kept layers behind the first change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.base import Factorization
from onnx_lowrank.candidates import cut_candidate
from onnx_lowrank.chain import Chain, Stage
from onnx_lowrank.channel_cut import Remains
from onnx_lowrank.graph import Graph
from onnx_lowrank.layers import Layer, destination, find_layers
from onnx_lowrank.moments import Moments
from onnx_lowrank.plan import Decision
from onnx_lowrank.preparation import Prepared
from onnx_lowrank.refit import Task
from onnx_lowrank.rewrite import Written, apply_chain

__all__ = ["refit_tasks"]


def refit_tasks(
    original: Prepared,
    work: Prepared,
    remains: Remains,
    compressed: Graph,
    written: Mapping[str, Written],
    decisions: Mapping[str, Decision],
    passes: Sequence[Factorization],
) -> list[Task]:
    """The tasks, in topological order; kept layers are written anew so that they can be changed.

    Args:
        original: the canonical model.
        work: the same without the channels that go; itself where none do.
        remains: what that cut left of the tensors.
        compressed: ``work`` with chains in it; changed.
        written: the chains.
        decisions: by layer name.
        passes: that made the chains.
    """
    targets = {layer.name: layer for layer in find_layers(compressed)[0]}
    before = {layer.name: layer for layer in original.layers}
    changed = set(remains.kept)
    tasks = []
    for layer in work.layers:
        stage, first = layer.stage, before[layer.name]
        rows = _rows(original.graph, first, remains)
        if layer.name in written:
            cut = _cutter(layer, decisions[layer.name], passes)
            tasks.append(Task(written[layer.name], stage, cut, first.stage, first.input, rows))
        elif (
            (changed & compressed.ancestors([layer.input]) or layer.shape != first.shape)
            and stage.bias is not None
            and layer.sharers == 1
        ):
            kept = apply_chain(compressed, targets[layer.name], Chain((stage,)))
            tasks.append(Task(kept, stage, _alone, first.stage, first.input, rows))
        else:
            continue
        changed.add(layer.output)
    return tasks


def _rows(graph: Graph, layer: Layer, remains: Remains) -> npt.NDArray[np.bool_] | None:
    """Which outputs of a layer are left, as a mask; None for all."""
    total = destination(graph, layer).total or layer.output
    masks = remains.kept.get(total) or remains.kept.get(layer.output, {})
    return next(iter(masks.values()), None)


def _alone(solved: Stage, _: Moments) -> Chain:
    return Chain((solved,))


def _cutter(layer: Layer, decision: Decision, passes: Sequence[Factorization]) -> Any:
    def cut(stage: Stage, moments: Moments) -> Chain:
        return cut_candidate(layer.with_stage(stage), decision, passes, moments)

    return cut
