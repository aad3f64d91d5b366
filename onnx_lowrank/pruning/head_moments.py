"""Moments of queries and keys, and how much errors of scores matter, from some calibration samples.

A score s_j = c q^T k_j that is wrong by e_j changes the mixed values by ``sum_j p_j e_j (v_j - z)``
to first order, p the softmax and z the mixed values. An error ``q^T D k_j`` therefore changes what
the layer behind makes of them by

    J D^T q,    J = c W sum_j p_j (v_j - z) k_j^T

and its mean square is ``tr(D^T E[q q^T] D E[J^T J])``, were q and J independent. The factor by
which it differs for ``D = I`` is measured too. Under a bound on the scores (``softcap``) c is the
slope at each of them.

Reference: Martens & Grosse 2015, Optimizing neural networks with Kronecker-factored approximate
curvature.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.analysis.preparation import Prepared
from onnx_lowrank.analysis.streaming import MEMORY
from onnx_lowrank.channels.attention_nodes import show_shares
from onnx_lowrank.channels.pairs import Attention, Pair
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import PlacedLayer
from onnx_lowrank.linalg.blas_threads import blas_for
from onnx_lowrank.linalg.cholesky import cholesky
from onnx_lowrank.progress import Progress
from onnx_lowrank.runtime.runtime import Runtime
from onnx_lowrank.samples.dataset import Dataset

__all__ = ["ScoreMoments", "score_moments"]

Array = npt.NDArray[np.floating[Any]]

#: samples that are read, and positions of queries drawn of each: a thousand queries in all, and a
#: row of J for each column of the values in each
_SAMPLES, _QUERIES = 64, 16
#: scores in units of their bound beyond which the slope of the bound is nothing
_FLAT = 40.0


@dataclass
class ScoreMoments:
    """Moments of one block of attention, summed over the heads that share keys.

    Attributes:
        queries: sums of ``q q^T``, ``(heads, d, d)``.
        keys: sums of ``J^T J``, ``(heads, d, d)``.
        together: sums of ``||J q||^2``, ``(heads,)``.
        count: number of queries behind each, ``(heads,)``.
    """

    queries: Array
    keys: Array
    together: Array
    count: npt.NDArray[np.int64]

    @classmethod
    def empty(cls, pair: Pair) -> ScoreMoments:
        """Without any queries."""
        heads, width = len(pair.second.places), pair.width
        zero = np.zeros((heads, width, width))
        return cls(zero, zero.copy(), np.zeros(heads), np.zeros(heads, np.int64))

    @property
    def factor(self) -> Array:
        """Mean square error over that of independent moments, ``(heads,)``."""
        apart = np.einsum("hij,hij->h", self.queries, self.keys) / np.maximum(self.count, 1)
        return np.asarray(np.where(apart > 0, self.together / np.where(apart > 0, apart, 1), 1.0))


def score_moments(
    blocks: Sequence[Attention],
    prepared: Prepared,
    data: Dataset,
    runtime: Runtime,
    seed: int,
    progress: Progress,
) -> dict[str, ScoreMoments]:
    """Measure the moments of blocks whose pairs were both found, by the name of the block.

    Args:
        blocks: blocks of attention.
        prepared: the model.
        data: calibration samples; some are read.
        runtime: runs the model.
        seed: of the drawn positions.
        progress: is told of every sample.
    """
    whole = [b for b in blocks if isinstance(b.scoring, Pair) and isinstance(b.mixing, Pair)]
    found: dict[str, ScoreMoments] = {}
    layers = {layer.name: layer for layer in prepared.layers}
    nodes = [b.whole for b in whole if b.whole is not None]
    graph = Graph(prepared.model) if nodes else prepared.graph
    shown = show_shares(graph, nodes)
    several = min(_SAMPLES, len(data))
    chosen = np.unique(np.linspace(0, len(data) - 1, several).astype(int))
    parts = list(_in_memory(whole, prepared.shapes))
    with progress.task("attention", len(parts) * len(chosen)) as advance:
        for part in parts:
            readers = [_Measured(block, layers, shown) for block in part]
            tensors = dict.fromkeys(t for r in readers for t in r.tensors)
            wanted = [t for t in tensors if not graph.is_constant(t)]
            given = {t: v for t in tensors if (v := graph.constant(t)) is not None}
            session = runtime.session(graph.extract(graph.input_types(), wanted), lean=True)
            rng = np.random.default_rng([seed, len(found)])
            for i in chosen:
                feed = data.feed(int(i))
                values = {**given, **feed, **session.run(feed)}
                for reader in readers:
                    reader.take(values, rng)
                advance(1)
            found |= {r.block.name: r.sums for r in readers}
    return found


def _in_memory(
    blocks: Sequence[Attention], shapes: Mapping[str, tuple[int, ...]]
) -> list[list[Attention]]:
    """Blocks whose tensors fit in memory together."""
    parts: list[list[Attention]] = []
    free = 0.0
    for block in blocks:
        needed = sum(8.0 * math.prod(shapes[t]) for t in _tensors(block, {}) if t in shapes)
        if block.whole is not None:
            needed += 8.0 * block.whole.scores
        if not parts or needed > free:
            parts.append([])
            free = MEMORY / 2
        parts[-1].append(block)
        free -= needed
    return parts


def _tensors(block: Attention, shown: Mapping[str, str]) -> list[str]:
    """Names of queries, keys, what the softmax makes of them, and values."""
    names = [name for pair in block.pairs for name in pair.operands]
    if block.whole is not None:
        names[2] = shown.get(block.whole.output, "")
    return names


class _Measured:
    """Sums of one block."""

    def __init__(
        self, block: Attention, layers: Mapping[str, PlacedLayer], shown: Mapping[str, str]
    ) -> None:
        assert isinstance(block.scoring, Pair)
        assert isinstance(block.mixing, Pair)
        weight = layers[block.mixing.second.layer].stage.weight
        self.block, self.scoring, self.mixing = block, block.scoring, block.mixing
        self.sums = ScoreMoments.empty(self.scoring)
        self._operands = _tensors(block, shown)
        self.tensors = [*self._operands, *(name for name, _ in block.scales)]
        flat = self.mixing.heads.reshape(-1)
        nth = [int((flat[:i] == h).sum()) for i, h in enumerate(flat)]
        read = weight.reshape(weight.shape[:2])
        self._roots = []
        for head, number in zip(flat, nth, strict=True):
            own = read[:, self.mixing.second.places[head, number]]
            self._roots.append(cholesky(own.T @ own).T.astype(np.float32))

    def take(self, values: Mapping[str, npt.NDArray[Any]], rng: np.random.Generator) -> None:
        """Add one sample."""
        queries, keys, shares, mixed = (
            values[t].astype(np.float32, copy=False) for t in self._operands
        )
        whole = self.block.whole
        if whole is None:
            keys = np.swapaxes(keys, -1, -2)
        else:
            queries, keys, mixed = (
                whole.per_head(v, i) for i, v in enumerate((queries, keys, mixed))
            )
        batch = np.broadcast_shapes(queries.shape[:-2], keys.shape[:-2])
        behind = np.broadcast_shapes(shares.shape[:-2], mixed.shape[:-2])
        if np.prod(batch) != np.prod(behind):
            return
        numbers = np.broadcast_to(self.scoring.heads, batch).reshape(-1)
        places = np.arange(self.mixing.heads.size).reshape(self.mixing.heads.shape)
        roots = np.broadcast_to(places, behind).reshape(-1)
        flat = [_flat(a, b) for a, b in ((queries, batch), (keys, batch), (shares, behind),
                                         (mixed, behind))]  # fmt: skip
        factor = self._factor(values)
        drawn = np.arange(queries.shape[-2])
        if shares.shape[-2] == shares.shape[-1]:  # positions that none reads are padding
            drawn = np.flatnonzero(shares.any(axis=tuple(range(shares.ndim - 1))))
        if len(drawn) > _QUERIES:
            drawn = np.sort(rng.choice(drawn, _QUERIES, replace=False))
        with blas_for(queries.shape[-1]):
            for n, (head, root) in enumerate(zip(numbers, roots, strict=True)):
                q, k, p, v = (a[n] for a in flat)
                if np.isfinite(q).all() and np.isfinite(k).all() and np.isfinite(v).all():
                    self._add(int(head), q[drawn], k, p[drawn], v @ self._roots[root].T, factor)

    def _add(self, head: int, q: Array, k: Array, p: Array, u: Array, factor: float) -> None:
        """Add queries ``(t, d)`` of one head, with keys ``(T, d)`` and read values ``(T, w)``.

        All are of float32, whose rounding is far below what the draw of queries leaves uncertain.
        """
        slopes = np.float32(factor) * p
        if self.block.whole is not None and self.block.whole.softcap:
            cap = self.block.whole.softcap
            slopes /= np.cosh(np.clip(factor * (q @ k.T) / cap, -_FLAT, _FLAT)) ** 2
        jacobian = (slopes[:, None, :] * u.T) @ k - (p @ u)[:, :, None] * (slopes @ k)[:, None, :]
        self.sums.queries[head] += q.T @ q
        rows = jacobian.reshape(-1, k.shape[1])
        self.sums.keys[head] += rows.T @ rows
        self.sums.together[head] += float(np.sum(np.square(jacobian @ q[:, :, None])))
        self.sums.count[head] += len(q)

    def _factor(self, values: Mapping[str, npt.NDArray[Any]]) -> float:
        """The number that products are multiplied by before the softmax."""
        factor = self.block.whole.scale if self.block.whole is not None else 1.0
        for name, divides in self.block.scales:
            value = float(np.ravel(values[name])[0])
            factor *= 1 / value if divides and value else value
        return factor


def _flat(values: Array, batch: tuple[int, ...]) -> Array:
    """Values ``(n, ., .)`` with all batch axes in one."""
    whole = np.broadcast_to(values, (*batch, *values.shape[-2:]))
    return whole.reshape(-1, *values.shape[-2:])
