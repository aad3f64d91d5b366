"""Cholesky factors of covariances, which rounding may leave barely indefinite.

Reference:
    Higham 2002, Accuracy and stability of numerical algorithms, chapter 10.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.linalg import lapack

__all__ = ["JITTERS", "cholesky", "factored", "inverse_of"]

Array = npt.NDArray[np.floating[Any]]

#: parts of the mean variance that are added to it, one after another, until there is a factor
JITTERS = (0.0, 1e-12, 1e-8, 1e-6, 1e-4)


def cholesky(matrix: Array) -> Array:
    """Lower factor of a positive semi-definite matrix, with as little jitter as needed.

    Covariances are sums of float32 products: for thousands of columns that barely differ, rounding
    is some 1e-6 of the mean variance, and more where one direction has nearly all the variance.

    Args:
        matrix: symmetric matrix ``(d, d)``; it may be empty.

    Raises:
        numpy.linalg.LinAlgError: the matrix is far from positive semi-definite.
    """
    scale = max(float(np.trace(matrix)) / max(len(matrix), 1), np.finfo(np.float64).tiny)
    for jitter in JITTERS:
        try:
            regular = matrix + jitter * scale * np.eye(len(matrix)) if jitter else matrix
            # the transpose is the same matrix in the order of LAPACK, and quicker to copy
            return lapack.potrf(regular.T, clean=True)
        except np.linalg.LinAlgError:
            continue
    raise np.linalg.LinAlgError("the covariance is not positive semi-definite")


def factored(matrix: Array) -> Array:
    """What :func:`cholesky` finds, for :func:`lapack.potrs`; ``matrix`` is written over.

    Args:
        matrix: symmetric matrix ``(d, d)`` in row order.

    Raises:
        numpy.linalg.LinAlgError: the matrix is far from positive semi-definite.
    """
    diagonal = matrix.diagonal().copy()
    scale = max(float(diagonal.sum()) / max(len(diagonal), 1), np.finfo(np.float64).tiny)
    for jitter in JITTERS:
        matrix[np.diag_indices(len(matrix))] = diagonal + jitter * scale
        try:
            factor = lapack.potrf(matrix.T, overwrite=True)
        except np.linalg.LinAlgError:
            for i, row in enumerate(matrix):  # the other half is as it was
                row[i + 1 :] = matrix[i + 1 :, i]
        else:
            return factor
    raise np.linalg.LinAlgError("the covariance is not positive semi-definite")


def inverse_of(factor: Array) -> Array:
    """The inverse ``(L L^T)^-1 (d, d)``, of a lower factor whose other half is zero.

    Args:
        factor: ``L (d, d)`` in column order, which is written over.
    """
    # the other half stays zero
    lower = lapack.potri(factor)
    inverse: Array = np.add(lower, lower.T, order="C")
    inverse[np.diag_indices(len(lower))] /= 2
    return inverse
