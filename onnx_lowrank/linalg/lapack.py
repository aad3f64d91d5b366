"""LAPACK without the lock of the interpreter.

SciPy's functions hold the lock while LAPACK works, so that layers on two threads take as long as on
one, or longer; NumPy's let go of it, but have neither triangular systems nor Cholesky solutions.
These call the LAPACK that SciPy brings, through the pointers that it publishes for Cython
(``scipy.linalg.cython_lapack``); ``ctypes`` lets go of the lock for each call.

Matrices are of float32 or float64. LAPACK reads columns first: what it writes to is copied to
that order, unless it may be written over and is in that order already.

Reference:
    Anderson et al. 1999, LAPACK users' guide; https://docs.scipy.org/doc/scipy/reference/
    linalg.cython_lapack.html
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.linalg import LinAlgError
from scipy.linalg import cython_blas, cython_lapack

__all__ = ["downdate", "posv", "potrf", "potri", "potrs", "trtrs"]

Array = npt.NDArray[np.floating[Any]]

#: number of columns that are cleaned together
_BLOCK = 64

_ONE, _MINUS = np.array([1.0]), np.array([-1.0])


def potrf(matrix: Array, *, overwrite: bool = False, clean: bool = False) -> Array:
    """Lower Cholesky factor ``L`` of a positive definite matrix ``L L^T``.

    Args:
        matrix: ``(d, d)``, of which the lower triangle is read; it may be empty.
        overwrite: write the factor over the matrix, where this is in column order.
        clean: whether the other triangle is zero afterwards; else it is left as it is.

    Raises:
        numpy.linalg.LinAlgError: the matrix is not positive definite.
    """
    factor = _columns(_square(matrix), overwrite)
    if failed := _call("potrf", factor, b"L", len(factor), factor, len(factor)):
        raise LinAlgError(f"the leading minor of order {failed} is not positive")
    if clean:
        for first in range(0, len(factor), _BLOCK):
            columns = factor[: first + _BLOCK, first : first + _BLOCK]
            columns[:first] = 0
            columns[first:] *= _lower()[: len(columns) - first, : columns.shape[1]]
    return factor


def potri(factor: Array) -> Array:
    """Lower triangle of ``(L L^T)^-1 (d, d)``, written over ``L``; the other one is left.

    Args:
        factor: ``L (d, d)`` in column order.

    Raises:
        ValueError: the factor is in another order.
        numpy.linalg.LinAlgError: ``L`` has a zero on its diagonal.
    """
    if not _in_place(_square(factor)):
        raise ValueError("the factor to write over is not in column order")
    if _call("potri", factor, b"L", len(factor), factor, len(factor)):
        raise LinAlgError("a factor has a zero on its diagonal")
    return factor


def potrs(factor: Array, right: Array, *, overwrite: bool = False) -> Array:
    """Solution of ``L L^T X = B``, in column order.

    Args:
        factor: ``L (d, d)``, of which the lower triangle is read.
        right: ``B (d, n)`` or ``(d,)``.
        overwrite: write ``X`` over ``B``, where this is in column order.
    """
    return _solved("potrs", factor, right, overwrite)


def trtrs(
    factor: Array, right: Array, *, transposed: bool = False, overwrite: bool = False
) -> Array:
    """Solution of ``L X = B``, or of ``L^T X = B``, in column order.

    Args:
        factor: ``L (d, d)``, of which the lower triangle is read.
        right: ``B (d, n)`` or ``(d,)``.
        transposed: solve with the transpose.
        overwrite: write ``X`` over ``B``, where this is in column order.

    Raises:
        numpy.linalg.LinAlgError: ``L`` has a zero on its diagonal.
    """
    return _solved("trtrs", factor, right, overwrite, (b"T" if transposed else b"N", b"N"))


def posv(matrix: Array, right: Array) -> Array:
    """Solution of ``A X = B`` in column order, for a positive definite ``A``, which may be lost.

    Args:
        matrix: ``A (d, d)``, of which the lower triangle is read; in column order it is written
            over.
        right: ``B (d, n)``.

    Raises:
        numpy.linalg.LinAlgError: ``A`` is not positive definite.
    """
    return _solved("posv", matrix, right, overwrite=False)


def downdate(matrix: Array, left: Array, right: Array) -> None:
    """Subtract the product ``A B^T`` from a matrix, without a copy of it.

    Args:
        matrix: ``(m, n)`` of float64 in column order, which is written over.
        left: ``A (m, k)``.
        right: ``B (n, k)``.

    Raises:
        ValueError: the matrix is in another order, or shapes do not fit.
    """
    left, right = _columns(left, overwrite=True), _columns(right, overwrite=True)
    (m, n), k = matrix.shape, left.shape[1]
    if (left.shape, right.shape) != ((m, k), (n, k)):
        raise ValueError(f"{left.shape} times {right.shape} turned is no matrix {matrix.shape}")
    if matrix.dtype != np.float64 or not _in_place(matrix):
        raise ValueError("the matrix to change is not one of float64 in column order")
    _routine("dgemm", 13)(*_passed(b"N", b"T", m, n, k, _MINUS, left, m, right, n, _ONE, matrix, m))


def _solved(
    name: str, factor: Array, right: Array, overwrite: bool, how: tuple[bytes, ...] = ()
) -> Array:
    """Solve a system with a lower triangle by the LAPACK routine named."""
    factor = _columns(_square(factor), overwrite=True)
    if len(right) != len(factor):
        raise ValueError(f"a system of {len(factor)} rows has a right side of {len(right)}")
    solution = _columns(right.astype(factor.dtype, copy=False), overwrite)
    size = len(factor)
    count = 1 if solution.ndim == 1 else solution.shape[1]
    if failed := _call(name, solution, b"L", *how, size, count, factor, size, solution, size):
        raise LinAlgError(f"row {failed} of a triangle has no positive number on the diagonal")
    return solution


@cache
def _lower() -> Array:
    """Ones in the lower triangle of a block, zeros above."""
    return np.asfortranarray(np.tri(_BLOCK, dtype=np.float32))


def _square(matrix: Array) -> Array:
    """The matrix; LAPACK would read what is beyond one that is not square."""
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"the matrix {matrix.shape} is not square")
    return matrix


def _columns(matrix: Array, overwrite: bool) -> Array:
    """The matrix in column order, itself where it is and may be written over."""
    kind = np.float32 if matrix.dtype == np.float32 else np.float64
    if overwrite and matrix.dtype == kind and _in_place(matrix):
        return matrix
    return np.array(matrix, kind, order="F")


def _call(name: str, result: Array, *arguments: bytes | int | Array) -> int:
    """Call a LAPACK routine of the result's precision; return what it says of its success."""
    if not result.size:
        return 0
    routine = _routine(("s" if result.dtype == np.float32 else "d") + name, len(arguments) + 1)
    failed = _integer()(0)
    routine(*_passed(*arguments), ctypes.byref(failed))
    return int(failed.value)


def _passed(*arguments: bytes | int | Array) -> list[Any]:
    """Pointers to arguments: letters, sizes, and arrays in column order, which are not empty."""
    found: list[Any] = []
    for argument in arguments:
        if isinstance(argument, int):
            found.append(_size(argument))
        elif isinstance(argument, bytes):
            found.append(argument)
        else:
            found.append(ctypes.byref(ctypes.c_char.from_buffer(argument.T.data)))
    return found


@cache
def _size(value: int) -> Any:
    """Where LAPACK reads this size, which it never writes to."""
    return ctypes.byref(_integer()(value))


def _in_place(matrix: Array) -> bool:
    """Whether LAPACK can work where the matrix is."""
    return matrix.flags.f_contiguous and matrix.flags.writeable


@cache
def _routine(name: str, arguments: int) -> Callable[..., None]:
    """A routine of LAPACK or BLAS with this number of arguments, all of them pointers."""
    module = cython_blas if name.endswith("gemm") else cython_lapack
    capsule = module.__pyx_capi__[name]
    name_of = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)
    pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
    signature = name_of(("PyCapsule_GetName", ctypes.pythonapi))(capsule)
    address = pointer_of(("PyCapsule_GetPointer", ctypes.pythonapi))(capsule, signature)
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * arguments)(address)


@cache
def _integer() -> type[ctypes.c_int32] | type[ctypes.c_int64]:
    """The integers of this LAPACK: 32 bits, or 64 in some builds.

    It is asked for its version, and the half of a number that only a wide integer fills is read.
    """
    version = [ctypes.c_int64(-1) for _ in range(3)]
    _routine("ilaver", 3)(*map(ctypes.byref, version))
    return ctypes.c_int64 if version[0].value >> 32 == 0 else ctypes.c_int32
