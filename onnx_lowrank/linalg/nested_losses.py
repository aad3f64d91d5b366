"""Errors of a linear map that reads the first k groups of its columns, for all k.

From one Cholesky factor ``Sigma = L L^T``: without the columns behind the first ones, the map
solved again, the error is the squares of the columns of ``W L`` that are left out. Of a covariance
``D - v v^T`` it is that without a bias less what the bias takes off. With ``D = L L^T``,
``z = L^-1 v`` and ``a_i`` the columns of ``W L``

    loss(k) = sum_out |a_i|^2  -  |sum_out z_i a_i|^2 / (1 - sum_in z_i^2)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.linalg import lapack
from onnx_lowrank.linalg.cholesky import cholesky
from onnx_lowrank.linalg.phase_covariance import Covariance, PhaseCovariance

__all__ = ["nested_losses"]

Array = npt.NDArray[np.floating[Any]]


def nested_losses(weight: Array, sigma: Covariance, width: int, solved: bool) -> Array:
    """Errors ``(G + 1,)`` of a map that reads the first k groups alone, k from 0 to all.

    Args:
        weight: the map ``W (N, d)``.
        sigma: covariance ``(d, d)`` of what it reads.
        width: number of columns of each group, which stand together.
        solved: whether the map is solved again; else the columns behind are left out of ``W``.
    """
    if isinstance(sigma, PhaseCovariance):
        return _of_phases(weight, sigma, width, solved)
    lost = np.sum((weight @ cholesky(sigma)) ** 2, axis=0) if solved else _unsolved(weight, sigma)
    return _behind(lost.reshape(-1, width).sum(axis=1))


def _of_phases(weight: Array, sigma: PhaseCovariance, width: int, solved: bool) -> Array:
    count = len(sigma) // width
    squares, shares = np.zeros(count), np.zeros(count)
    means = np.zeros((len(weight), count))
    for block, at in zip(sigma.blocks, sigma.columns, strict=True):
        if not len(at):
            continue
        own, shift = weight[:, at], sigma.shift[at]
        if solved:
            factor = cholesky(block)
            own = own @ factor
            shift = lapack.trtrs(factor, shift)
            lost = np.sum(own**2, axis=0)
            shares += (shift**2).reshape(count, -1).sum(axis=1)
        else:
            lost = _unsolved(own, block)
        squares += lost.reshape(count, -1).sum(axis=1)
        means += (own * shift).reshape(len(own), count, -1).sum(axis=2)
    left = 1 - np.concatenate([[0.0], np.cumsum(shares)])
    gained = np.sum(_behind(means) ** 2, axis=0)
    losses: Array = _behind(squares) - gained / np.maximum(left, np.finfo(np.float64).tiny)
    return losses


def _unsolved(weight: Array, sigma: Array) -> Array:
    """What each column adds: ``tr(W_j S_jj W_j^T)`` and twice its products with those behind."""
    gram = (weight.T @ weight) * sigma
    lost: Array = np.diag(gram) + 2 * np.triu(gram, 1).sum(axis=1)
    return lost


def _behind(values: Array) -> Array:
    """Sums ``(..., G + 1)`` of the values ``(..., G)`` from each on."""
    sums = np.cumsum(values[..., ::-1], axis=-1)[..., ::-1]
    return np.concatenate([sums, np.zeros_like(values[..., :1])], axis=-1)
