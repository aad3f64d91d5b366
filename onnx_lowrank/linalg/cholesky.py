"""Cholesky factors of covariances, which rounding may leave barely indefinite.

Reference:
    Higham 2002, Accuracy and stability of numerical algorithms, chapter 10.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg

__all__ = ["cholesky", "inverse_of"]

Array = npt.NDArray[np.floating[Any]]


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
    for jitter in (0.0, 1e-12, 1e-8, 1e-6, 1e-4):
        try:
            regular = matrix + jitter * scale * np.eye(len(matrix)) if jitter else matrix
            # the transpose is the same matrix in the order of LAPACK, and quicker to copy
            factor: Array = linalg.cholesky(regular.T, lower=True, check_finite=False)
            return factor
        except linalg.LinAlgError:
            continue
    raise linalg.LinAlgError("the covariance is not positive semi-definite")


def inverse_of(factor: Array) -> Array:
    """The inverse ``(L L^T)^-1 (d, d)``, of a lower factor whose other half is zero.

    Args:
        factor: ``L (d, d)`` in column order, which is written over.
    """
    # the other half stays zero
    lower = linalg.lapack.dpotri(factor, lower=1, overwrite_c=1)[0]
    inverse: Array = np.add(lower, lower.T, order="C")
    inverse[np.diag_indices(len(lower))] /= 2
    return inverse
