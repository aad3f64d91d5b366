"""embedding_svd: a table of embeddings through r features.

Before:      Gather(E, ids)          E (V, d)
After:       Gather(U, ids), MatMul by P^T, Add      U (V, r), P (d, r)
Conditions:  a constant table of floating-point numbers with 256 rows or more; what is looked up
             follows from fed values, not from positions alone; nothing but lookups uses the table
             (a tied head stays tied); saves when r < (V d - d) / (V + d)
Numbers:     it saves parameters and bytes, and costs r d MACs for each row that is read: so it
             takes part where a target limits parameters or bytes, and in no other plan

Formula:     with the shares p of the rows in the calibration data, mu = sum_v p_v E_v and P = the r
             leading eigenvectors of  sum_v p_v (E_v - mu)(E_v - mu)^T:  U = (E - mu) P, and mu is
             the bias. This is the SVD of the lookup as a product W x with one-hot x, W = E^T, of
             covariance diag(p) - p p^T: reduced-rank regression, optimal at each rank. No row is
             lost: p is smoothed, such that rows never seen have the share that the rows seen once
             foretell (:mod:`onnx_lowrank.linalg.row_shares`). Without data, or with
             metric=identity, the truncated SVD of E.

Reference:   Eckart & Young 1936; Izenman 1975; Chen, Si, Li, Chelba & Hsieh 2018, GroupReduce:
             block-wise low-rank approximation for neural language model shrinking (rows weighed by
             frequency); Good 1953 and Ney, Essen & Kneser 1994 for the shares.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from onnx_lowrank.analysis.moments import Moments, relative_error
from onnx_lowrank.chains.chain import Chain, Rank, Stage, one_rank
from onnx_lowrank.chains.geometry import LinearGeometry
from onnx_lowrank.chains.lookup_geometry import LookupGeometry
from onnx_lowrank.layers import Layer
from onnx_lowrank.passkit.base import Decomposition, Factorization, Skip
from onnx_lowrank.passkit.rank_grid import aligned_ranks
from onnx_lowrank.passkit.two_stage import METRICS

__all__ = ["EmbeddingSvd"]

Array = npt.NDArray[np.floating[Any]]

#: largest step between ranks; finer than elsewhere, as all are known as soon as one is
_STEP = 16

#: part of the variance below which a direction is rounding
_NOTHING = 1e-12

#: rows of the table that are taken to float64 at a time
_ROWS = 8192


@dataclass(frozen=True)
class _Table:
    """A table by its principal directions, at every rank.

    Attributes:
        layer: the lookup; its table is read when it is needed, and not kept.
        moments: of its input, by which errors count.
        mean: row that is taken off all others ``(d,)``; None for none.
        basis: directions ``(d, d)``, the most important first.
        lost: error ``(d + 1,)`` by number of directions, under the metric that they are best in.
        own: whether errors count in that metric.
    """

    layer: Layer
    moments: Moments
    mean: Array | None
    basis: Array
    lost: Array
    own: bool
    variant: str = ""

    @property
    def max_rank(self) -> int:
        """Number of directions that the rows have."""
        return max(int(np.count_nonzero(self.lost[:-1] > _NOTHING)), 1)

    def ranks(self) -> Iterator[int]:
        """Aligned ranks, in steps of 16 at the most."""
        wide = range(4 * _STEP, self.max_rank + 1, _STEP)
        yield from sorted({*aligned_ranks(self.max_rank), *wide})

    def error(self, rank: Rank) -> float:
        """Relative response error at ``rank``."""
        rank = min(one_rank(rank), len(self.lost) - 1)
        if self.own:
            return float(self.lost[rank])
        return relative_error(self.layer.stage, self.cut(rank), self.moments)

    def outline(self, rank: Rank) -> Chain:
        """A narrower lookup and a product, all zero."""
        rank, zero = one_rank(rank), np.zeros(())
        outputs, rows = self.layer.shape
        table, basis = (np.broadcast_to(zero, s) for s in ((rank, rows), (outputs, rank)))
        return _chain(table, basis, np.broadcast_to(zero, (outputs,)))

    def cut(self, rank: Rank) -> Chain:
        """A lookup of ``rank`` numbers, and the product that makes rows of them."""
        basis = self.basis[:, : min(one_rank(rank), self.max_rank)]
        mean = np.zeros(len(basis)) if self.mean is None else self.mean
        table = np.empty((basis.shape[1], self.layer.shape[1]))
        for rows, block in _blocks(self.layer):
            table[:, rows] = ((block - mean) @ basis).T
        return _chain(table, basis, self.mean).balanced()


@dataclass(frozen=True)
class EmbeddingSvd(Factorization):
    """A table of embeddings through r features."""

    name: ClassVar[str] = "embedding_svd"
    ops: ClassVar[frozenset[str]] = frozenset({"Gather"})
    saves_macs: ClassVar[bool] = False

    metric: str = "covariance"

    choices: ClassVar[dict[str, tuple[str, ...]]] = {"metric": METRICS}

    def refuses(self, layer: Layer) -> Skip | None:
        """See the module."""
        return None

    def propose(
        self, layer: Layer, moments: Moments, max_parameters: int | None = None
    ) -> Sequence[Decomposition]:
        """See the module."""
        outputs = layer.shape[0]
        shares, mean = None, None
        if self.metric == "covariance" and moments.one_hot and moments.mean is not None:
            shares = moments.mean[0]
            mean = np.zeros(outputs)
            for rows, block in _blocks(layer):
                mean += shares[rows] @ block
        scatter = np.zeros((outputs, outputs))
        for rows, block in _blocks(layer):
            if shares is not None and mean is not None:
                block = (block - mean) * np.sqrt(shares[rows, None])
            scatter += block.T @ block
        values, vectors = np.linalg.eigh(scatter)
        values = np.maximum(values[::-1], 0.0)
        total = float(values.sum()) or 1.0
        # summed from the smallest on, so that the last ones are not lost in rounding
        lost = np.append(np.cumsum(values[::-1])[::-1], 0.0) / total
        own = shares is not None or not moments.one_hot
        return [_Table(layer, moments, mean, vectors[:, ::-1], lost, own)]


def _blocks(layer: Layer) -> Iterator[tuple[slice, Array]]:
    """Yield rows of the table in float64, some at a time, with their numbers."""
    table = layer.weight
    for start in range(0, table.shape[1], _ROWS):
        rows = slice(start, min(start + _ROWS, table.shape[1]))
        yield rows, table[:, rows].T.astype(np.float64)


def _chain(table: Array, basis: Array, mean: Array | None) -> Chain:
    return Chain(
        (
            Stage(table, None, LookupGeometry(), "reduce"),
            Stage(basis, mean, LinearGeometry(), "expand"),
        )
    )
