from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import kendalltau

from onnx_lowrank.passes import PruneChannels
from onnx_lowrank.passkit.base import PruningOptions
from onnx_lowrank.passkit.channel_selection import Part, Selection
from onnx_lowrank.planning.registry import parse
from tests.support import rng

Array = npt.NDArray[np.floating[Any]]

METHODS = PruneChannels.choices["method"]


def selection(size: int = 12, width: int = 2, readers: int = 2, seed: int = 0) -> Selection:
    """Correlated inputs, readers of different size."""
    random, parts = rng(seed), []
    for reader in range(readers):
        d = size * width
        mixing = random.normal(size=(d, d)) * np.geomspace(1, 0.05, d)
        weight = random.normal(size=(5 + reader, d))
        sigma = mixing @ mixing.T / d + 1e-3 * np.eye(d)
        parts.append(Part(sigma, weight, 1 / float(np.sum((weight @ sigma) * weight)), width))
    made = random.uniform(1, 2, size)
    return Selection(tuple(parts), (made, made**2))


@pytest.mark.parametrize("method", METHODS)
def test_every_channel_is_ordered_once(method: str) -> None:
    problem = selection()
    order = PruneChannels(method).order(problem)
    assert sorted(order.tolist()) == list(range(12))
    np.testing.assert_array_equal(order, PruneChannels(method).order(problem))


@pytest.mark.parametrize("seed", range(4))
def test_elimination_loses_less_than_any_ranking(seed: int) -> None:
    problem = selection(seed=seed)
    losses = {m: problem.losses(PruneChannels(m).order(problem)) for m in METHODS}
    for method in ("l1", "l2", "energy", "random"):
        assert losses["obs"][3:10].sum() < losses[method][3:10].sum()
    assert losses["obs"][6] <= losses["lasso"][6] * 1.2


def test_swaps_lose_no_more() -> None:
    problem = selection(size=24, seed=5)
    method = PruneChannels()
    order = method.order(problem)
    for count in (4, 8, 16):
        kept = np.sort(order[:count])
        again = method.refined(problem, kept)
        assert len(set(again.tolist())) == count
        rest = np.setdiff1d(np.arange(24), again)
        assert problem.losses(np.concatenate([again, rest]))[count] <= (
            problem.losses(order)[count] * (1 + 1e-6)
        )
    np.testing.assert_array_equal(PruneChannels("l1").refined(problem, kept), kept)


@pytest.mark.parametrize("method", ["obs", "lasso"])
def test_a_twin_is_lost_for_free(method: str) -> None:
    """Without regard to size: what another channel says as well can go, large as it is."""
    random = rng(1)
    x = random.normal(size=(500, 6))
    x[:, 4] = 3 * x[:, 1]
    x[:, 5] *= 0.05
    weight = np.ones((3, 6)) + 0.1 * random.normal(size=(3, 6))
    sigma = x.T @ x / len(x) + 1e-9 * np.eye(6)
    part = Part(sigma, weight, 1.0, 1)
    norms = np.array([1.0, 1, 1, 1, 9, 2])
    problem = Selection((part,), (norms, norms))
    order = PruneChannels(method).order(problem)
    losses = problem.losses(order)
    assert losses[5] < 1e-6 * losses[0]
    assert order[-1] in (1, 4)
    assert problem.losses(PruneChannels("l1").order(problem))[5] > 1e-3 * losses[0]


def test_nobody_reads() -> None:
    nothing = Selection((), (np.ones(3), np.ones(3)))
    for method in ("obs", "lasso", "l1", "random"):
        assert sorted(PruneChannels(method).order(nothing).tolist()) == [0, 1, 2]
    assert not nothing.losses(np.arange(3)).any()


def test_rankings_are_what_they_say() -> None:
    problem = selection()
    np.testing.assert_array_equal(
        PruneChannels("l2").order(problem), np.argsort(-problem.made[1], kind="stable")
    )
    one, other = (PruneChannels("random", seed=s).order(problem) for s in (0, 1))
    assert abs(kendalltau(one, other).statistic) < 0.9
    energies = np.diag(problem.parts[0].sigma).reshape(12, 2).sum(1)
    alone = Selection(problem.parts[:1], problem.made)
    np.testing.assert_array_equal(
        PruneChannels("energy").order(alone), np.argsort(-energies, kind="stable")
    )


def test_options() -> None:
    assert PruneChannels().options == PruningOptions(True, "parallel", True, 0.0)
    spec = "prune_channels{method=l1,solve=false,chain=bottom_up,gather=false,keep=0.5}"
    method = parse(spec)
    assert isinstance(method, PruneChannels)
    assert method.options == PruningOptions(False, "bottom_up", False, 0.5)
