from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_lowrank.linalg.group_elimination import obs_elimination
from onnx_lowrank.linalg.group_lasso_path import SOLVERS, path, select_groups, weight_penalties
from onnx_lowrank.linalg.group_problem import lambda_max
from onnx_lowrank.linalg.group_scores import energy_scores
from onnx_lowrank.linalg.groups import Consumer
from tests.linalg.least_squares import debias, reconstruction_error, top_groups
from tests.linalg.test_group_lasso import blocks, certificate, example
from tests.support import AnyArray, Array, quick, rng


def correlated(groups: int, width: int, outputs: int, seed: int) -> tuple[Array, Array, Array]:
    """``R``, ``B`` and ``W`` of rectified mixtures of fewer sources, as in a trained network."""
    random = rng(seed)
    sources = random.normal(size=(2000, groups // 3, width)) + random.normal(
        size=(2000, groups // 3, 1)
    )
    mixed = np.einsum("gl,nlw->ngw", random.normal(size=(groups, groups // 3)), sources)
    noisy = mixed / mixed.std() + 0.3 * random.normal(size=mixed.shape)
    x = np.maximum(noisy, 0) * random.lognormal(size=(groups, 1))
    flat = x.reshape(2000, -1) - x.reshape(2000, -1).mean(axis=0)
    R = flat.T @ flat / 2000
    W = random.normal(size=(outputs, groups * width)) / np.repeat(x.std(axis=(0, 2)), width)
    W *= np.repeat(random.lognormal(sigma=0.5, size=groups), width)
    return R, W @ R, W


@given(
    st.integers(1, 10),
    st.lists(st.integers(1, 4), min_size=2, max_size=12),
    st.integers(0, 99),
    st.data(),
)
@quick(25)
def test_exactly_as_many_groups_as_asked_for(
    outputs: int, widths: list[int], seed: int, data: st.DataObject
) -> None:
    keep = data.draw(st.integers(1, len(widths)))
    R, B = example(outputs, widths, seed)
    found = select_groups([Consumer(R, B, widths)], keep, tolerance=1e-5)
    assert len(found.support) == keep
    assert list(found.support) == sorted(set(found.support.tolist()))
    assert found.converged
    assert certificate(R, B, widths, found.lam, found.weights[0]) < 1.1e-5
    norms = np.array([np.linalg.norm(own) for own in blocks(found.weights[0], widths)])
    assert norms[found.support].min() > 0
    assert norms[found.support].min() >= np.delete(norms, found.support).max(initial=0.0)


def test_orthogonal_inputs_keep_the_strongest() -> None:
    widths = [2, 1, 3, 1, 5, 2, 2, 4]
    B = rng(0).normal(size=(4, 20))
    norms = np.array([np.linalg.norm(own) for own in blocks(B, widths)])
    for keep in range(1, 8):
        found = select_groups([Consumer(3.0 * np.eye(20), B, widths)], keep)
        assert list(found.support) == list(top_groups(norms, keep))
        assert np.count_nonzero(np.any(found.weights[0] != 0, axis=0)) == sum(
            widths[j] for j in found.support
        )
        # between the penalties at which this group and the next enter
        assert np.sort(norms)[-keep - 1] < found.lam < np.sort(norms)[-keep]


@pytest.mark.parametrize("penalised", [False, True])
def test_planted_groups_are_found(penalised: bool) -> None:
    widths, random = [3] * 30, rng(1)
    x = random.normal(size=(4000, 90)) @ (np.eye(90) + 0.1 * random.normal(size=(90, 90)))
    planted = np.sort(random.permutation(30)[:8])
    W = random.normal(size=(12, 30, 3))
    W[:, np.setdiff1d(np.arange(30), planted)] = 0
    y = x @ W.reshape(12, 90).T + 0.1 * random.normal(size=(4000, 12))
    R, B = x.T @ x / 4000, y.T @ x / 4000
    penalties = random.uniform(0.8, 1.25, size=30) if penalised else None
    found = select_groups([Consumer(R, B, widths)], 8, penalties=penalties)
    assert list(found.support) == list(planted)
    assert list(path([Consumer(R, B, widths)], [8], penalties=penalties)[0]) == list(planted)


def test_ties_are_broken() -> None:
    # all groups enter at once
    B = np.eye(6)
    for keep in range(1, 7):
        assert len(select_groups([Consumer(np.eye(6), B, [1] * 6)], keep).support) == keep
        assert len(path([Consumer(np.eye(6), B, [1] * 6)], [keep])[0]) == keep


def test_inputs_that_tell_nothing_come_last() -> None:
    R, B = example(4, [2] * 6, 2)
    for j in (1, 4):
        own = slice(2 * j, 2 * j + 2)
        R[own], R[:, own], B[:, own] = 0, 0, 0
    assert list(select_groups([Consumer(R, B, [2] * 6)], 4).support) == [0, 2, 3, 5]
    five = select_groups([Consumer(R, B, [2] * 6)], 5)
    assert len(five.support) == 5
    assert {0, 2, 3, 5} < set(five.support.tolist())
    assert [len(s) for s in path([Consumer(R, B, [2] * 6)], [6, 5, 4])] == [6, 5, 4]
    nothing = select_groups([Consumer(np.zeros((12, 12)), np.zeros((4, 12)), [2] * 6)], 3)
    assert len(nothing.support) == 3
    assert not np.any(nothing.weights[0])


@pytest.mark.parametrize("solver", SOLVERS[1:])
def test_the_published_solvers_walk_to_the_same_supports(solver: str) -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((200, 12)) @ np.diag(np.linspace(1.0, 0.3, 12))
    R, W = x.T @ x / 200, rng.standard_normal((4, 12))
    consumers, keeps = [Consumer(R, W @ R, [2] * 6)], [1, 2, 4, 5]
    wanted = path(consumers, keeps, tolerance=1e-4)
    found = path(consumers, keeps, tolerance=1e-4, solver=solver)
    assert [list(s) for s in found] == [list(s) for s in wanted]


def test_an_unknown_solver_is_refused() -> None:
    with pytest.raises(ValueError, match="solver 'magic'; it should be one of newton, fista"):
        path([Consumer(np.eye(2), np.eye(2), [1, 1])], [1], solver="magic")


def test_a_walk_serves_all_counts() -> None:
    widths = [4] * 24
    R, B, _ = correlated(24, 4, 16, 3)
    keeps = [20, 3, 24, 12, 6, 12]
    supports = path([Consumer(R, B, widths)], keeps)
    assert [len(s) for s in supports] == keeps
    assert list(supports[2]) == list(range(24))
    assert list(supports[3]) == list(supports[5])
    for keep, support in zip(keeps, supports, strict=True):
        # that of the search but for a group at most
        exact = select_groups([Consumer(R, B, widths)], keep).support
        assert len(np.intersect1d(exact, support)) >= keep - 1


@pytest.mark.parametrize("seed", range(3))
def test_penalties_by_weight_and_elimination_beat_the_rest(seed: int) -> None:
    widths = [4] * 30
    R, B, W = correlated(30, 4, 20, seed)
    consumers = [Consumer(R, B, widths)]
    energy = float(np.sum(B * W))

    def error(support: AnyArray) -> float:
        columns = np.flatnonzero(np.repeat(np.isin(np.arange(30), support), 4))
        weights = debias(R, B, columns, 1e-8)
        return reconstruction_error(R, B, weights, columns, energy) / energy

    plain = select_groups([Consumer(R, B, widths)], 12)
    strengths = np.array([np.linalg.norm(own) for own in blocks(W, widths)])
    scaled = select_groups([Consumer(R, B, widths)], 12, penalties=weight_penalties(consumers, [W]))
    eliminated = obs_elimination([Consumer(R, B, widths)], 1e-8).support(12)
    chance = [error(np.sort(rng(seed, i).permutation(30)[:12])) for i in range(20)]
    others = [top_groups(s, 12) for s in (strengths, energy_scores(R, widths))]
    for good in (scaled.support, eliminated):
        assert error(good) < min(chance)
        assert error(good) < min(error(plain.support), *map(error, others))


def test_penalties_of_absent_weights_are_finite() -> None:
    W = np.array([[3.0, 4.0, 0.0, 0.5], [0.0, 0.0, 0.0, 0.0]])
    consumers = [Consumer(np.eye(4), np.zeros((2, 4)), [2, 1, 1])]
    np.testing.assert_allclose(weight_penalties(consumers, [W]), [0.2, 2e5, 2.0], rtol=1e-12)
    assert np.all(np.isfinite(weight_penalties(consumers, [0 * W])))


def test_lower_penalties_keep_more() -> None:
    widths = [4] * 24
    R, B, _ = correlated(24, 4, 40, 4)
    lams = [select_groups([Consumer(R, B, widths)], keep).lam for keep in (2, 8, 14, 20)]
    assert lambda_max([Consumer(R, B, widths)]) > lams[0]
    assert lams == sorted(lams, reverse=True)


@pytest.mark.parametrize("keep", [0, -1, 4])
def test_counts_out_of_range_are_refused(keep: int) -> None:
    R, B = example(3, [2, 2, 1], 5)
    with pytest.raises(ValueError, match="it must be from 1 to"):
        select_groups([Consumer(R, B, [2, 2, 1])], keep)
    with pytest.raises(ValueError, match="it must be from 1 to"):
        path([Consumer(R, B, [2, 2, 1])], [1, keep])
