from __future__ import annotations

import itertools

import numpy as np

from onnx_lowrank.linalg.conjugate_gradients import (
    Single,
    conjugate_gradients,
    damped_inverse,
    near_product,
    single_of,
)


def test_exact_after_as_many_steps_as_unknowns() -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(12, 12))
    matrix = root @ root.T + np.eye(12)
    target = rng.normal(size=(3, 4))

    def normal(x: np.ndarray) -> np.ndarray:
        return (matrix @ x.reshape(-1)).reshape(3, 4)

    found = conjugate_gradients(normal, target, np.zeros((3, 4)), steps=12)
    assert np.abs(normal(found) - target).max() < 1e-8


def test_each_step_lowers_the_quadratic() -> None:
    rng = np.random.default_rng(1)
    root = rng.normal(size=(20, 20))
    matrix, target, start = root @ root.T, rng.normal(size=20), rng.normal(size=20)

    def quadratic(x: np.ndarray) -> float:
        return float(x @ matrix @ x / 2 - target @ x)

    values = [
        quadratic(conjugate_gradients(lambda x: matrix @ x, target, start, steps))
        for steps in range(8)
    ]
    assert all(b < a for a, b in itertools.pairwise(values))


def test_it_rests_at_the_solution() -> None:
    start = np.array([1.0, 2.0])
    found = conjugate_gradients(lambda x: 2 * x, 2 * start, start, steps=5)
    np.testing.assert_array_equal(found, start)


def test_the_change_in_float32_is_that_in_float64_at_any_scale() -> None:
    rng = np.random.default_rng(2)
    root, target, start = rng.normal(size=(30, 20)), rng.normal(size=20), rng.normal(size=20)
    for scale in (1e-30, 1.0, 1e30):
        matrix = root.T @ root * scale
        small, unit = single_of(matrix)
        single = Single(lambda x, a=small: a @ x, unit)
        whole, half = (
            conjugate_gradients(lambda x, a=matrix: a @ x, target * scale, start, 8, way)
            for way in (None, single)
        )
        np.testing.assert_allclose(half, whole, rtol=1e-3, atol=1e-4)


def test_single_precision_leaves_what_is_no_number() -> None:
    start = np.array([1.0, 2.0])
    nothing = Single(lambda x: x, 0.0)
    np.testing.assert_array_equal(
        conjugate_gradients(lambda x: 0 * x, np.ones(2), start, 3, nothing), start
    )


def test_an_operator_that_is_a_product_is_inverted_in_one_step() -> None:
    rng = np.random.default_rng(3)
    roots = [rng.normal(size=(n, n)) for n in (5, 7)]
    left, right = (root @ root.T + 0.3 * np.eye(len(root)) for root in roots)
    wanted, start = rng.normal(size=(5, 7)), rng.normal(size=(5, 7))
    target = left @ wanted @ right
    for scale in (1e-20, 1.0, 1e20):  # of which it knows nothing
        way = Single(
            lambda x: left @ x @ right,
            1.0,
            near_product(scale * left, damped_inverse(right / scale)),
        )
        found = conjugate_gradients(lambda x: left @ x @ right, target, start, 1, way)
        assert np.abs(found - wanted).max() < 0.02 * np.abs(start - wanted).max()
        found = conjugate_gradients(lambda x: left @ x @ right, target, start, 4, way)
        np.testing.assert_allclose(found, wanted, atol=1e-3)


def test_fewer_steps_are_taken_from_what_is_near_a_product() -> None:
    rng = np.random.default_rng(4)
    parts = []
    for _ in range(3):  # a sum of three products, whose condition is some thousands
        left, right = (rng.normal(size=(n, 2 * n)) for n in (6, 8))
        left *= np.geomspace(1, 0.02, 6)[:, None]
        right *= np.geomspace(1, 0.02, 8)[:, None]
        parts.append((left @ left.T, right @ right.T))

    def normal(x: np.ndarray) -> np.ndarray:
        found: np.ndarray = sum(a @ x @ b for a, b in parts)
        return found

    wanted, start = rng.normal(size=(6, 8)), np.zeros((6, 8))
    left, right = (sum(pair[i] for pair in parts) for i in range(2))

    def missed(steps: int, way: Single) -> float:
        off = conjugate_gradients(normal, normal(wanted), start, steps, way) - wanted
        return float(np.sum(off * normal(off)))

    plain, near = (
        Single(normal, 1.0),
        Single(normal, 1.0, near_product(left, damped_inverse(right))),
    )
    assert missed(3, near) < 0.1 * missed(8, plain)


def test_nothing_but_zeros_is_no_trouble() -> None:
    inverse = near_product(np.zeros((2, 2)), damped_inverse(np.zeros((3, 3))))
    assert np.isfinite(inverse(np.ones((2, 3)))).all()
