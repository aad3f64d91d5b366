"""Tasks of a refit: every chain, and every kept layer behind the first change."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.analysis.preparation import Prepared
from onnx_lowrank.chains.chain import Chain, Stage
from onnx_lowrank.channels.cut import Remains
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.graph.values import data_shapes
from onnx_lowrank.layers import Layer, PlacedLayer, destination, find_layers
from onnx_lowrank.layers.writer import Written, apply_chain
from onnx_lowrank.linalg.output_metric import ResponseMetric
from onnx_lowrank.passkit.base import Factorization
from onnx_lowrank.planning.plan import Decision
from onnx_lowrank.planning.proposals import cut_candidate
from onnx_lowrank.planning.refit_modes import DEFAULT_REPAIR
from onnx_lowrank.planning.sharing import SHARE
from onnx_lowrank.refit.task import LazyStage, Task

__all__ = ["refit_tasks"]

#: no chain is written without its numbers
NOTHING: Mapping[str, Callable[[], Chain]] = MappingProxyType({})


def refit_tasks(
    original: Prepared,
    work: Prepared,
    remains: Remains,
    compressed: Graph,
    written: Mapping[str, Written],
    decisions: Mapping[str, Decision],
    passes: Sequence[Factorization],
    repair: str = DEFAULT_REPAIR,
    turned: Collection[str] = (),
    outlined: Mapping[str, Callable[[], Chain]] = NOTHING,
) -> list[Task]:
    """List the tasks in topological order; kept layers are rewritten so that they can be changed.

    Layers whose number of rows depends on data, as behind NonMaxSuppression, are left out.

    Args:
        original: the canonical model.
        work: the model without its pruned channels; ``original`` itself where none are pruned.
        remains: tensors of the model after that cut.
        compressed: ``work`` with chains in the place of layers; it is changed.
        written: the chains, by layer name.
        decisions: decisions of the plan, by layer name.
        passes: passes that made the chains.
        repair: refit mode; ``last`` solves the last stages of chains, other modes the layers.
        turned: names of layers that ``original`` has in another basis than its graph.
        outlined: what makes the chains that are written without their numbers, by layer name.
    """
    targets = {layer.name: layer for layer in find_layers(compressed)[0]}
    before = {layer.name: layer for layer in original.layers}
    changed = set(remains.kept)
    tasks = []
    loose = data_shapes(compressed).surely
    for layer in work.layers:
        if layer.input in loose:  # rows of both models do not match
            changed.add(layer.output)
            continue
        if layer.value.lookup:  # its chain is the best for all rows, those of the data among them
            changed |= {layer.output} if layer.name in written else set()
            continue
        stage, whole = LazyStage.of(layer), before[layer.name]
        source = LazyStage.of(whole), whole.input
        rows = _rows(original.graph, whole, remains)
        outputs = work.moments.metric(layer.name)
        if layer.name in written and decisions[layer.name].decision == SHARE:
            changed.add(layer.output)  # a shared chain is fitted to several layers at once
            continue
        if layer.name in written:
            chain = written[layer.name]
            if repair != "last":
                cut = _cutter(layer.value, decisions[layer.name], passes, outputs, chain.chain)
                reads = layer.input
            elif isinstance(chain.chain.last, Stage):
                stage, cut = LazyStage.of(chain.chain.last), _last_of(chain.chain)
                reads = _input_of_last(compressed, chain)
            else:
                continue
            if stage.outline.groups > 1:  # the last stage of a chain may have groups
                outputs = None
            found = chain, stage, cut, reads
        elif (
            (changed & compressed.ancestors([layer.input]) or layer.shape != whole.shape)
            and layer.value.biased
            and layer.sharers == 1
        ):
            kept = apply_chain(compressed, targets[layer.name], Chain((stage.read(),)))
            found = kept, stage, _alone, layer.input
        else:
            continue
        first = outlined.get(layer.name)
        tasks.append(Task(*found, *source, rows, outputs, layer.name in turned, first))
        changed.add(layer.output)
    return tasks


def _rows(graph: Graph, layer: PlacedLayer, remains: Remains) -> npt.NDArray[np.bool_] | None:
    """Mask of the outputs of a layer that stay; None for all."""
    if layer.value.recurrent:
        return remains.rows.get(layer.name)
    total = destination(graph, layer).total or layer.output
    masks = remains.kept.get(total) or remains.kept.get(layer.output, {})
    return next(iter(masks.values()), None)


def _alone(solved: Stage, _: Moments) -> Chain:
    return Chain((solved,))


def _last_of(chain: Chain) -> Callable[[Stage, Moments], Chain]:
    def cut(solved: Stage, _: Moments) -> Chain:
        return Chain((*chain.stages[:-1], solved))

    return cut


def _input_of_last(graph: Graph, written: Written) -> str:
    """Name of the tensor that a chain's last stage reads, its node's only varying input."""
    weight = written.constants[-1 if written.chain.last.bias is None else -2]
    (node,) = graph.consumers(weight)
    names = (str(t.name) for t in node.inputs)
    return next(n for n in names if n and not graph.is_constant(n))


def _cutter(
    layer: Layer,
    decision: Decision,
    passes: Sequence[Factorization],
    outputs: ResponseMetric | None,
    near: Chain,
) -> Callable[[Stage, Moments], Chain]:
    def cut(stage: Stage, moments: Moments) -> Chain:
        seen = replace(moments, outputs=outputs)
        return cut_candidate(layer.with_stage(stage), decision, passes, seen, near)

    return cut
