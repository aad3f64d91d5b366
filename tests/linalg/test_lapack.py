"""LAPACK without the lock of the interpreter."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from scipy import linalg

from onnx_lowrank.linalg import lapack

ORDERS = ["C", "F"]
KINDS = [np.float32, np.float64]


def positive(size: int, kind: type = np.float64, order: str = "C") -> np.ndarray:
    wide = np.random.default_rng(size).normal(size=(size, 2 * size + 1))
    return np.array(wide @ wide.T, kind, order=order)


def right_of(size: int, count: int, kind: type = np.float64, order: str = "C") -> np.ndarray:
    return np.array(np.random.default_rng(0).normal(size=(size, count)), kind, order=order)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 5, 64, 65, 200])
def test_results_are_those_of_scipy(size: int, kind: type, order: str) -> None:
    matrix, right = positive(size, kind, order), right_of(size, 7, kind, order)
    kept = matrix.copy(), right.copy()
    expected = linalg.cholesky(matrix, lower=True)
    factor = lapack.potrf(matrix, clean=True)
    assert factor.dtype == kind
    np.testing.assert_array_equal(factor, expected)
    np.testing.assert_array_equal(np.tril(lapack.potrf(matrix)), expected)
    same = {
        "potrs": (lapack.potrs(factor, right), linalg.cho_solve((factor, True), right)),
        "trtrs": (lapack.trtrs(factor, right), linalg.solve_triangular(factor, right, lower=True)),
        "transposed": (
            lapack.trtrs(factor, right, transposed=True),
            linalg.solve_triangular(factor, right, lower=True, trans="T"),
        ),
    }
    for name, (found, wanted) in same.items():
        assert found.dtype == kind, name
        np.testing.assert_array_equal(found, wanted, err_msg=name)
    np.testing.assert_array_equal(matrix, kept[0])
    np.testing.assert_array_equal(right, kept[1])
    solved = lapack.posv(matrix.copy(order="K"), right)
    assert np.allclose(kept[0] @ solved, right, atol=1e-3 if kind == np.float32 else 1e-9)


def test_factors_of_parts_of_arrays_and_what_may_not_be_written_to() -> None:
    whole = lapack.potrf(positive(9), clean=True)
    part, right = whole[:6, :6], right_of(9, 3)[:6]
    part.flags.writeable = right.flags.writeable = False
    found = lapack.trtrs(part, right, overwrite=True)
    np.testing.assert_array_equal(found, linalg.solve_triangular(part, right, lower=True))
    by_rows = np.ascontiguousarray(part)
    by_rows.flags.writeable = False
    np.testing.assert_array_equal(lapack.potrs(by_rows, right), lapack.potrs(part, right))


def test_what_may_be_written_over_is() -> None:
    matrix, right = positive(6, order="F"), right_of(6, 2, order="F")
    factor = lapack.potrf(matrix, overwrite=True)
    assert factor is matrix
    assert lapack.potrs(factor, right, overwrite=True) is right
    assert lapack.potri(factor) is matrix
    inverse = np.linalg.inv(positive(6))
    np.testing.assert_allclose(np.tril(factor), np.tril(inverse), rtol=1e-9)


def test_a_vector_and_nothing_at_all() -> None:
    factor = lapack.potrf(positive(4))
    vector = right_of(4, 1)[:, 0]
    np.testing.assert_allclose(positive(4) @ lapack.potrs(factor, vector), vector)
    empty = np.zeros((0, 0))
    assert lapack.potrf(empty, clean=True).shape == (0, 0)
    assert lapack.potrs(empty, np.zeros((0, 3))).shape == (0, 3)
    assert lapack.trtrs(factor, np.zeros((4, 0))).shape == (4, 0)
    assert lapack.potri(np.zeros((0, 0), order="F")).shape == (0, 0)


def test_other_numbers_are_taken_as_float64() -> None:
    found = lapack.posv(np.array([[4, 0], [0, 2]]), np.array([[2], [3]]))
    np.testing.assert_allclose(found, [[0.5], [1.5]], rtol=1e-14)


def test_indefinite_and_singular_matrices_are_refused() -> None:
    matrix = np.diag([1.0, -1.0, 1.0])
    with pytest.raises(np.linalg.LinAlgError, match="order 2"):
        lapack.potrf(matrix)
    with pytest.raises(np.linalg.LinAlgError, match="row 2"):
        lapack.posv(matrix, np.ones((3, 1)))
    singular = np.asfortranarray(np.diag([1.0, 0.0]))
    with pytest.raises(np.linalg.LinAlgError, match="row 2"):
        lapack.trtrs(singular, np.ones((2, 1)))
    with pytest.raises(np.linalg.LinAlgError, match="zero"):
        lapack.potri(singular)


def test_downdate_changes_a_matrix_in_place() -> None:
    matrix = np.asfortranarray(np.arange(12.0).reshape(4, 3))
    left, right = right_of(4, 2), right_of(3, 2)
    wanted = matrix - left @ right.T
    lapack.downdate(matrix, left, right)
    np.testing.assert_allclose(matrix, wanted, rtol=1e-14)


@pytest.mark.parametrize("matrix", [np.zeros((3, 3)), np.zeros((3, 3), np.float32, order="F")])
def test_downdate_refuses_what_it_cannot_change_in_place(matrix: np.ndarray) -> None:
    with pytest.raises(ValueError, match="column order"):
        lapack.downdate(matrix, np.ones((3, 1)), np.ones((3, 1)))


def test_shapes_that_do_not_fit_are_refused() -> None:
    wide, factor = np.ones((2, 3)), lapack.potrf(positive(3))
    for refused in (lapack.potrf, lapack.potri):
        with pytest.raises(ValueError, match="not square"):
            refused(wide)
    with pytest.raises(ValueError, match="not square"):
        lapack.potrs(wide, np.ones((2, 1)))
    for solve in (lapack.potrs, lapack.trtrs, lapack.posv):
        with pytest.raises(ValueError, match="3 rows has a right side of 2"):
            solve(factor.copy(), np.ones((2, 3)))
    with pytest.raises(ValueError, match="no matrix"):
        lapack.downdate(factor, np.ones((3, 2)), np.ones((3, 1)))
    with pytest.raises(ValueError, match="column order"):
        lapack.potri(np.ascontiguousarray(factor))


def test_other_threads_run_meanwhile() -> None:
    matrix, times = positive(1500, order="F"), list[float]()

    def factorize() -> None:
        times.append(time.perf_counter())
        lapack.potrf(matrix, overwrite=True)
        times.append(time.perf_counter())

    thread, ticks = threading.Thread(target=factorize), list[float]()
    thread.start()
    while thread.is_alive():
        ticks.append(time.perf_counter())
        time.sleep(1e-4)
    thread.join()
    begin, end = times
    inside = [t for t in ticks if begin + (end - begin) / 4 < t < end - (end - begin) / 4]
    assert inside
