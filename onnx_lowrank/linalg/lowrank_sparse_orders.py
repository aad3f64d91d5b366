"""Orders in which channels move from a low-rank part to a sparse one.

    min_{A, B}  tr((W - A - B) Sigma (W - A - B)^T)     A reads few channels, B has a low rank

The best channels for ``A`` are a combinatorial problem; an order answers it for every number of
channels. Convex orders sort by the norms of ``A`` in the convex problem
(:mod:`onnx_lowrank.linalg.lowrank_sparse`), at two pairs of penalties where both parts are not
zero. Forward orders add the channel that lowers the error most, not counting the error in its
``rank`` leading directions. Convex orders are better where ``B`` has a high rank, forward orders
where ``A`` reads few channels.

A convex order costs some 30 products with ``Sigma`` and as many eigenvalue problems; a forward one
some five Cholesky factors of ``Sigma``, and beyond ``rank`` 0 an eigenvalue problem a round.

Reference:
    Tropp, Gilbert & Strauss 2006, Algorithms for simultaneous sparse approximation (forward
    selection).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.linalg import lapack
from onnx_lowrank.linalg.cholesky import cholesky
from onnx_lowrank.linalg.lowrank_sparse import LowRankSparse

__all__ = ["columns_of", "convex_orders", "forward_order"]

Array = npt.NDArray[np.floating[Any]]
Index = npt.NDArray[np.intp]

#: penalties of the convex orders: ``l2`` over its largest useful value, and the place of ``l1``
#: between ``l2 / sqrt(channels)`` (0: no B) and ``sqrt(width) l2`` (1: no A)
_PENALTIES = ((0.1, 0.4), (0.01, 0.6))

#: tolerance and largest number of steps; an order needs no exact solution
_TOLERANCE, _STEPS = 1e-2, 60

#: forward selection takes several channels at once where there are more than this
_ROUNDS = 128


def convex_orders(weight: Array, sigma: Array, width: int) -> list[Index]:
    """Orders of the channels from rough solutions of the convex problem.

    Args:
        weight: map ``(N, d)``.
        sigma: covariance ``(d, d)``.
        width: number of columns of a channel.
    """
    problem = LowRankSparse(weight, sigma, width)
    channels, most = weight.shape[1] // width, problem.largest[1]
    if most == 0:
        return [np.arange(channels)]
    orders = []
    for part, at in _PENALTIES:
        l2 = part * most
        low, high = l2 / math.sqrt(channels), l2 * math.sqrt(min(width, len(weight)))
        found = problem.solve(
            low ** (1 - at) * high**at,
            l2,
            absolute=_TOLERANCE / 100,
            relative=_TOLERANCE,
            max_iterations=_STEPS,
        )
        orders.append(found.order)
    return orders


def forward_order(
    weight: Array, sigma: Array, width: int, rank: int, limit: int | None = None
) -> Index:
    """Order of the channels by forward selection.

    With ``T = W K``, the gain of channel j is ``tr(Q T_j K_jj^-1 T_j^T)``, ``Q`` the projection off
    the ``rank`` leading directions of ``T W^T``: the error falls by that at least.

    Args:
        weight: map ``(N, d)``.
        sigma: covariance ``(d, d)``.
        width: number of columns of a channel.
        rank: number of directions that the low-rank part reproduces.
        limit: number of channels to select; the others follow by their last gain.
    """
    outputs, d = weight.shape
    channels = d // width
    limit = channels if limit is None else limit
    several = -(-channels // _ROUNDS)
    response, loads = weight @ sigma, np.zeros((d, 0))
    gram = response @ weight.T
    # K_jj: residual covariance of each channel; jitter for channels that others determine
    jitter = 1e-9 * max(float(np.trace(sigma)) / d, np.finfo(np.float64).tiny) * np.eye(width)
    own = np.einsum("jajb->jab", sigma.reshape(channels, width, channels, width)) + jitter
    order: list[int] = []
    gains = np.zeros(channels)
    while len(order) < limit:
        seen = response
        if rank:
            seen = np.linalg.eigh(gram)[1][:, : max(outputs - rank, 1)].T @ response
        by_channel: Array = seen.reshape(-1, channels, width).transpose(1, 2, 0)
        inner = by_channel @ by_channel.transpose(0, 2, 1)
        gains = np.trace(np.linalg.solve(own, inner), axis1=1, axis2=2)
        gains[order] = -math.inf
        chosen = np.argsort(-gains, kind="stable")[: min(several, limit - len(order))]
        order += chosen.tolist()
        columns = columns_of(chosen, width)
        left = sigma[:, columns] - loads @ loads[columns].T
        factor = cholesky(left[columns] + np.kron(np.eye(len(chosen)), jitter))
        load = lapack.trtrs(factor, left.T).T
        told = lapack.trtrs(factor, response[:, columns].T).T
        gram, response = gram - told @ told.T, response - told @ load.T
        by_channel = load.reshape(channels, width, -1)
        own = own - by_channel @ by_channel.transpose(0, 2, 1)
        own[chosen] = np.eye(width)
        loads = np.hstack([loads, load])
    gains[order] = -math.inf
    rest = np.argsort(-gains, kind="stable")[: channels - len(order)]
    return np.concatenate([np.array(order, np.intp), rest])


def columns_of(channels: Index, width: int) -> Index:
    """Numbers of the columns of some channels with ``width`` columns each."""
    columns: Index = (np.asarray(channels)[:, None] * width + np.arange(width)).reshape(-1)
    return columns
