from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_lowrank.linalg.group_lasso import fista
from onnx_lowrank.linalg.group_lasso_newton import group_lasso
from onnx_lowrank.linalg.group_lasso_path import path, select_groups, weight_penalties
from onnx_lowrank.linalg.group_lasso_reweighted import reweighted
from onnx_lowrank.linalg.group_problem import GroupLasso, lambda_max
from onnx_lowrank.linalg.groups import Consumer, Groups
from tests.linalg.test_group_elimination import assembled, several
from tests.linalg.test_group_lasso import blocks
from tests.support import Array, quick, rng

SHAPES = [
    [(5, [3]), (40, [1])],
    [(2, [2, 1, 4]), (3, [1]), (9, [3])],
    [(1, [1]), (1, [1])],
    [(30, [2]), (30, [2]), (4, [9])],
]
SHAPE = pytest.mark.parametrize("shapes", SHAPES)


def certificate(
    consumers: Sequence[Consumer], lam: float, maps: Sequence[Array], p: Array | None = None
) -> float:
    """Straight from the definition; in units of each group's penalty."""
    count, worst = len(consumers[0].widths), 0.0
    for j in range(count):
        penalty = lam if p is None else lam * p[j]
        own, pull = [], []
        for c, M in zip(consumers, maps, strict=True):
            own.append(np.sqrt(c.weight) * blocks(M, list(c.widths))[j].ravel())
            pull.append(np.sqrt(c.weight) * blocks(c.B - M @ c.R, list(c.widths))[j].ravel())
        joint, force = np.concatenate(own), np.concatenate(pull)
        norm = float(np.linalg.norm(joint))
        if norm > 0:
            off = float(np.linalg.norm(force - penalty * joint / norm))
        else:
            off = max(float(np.linalg.norm(force)) - penalty, 0.0)
        worst = max(worst, off / penalty)
    return worst


@pytest.mark.parametrize("solve", [fista, group_lasso, reweighted])
@SHAPE
@pytest.mark.parametrize("part", [0.5, 0.05])
def test_certificates_hold(
    solve: Callable[..., GroupLasso], shapes: list[tuple[int, list[int]]], part: float
) -> None:
    consumers = several(8, 0, *shapes)
    p = rng(1).lognormal(size=8)
    lam = part * lambda_max(consumers, p)
    found = solve(consumers, lam, penalties=p, tolerance=1e-4)
    assert found.converged
    assert certificate(consumers, lam, found.weights, p) < 1.01e-4
    for c, M in zip(consumers, found.weights, strict=True):
        there = [j for j, own in enumerate(blocks(M, list(c.widths))) if np.any(own)]
        assert there == list(found.support)


@pytest.mark.parametrize("solve", [fista, group_lasso])
@SHAPE
def test_a_start_at_the_optimum_stays_there(
    solve: Callable[..., GroupLasso], shapes: list[tuple[int, list[int]]]
) -> None:
    consumers = several(8, 4, *shapes)
    p = rng(5).lognormal(size=8)
    lam = 0.1 * lambda_max(consumers, p)
    first = solve(consumers, lam, penalties=p, tolerance=1e-9)
    again = solve(consumers, lam, penalties=p, start=first.weights, tolerance=1e-6)
    assert again.iterations <= 10
    for M, other in zip(first.weights, again.weights, strict=True):
        np.testing.assert_allclose(M, other, rtol=0, atol=1e-7 * np.abs(M).max())


@SHAPE
@pytest.mark.parametrize("solve", [fista, group_lasso])
def test_several_consumers_are_one_block_diagonal_one(
    solve: Callable[..., GroupLasso], shapes: list[tuple[int, list[int]]]
) -> None:
    # oracle: the dense problem, which may read every input for every output and does not
    consumers = several(8, 2, *shapes)
    dense = assembled(consumers)
    assert abs(lambda_max(consumers) / lambda_max([dense]) - 1) < 1e-12
    lam = 0.1 * lambda_max(consumers)
    found = solve(consumers, lam, tolerance=1e-9)
    whole = group_lasso([dense], lam, tolerance=1e-9)
    groups = Groups.of(*(c.widths for c in consumers))
    order = np.concatenate([groups.columns(np.array([j])) for j in range(groups.count)])
    sorted_back = np.empty_like(whole.weights[0])
    sorted_back[:, order] = whole.weights[0]
    scale, first = np.abs(sorted_back).max(), 0
    for c, M, rows in zip(consumers, found.weights, groups.rows, strict=True):
        outputs = slice(first, first + len(c.B))
        first = outputs.stop
        np.testing.assert_allclose(
            np.sqrt(c.weight) * M, sorted_back[outputs, rows], rtol=0, atol=1e-6 * scale
        )
        sorted_back[outputs, rows] = 0
    assert np.abs(sorted_back).max() < 1e-9 * scale
    assert list(found.support) == list(whole.support)


@given(
    st.integers(1, 8),
    st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(1, 4), min_size=1, max_size=3))),
    st.floats(0.02, 0.95),
    st.integers(0, 99),
)
@quick(20)
def test_newton_and_fista_reach_the_same_optimum(
    count: int, shapes: list[tuple[int, list[int]]], part: float, seed: int
) -> None:
    consumers = several(count, seed, (3, [2]), *shapes[:3])
    lam = part * lambda_max(consumers)
    first = fista(consumers, lam, tolerance=1e-8, max_iterations=100_000)
    second = group_lasso(consumers, lam, tolerance=1e-8)
    assert first.converged
    assert second.converged
    assert certificate(consumers, lam, second.weights) < 2e-8
    for M, other in zip(first.weights, second.weights, strict=True):
        scale = max(np.abs(M).max() for M in first.weights)
        np.testing.assert_allclose(M, other, rtol=0, atol=1e-5 * scale)


def test_planted_groups_are_found_by_consumers_together() -> None:
    random, planted = rng(3), [2, 3, 11, 17, 20]
    consumers, maps = [], []
    # each consumer reads but some of the planted groups
    for width, outputs, reads in ((3, 8, planted[:3]), (1, 20, planted[2:]), (2, 4, planted[1:4])):
        x = random.normal(size=(3000, 24 * width))
        W = np.zeros((outputs, 24, width))
        W[:, reads] = random.normal(size=(outputs, len(reads), width))
        flat = W.reshape(outputs, -1)
        y = x @ flat.T + 0.1 * random.normal(size=(3000, outputs))
        energy = float(np.mean(np.sum(y**2, axis=1)))
        consumers.append(Consumer(x.T @ x / 3000, y.T @ x / 3000, [width] * 24, 1 / energy))
        maps.append(flat)
    assert list(select_groups(consumers, 5).support) == planted
    assert list(path(consumers, [5])[0]) == planted
    penalties = weight_penalties(consumers, maps)
    squares = np.zeros(24)
    for c, M in zip(consumers, maps, strict=True):
        squares += c.weight * np.array([np.sum(own**2) for own in blocks(M, list(c.widths))])
    np.testing.assert_allclose(penalties[planted], 1 / np.sqrt(squares[planted]), rtol=1e-12)
    assert list(select_groups(consumers, 5, penalties=penalties).support) == planted
