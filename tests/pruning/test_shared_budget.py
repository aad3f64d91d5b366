from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from onnx_lowrank.analysis.preparation import measured_shapes, prepare
from onnx_lowrank.errors import BudgetError
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import PlacedLayer
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.passkit.base import Factorization, Pruning
from onnx_lowrank.planning.asking import Question
from onnx_lowrank.planning.candidates import Choice
from onnx_lowrank.planning.proposals import make_choices
from onnx_lowrank.planning.registry import parse_list
from onnx_lowrank.progress import Progress
from onnx_lowrank.pruning.channel_cuts import KeptChannels
from onnx_lowrank.pruning.cutting import Cutting
from onnx_lowrank.pruning.greedy import Budget
from onnx_lowrank.pruning.pruner import Pruner
from onnx_lowrank.pruning.shared_budget import SHARES, Factorizing, share_budget, with_share
from tests import fixtures_models as fm
from tests.analyses import samples_of

Case = tuple[Pruner, float]


class Split:
    """A net whose budget is to be shared."""

    def __init__(self, passes: str = "spatial_svd,channel_svd,prune_channels") -> None:
        chosen = parse_list(passes)
        self.factorizations: Sequence[Factorization] = chosen.factorizations
        self.pruning: Pruning = chosen.prunings[0]
        source = load(fm.residual_net(16))
        self.data = samples_of(source, {"x": fm.pictures(60)})
        self.prepared = prepare(source, self.data, fm.streaming(), lambda _: None, every_shape=True)
        self.pruner = Pruner(
            self.prepared, Cutting(self.pruning.options, self.pruning), "macs", Progress()
        )

    def measure(
        self, model: Model, graph: Graph, layers: Sequence[PlacedLayer]
    ) -> Mapping[str, tuple[int, ...]]:
        return measured_shapes(model, graph, layers, self.data.validation, fm.ONE_THREAD)

    def share(self, ratio: float, unpruned: float | None = None) -> KeptChannels:
        alone = self.unpruned(ratio) if unpruned is None else unpruned
        return share_budget(self.pruner, self.rest(), self.budget(ratio), alone).kept

    def unpruned(self, ratio: float) -> float:
        try:
            return self.rest().loss({}, self.budget(ratio))
        except BudgetError:
            return math.inf

    def budget(self, ratio: float) -> Budget:
        return Budget(ratio * self.pruner.cost, f"macs={ratio:g}", self.pruner.cost)

    def rest(self) -> Factorizing:
        return Factorizing(
            self.pruner, self.prepared, self.factorizations, self.measure, "macs", self.ask
        )

    def ask(
        self,
        layers: Sequence[PlacedLayer],
        passes: Sequence[Factorization],
        kept: KeptChannels,
        shapes: Mapping[str, tuple[int, ...]],
    ) -> Sequence[Choice]:
        totals = self.prepared.moments.totals
        moments = self.pruner.cuts.moments(kept)
        return make_choices(
            layers, Question(passes, "macs"), moments, shapes, totals, Progress()
        ).choices

    def totals(self, ratio: float) -> list[tuple[float, dict[str, int]]]:
        """Loss and numbers of channels at each share that can be, nothing kept between them."""
        budget, cost = self.budget(ratio), self.pruner.cost
        found: list[tuple[float, dict[str, int]]] = [(self.unpruned(ratio), {})]
        for share in SHARES:
            try:
                limit = cost - share * (cost - budget.limit)
                kept, loss = self.pruner.plan(replace(budget, limit=limit))
                loss += self.rest().loss(kept, budget) if share < 1 else 0.0
            except BudgetError:
                continue
            found.append((loss, {n: len(k) for n, k in kept.items()}))
        return found


@pytest.mark.parametrize("ratio", [0.35, 0.6])
def test_the_share_of_least_loss_is_taken(ratio: float) -> None:
    case = Split()
    found = case.totals(ratio)
    losses = [loss for loss, _ in found]
    assert len(losses) >= 4
    assert max(losses) > 1.05 * min(losses)
    taken = {n: len(k) for n, k in case.share(ratio).items()}
    assert taken == found[losses.index(min(losses))][1]


def test_pruning_must_lose_less_than_factorization_alone() -> None:
    case = Split()
    best = min(loss for loss, _ in case.totals(0.35))
    assert case.share(0.35)
    assert case.share(0.35, 0.99 * best) == {}


@pytest.mark.full
def test_pruning_can_be_had_whatever_factorization_alone_loses() -> None:
    case = Split()
    losses = case.totals(0.6)[1:]
    taken = {n: len(k) for n, k in case.share(0.6, math.inf).items()}
    assert taken == min(losses, key=lambda found: found[0])[1]


def test_where_factorization_cannot_pruning_does_all() -> None:
    """Of Gemm layers alone, svd would do; there are none here."""
    case = Split("svd,prune_channels")
    kept = case.share(0.5)
    alone, _ = case.pruner.plan(case.budget(0.5))
    assert {n: k.tolist() for n, k in kept.items()} == {n: k.tolist() for n, k in alone.items()}


@pytest.mark.parametrize("share", [0.2, 0.6, 1.0])
def test_a_share_that_is_given(share: float) -> None:
    case = Split()
    budget = case.budget(0.5)
    found = with_share(case.pruner, case.rest(), budget, share)
    limit = case.pruner.cost - share * (case.pruner.cost - budget.limit)
    expected, _ = case.pruner.plan(replace(budget, limit=limit))
    assert found.share == share
    assert {n: k.tolist() for n, k in found.kept.items()} == {
        n: k.tolist() for n, k in expected.items()
    }


def test_pruning_makes_more_than_its_share_where_factorization_cannot() -> None:
    case = Split("svd,prune_channels")  # no Gemm is there for svd
    found = with_share(case.pruner, case.rest(), case.budget(0.5), 0.2)
    assert found.share > 0.2
    alone, _ = case.pruner.plan(case.budget(0.5))
    assert {n: len(k) for n, k in found.kept.items()} == {n: len(k) for n, k in alone.items()}


def test_where_nothing_is_to_be_saved_nothing_goes() -> None:
    assert Split().share(1.0) == {}


def test_a_budget_that_no_share_meets() -> None:
    case = Split("svd,prune_channels")
    with pytest.raises(
        BudgetError, match=r"macs=0\.001: these passes cannot go below 0\.\d+ of the"
    ) as caught:
        case.share(0.001)
    reached = float(str(caught.value).split("below ")[1].split()[0])
    assert case.share(reached)
