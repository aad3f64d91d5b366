"""Heads: the bases that attention heads are turned to, and what narrower queries and keys lose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.analysis.preparation import Prepared
from onnx_lowrank.channels.pairs import Pair
from onnx_lowrank.linalg.blas_threads import blas_for
from onnx_lowrank.passkit.base import HeadNarrowing
from onnx_lowrank.passkit.runner import naming
from onnx_lowrank.pruning.head_moments import ScoreMoments
from onnx_lowrank.pruning.prunable import Found, Prunable
from onnx_lowrank.pruning.turns import Turn

__all__ = ["TurnedHeads", "turn_heads"]

Array = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class TurnedHeads:
    """Heads in bases in which their last channels may go.

    Attributes:
        turns: of the layers that make and read the channels.
        losses: loss ``(width + 1,)`` of products of queries and keys, by number of channels left.
    """

    turns: tuple[Turn, ...]
    losses: Array


def turn_heads(
    prunable: Prunable,
    found: Found,
    method: HeadNarrowing,
    prepared: Prepared,
    scores: Mapping[str, ScoreMoments],
) -> TurnedHeads:
    """Bases for the channels of a prunable, and the loss of what no layer reads.

    Args:
        prunable: channels of heads.
        found: all that was found in the model.
        method: pass that chooses bases.
        prepared: the model.
        scores: moments of queries and keys, by name of the block.
    """
    turns: list[Turn] = []
    losses = np.zeros(prunable.size + 1)
    with naming(method, f"heads {prunable.name!r}"), blas_for(prunable.size):
        for pair in prunable.pairs:
            if pair.reads:
                turns += _values(pair, method, prepared)
                continue
            block = next(b for b in found.blocks if pair.product in {p.product for p in b.pairs})
            assert isinstance(block.mixing, Pair)
            reader = block.mixing.second.layer
            made, lost = _scores(pair, method, scores[block.name])
            turns += made
            losses += lost / (_energy(reader, prepared) or 1.0)
    return TurnedHeads(tuple(turns), losses)


def _values(pair: Pair, method: HeadNarrowing, prepared: Prepared) -> list[Turn]:
    reader = next(la for la in prepared.layers if la.name == pair.second.layer)
    weight = reader.stage.weight.reshape(reader.shape[:2])
    covariance = prepared.moments[reader.name].sigma(0)
    bases = []
    for places in pair.second.places:
        gram, inputs = np.zeros((2, pair.width, pair.width))
        for own in places:
            gram += weight[:, own].T @ weight[:, own]
            inputs += np.eye(pair.width) if covariance is None else covariance[np.ix_(own, own)]
        bases.append(method.values(gram, inputs / len(places)))
    stacked = np.stack(bases)
    return [
        Turn(pair.first.layer, pair.first.places, stacked),
        Turn(pair.second.layer, pair.second.places, stacked, columns=True),
    ]


def _scores(pair: Pair, method: HeadNarrowing, sums: ScoreMoments) -> tuple[list[Turn], Array]:
    """Turns of queries and keys, and the error of the output by number of channels left."""
    order = np.arange(pair.width) if pair.order is None else pair.order
    bases: tuple[list[Array], list[Array]] = [], []
    lost = np.zeros(pair.width + 1)
    factors = sums.factor
    for head, count in enumerate(sums.count):
        number = max(int(count), 1)
        queries, keys = (m[head][np.ix_(order, order)] / number for m in (sums.queries, sums.keys))
        query, key, errors = method.scores(queries, keys)
        bases[0].append(query)
        bases[1].append(key)
        # a head that shares its keys with others adds to the output as each of them does
        lost += factors[head] * errors * len(pair.first.places[head])
    sides = zip((pair.first, pair.second), bases, strict=True)
    return [Turn(side.layer, side.places, np.stack(basis)) for side, basis in sides], lost


def _energy(reader: str, prepared: Prepared) -> float:
    """Variance of what the response of a layer ends up in."""
    total = prepared.moments.totals.get(reader, 0.0)
    if total > 0:
        return total
    layer = next(la for la in prepared.layers if la.name == reader)
    return prepared.moments[reader].energy(layer.stage.matrices)
