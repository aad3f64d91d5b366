"""The problem of choosing channels: who reads a group of channels, and what they make of it.

Reader c of a group makes ``y_c = W_c x_c`` of patches whose columns belong to the channels.
Without the channels outside S, its weights solved again,

    loss(S) = sum_c  E||y_c - M_c x_c,S||^2 / E||total_c||^2,     M_c = W_c Sigma_.S Sigma_SS^-1

``total_c`` being what the response ends up in: its own output, or the sum behind a residual Add.
For channels in a given order all losses of it come from one Cholesky factor ``Sigma = L L^T``:
keeping the first k is to lose the columns of ``W L`` behind them.

A reader that reads other channels as well (a concatenation) keeps them: they are projected out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.layers import Layer
from onnx_lowrank.linalg import lapack
from onnx_lowrank.linalg.groups import Consumer
from onnx_lowrank.linalg.nested_losses import nested_losses
from onnx_lowrank.linalg.phase_covariance import (
    Covariance,
    PhaseCovariance,
    mean_variance,
    taken,
)
from onnx_lowrank.linalg.phase_covariance import solved as regressed

__all__ = ["Part", "Selection", "parts_of", "solved_weights"]

Array = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Part:
    """One reader, or one group of a grouped one.

    Attributes:
        sigma: covariance ``(d, d)`` of its columns, channel by channel, ``d = channels * width``.
        weight: ``W (N, d)``, its rows that matter.
        share: factor of its squared error in the loss.
        width: columns of one channel.
    """

    sigma: Covariance
    weight: Array
    share: float

    width: int

    @property
    def consumer(self) -> Consumer:
        """The same for the solvers, with its covariance written out."""
        sigma = np.asarray(self.sigma)
        widths = [self.width] * (len(sigma) // self.width)
        return Consumer(sigma, self.weight @ sigma, widths, self.share)

    @property
    def phases(self) -> list[Part]:
        """A part for each phase, as if it had no bias; otherwise itself.

        To solve phases together, for the bias that they share, costs four times as much. In
        transposed convolutions of a depth network channels chosen so lost at most 1 % more.
        """
        if not isinstance(self.sigma, PhaseCovariance):
            return [self]
        return [
            Part(block, self.weight[:, at], self.share, len(at) * self.width // len(self.sigma))
            for block, at in zip(self.sigma.blocks, self.sigma.columns, strict=True)
            if len(at)
        ]

    def losses(self, order: Labels, solved: bool) -> Array:
        """Loss ``(G + 1,)`` when the first k channels of ``order`` are kept, k from 0 to all."""
        columns = (order[:, None] * self.width + np.arange(self.width)).reshape(-1)
        sigma = taken(self.sigma, columns)
        return self.share * nested_losses(self.weight[:, columns], sigma, self.width, solved)


@dataclass(frozen=True)
class Selection:
    """A group of channels with all its readers.

    Attributes:
        parts: the readers.
        made: norms of the rows that make each channel, ``(G,)``: L1 and L2; of the columns that
            read it where nothing makes it.
    """

    parts: tuple[Part, ...]
    made: tuple[Array, Array]

    @property
    def phases(self) -> list[Part]:
        """The readers, the phases of each apart."""
        return [phase for part in self.parts for phase in part.phases]

    @property
    def size(self) -> int:
        """Number of channels."""
        return len(self.made[0])

    def losses(self, order: Labels, solved: bool = True) -> Array:
        """Loss ``(G + 1,)`` when the first k channels of ``order`` are kept."""
        total = np.zeros(self.size + 1)
        for part in self.parts:
            total += part.losses(order, solved)
        return total


def parts_of(
    layer: Layer,
    columns: Labels,
    moments: Moments,
    total: float,
    rows: npt.NDArray[np.bool_] | None = None,
) -> list[Part]:
    """The parts of one reader.

    Args:
        layer: it.
        columns: positions ``(G, w)`` on axis 1 of its weight.
        moments: of its input.
        total: variance of what its response ends up in; 0 takes its own, as does a reader that
            makes class scores.
        rows: mask ``(N,)`` of the outputs that count; None for all.
    """
    stage, taps = layer.stage, int(np.prod(layer.shape[2:], dtype=int))
    patch = (columns[..., None] * taps + np.arange(taps)).reshape(-1)
    rest = np.setdiff1d(np.arange(layer.patch), patch)
    matrices, metric = stage.matrices, moments.outputs
    energy = total if total > 0 and metric is None else moments.energy(matrices)
    if metric is not None:
        matrices = metric.weighed(matrices, 1)
    masks = None if rows is None else rows.reshape(layer.groups, -1)
    parts = []
    for g, matrix in enumerate(matrices):
        sigma = moments.of_group(g)
        sigma = np.eye(layer.patch) if sigma is None else sigma
        own = taken(sigma, patch)
        if len(rest):
            sigma, own = np.asarray(sigma), np.asarray(own)
            between = sigma[np.ix_(rest, patch)]
            own = own - between.T @ lapack.posv(sigma[np.ix_(rest, rest)], between)
        weight = matrix[:, patch] if masks is None else matrix[masks[g]][:, patch]
        if energy > 0 and len(weight):
            parts.append(Part(own, weight, 1.0 / energy, columns.shape[1] * taps))
    return parts


def solved_weights(
    layer: Layer, kept: Labels, moments: Moments, ridge: float
) -> tuple[Array, Array | None]:
    """Weight ``(N, kept, *kernel)`` and bias of a reader that is left with some positions.

    The least-squares map from what it still reads to its response, and the mean made up for.
    """
    stage, taps = layer.stage, int(np.prod(layer.shape[2:], dtype=int))
    patch = (kept[:, None] * taps + np.arange(taps)).reshape(-1)
    weights, shifts = [], []
    for g, matrix in enumerate(stage.matrices):
        sigma = moments.of_group(g)
        solved = matrix[:, patch]
        if sigma is not None:
            if isinstance(sigma, PhaseCovariance):
                right = (matrix @ sigma)[:, patch].T
            else:
                right = sigma[patch] @ matrix.T
            solved = regressed(taken(sigma, patch), ridge * mean_variance(sigma), right).T
        weights.append(solved)
        if moments.mean is not None:
            shifts.append(matrix @ moments.mean[g] - solved @ moments.mean[g][patch])
    weight = np.concatenate(weights).reshape(layer.shape[0], len(kept), *layer.shape[2:])
    if layer.given is not None:
        weight[layer.given] = stage.weight[layer.given][:, kept]
    if not shifts:
        return weight, stage.bias
    shift = np.concatenate(shifts)
    if layer.given is not None:
        shift[layer.given] = 0.0
    return weight, shift if stage.bias is None else stage.bias + shift
