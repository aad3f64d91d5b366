from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from onnx_lowrank.linalg import tensor_train_als
from onnx_lowrank.linalg.tensor_train_als import TrainRegression, to_matrix
from onnx_lowrank.linalg.tensor_train_shapes import core_shapes
from tests.support import Array, relative, rng

#: row modes, column modes, ranks
CASES = [
    ((3, 4), (4, 2), (3,)),
    ((2, 5), (3, 3), (4,)),
    ((2, 3, 2), (3, 2, 3), (2, 3)),
    ((2, 3, 2), (2, 4, 2), (3, 2)),
    ((2, 2, 2, 2), (2, 3, 1, 2), (2, 3, 2)),
]
CASE = pytest.mark.parametrize(("rows", "columns", "ranks"), CASES)


def example(
    rows: tuple[int, ...], columns: tuple[int, ...], ranks: tuple[int, ...]
) -> tuple[Array, Array, list[Array]]:
    """Matrix, covariance and a train to begin with."""
    random, n, c = rng(0), math.prod(rows), math.prod(columns)
    q, _ = np.linalg.qr(random.normal(size=(c, c)))
    sigma: Array = (q * np.geomspace(1, 1e-3, c)) @ q.T
    cores: list[Array] = [random.normal(size=s) for s in core_shapes(rows, columns, ranks)]
    weight: Array = random.normal(size=(n, c))
    return weight, sigma, cores


def by_entries(cores: list[Array]) -> Array:
    """``What``, one product of small matrices to an entry."""
    rows, columns = ([range(g.shape[axis]) for g in cores] for axis in (1, 2))
    entries = []
    for a in itertools.product(*rows):
        for b in itertools.product(*columns):
            product = np.eye(1)
            for core, i, j in zip(cores, a, b, strict=True):
                product = product @ core[:, i, j]
            entries.append(product[0, 0])
    return np.array(entries).reshape(math.prod(map(len, rows)), -1)


def design(cores: list[Array], k: int) -> Array:
    """``What`` as a linear map of core k: ``(unknowns, N C)``, one unknown after the other."""
    columns = []
    for index in np.ndindex(*cores[k].shape):
        unit = np.zeros_like(cores[k])
        unit[index] = 1.0
        columns.append(by_entries([*cores[:k], unit, *cores[k + 1 :]]).ravel())
    return np.array(columns)


def solved(weight: Array, sigma: Array, cores: list[Array], k: int) -> Array:
    """Core k by dense least squares in the plain coordinates."""
    root = np.linalg.cholesky(sigma)
    atoms = design(cores, k).reshape(-1, *weight.shape) @ root
    solution, *_ = np.linalg.lstsq(
        atoms.reshape(len(atoms), -1).T, (weight @ root).ravel(), rcond=None
    )
    return solution.reshape(cores[k].shape)


def distance(weight: Array, cores: list[Array], sigma: Array) -> float:
    d = weight - by_entries(cores)
    return float(np.sum((d @ sigma) * d))


@CASE
def test_the_matrix_of_a_train(
    rows: tuple[int, ...], columns: tuple[int, ...], ranks: tuple[int, ...]
) -> None:
    _, _, cores = example(rows, columns, ranks)
    assert relative(by_entries(cores), to_matrix(cores)) < 1e-14


@CASE
def test_inside_and_outside_are_inverse_and_measure_the_same(
    rows: tuple[int, ...], columns: tuple[int, ...], ranks: tuple[int, ...]
) -> None:
    weight, sigma, cores = example(rows, columns, ranks)
    regression = TrainRegression(weight, sigma, columns)
    inside = regression.inside(cores)
    for core, back in zip(cores, regression.outside(inside), strict=True):
        assert relative(core, back) < 1e-12
    wanted = distance(weight, cores, sigma)
    assert abs(regression.objective(inside) - wanted) < 1e-11 * wanted


@CASE
@pytest.mark.parametrize("gram", [2048, 0])
def test_a_round_is_dense_least_squares_core_by_core(
    rows: tuple[int, ...],
    columns: tuple[int, ...],
    ranks: tuple[int, ...],
    gram: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tensor_train_als, "_GRAM", gram)
    weight, sigma, cores = example(rows, columns, ranks)
    regression = TrainRegression(weight, sigma, columns)
    found, done, _ = regression.improved(regression.inside(cores), 1, 0.0, steps=400)
    assert done == 1
    last = len(cores) - 1
    for k in [*range(last), *range(last, 0, -1)]:
        cores[k] = solved(weight, sigma, cores, k)
    wanted = distance(weight, cores, sigma)
    energy = distance(weight, [0 * g for g in cores], sigma)
    assert abs(regression.objective(found) - wanted) < 1e-7 * energy
    difference = to_matrix(regression.outside(found)) - by_entries(cores)
    assert float(np.sum((difference @ sigma) * difference)) < 1e-9 * energy


@CASE
def test_at_rest_no_core_has_a_gradient(
    rows: tuple[int, ...], columns: tuple[int, ...], ranks: tuple[int, ...]
) -> None:
    weight, sigma, cores = example(rows, columns, ranks)
    regression = TrainRegression(weight, sigma, columns)
    inside, done, converged = regression.improved(regression.inside(cores), 5000, 1e-13, 8)
    assert converged
    assert done < 5000
    found = regression.outside(inside)
    response = ((weight - by_entries(found)) @ sigma).ravel()
    for k in range(len(found)):
        atoms = design(found, k)
        gradient, scale = atoms @ response, atoms @ (weight @ sigma).ravel()
        assert np.linalg.norm(gradient) < 1e-4 * np.linalg.norm(scale)


@CASE
def test_by_the_weights_the_gram_matrix_is_the_identity(
    rows: tuple[int, ...], columns: tuple[int, ...], ranks: tuple[int, ...]
) -> None:
    weight, sigma, cores = example(rows, columns, ranks)
    plain = TrainRegression(weight, None, columns)
    same = TrainRegression(weight, np.eye(len(sigma)), columns)
    one, *_ = plain.improved(cores, 2, 0.0, 8)
    other, *_ = same.improved(same.inside(cores), 2, 0.0, 8)
    assert relative(to_matrix(one), to_matrix(same.outside(other))) < 1e-8


@CASE
def test_few_conjugate_gradient_steps_never_raise_the_error(
    rows: tuple[int, ...],
    columns: tuple[int, ...],
    ranks: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tensor_train_als, "_GRAM", 0)
    weight, sigma, cores = example(rows, columns, ranks)
    regression = TrainRegression(weight, sigma, columns)
    cores = regression.inside(cores)
    errors = [regression.objective(cores)]
    for _ in range(6):
        cores, *_ = regression.improved(cores, 1, 0.0, steps=1)
        errors.append(regression.objective(cores))
    assert all(b < a for a, b in itertools.pairwise(errors))
