from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_lowrank.linalg.group_lasso import fista
from onnx_lowrank.linalg.group_lasso_newton import group_lasso
from onnx_lowrank.linalg.group_lasso_reweighted import reweighted
from onnx_lowrank.linalg.group_problem import GroupLasso, Problem, lambda_max
from onnx_lowrank.linalg.groups import Consumer
from tests.support import Array, quick, rng

#: outputs and widths of the groups: equal and not, wide, tall, one group
SHAPES = [(5, [1] * 8), (3, [4] * 5), (40, [2, 1, 3, 1, 5]), (1, [3, 3]), (4, [6]), (12, [9] * 9)]
SHAPE = pytest.mark.parametrize(("outputs", "widths"), SHAPES)
SOLVER = pytest.mark.parametrize("solve", [fista, group_lasso, reweighted])


def example(
    outputs: int, widths: Sequence[int], seed: int, condition: float = 100.0
) -> list[Array]:
    """``R`` of that condition number, ``B``."""
    random, d = rng(seed), sum(widths)
    q, _ = np.linalg.qr(random.normal(size=(d, d)))
    R = (q * np.geomspace(1, 1 / condition, d)) @ q.T
    sizes = np.repeat(random.lognormal(size=len(widths)), widths)
    return [R, (random.normal(size=(outputs, d)) * sizes) @ R]


def blocks(matrix: Array, widths: Sequence[int]) -> list[Array]:
    return np.split(matrix, np.cumsum(widths)[:-1], axis=1)


def certificate(
    R: Array, B: Array, widths: Sequence[int], lam: float, M: Array, p: Array | None = None
) -> float:
    """Straight from the definition, with all outputs; in units of each group's penalty."""
    worst = 0.0
    for j, (own, pull) in enumerate(zip(blocks(M, widths), blocks(B - M @ R, widths), strict=True)):
        penalty = lam if p is None else lam * p[j]
        norm = np.linalg.norm(own)
        if norm > 0:
            off = float(np.linalg.norm(pull - penalty * own / norm))
        else:
            off = max(float(np.linalg.norm(pull)) - penalty, 0.0)
        worst = max(worst, off / penalty)
    return worst


def objective(R: Array, B: Array, widths: Sequence[int], lam: float, M: Array) -> float:
    norms = sum(float(np.linalg.norm(own)) for own in blocks(M, widths))
    return 0.5 * float(np.sum((M @ R) * M)) - float(np.sum(M * B)) + lam * norms


@SOLVER
@SHAPE
@pytest.mark.parametrize("part", [0.5, 0.1, 0.01])
def test_certificates_hold(
    solve: Callable[..., GroupLasso], outputs: int, widths: list[int], part: float
) -> None:
    R, B = example(outputs, widths, 0)
    lam = part * lambda_max([Consumer(R, B, widths)])
    found = solve([Consumer(R, B, widths)], lam, tolerance=1e-4)
    assert found.converged
    assert found.certificate <= 1e-4
    assert abs(certificate(R, B, widths, lam, found.weights[0]) - found.certificate) < 1e-9
    there = [j for j, own in enumerate(blocks(found.weights[0], widths)) if np.any(own)]
    assert list(found.support) == there
    assert len(there) > 0
    assert found.lam == lam


@given(
    st.integers(1, 12),
    st.lists(st.integers(1, 4), min_size=1, max_size=8),
    st.floats(0.02, 0.95),
    st.integers(0, 99),
)
@quick(25)
def test_newton_and_fista_reach_the_same_optimum(
    outputs: int, widths: list[int], part: float, seed: int
) -> None:
    R, B = example(outputs, widths, seed)
    lam = part * lambda_max([Consumer(R, B, widths)])
    first = fista([Consumer(R, B, widths)], lam, tolerance=1e-9)
    second = group_lasso([Consumer(R, B, widths)], lam, tolerance=1e-9)
    assert first.converged
    assert second.converged
    assert certificate(R, B, widths, lam, second.weights[0]) < 2e-9
    scale = np.abs(first.weights[0]).max()
    np.testing.assert_allclose(second.weights[0], first.weights[0], rtol=0, atol=1e-6 * scale)
    assert list(first.support) == list(second.support)


@SHAPE
@pytest.mark.parametrize("part", [0.3, 0.03])
def test_alternating_minimisation_agrees(outputs: int, widths: list[int], part: float) -> None:
    R, B = example(outputs, widths, 1)
    lam = part * lambda_max([Consumer(R, B, widths)])
    first = fista([Consumer(R, B, widths)], lam, tolerance=1e-9)
    second = reweighted([Consumer(R, B, widths)], lam, tolerance=1e-5)
    assert second.converged
    scale = np.abs(first.weights[0]).max()
    np.testing.assert_allclose(second.weights[0], first.weights[0], rtol=0, atol=1e-4 * scale)
    values = [objective(R, B, widths, lam, f.weights[0]) for f in (first, second)]
    assert abs(values[1] - values[0]) < 1e-8 * abs(values[0])


@SOLVER
@pytest.mark.parametrize("penalties", [None, np.array([0.5, 3.0, 1.0, 2.0, 0.1])])
def test_orthogonal_inputs_have_a_closed_form(
    solve: Callable[..., GroupLasso], penalties: Array | None
) -> None:
    widths, size = [2, 1, 3, 1, 5], 2.5
    B = rng(2).normal(size=(4, 12))
    p = np.ones(5) if penalties is None else penalties
    consumers = [Consumer(size * np.eye(12), B, widths)]
    lam = 0.5 * lambda_max(consumers, penalties)
    found = solve(consumers, lam, penalties=penalties, tolerance=1e-9)
    expected = [
        own / size * max(0.0, 1 - lam * pj / float(np.linalg.norm(own)))
        for own, pj in zip(blocks(B, widths), p, strict=True)
    ]
    assert 0 < len(found.support) < 5
    np.testing.assert_allclose(found.weights[0], np.hstack(expected), rtol=0, atol=1e-7)


@SOLVER
def test_unequal_penalties_are_those_of_the_definition(solve: Callable[..., GroupLasso]) -> None:
    widths = [3] * 6
    R, B = example(30, widths, 3)
    p = rng(4).lognormal(size=6)
    lam = 0.1 * lambda_max([Consumer(R, B, widths)], p)
    found = solve([Consumer(R, B, widths)], lam, penalties=p, tolerance=1e-4)
    assert found.converged
    assert certificate(R, B, widths, lam, found.weights[0], p) < 1.01e-4
    assert certificate(R, B, widths, lam, found.weights[0]) > 0.1


@pytest.mark.parametrize("solve", [fista, group_lasso])
@SHAPE
def test_largest_penalty_is_where_the_first_group_enters(
    solve: Callable[..., GroupLasso], outputs: int, widths: list[int]
) -> None:
    R, B = example(outputs, widths, 5)
    top = lambda_max([Consumer(R, B, widths)])
    nothing = solve([Consumer(R, B, widths)], 1.001 * top, tolerance=1e-4)
    assert not np.any(nothing.weights[0])
    assert nothing.converged
    assert len(solve([Consumer(R, B, widths)], 0.98 * top, tolerance=1e-4).support) == 1


@pytest.mark.parametrize("solve", [fista, group_lasso])
def test_singular_moments(solve: Callable[..., GroupLasso]) -> None:
    # a dead input, two that are equal, fewer samples than inputs
    widths, random = [2] * 10, rng(6)
    x = random.normal(size=(12, 20))
    x[:, 4:6] = 0
    x[:, 8:10] = x[:, 6:8]
    y = x @ random.normal(size=(20, 7))
    R, B = x.T @ x / 12, y.T @ x / 12
    lam = 0.05 * lambda_max([Consumer(R, B, widths)])
    found = solve([Consumer(R, B, widths)], lam, tolerance=1e-7)
    assert found.converged
    assert certificate(R, B, widths, lam, found.weights[0]) < 1.1e-7
    assert 2 not in found.support


@pytest.mark.parametrize("solve", [fista, group_lasso])
def test_a_start_at_the_optimum_stays_there(solve: Callable[..., GroupLasso]) -> None:
    for outputs, widths in SHAPES:
        R, B = example(outputs, widths, 7)
        p = rng(8).lognormal(size=len(widths))
        lam = 0.1 * lambda_max([Consumer(R, B, widths)], p)
        first = solve([Consumer(R, B, widths)], lam, penalties=p, tolerance=1e-9)
        again = solve(
            [Consumer(R, B, widths)], lam, penalties=p, start=first.weights, tolerance=1e-6
        )
        assert again.iterations <= 10
        scale = np.abs(first.weights[0]).max()
        np.testing.assert_allclose(again.weights[0], first.weights[0], rtol=0, atol=1e-7 * scale)


def test_running_out_of_iterations_is_told() -> None:
    R, B = example(5, [2] * 10, 9, condition=1e4)
    lam = 0.01 * lambda_max([Consumer(R, B, [2] * 10)])
    for found in (
        fista([Consumer(R, B, [2] * 10)], lam, tolerance=1e-6, max_iterations=7),
        reweighted([Consumer(R, B, [2] * 10)], lam, tolerance=1e-6, max_iterations=7),
    ):
        assert found.iterations == 7
        assert not found.converged
        assert found.certificate > 1e-6
    assert not group_lasso([Consumer(R, B, [2] * 10)], lam, tolerance=1e-6, max_rounds=0).converged


@pytest.mark.parametrize("outputs", [3, 6, 50])
def test_outputs_are_compressed_to_the_inputs(outputs: int) -> None:
    R, B = example(outputs, [1, 2, 3], 10)
    problem = Problem.of([Consumer(R, B, [1, 2, 3])])
    assert problem.cross.shape == (6, min(outputs, 6))
    for own, mine in zip(blocks(B, [1, 2, 3]), blocks(problem.cross.T, [1, 2, 3]), strict=True):
        assert abs(np.linalg.norm(own) - np.linalg.norm(mine)) < 1e-12 * np.linalg.norm(B)
    M = B @ R
    back = problem.start([M])
    restored = problem.result(back, 1.0, 0.0, 0, 0.0).weights[0]
    np.testing.assert_allclose(restored, M, rtol=0, atol=1e-12)


@SOLVER
def test_misuse_is_refused(solve: Callable[..., GroupLasso]) -> None:
    R, B = example(3, [2, 2], 11)
    for lam in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="lam"):
            solve([Consumer(R, B, [2, 2])], lam)
    for widths in ([2, 3], [1, 2]):
        with pytest.raises(ValueError, match="columns"):
            solve([Consumer(R, B, widths)], 1.0)
    for widths in ([], [4, 0]):
        with pytest.raises(ValueError, match="widths"):
            solve([Consumer(R, B, widths)], 1.0)
    with pytest.raises(ValueError, match="columns"):
        solve([Consumer(R, B[:, :3], [2, 2])], 1.0)
    for penalties in (np.array([1.0]), np.array([1.0, 0.0]), np.array([1.0, np.inf])):
        with pytest.raises(ValueError, match="penalties"):
            solve([Consumer(R, B, [2, 2])], 1.0, penalties=penalties)
