"""Moments: all that the calibration data has to say about a layer's input.

    n,   mu = E[x],   Sigma = E[(x - mu)(x - mu)^T]

For a replacement ``What`` of ``W`` with the bias corrected to ``b + (W - What) mu`` they give the
exact relative response error

    eps(What) = tr((W - What) Sigma (W - What)^T) / tr(W Sigma W^T)

so that the data is read once and its memory does not grow with the number of samples. Without data
``Sigma = I`` and the same formula is the relative error of the weights.

Where a layer makes class scores, its errors count under a metric ``M`` of its outputs
(:mod:`onnx_lowrank.linalg.output_metric`), that is ``tr(M (W - What) Sigma (W - What)^T)`` over
``tr(M W Sigma W^T)``.

A lookup reads one-hot rows. With the shares ``p`` of the rows of its table their mean is ``p`` and
their covariance ``diag(p) - p p^T``, which is never written out:

    tr(D Sigma D^T) = sum_v p_v |d_v - d|^2,     d = sum_v p_v d_v,    d_v the columns of D
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.chains.chain import Chain, Stage
from onnx_lowrank.linalg.output_metric import ResponseMetric
from onnx_lowrank.linalg.phase_covariance import Covariance, PhaseCovariance, by_group

__all__ = [
    "Moments",
    "corrected",
    "corrected_bias",
    "relative_error",
    "response_error",
]

Array = npt.NDArray[np.floating[Any]]


#: columns of a table that errors are summed over at a time
_COLUMNS = 8192


@dataclass(frozen=True)
class Moments:
    """Moments of a layer's input patches, group by group, and how errors of its outputs count.

    Attributes:
        count: rows behind them; 0 means that there was no data.
        mean: ``(groups, d)``, or None without data.
        covariance: ``(groups, d, d)``, or that of the phases of one group
            (:class:`~onnx_lowrank.linalg.phase_covariance.PhaseCovariance`); None is the identity.
        outputs: metric of the outputs of a layer that makes class scores or gates, or None where
            all outputs count alike.
        one_hot: whether the rows are one-hot, so that the covariance follows from the mean, the
            shares of the rows of a table; it is None then.
    """

    count: int = 0
    mean: Array | None = None
    covariance: Array | PhaseCovariance | None = None
    outputs: ResponseMetric | None = None
    one_hot: bool = False

    def of_group(self, group: int) -> Covariance | None:
        """Covariance of one group as it is held; None as :meth:`sigma`."""
        return None if self.covariance is None else by_group(self.covariance)[group]

    def sigma(self, group: int) -> Array | None:
        """Covariance ``(d, d)`` of one group; None is the identity, or that of one-hot rows."""
        found = self.of_group(group)
        return None if found is None else np.asarray(found)

    def energy(self, matrices: Array) -> float:
        """``tr(M W Sigma W^T)`` of ``W (groups, N / groups, d)``: the variance of the response."""
        return response_error(matrices, self)

    @property
    def identity(self) -> Moments:
        """The weight-space metric."""
        return Moments()

    @property
    def bytes(self) -> int:
        """Memory held, in bytes."""
        return sum(a.nbytes for a in (self.mean, self.covariance) if a is not None)


def response_error(difference: Array, moments: Moments) -> float:
    """``tr(M D Sigma D^T)`` summed over groups, in float64.

    Args:
        difference: ``(groups, N / groups, d)``.
        moments: of the input.
    """
    if moments.outputs is not None:
        difference = moments.outputs.weighed(difference, 1)
    if moments.one_hot:
        return _spread(lambda columns: difference[0, :, columns].astype(np.float64), moments)
    if moments.covariance is None:
        return float(np.sum(np.square(difference.astype(np.float64, copy=False))))
    return float(np.sum((difference @ moments.covariance) * difference))


def _spread(columns: Callable[[slice], Array], moments: Moments) -> float:
    """The variance of columns ``(n, V)``, block by block, under the shares of one-hot rows."""
    assert moments.mean is not None
    (shares,) = moments.mean
    blocks = [slice(s, s + _COLUMNS) for s in range(0, len(shares), _COLUMNS)]
    mean = sum(columns(block) @ shares[block] for block in blocks)
    return float(sum(
        np.sum(np.square(columns(block) - np.reshape(mean, (-1, 1))) @ shares[block])
        for block in blocks
    ))  # fmt: skip


def relative_error(stage: Stage, chain: Chain, moments: Moments) -> float:
    """``eps`` of a chain in the place of ``stage``, its bias corrected; see the module."""
    weight = stage.matrices
    energy = response_error(weight, moments)
    if moments.one_hot:
        table, rest = chain.stages[0], Chain(chain.stages[1:])
        assert isinstance(table, Stage)
        behind = rest.compose() if rest.stages else np.eye(table.outputs)
        lost = _spread(
            lambda c: weight[0, :, c].astype(np.float64) - behind @ table.weight[:, c], moments
        )
        return lost / energy if energy > 0 else 0.0
    difference = weight - chain.dense(stage.groups).reshape(weight.shape)
    return response_error(difference, moments) / energy if energy > 0 else 0.0


def corrected_bias(stage: Stage, matrices: Array, moments: Moments) -> Array | None:
    """``b + (W - What) mu``: what the mean response loses comes back by the bias.

    Args:
        stage: the layer as it is.
        matrices: ``What (groups, N / groups, d)``.
        moments: of its input; without a mean the bias stays as it is.
    """
    if moments.mean is None:
        return stage.bias
    shift: Array = np.einsum("gnd,gd->gn", stage.matrices - matrices, moments.mean).reshape(-1)
    return shift if stage.bias is None else stage.bias + shift


def corrected(stage: Stage, chain: Chain, moments: Moments) -> Chain:
    """``chain``, its bias such that it answers to the mean input what ``stage`` did."""
    matrices = chain.dense(stage.groups).reshape(stage.matrices.shape)
    return chain.with_bias(corrected_bias(stage, matrices, moments))
