"""Run passes: check what they give back, and name pass and layer in every failure.

A pass may come from another package. Whatever it raises becomes a :class:`PassError` that says
which pass failed and on what; deliberate errors (:class:`LowRankError`) and skips stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from onnx_lowrank.chains.chain import Chain, Rank
from onnx_lowrank.errors import LowRankError, ModelError, PassError
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.graph.protos import overridable
from onnx_lowrank.layers import Layer
from onnx_lowrank.modelfile.checks import sound
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.passkit.base import Decomposition, Iterative, Pass, Pruning, Rewrite
from onnx_lowrank.passkit.channel_selection import Selection

__all__ = ["canonicalise", "cut", "naming", "order", "refined"]

Labels = npt.NDArray[np.intp]


@contextmanager
def naming(method: Pass, subject: str) -> Iterator[None]:
    """Turn whatever a pass raises inside this context into an error that names the pass.

    Args:
        method: the pass that runs.
        subject: what it runs on, such as ``layer 'conv1'``.

    Raises:
        PassError: in place of every exception that is not a :class:`LowRankError`.
    """
    try:
        yield
    except LowRankError:
        raise
    except Exception as error:
        raise _failure(method, subject, f"{type(error).__name__}: {error}") from error


def canonicalise(source: Model, rewrites: Sequence[Rewrite]) -> Model:
    """Return the model that the other passes see: BatchNormalization folded, and the like.

    Args:
        source: a sound model, as those that were loaded are; it is not changed.
        rewrites: what to run on it, in this order.

    Raises:
        PassError: a rewrite failed, or left a broken model or one with other inputs or outputs.
    """
    graph = Graph(source)
    interface = _interface(source)
    model: Model | None = None
    for rewrite in rewrites:
        with naming(rewrite, "the model"):
            edits = rewrite.run(graph)
            model = graph.to_model()
        if _interface(model) != interface:
            raise _failure(rewrite, "the model", "it changed the model's inputs or outputs")
        if edits:
            try:
                sound(model.proto, "the rewritten model")
            except ModelError as error:
                raise _failure(rewrite, "the model", str(error)) from error
    return graph.to_model() if model is None else model


def cut(
    method: Pass,
    layer: Layer,
    decomposition: Decomposition,
    rank: Rank,
    near: Chain | None = None,
) -> Chain:
    """Cut a decomposition of ``layer`` at ``rank``, and check that the chain can stand for it.

    Args:
        method: the pass.
        layer: the layer.
        decomposition: what the pass made of it.
        rank: rank of the chain.
        near: chain that the pass made of a similar layer at that rank, to start from.

    Raises:
        PassError: the pass failed, or its chain maps other numbers of channels than the layer.
    """
    subject = f"layer {layer.name!r}"
    with naming(method, subject):
        if near is not None and isinstance(decomposition, Iterative):
            chain = decomposition.cut_from(rank, near)
        else:
            chain = decomposition.cut(rank)
        found = chain.stages[0].inputs, chain.last.outputs
    wanted = layer.shape[1] * layer.groups, layer.shape[0]
    if found != wanted:
        told = "its chain maps {} channels to {}, the layer {} to {}".format(*found, *wanted)
        raise _failure(method, subject, told)
    return chain


def order(method: Pruning, selection: Selection, subject: str) -> Labels:
    """Ask a pruning pass for the order of a group's channels, the ones to keep longest first.

    Raises:
        PassError: the pass failed, or its answer does not name every channel once.
    """
    with naming(method, subject):
        found = np.asarray(method.order(selection))
    size = selection.size
    if found.shape != (size,) or (np.sort(found) != np.arange(size)).any():
        raise _failure(method, subject, f"its order does not name each of {size} channels once")
    return found


def refined(method: Pruning, selection: Selection, kept: Labels, subject: str) -> Labels:
    """Ask a pruning pass for a better set of as many channels, in rising order.

    Raises:
        PassError: the pass failed, or its answer does not name as many channels once each.
    """
    with naming(method, subject):
        found = np.sort(method.refined(selection, kept))
    size = selection.size
    within = found.shape == kept.shape and np.isin(found, np.arange(size)).all()
    if not within or len(np.unique(found)) < len(found):
        told = f"its choice does not name {len(kept)} of {size} channels once each"
        raise _failure(method, subject, told)
    return found


def _interface(model: Model) -> tuple[list[str], list[str]]:
    """Names of the inputs, without weights that are only listed there, and of the outputs."""
    graph = model.proto.graph
    weights = {t.name for t in graph.initializer} - overridable(model.proto)
    return [v.name for v in graph.input if v.name not in weights], [v.name for v in graph.output]


def _failure(method: Pass, subject: str, reason: str) -> PassError:
    return PassError(
        f"pass {method.spec} failed on {subject}: {reason}; choose other passes with --passes, "
        "and report this to the author of the pass"
    )
